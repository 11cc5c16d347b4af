//! SIGHUP: certificates and callers are read again. What cannot be read leaves the old in place.
//!
//! New connections get the new certificate, and calls are judged by the new callers at once; connections that are open
//! keep the certificate they began with.

use tokio::signal::unix::{SignalKind, signal};

use super::Guards;

/// Answers SIGHUP for as long as the runtime lives.
///
/// # Errors
/// When the system refuses the handler.
pub fn start(guards: Guards) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    drop(tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // Small local files, read at an operator's wish.
            let tls = guards.tls.as_ref().map_or(Ok(()), |tls| tls.reload());
            for outcome in [tls, guards.access.reload()] {
                if let Err(error) = outcome {
                    tracing::error!("SIGHUP: {error:#}; what was read before stays in force");
                }
            }
        }
    }));
    Ok(())
}
