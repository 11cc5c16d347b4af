//! Leaves out lines that repeat others, so that a fault which meets every request does not fill the log's disk.
//!
//! In ten seconds a line that says the very same is written five times, and one place in the code writes a thousand
//! lines. What was left out is counted, and told by the first line after those ten seconds.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How long lines are remembered.
const WINDOW: Duration = Duration::from_secs(10);

/// The same line in a window: enough to see that it repeats.
const SAME_MAX: u32 = 5;

/// Lines of one place in a window: what names many payloads, one a line, as a stop does, is not cut short.
const PLACE_MAX: u32 = 1000;

/// Different lines that are remembered: 64 KiB. More are only counted by their place.
const REMEMBERED_MAX: usize = 4096;

/// The limit's own lines, which it lets through.
const OWN: &str = "payload_front::logging::limit";

static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// Lines left out since the start.
pub(super) fn suppressed() -> u64 {
    SUPPRESSED.load(Ordering::Relaxed)
}

/// See the module.
pub(super) struct Limit {
    window: Mutex<Window>,
}

struct Window {
    began: Instant,
    same: HashMap<u64, u32>,
    places: HashMap<usize, Place>,
}

/// One place in the code.
struct Place {
    metadata: &'static Metadata<'static>,
    written: u32,
    left_out: u64,
}

/// Lines of one place that were left out.
struct LeftOut {
    metadata: &'static Metadata<'static>,
    lines: u64,
}

impl Default for Limit {
    fn default() -> Self {
        Self { window: Mutex::new(Window::new(Instant::now())) }
    }
}

impl Window {
    fn new(began: Instant) -> Self {
        Self { began, same: HashMap::new(), places: HashMap::new() }
    }

    /// Whether this line is written, and what a window that is over by now had left out.
    fn admits(
        &mut self,
        now: Instant,
        metadata: &'static Metadata<'static>,
        line: u64,
    ) -> (bool, Vec<LeftOut>) {
        let mut told = Vec::new();
        if now.duration_since(self.began) >= WINDOW {
            let over = std::mem::replace(self, Self::new(now));
            let left_out = over.places.into_values().filter(|place| place.left_out > 0);
            told.extend(left_out.map(|place| LeftOut { metadata: place.metadata, lines: place.left_out }));
        }
        let room = self.same.len() < REMEMBERED_MAX;
        let repeated = match self.same.get_mut(&line) {
            Some(count) => {
                *count += 1;
                *count > SAME_MAX
            }
            None => {
                if room {
                    self.same.insert(line, 1);
                }
                false
            }
        };
        let place = self.places.entry(std::ptr::from_ref(metadata).addr()).or_insert(Place {
            metadata,
            written: 0,
            left_out: 0,
        });
        let written = !repeated && place.written < PLACE_MAX;
        if written {
            place.written += 1;
        } else {
            place.left_out += 1;
        }
        (written, told)
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == OWN {
            return true;
        }
        let mut line = Line(DefaultHasher::new());
        std::ptr::from_ref(metadata).addr().hash(&mut line.0);
        event.record(&mut line);
        let (written, told) = {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            window.admits(Instant::now(), metadata, line.0.finish())
        };
        if !written {
            SUPPRESSED.fetch_add(1, Ordering::Relaxed);
        }
        for LeftOut { metadata, lines } in told {
            let (file, row) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or_default());
            tracing::warn!(
                target: OWN,
                lines,
                place = format_args!("{file}:{row}"),
                "lines were left out in the last seconds, because they repeated others"
            );
        }
        written
    }
}

/// What a line says, as a number.
struct Line(DefaultHasher);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        field.name().hash(&mut self.0);
        // Hashing takes all that is written.
        let _infallible = write!(Hashed(&mut self.0), "{value:?}");
    }
}

struct Hashed<'a>(&'a mut DefaultHasher);

impl fmt::Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Counts the lines that reach it.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _event: &Event<'_>, _context: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted(lines: impl Fn()) -> u64 {
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(Limit::default()).with(count.clone());
        tracing::subscriber::with_default(subscriber, lines);
        count.0.load(Ordering::Relaxed)
    }

    #[test]
    fn given_the_same_line_again_and_again_when_logged_then_it_is_written_a_few_times_and_counted() {
        let before = suppressed();
        let written = counted(|| {
            for _ in 0..100 {
                tracing::warn!(peer = 1, "the same");
            }
        });
        assert_eq!(written, u64::from(SAME_MAX));
        assert!(suppressed() >= before + 95);
    }

    #[test]
    fn given_lines_of_one_place_that_differ_when_logged_then_all_are_written_up_to_the_places_limit() {
        let names = |count: u32| move || (0..count).for_each(|payload| tracing::warn!(payload, "LOST"));
        assert_eq!(counted(names(300)), 300);
        assert_eq!(counted(names(3 * PLACE_MAX)), u64::from(PLACE_MAX));
    }

    #[test]
    fn given_different_places_when_they_say_the_same_then_each_has_its_own_count() {
        assert_eq!(counted(|| (0..SAME_MAX).for_each(|_| tracing::warn!("a"))), u64::from(SAME_MAX));
        let both = || {
            for _ in 0..50 {
                tracing::warn!("a");
                tracing::warn!("a");
            }
        };
        assert_eq!(counted(both), 2 * u64::from(SAME_MAX));
    }

    #[test]
    fn given_a_window_that_is_over_when_the_next_line_comes_then_what_was_left_out_is_told() {
        static PLACE: std::sync::OnceLock<&'static Metadata<'static>> = std::sync::OnceLock::new();
        struct Take;
        impl<S: Subscriber> Layer<S> for Take {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                let _first = PLACE.set(event.metadata());
            }
        }
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Take), || tracing::warn!("x"));
        let place = PLACE.get().expect("logged");
        let start = Instant::now();
        let mut window = Window::new(start);
        let admitted = (0..12).filter(|_| window.admits(start, place, 7).0).count();
        assert_eq!(admitted, SAME_MAX as usize);
        let (written, told) = window.admits(start + WINDOW, place, 7);
        assert!(written, "a new window");
        assert_eq!(told.iter().map(|left_out| left_out.lines).collect::<Vec<_>>(), [7]);
    }
}
