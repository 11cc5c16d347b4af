//! The rows of DESIGN §10 that exist so far, by family, in the order in which they are measured and printed.
//!
//! A family measures its rows and their floors in the same run, in turns; one file each.

mod acquire;
mod arena;
mod batch;
mod boot;
mod catalog;
mod catalog_postgres;
mod deliver;
mod direct;
mod disk;
mod idle;
mod ledger;
mod listing;
mod memory;
mod native;
mod object;
mod python;
mod records;
mod sessions;
mod shard;
mod stall;
mod stall_spill;
mod stored;
mod write;

use crate::context::Context;
use crate::report::{Better, Findings, Spec};

pub use self::memory::probe as memory_probe;

/// Rows that are measured together.
pub struct Family {
    /// What is printed.
    pub specs: &'static [Spec],
    /// Measures those that the context wants.
    ///
    /// An error is the reason of every row that has neither a figure nor a reason of its own.
    pub run: fn(&Context, &mut Findings) -> anyhow::Result<()>,
}

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    FAMILIES.iter().flat_map(|family| family.specs)
}

/// A floor: nothing to reach.
const fn floor(name: &'static str, unit: &'static str, better: Better, what: &'static str) -> Spec {
    Spec { name, what, unit, floor: None, target: None, better, cores_min: 1 }
}

/// Families in order.
pub const FAMILIES: &[Family] = &[
    Family {
        specs: &[
            floor(
                "grpc/echo",
                "µs",
                Better::Lower,
                "a tonic echo of AcquireReadLease's sizes, one connection, one call at a time, p50",
            ),
            floor("grpc/echo-hop", "µs", Better::Lower, "the same; the handler asks a parked thread"),
            Spec {
                floor: Some("grpc/echo-hop"),
                target: Some(1.15),
                ..floor(
                    "grpc/acquire",
                    "µs",
                    Better::Lower,
                    "AcquireReadLease of 1,000 payloads in turn, one connection, one call at a time, p50",
                )
            },
            Spec {
                floor: Some("grpc/echo"),
                target: Some(1.35),
                ..floor(
                    "grpc/acquire-vs-echo",
                    "µs",
                    Better::Lower,
                    "the same figure against the echo without a hop",
                )
            },
        ],
        run: acquire::one_by_one,
    },
    Family {
        specs: &[
            floor(
                "grpc/echo-64",
                "calls/s",
                Better::Higher,
                "the echo with 64 calls in flight on one connection",
            ),
            Spec {
                floor: Some("grpc/echo-64"),
                target: Some(0.85),
                cores_min: 4,
                ..floor(
                    "grpc/acquire-64",
                    "calls/s",
                    Better::Higher,
                    "AcquireReadLease with 64 calls in flight on one connection",
                )
            },
        ],
        run: acquire::many_in_flight,
    },
    Family {
        specs: &[
            floor(
                "grpc/acquire-rate",
                "leases/s",
                Better::Higher,
                "AcquireReadLease, one connection, one call at a time: 1 / p50",
            ),
            Spec {
                floor: Some("grpc/acquire-rate"),
                target: Some(10.0),
                ..floor(
                    "grpc/batch-64",
                    "leases/s",
                    Better::Higher,
                    "BatchAcquire of 64, one connection, one call at a time: 64 / p50",
                )
            },
        ],
        run: batch::run,
    },
    Family {
        specs: &[
            floor(
                "ipc/cacheline",
                "ns",
                Better::Lower,
                "ping-pong of a cache line between two pinned threads, both awake, p50",
            ),
            Spec {
                floor: Some("ipc/cacheline"),
                target: Some(3.0),
                ..floor(
                    "native/lease",
                    "ns",
                    Better::Lower,
                    "acquire + release over a ring, one after another, client and server awake, p50",
                )
            },
            Spec {
                target: Some(2e6),
                ..floor(
                    "native/lease-pipelined",
                    "pairs/s",
                    Better::Higher,
                    "acquire + release over a ring, 64 under way, one client thread",
                )
            },
            Spec {
                floor: Some("ipc/cacheline"),
                target: Some(8.0),
                ..floor(
                    "native/commit",
                    "ns",
                    Better::Lower,
                    "allocate + commit ACCEPTED of 4 KiB in RAM over a ring, one after another, p50",
                )
            },
            Spec {
                floor: Some("ipc/cacheline"),
                target: Some(0.10),
                ..floor(
                    "direct/lease-hot",
                    "ns",
                    Better::Lower,
                    "acquire + release without the server, 1,000 hot payloads",
                )
            },
            Spec {
                floor: Some("ipc/cacheline"),
                target: Some(0.06),
                ..floor("direct/lease-hot-16", "ns", Better::Lower, "the same, 16 with one fence, a lease")
            },
            Spec {
                floor: Some("ipc/cacheline"),
                target: Some(0.50),
                ..floor(
                    "direct/lease-1e7",
                    "ns",
                    Better::Lower,
                    "acquire + release without the server, random among 10^7, index on 2 MiB pages, p50",
                )
            },
            floor("direct/lease-1e7-4k", "ns", Better::Lower, "the same, index on 4 KiB pages"),
            floor("direct/lease-1e7-16", "ns", Better::Lower, "on 2 MiB pages, 16 with one fence, a lease"),
            Spec {
                target: Some(20.0),
                ..floor(
                    "direct/reclaim",
                    "ns",
                    Better::Lower,
                    "a scan of the cells of 64 sessions, for each of 256 blocks",
                )
            },
        ],
        run: |context, findings| {
            let direct = direct::run(context, findings);
            match ["native/lease", "native/lease-pipelined", "native/commit"]
                .iter()
                .any(|row| context.wants(row))
            {
                true => direct.and(native::awake(context, findings)),
                false => direct,
            }
        },
    },
    Family {
        specs: &[
            floor(
                "ipc/eventfd",
                "µs",
                Better::Lower,
                "ping-pong through eventfds between two pinned threads that sleep, p50",
            ),
            Spec {
                floor: Some("ipc/eventfd"),
                target: Some(2.5),
                ..floor(
                    "native/lease-asleep",
                    "µs",
                    Better::Lower,
                    "acquire + release over a ring, the server asleep, p50",
                )
            },
        ],
        run: native::asleep,
    },
    Family {
        specs: &[
            floor(
                "native/first-byte-4k",
                "µs",
                Better::Lower,
                "acquire and read the first byte of a payload of 4 KiB that another session wrote, p50",
            ),
            Spec {
                floor: Some("native/first-byte-4k"),
                target: Some(1.25),
                ..floor("native/first-byte", "µs", Better::Lower, "the same, of 64 MiB")
            },
        ],
        run: sessions::first_bytes,
    },
    Family {
        specs: &[Spec {
            target: Some(2.0),
            ..floor(
                "native/fairness-64",
                "x",
                Better::Lower,
                "pairs of the luckiest of 64 sessions that lease at once, over those of the unluckiest",
            )
        }],
        run: sessions::fairness,
    },
    Family {
        specs: &[Spec {
            target: Some(5.0),
            ..floor(
                "python/lease",
                "µs",
                Better::Lower,
                "acquire + read + release of a numpy view in Python, client and server awake, p50",
            )
        }],
        run: python::lease,
    },
    Family {
        specs: &[Spec {
            target: Some(5e6),
            ..floor(
                "shard/lease",
                "pairs/s",
                Better::Higher,
                "acquire + release inside one shard, random among 10,000 payloads",
            )
        }],
        run: shard::run,
    },
    Family {
        specs: &[Spec {
            target: Some(100.0),
            ..floor(
                "ledger/allocate-free",
                "ns",
                Better::Lower,
                "the books of one allocation and its end: account, slot, list",
            )
        }],
        run: ledger::run,
    },
    Family {
        specs: &[Spec {
            target: Some(100.0),
            ..floor(
                "ledger/arena",
                "ns",
                Better::Lower,
                "the books of one block that is placed in an arena slab and freed",
            )
        }],
        run: arena::run,
    },
    Family {
        specs: &[
            floor(
                "memory/copy",
                "GiB/s",
                Better::Higher,
                "memcpy of 64 MiB into each of 16 areas of this process",
            ),
            Spec {
                floor: Some("memory/copy"),
                target: Some(0.9),
                ..floor(
                    "write/warm",
                    "GiB/s",
                    Better::Higher,
                    "the same into 16 arena slabs whose pages the server touched ahead, as their writer",
                )
            },
        ],
        run: write::run,
    },
    Family {
        specs: &[
            floor(
                "disk/write",
                "MB/s",
                Better::Higher,
                "raw O_DIRECT io_uring, 1 MiB x 8, over files of 64 MiB that exist, one fdatasync each",
            ),
            Spec {
                floor: Some("disk/write"),
                target: Some(0.90),
                ..floor(
                    "disk/spill-64MiB",
                    "MB/s",
                    Better::Higher,
                    "Spill(BLOCKING, fsync) of payloads of 64 MiB from RAM to disk, 4 in flight",
                )
            },
            floor("disk/read", "MB/s", Better::Higher, "raw O_DIRECT io_uring reads of the same files"),
            Spec {
                floor: Some("disk/read"),
                target: Some(0.95),
                ..floor(
                    "disk/promote-64MiB",
                    "MB/s",
                    Better::Higher,
                    "Promote of the same payloads back to RAM, 4 in flight",
                )
            },
        ],
        run: disk::run_large,
    },
    Family {
        specs: &[
            floor(
                "disk/write-1MiB",
                "MB/s",
                Better::Higher,
                "raw O_DIRECT io_uring, 1 MiB x 8, over files that exist, one fdatasync for 16 MiB",
            ),
            Spec {
                floor: Some("disk/write-1MiB"),
                target: Some(0.90),
                ..floor(
                    "disk/spill-1MiB",
                    "MB/s",
                    Better::Higher,
                    "Spill(BLOCKING, fsync) of payloads of 1 MiB, 16 a call, 4 calls in flight",
                )
            },
        ],
        run: disk::run_1mib,
    },
    Family {
        specs: &[
            floor(
                "disk/write-64KiB",
                "MB/s",
                Better::Higher,
                "raw O_DIRECT io_uring, 64 KiB x 64, over files that exist, one fdatasync for 4 MiB",
            ),
            Spec {
                floor: Some("disk/write-64KiB"),
                target: Some(0.80),
                ..floor(
                    "disk/spill-64KiB",
                    "MB/s",
                    Better::Higher,
                    "Spill(BLOCKING, fsync) of payloads of 64 KiB, 64 a call, 4 calls in flight",
                )
            },
        ],
        run: disk::run_64kib,
    },
    Family {
        specs: &[
            floor(
                "object/put-64MiB",
                "MB/s",
                Better::Higher,
                "the object_store crate alone: objects of 64 MiB in parts of 8 MiB to SeaweedFS, 8 objects at a time",
            ),
            Spec {
                floor: Some("object/put-64MiB"),
                target: Some(0.9),
                ..floor(
                    "object/spill-64MiB",
                    "MB/s",
                    Better::Higher,
                    "the same through the object store's driver, from shared memory, hashed, journaled, with sidecars",
                )
            },
            floor(
                "object/get-64MiB",
                "MB/s",
                Better::Higher,
                "the crate alone fetches them into memory, 8 at a time",
            ),
            Spec {
                floor: Some("object/get-64MiB"),
                target: Some(0.9),
                ..floor(
                    "object/promote-64MiB",
                    "MB/s",
                    Better::Higher,
                    "the same through the driver, into shared memory, hashed",
                )
            },
        ],
        run: object::run,
    },
    Family {
        specs: &[
            floor(
                "catalog/sqlite-batch",
                "rows/s",
                Better::Higher,
                "plain inserts of the same rows, as many a transaction as the writer forms",
            ),
            Spec {
                floor: Some("catalog/sqlite-batch"),
                target: Some(0.7),
                ..floor(
                    "catalog/commit-sqlite",
                    "rows/s",
                    Better::Higher,
                    "512 concurrent commits through the catalog writer",
                )
            },
        ],
        run: catalog::run,
    },
    Family {
        specs: &[
            floor(
                "catalog/postgres-batch",
                "rows/s",
                Better::Higher,
                "plain UNNEST inserts of the same rows, as many a transaction as the writer forms",
            ),
            Spec {
                floor: Some("catalog/postgres-batch"),
                target: Some(0.5),
                ..floor(
                    "catalog/commit-postgres",
                    "rows/s",
                    Better::Higher,
                    "512 concurrent commits through the catalog writer into PostgreSQL",
                )
            },
        ],
        run: catalog_postgres::run,
    },
    Family {
        specs: &[Spec {
            target: Some(100_000.0),
            ..floor(
                "stream/append",
                "entries/s",
                Better::Higher,
                "appends of 100 entries, 64 outstanding, through the catalog writer into SQLite",
            )
        }],
        run: records::append,
    },
    Family {
        specs: &[
            floor(
                "stream/echo-and-transaction",
                "µs",
                Better::Lower,
                "one echo of a call and one transaction of one row, synchronous FULL, one after the other",
            ),
            Spec {
                floor: Some("stream/echo-and-transaction"),
                target: Some(3.0),
                ..floor(
                    "stream/deliver",
                    "µs",
                    Better::Lower,
                    "from the call of Append to the entry's arrival at a subscriber, p50",
                )
            },
        ],
        run: deliver::run,
    },
    Family {
        specs: &[Spec {
            target: Some(50.0),
            ..floor(
                "lineage/walk-1e4",
                "ms",
                Better::Lower,
                "GetLineage's walk over a chain of 10,000 edges in SQLite",
            )
        }],
        run: records::lineage,
    },
    Family {
        specs: &[Spec {
            target: Some(50.0),
            ..floor(
                "lineage/10k-postgres",
                "ms",
                Better::Lower,
                "GetLineage's walk over a chain of 10,000 edges in PostgreSQL",
            )
        }],
        run: records::lineage_postgres,
    },
    Family {
        specs: &[Spec {
            target: Some(1.0),
            ..floor(
                "idle/cpu",
                "% of a core",
                Better::Lower,
                "CPU time of an idle server with 64 idle gRPC connections and 64 idle native sessions",
            )
        }],
        run: idle::run,
    },
    Family {
        specs: &[Spec {
            target: Some(1000.0),
            ..floor(
                "stall/turn",
                "µs",
                Better::Lower,
                "the longest shard turn, on the CPU, while 1 GiB is spilled and promoted beside 10,000 leases/s",
            )
        }],
        run: stall::run,
    },
    Family {
        specs: &[
            floor(
                "stall/lease-alone",
                "µs",
                Better::Lower,
                "AcquireReadLease of 1,000 payloads in turn, one call at a time, p99, and nothing else going on",
            ),
            Spec {
                floor: Some("stall/lease-alone"),
                target: Some(2.0),
                cores_min: 4,
                ..floor(
                    "stall/spill",
                    "µs",
                    Better::Lower,
                    "the same p99 while the server spills at full rate",
                )
            },
        ],
        run: stall_spill::run,
    },
    Family {
        specs: &[Spec {
            target: Some(320.0),
            ..floor(
                "memory/payload",
                "bytes",
                Better::Lower,
                "resident memory of a shard for each payload, with 10^6 of them",
            )
        }],
        run: memory::run,
    },
    Family {
        specs: &[
            Spec {
                target: Some(3.0),
                ..floor(
                    "boot/1e6",
                    "s",
                    Better::Lower,
                    "from the start of the process to a server that answers, with 10^6 payloads on disk",
                )
            },
            Spec {
                target: Some(2.0),
                ..floor(
                    "scale/list-1e6",
                    "ms",
                    Better::Lower,
                    "ListPayloads of a page of 50 among them, at its slowest place, p50",
                )
            },
            floor("scale/stats-empty", "µs", Better::Lower, "Stats of a server without payloads, p50"),
            Spec {
                floor: Some("scale/stats-empty"),
                target: Some(1.5),
                ..floor("scale/stats-1e6", "µs", Better::Lower, "Stats of a server with 10^6 payloads, p50")
            },
        ],
        run: boot::run,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_all_rows_when_listed_then_names_differ_and_every_floor_is_a_row_of_the_same_family() {
        let mut names: Vec<_> = all().map(|spec| spec.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for family in FAMILIES {
            for floor in family.specs.iter().filter_map(|spec| spec.floor) {
                assert!(family.specs.iter().any(|spec| spec.name == floor), "{floor}");
            }
        }
    }
}
