//! Random sequences of rows, records, sweeps and restarts: every backend gives the same answers as the memory.

use payload_catalog::Change;
use payload_types::find::{FindOrder, IdSpan, Scalar};
use payload_types::record::{
    MetadataMode, RecordChange, RecordQuery, StreamItem, StreamLimits, StreamName, Timestamp,
};
use payload_types::{Epoch, Health, PayloadRow, PayloadState, Version, WallMs};

use super::find::{field, filter, query};
use super::{Desk, at, edge, item, metadata};
use crate::backends::{Backend, Memory};
use crate::rows::{key, put, remove, row};

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }
}

/// Few, so that they meet.
const PAYLOADS: u64 = 8;

struct Plan {
    rng: Rng,
    now: u64,
    version: u64,
}

impl Plan {
    fn payload(&mut self) -> u64 {
        self.rng.below(PAYLOADS)
    }

    fn stream(&mut self) -> StreamName {
        let (namespace, name) = self.rng.one(&[("", "a"), ("", "b"), ("a", "a")]);
        StreamName { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn now(&mut self) -> WallMs {
        // Mostly forward.
        self.now =
            if self.rng.below(20) == 0 { self.now.saturating_sub(30) } else { self.now + self.rng.below(10) };
        at(self.now)
    }

    fn row(&mut self) -> PayloadRow {
        let mut row = row(self.payload());
        self.version += 1;
        (row.epoch, row.version) = (Epoch(1), Version(self.version));
        row.state = self.rng.one(&[
            PayloadState::Active,
            PayloadState::Active,
            PayloadState::Allocated,
            PayloadState::Expired,
        ]);
        row.health = self.rng.one(&[Health::Good, Health::Good, Health::Good, Health::Damaged, Health::Lost]);
        row.expires_at = (self.rng.below(4) == 0).then(|| at(self.now + self.rng.below(100)));
        row
    }

    fn items(&mut self) -> Vec<StreamItem> {
        let count = 1 + self.rng.below(6);
        (0..count)
            .map(|_| {
                let mut item = item(self.payload());
                if self.rng.below(3) == 0 {
                    item.event_time =
                        Some(Timestamp { seconds: self.rng.below(9) as i64 - 4, nanoseconds: 5 });
                    item.tags = vec![("k".to_owned(), "v".repeat(self.rng.below(300) as usize))];
                }
                item
            })
            .collect()
    }

    /// A change; now and then with one of a few ids, or the same request under one that is known.
    fn record(&mut self) -> RecordChange {
        let at = self.now();
        let change = self.change();
        if self.rng.below(6) > 0
            || !matches!(
                change,
                RecordChange::StreamAppend { .. }
                    | RecordChange::MetadataUpdate { .. }
                    | RecordChange::MetadataNote { .. }
            )
        {
            return change;
        }
        let (id, request) = (self.rng.one(&["a", "b", "c"]).to_owned(), self.rng.below(2));
        // An id names its method, too, so that one is never another kind of call.
        let id = format!("{:?} {id}", std::mem::discriminant(&change));
        RecordChange::Once { id, request, at, change: Box::new(change) }
    }

    fn change(&mut self) -> RecordChange {
        let at = self.now();
        let number = self.payload();
        match self.rng.below(20) {
            0..4 => RecordChange::MetadataUpdate {
                key: key(number),
                mode: self.rng.one(&[MetadataMode::Replace, MetadataMode::Merge]),
                metadata: metadata(
                    self.rng.one(&[
                        &br#"{"a":1,"b":{"c":2}}"#[..],
                        br#"{"b":{"c":null},"d":[1]}"#,
                        br#"{"a":1.0,"tags":["k"]}"#,
                        br#"{"a":null,"tags":{"k":"v"}}"#,
                        b"",
                        b"x",
                    ]),
                    self.rng.one(&["", "s"]),
                ),
                actor: "a".to_owned(),
                reason: self.rng.one(&["", "r\0"]).to_owned(),
                at,
            },
            4..6 => RecordChange::MetadataNote {
                key: key(number),
                metadata: metadata(b"note", ""),
                source: "s".to_owned(),
                version: "v".to_owned(),
                at,
            },
            6..10 => {
                let count = self.rng.below(3);
                let edges = (0..count)
                    .map(|_| {
                        let mut edge = edge(number, self.rng.below(PAYLOADS), self.rng.one(&["x", "y"]));
                        edge.parameters = vec![self.rng.below(256) as u8];
                        edge
                    })
                    .collect();
                RecordChange::LineageAdd { child: key(number), edges, at }
            }
            10 => RecordChange::StreamCreate {
                stream: self.stream(),
                limits: StreamLimits {
                    entries_max: self.rng.one(&[None, Some(0), Some(5), Some(30)]),
                    age_ms_max: self.rng.one(&[None, Some(0), Some(50)]),
                    retains_payloads: self.rng.below(3) == 0,
                },
                at,
            },
            11 if self.rng.below(3) == 0 => RecordChange::StreamDelete { stream: self.stream() },
            11..16 => {
                let held = self.rng.below(3) > 0;
                RecordChange::StreamAppend { stream: self.stream(), items: self.items(), held, at }
            }
            16 if self.rng.below(4) == 0 => RecordChange::GroupRemove {
                stream: self.stream(),
                group: self.rng.one(&["g", "h"]).to_owned(),
            },
            16..18 => RecordChange::StreamCommit {
                stream: self.stream(),
                group: self.rng.one(&["g", "h"]).to_owned(),
                offset: self.rng.below(20),
                at,
            },
            _ => RecordChange::Sweep { at },
        }
    }

    fn batch(&mut self) -> Vec<Change> {
        let count = 1 + self.rng.below(6);
        (0..count)
            .map(|_| match self.rng.below(8) {
                0..2 => put(self.row()),
                2 => remove(self.payload(), 1),
                _ => self.record().into(),
            })
            .collect()
    }

    fn query(&mut self) -> RecordQuery {
        let (key, at) = (key(self.payload()), at(self.now));
        match self.rng.below(9) {
            7.. => {
                let ids = [self.payload(), self.payload()].map(super::id);
                let order = self.rng.one(&[FindOrder::NewestFirst, FindOrder::OldestFirst]);
                let span = self.rng.one(&[IdSpan::ALL, IdSpan { low: ids[0], high: ids[1] }]);
                let fields = [field(&["a"], Scalar::number("1")), field(&["b", "c"], Scalar::number("2.0"))];
                let fields = &fields[self.rng.below(3) as usize..];
                let tags = self.rng.one(&[&[][..], &[("k", "")], &[("k", "v")]]);
                query(&filter(self.rng.one(&["", "s"]), fields, tags), span, order)
            }
            0 => RecordQuery::Metadata { key, at },
            1 => RecordQuery::MetadataEvents { key, after: self.rng.below(4), entries_max: 3, at },
            2 => RecordQuery::Lineage {
                key,
                upstream: self.rng.below(2) == 0,
                depth_max: self.rng.below(3) as u32,
                at,
            },
            3 => RecordQuery::Stream(self.stream()),
            4 if self.rng.below(2) == 0 => RecordQuery::Floors { after: self.rng.below(3), streams_max: 2 },
            4 => RecordQuery::Streams { after: None, entries_max: 2 },
            5 if self.rng.below(3) == 0 => {
                RecordQuery::Groups { stream: self.stream(), after: String::new(), groups_max: 1 }
            }
            5 => RecordQuery::Committed { stream: self.stream(), group: "g".to_owned() },
            _ => {
                let millis = (super::at(self.now).as_millis() - self.rng.below(60)) as i64;
                let since =
                    Timestamp { seconds: millis / 1000, nanoseconds: (millis % 1000) as u32 * 1_000_000 };
                RecordQuery::StreamRead {
                    stream: self.stream(),
                    from: self.rng.below(30),
                    to: self.rng.below(40),
                    not_before: (self.rng.below(2) == 0).then_some(since),
                    entries_max: 1 + self.rng.below(9) as usize,
                    at,
                }
            }
        }
    }
}

pub fn given_random_sequences_when_made_on_two_backends_then_the_same_answers<B: Backend>() {
    for seed in 0..6 {
        let mut plan = Plan { rng: Rng(seed), now: 1000, version: 10 };
        let (mut ours, mut theirs) = (Desk::<B>::new(PAYLOADS), Desk::<Memory>::new(PAYLOADS));
        for step in 0..300 {
            let batch = plan.batch();
            let (met, expected) = (ours.store.apply(&batch), theirs.store.apply(&batch));
            assert!(expected.is_ok());
            // Incarnations are a backend's own; nothing here depends on how they are numbered.
            assert_eq!(met, expected, "seed {seed} step {step}: {batch:?}");
            for _ in 0..3 {
                let query = plan.query();
                assert_eq!(
                    numbered(ours.ask(query.clone())),
                    numbered(theirs.ask(query.clone())),
                    "seed {seed} step {step}: {query:?}"
                );
            }
            let now = at(plan.now);
            assert_eq!(
                ours.store.sweep_is_due(now),
                theirs.store.sweep_is_due(now),
                "seed {seed} step {step}"
            );
            if plan.rng.below(40) == 0 {
                ours = ours.again();
            }
        }
        let late = at(plan.now + 1_000_000);
        assert_eq!(ours.swept(late), theirs.swept(late), "seed {seed}");
    }
}

/// An answer without incarnations: a backend may leave numbers out.
fn numbered(mut answer: payload_types::record::RecordAnswer) -> payload_types::record::RecordAnswer {
    use payload_types::record::RecordAnswer::{Entries, Stream, Streams};
    match &mut answer {
        Stream(info) | Entries(info, ..) => info.incarnation = 0,
        Streams(infos, _) => infos.iter_mut().for_each(|info| info.incarnation = 0),
        _ => {}
    }
    answer
}

suite_of_records! {[
    given_random_sequences_when_made_on_two_backends_then_the_same_answers,
]}
