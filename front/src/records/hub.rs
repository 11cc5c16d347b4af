//! Who follows which stream, and the knock at their doors when it changes.
//!
//! ```text
//! writer's thread, after a commit --changed(stream)--> watch channel of the stream --wakes--> its subscribers
//! a look at the shared catalog ---looked(stream, end)--^   (only what has changed since the last look)
//! ```
//!
//! A knock carries nothing: subscribers read what is new from the catalog, so a knock that falls together with another,
//! or with a read, loses nothing. A listener is registered before it reads for the first time, and an append knocks after
//! its commit: whatever that read did not see knocks later. Streams that nobody follows take no room here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use payload_types::PayloadError;
use payload_types::record::StreamName;
use tokio::sync::watch;

use crate::admission::{Gate, Permit};

/// Subscriptions of one server. Each holds what it last read: 1,024 x 256 entries (the default of `max_inflight`) of
/// about 200 bytes are 50 MiB; at worst, when every entry is huge, 1,024 x 4 MiB.
pub const SUBSCRIPTIONS_MAX: usize = 1024;

/// See the module.
pub struct Hub {
    doors: Mutex<HashMap<StreamName, Door>>,
    stopping: watch::Sender<bool>,
    gate: Gate,
}

/// A stream that somebody follows.
#[derive(Default)]
struct Door {
    knocker: watch::Sender<()>,
    /// What the last look found: its incarnation and end, or that there is none. `None`: nobody has looked.
    seen: Option<Option<(u64, u64)>>,
}

impl Door {
    fn knock(&self) {
        // Fails when nobody listens any more.
        let _nobody = self.knocker.send(());
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            doors: Mutex::default(),
            stopping: watch::Sender::new(false),
            gate: Gate::new(SUBSCRIPTIONS_MAX),
        }
    }
}

impl Hub {
    /// The stream was appended to, or deleted. May be called from any thread; never blocks for long.
    pub fn changed(&self, stream: &StreamName) {
        if let Some(door) = self.doors().get(stream) {
            door.knock();
        }
    }

    /// The streams that somebody follows now: at most [`SUBSCRIPTIONS_MAX`].
    pub fn followed(&self) -> Vec<StreamName> {
        self.doors().keys().cloned().collect()
    }

    /// Where a stream ended at a look into the catalog, as (incarnation, end); `None`: there was none. Its subscribers are
    /// told when that is not where it ended at the look before, or when there was none: what the first look saw may have
    /// been appended after a subscriber had read.
    pub fn looked(&self, stream: &StreamName, end: Option<(u64, u64)>) {
        if let Some(door) = self.doors().get_mut(stream)
            && door.seen != Some(end)
        {
            door.seen = Some(end);
            door.knock();
        }
    }

    /// True once [`Hub::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Listens for changes of a stream, from now on.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when [`SUBSCRIPTIONS_MAX`] listen.
    pub fn listen(self: &Arc<Self>, stream: &StreamName) -> Result<Listener, PayloadError> {
        let permit = self.gate.enter().ok_or_else(|| {
            PayloadError::exhausted(format!(
                "{SUBSCRIPTIONS_MAX} subscriptions are open, which is the most that this server holds; end one, or follow the stream with Read"
            ))
        })?;
        let knocks = {
            let mut doors = self.doors();
            match doors.get(stream) {
                Some(door) => door.knocker.subscribe(),
                None => doors.entry(stream.clone()).or_default().knocker.subscribe(),
            }
        };
        Ok(Listener {
            hub: Arc::clone(self),
            stream: stream.clone(),
            knocks,
            stopping: self.stopping.subscribe(),
            _permit: permit,
        })
    }

    /// Ends all subscriptions, those to come as well.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// True once the server stops: for other streams that end then.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// How many listen.
    pub fn subscriptions(&self) -> usize {
        self.gate.taken()
    }

    fn doors(&self) -> MutexGuard<'_, HashMap<StreamName, Door>> {
        // A map of channels is whole whenever the lock is free.
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One subscriber's ear.
pub struct Listener {
    hub: Arc<Hub>,
    stream: StreamName,
    knocks: watch::Receiver<()>,
    stopping: watch::Receiver<bool>,
    _permit: Permit,
}

impl Listener {
    /// Which stream.
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// True once the server stops.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Forgets the knocks until now: what they told of is about to be read.
    pub fn forget(&mut self) {
        self.knocks.mark_unchanged();
    }

    /// Waits for a knock, or for the server's stop.
    pub async fn wait(&mut self) {
        // The senders live as long as this listener: the hub's map keeps the one, the hub the other.
        tokio::select! {
            _ = self.knocks.changed() => {}
            _ = self.stopping.wait_for(|stopping| *stopping) => {}
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut doors = self.hub.doors();
        // This one is still counted.
        if doors.get(&self.stream).is_some_and(|door| door.knocker.receiver_count() <= 1) {
            doors.remove(&self.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use payload_types::ErrorKind;

    use super::*;

    fn stream(name: &str) -> StreamName {
        StreamName { namespace: String::new(), name: name.to_owned() }
    }

    async fn hears(listener: &mut Listener) -> bool {
        tokio::time::timeout(Duration::from_millis(20), listener.wait()).await.is_ok()
    }

    #[tokio::test]
    async fn given_listeners_when_their_stream_changes_then_they_alone_hear_it() {
        let hub = Arc::new(Hub::default());
        let (mut one, mut two) =
            (hub.listen(&stream("a")).expect("room"), hub.listen(&stream("a")).expect("room"));
        let mut other = hub.listen(&stream("b")).expect("room");
        hub.changed(&stream("a"));
        hub.changed(&stream("nobody's"));
        assert!(hears(&mut one).await && hears(&mut two).await && !hears(&mut other).await);
        assert!(!hears(&mut one).await, "a knock is heard once");
        hub.changed(&stream("a"));
        two.forget();
        assert!(hears(&mut one).await && !hears(&mut two).await);
    }

    #[tokio::test]
    async fn given_looks_at_a_shared_catalog_when_something_moved_then_its_listeners_hear_it_once() {
        let hub = Arc::new(Hub::default());
        let mut listener = hub.listen(&stream("a")).expect("room");
        assert_eq!(hub.followed(), [stream("a")]);
        // The first look may see what came after the listener's read.
        for (end, is_news) in [
            (Some((1, 5)), true),
            (Some((1, 5)), false),
            (Some((1, 6)), true),
            (None, true),
            (None, false),
            (Some((2, 0)), true),
        ] {
            hub.looked(&stream("a"), end);
            hub.looked(&stream("nobody's"), end);
            assert_eq!(hears(&mut listener).await, is_news, "{end:?}");
        }
        drop(listener);
        assert!(hub.followed().is_empty());
    }

    #[tokio::test]
    async fn given_listeners_that_leave_when_the_last_is_gone_then_nothing_of_the_stream_is_kept() {
        let hub = Arc::new(Hub::default());
        let (one, mut two) =
            (hub.listen(&stream("a")).expect("room"), hub.listen(&stream("a")).expect("room"));
        drop(one);
        hub.changed(&stream("a"));
        assert!(hears(&mut two).await);
        drop(two);
        assert!(hub.doors().is_empty());
        assert_eq!(hub.subscriptions(), 0);
    }

    #[tokio::test]
    async fn given_a_stop_when_listening_then_all_hear_it_and_who_comes_later_too() {
        let hub = Arc::new(Hub::default());
        let mut early = hub.listen(&stream("a")).expect("room");
        hub.stop();
        let mut late = hub.listen(&stream("a")).expect("room");
        assert!(hears(&mut early).await && hears(&mut late).await);
        assert!(early.is_stopping() && late.is_stopping());
    }

    #[test]
    fn given_as_many_listeners_as_may_be_when_one_more_comes_then_refused_until_one_leaves() {
        let hub = Arc::new(Hub::default());
        let mut all: Vec<Listener> =
            (0..SUBSCRIPTIONS_MAX).map(|_| hub.listen(&stream("a")).expect("room")).collect();
        let refused = hub.listen(&stream("a")).err().expect("full");
        assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
        all.pop();
        hub.listen(&stream("a")).expect("room again");
    }
}
