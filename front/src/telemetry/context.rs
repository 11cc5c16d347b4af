//! Which trace a call belongs to: ids, W3C trace context (<https://www.w3.org/TR/trace-context/>), and the call that the
//! front's thread works on at this moment.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tracer::Call;

/// 16 bytes, not all 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceId(pub [u8; 16]);

/// 8 bytes, not all 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SpanId(pub [u8; 8]);

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl TraceId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random::<u128>().max(1).to_be_bytes())
    }
}

impl SpanId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random::<u64>().max(1).to_be_bytes())
    }
}

/// A span, and the trace that it is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
}

/// What a caller said of its own span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parent {
    /// Its span.
    pub ids: Ids,
    /// Whether it is recorded there.
    pub is_sampled: bool,
}

/// Reads a `traceparent` header; `None`: it is none, and the call begins a trace of its own, as the recommendation says.
pub fn parent_of(header: &str) -> Option<Parent> {
    let mut parts = header.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = u8::from_be_bytes(bytes(version)?);
    // Later versions may say more; the first says exactly this much.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let (trace, span) = (bytes(trace)?, bytes(span)?);
    let [flags] = bytes(flags)?;
    (trace != [0; 16] && span != [0; 8]).then_some(Parent {
        ids: Ids { trace: TraceId(trace), span: SpanId(span) },
        is_sampled: flags & 1 == 1,
    })
}

/// Lower-case hexadecimal digits of exactly so many bytes.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Call>>> = const { RefCell::new(None) };
}

/// `logging.include_trace_context`.
static IN_LINES: AtomicBool = AtomicBool::new(false);

/// Lines say which call they belong to from now on, or do not.
pub fn show_in_lines(shown: bool) {
    IN_LINES.store(shown, Ordering::Relaxed);
}

/// The ids of the call that this thread works on, for a line of the log that shall say them.
pub fn current_ids_for_lines() -> Option<Ids> {
    if IN_LINES.load(Ordering::Relaxed) { current().map(|call| call.ids()) } else { None }
}

/// The call that this thread works on, if that is traced.
pub fn current() -> Option<Arc<Call>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Works on `call` inside `work`.
pub fn within<R>(call: &Arc<Call>, work: impl FnOnce() -> R) -> R {
    /// Puts back what was before, also when `work` panics.
    struct Restore(Option<Arc<Call>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            CURRENT.with(|current| *current.borrow_mut() = before);
        }
    }
    let _restore = Restore(CURRENT.with(|current| current.borrow_mut().replace(Arc::clone(call))));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_headers_when_read_then_only_a_valid_one_names_a_parent() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = parent_of(good).expect("the recommendation's own example");
        assert_eq!(parent.ids.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((parent.ids.span.to_string().as_str(), parent.is_sampled), ("b7ad6b7169203331", true));
        assert!(!parent_of(&good.replace("-01", "-00")).expect("not sampled").is_sampled);
        assert!(parent_of(&format!("cc{}-what-comes", &good[2..])).is_some(), "a later version may say more");
        for bad in [
            "",
            "00",
            "nonsense",
            &good[..54],
            &format!("{good}-00"),
            &format!("ff{}", &good[2..]),
            &good.to_uppercase(),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &good.replace("b7ad6b7169203331", &"0".repeat(16)),
            &good.replace("b7ad", "b7ag"),
        ] {
            assert_eq!(parent_of(bad), None, "{bad}");
        }
    }
}
