//! `server.*`: where gRPC is served, with which certificate, and who may call; and how long a client may take.

use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::resolve::{absolute, required_text};
use super::setting::{self, Setting};
use super::settings::Settings;
use super::tree::{BindAddress, ServerConfig, TlsConfig};

impl ServerConfig {
    /// At this address, without TLS and for everybody.
    pub fn plain(bind_address: BindAddress) -> Self {
        Self { bind_address, require_tls: false, tls: None, access_file: None }
    }
}

pub(super) fn resolve(
    settings: &mut Settings,
    warnings: &mut Vec<String>,
) -> Result<ServerConfig, ConfigError> {
    let text = required_text(settings, "server.bind_address");
    let bind_address = setting::address(&text).expect("the table's kind has checked it");
    let require_tls = settings.flag("server.require_tls");
    let tls = tls(settings)?;
    let access_file = file(settings, "server.access_file")?;
    if !bind_address.is_loopback() && tls.is_none() && !require_tls {
        let exposed = match &access_file {
            None => "anybody who reaches this port can read and delete every payload",
            Some(_) => "whoever sees the traffic can read tokens and use them",
        };
        warnings.push(format!(
            "SERVING OTHER HOSTS WITHOUT TLS on {bind_address}: {exposed}; set server.tls.certificate and \
             server.tls.private_key, or bind 127.0.0.1"
        ));
    }
    Ok(ServerConfig { bind_address, require_tls, tls, access_file })
}

fn tls(settings: &mut Settings) -> Result<Option<TlsConfig>, ConfigError> {
    const CERTIFICATE: &str = "server.tls.certificate";
    const KEY: &str = "server.tls.private_key";
    const AUTHORITY: &str = "server.tls.client_ca";
    let certificate = file(settings, CERTIFICATE)?;
    let private_key = file(settings, KEY)?;
    let client_ca = file(settings, AUTHORITY)?;
    let is_client_optional = required_text(settings, "server.tls.client_certificates") == "optional";
    match (certificate, private_key) {
        (Some(certificate), Some(private_key)) => {
            Ok(Some(TlsConfig { certificate, private_key, client_ca, is_client_optional }))
        }
        (None, None) if client_ca.is_some() => Err(ConfigError::refused(
            AUTHORITY,
            "certificates of clients come over TLS only; set server.tls.certificate and server.tls.private_key too",
        )),
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::refused(KEY, "it is not set, and a certificate is; set both")),
        (None, Some(_)) => {
            Err(ConfigError::refused(CERTIFICATE, "it is not set, and a private key is; set both"))
        }
    }
}

/// The file that a key names, made absolute and written back.
fn file(settings: &mut Settings, path: &str) -> Result<Option<PathBuf>, ConfigError> {
    let Some(text) = settings.text(path) else { return Ok(None) };
    let chosen = absolute(path, Path::new(&text))?;
    settings.set(path, Setting::Text(chosen.display().to_string()));
    Ok(Some(chosen))
}

/// A time that a client is given: at least a moment, at most a day.
pub(super) fn patience(settings: &Settings, path: &str) -> Result<u64, ConfigError> {
    let milliseconds = settings.millis(path);
    match (10..=86_400_000).contains(&milliseconds) {
        true => Ok(milliseconds),
        false => Err(ConfigError::refused(path, "it must be from 10ms to 1d")),
    }
}
