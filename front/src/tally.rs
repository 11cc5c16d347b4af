//! Counts calls by RPC and by the code they were answered with, and how long they took.
//!
//! Two readings of the clock and three atomic additions a call, on the front's thread. A call whose client hung up before the answer counts as
//! CANCELLED. Calls of health and reflection are not counted, nor are paths that name no service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tonic::Code;
use tonic::codegen::http::HeaderMap;

use crate::metrics::histogram::{Distribution, Histogram};
use crate::telemetry::tracer::{Call as TracedCall, Tracer};

/// The RPCs of our services, the busiest first: a call is looked up here. Their names differ across services.
pub const RPCS: [&str; 39] = [
    "AcquireReadLease",
    "ReleaseLease",
    "ResolveSnapshot",
    "AllocatePayload",
    "CommitPayload",
    "Delete",
    "Promote",
    "Spill",
    "Prefetch",
    "Pin",
    "Unpin",
    "ListPayloads",
    "Append",
    "Read",
    "Commit",
    "GetCommitted",
    "GetRange",
    "Subscribe",
    "CreateStream",
    "DeleteStream",
    "UpdatePayloadMetadata",
    "AppendPayloadMetadataEvent",
    "AddLineage",
    "GetLineage",
    "ImportPayload",
    "Stats",
    "ListHolders",
    "ExplainPayload",
    "Scrub",
    "SweepObjects",
    "GetPayloadMetadata",
    "ListPayloadMetadataEvents",
    "ListStreams",
    "FindPayloads",
    "BatchAcquire",
    "BatchRelease",
    "BatchAllocate",
    "BatchCommit",
    "LeaseSession",
];

/// gRPC codes are 0 to 16.
const CODES: usize = 17;

/// How often each RPC was answered with each code. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counts: Arc<Counts>,
    /// `None`: no call is traced.
    tracer: Option<Arc<Tracer>>,
}

#[derive(Debug)]
struct Counts {
    answers: [[AtomicU64; CODES]; RPCS.len()],
    latencies: [Histogram; RPCS.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            answers: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            latencies: std::array::from_fn(|_| Histogram::default()),
        }
    }
}

/// A call that is being answered. Dropped without an answer it counts as CANCELLED.
#[derive(Debug)]
pub struct Call {
    tally: Tally,
    rpc: usize,
    arrived: Instant,
    is_counted: bool,
    traced: Option<Arc<TracedCall>>,
}

impl Tally {
    /// A tally whose calls are traced as `tracer` says.
    pub fn traced(tracer: Option<Arc<Tracer>>) -> Self {
        Self { tracer, ..Self::default() }
    }

    /// A call of the method at the end of this path; `None` when it names none of our RPCs.
    pub fn call(&self, path: &str, headers: &HeaderMap) -> Option<Call> {
        let method = path.rsplit_once('/')?.1;
        let rpc = RPCS.iter().position(|name| *name == method)?;
        let traced = self.tracer.as_ref().and_then(|tracer| tracer.begin(RPCS[rpc], headers));
        Some(Call { tally: self.clone(), rpc, arrived: Instant::now(), is_counted: false, traced })
    }

    /// Every pair that was counted: RPC, code, how often.
    pub fn counted(&self) -> impl Iterator<Item = (&'static str, Code, u64)> {
        RPCS.iter().zip(&self.counts.answers).flat_map(|(rpc, codes)| {
            codes.iter().enumerate().filter_map(move |(code, count)| {
                let count = count.load(Ordering::Relaxed);
                (count > 0).then(|| (*rpc, Code::from(code as i32), count))
            })
        })
    }

    /// How long the calls of each RPC took that was called.
    pub fn latencies(&self) -> Vec<(&'static str, Distribution)> {
        let read = |(rpc, latency): (&&'static str, &Histogram)| Some((*rpc, latency.read()?));
        RPCS.iter().zip(&self.counts.latencies).filter_map(read).collect()
    }
}

impl Call {
    /// Its trace, where it has one.
    pub fn trace(&self) -> Option<Arc<TracedCall>> {
        self.traced.clone()
    }

    /// It was answered with these headers: an error's code is among them, success comes later, in the trailers.
    pub fn answered(mut self, headers: &HeaderMap) {
        let code = headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        self.count(code);
    }

    fn count(&mut self, code: Code) {
        self.is_counted = true;
        let counts = &self.tally.counts;
        counts.answers[self.rpc][code as usize].fetch_add(1, Ordering::Relaxed);
        counts.latencies[self.rpc].observe(self.arrived.elapsed());
        if let Some(traced) = &self.traced {
            traced.end(code);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_counted {
            self.count(Code::Cancelled);
        }
    }
}

/// A code as gRPC's own documents write it.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(tally: &Tally) -> Vec<(&'static str, Code, u64)> {
        tally.counted().collect()
    }

    #[test]
    fn given_calls_when_answered_or_dropped_then_each_counts_once_under_its_code() {
        let tally = Tally::default();
        let call = |tally: &Tally| {
            tally
                .call("/payload.manager.services.v1.PayloadAdminService/Stats", &HeaderMap::new())
                .expect("ours")
        };
        let mut refused = HeaderMap::new();
        refused.insert("grpc-status", "5".parse().expect("a header"));
        call(&tally).answered(&HeaderMap::new());
        call(&tally).answered(&HeaderMap::new());
        call(&tally).answered(&refused);
        drop(call(&tally));
        let expected = [("Stats", Code::Ok, 2), ("Stats", Code::Cancelled, 1), ("Stats", Code::NotFound, 1)];
        assert_eq!(counted(&tally), expected);
        let latencies = tally.latencies();
        assert_eq!((latencies.len(), latencies[0].0, latencies[0].1.count()), (1, "Stats", 4));
    }

    #[test]
    fn given_a_path_of_nobody_when_called_then_nothing_counts() {
        let tally = Tally::default();
        for path in ["/grpc.health.v1.Health/Check", ""] {
            assert!(tally.call(path, &HeaderMap::new()).is_none(), "{path}");
        }
        assert!(counted(&tally).is_empty());
    }

    #[test]
    fn given_the_compiled_contract_when_searched_then_every_rpc_is_in_it() {
        for rpc in RPCS {
            // A name as protobuf encodes it: field 1 of the method, its length, its letters.
            let encoded = [&[0x0A, rpc.len() as u8], rpc.as_bytes()].concat();
            let found =
                payload_wire::FILE_DESCRIPTOR_SET.windows(encoded.len()).any(|window| window == encoded);
            assert!(found, "{rpc}");
        }
    }
}
