//! Spill and promote bandwidth, against raw io_uring on the same filesystem.
//!
//! ```text
//! a round:  raw write | put into RAM (untimed), Spill x N | raw read | Promote x N | delete (untimed)
//! ```
//! The server is asked as a client asks: Spill(BLOCKING, fsync) and Promote(BLOCKING) over gRPC, a few in flight. A
//! payload is spilled once in its life, so each round has new ones. Payloads of 64 MiB are asked for one a call; small
//! ones many a call, as whoever has thousands of them would.
//!
//! The floors of the small rows write payload by payload, as many in flight and as many for one fdatasync as the
//! server is asked for at a time: what it could do at best. They overwrite space that exists; so does the server, once
//! its segment files were written and recycled, for which rounds go before that are not counted.

mod moves;

use anyhow::Context as _;
use payload_types::ByteCount;
use payload_types::limits::IO_DEPTH;

pub use self::moves::{Load, Moves};
use crate::context::Context;
use crate::floors::disk::{RawFiles, Shape};
use crate::report::{Figure, Findings};
use crate::rows::idle;
use crate::series::Series;
use crate::server::Server;

/// What the server may use, which is not what it takes: from 8 GiB on, segment files have 256 MiB and take payloads of
/// 64 MiB, too.
const DISK_BYTES: ByteCount = ByteCount(48 << 30);

/// What is spilled and deleted first: two lanes' files of 260 MiB, twice, and as much again while they are recycled.
const WARM_BYTES: u64 = 2 << 30;

/// A size of payloads, the rows that it has, and how it is asked for.
struct Case {
    /// Floor and ours.
    write: [&'static str; 2],
    /// Floor and ours.
    read: Option<[&'static str; 2]>,
    load: Load,
    /// The floor's.
    shape: Shape,
    /// The floor's blocks in flight.
    depth: usize,
    rounds: usize,
    note: String,
}

/// The rows of 64 MiB: calls in flight enough that the server's transfer threads never wait for the next one.
pub fn run_large(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    const BYTES: u64 = 64 << 20;
    let payloads = if context.quick { 8 } else { 16 };
    run(
        context,
        findings,
        Case {
            write: ["disk/write", "disk/spill-64MiB"],
            read: Some(["disk/read", "disk/promote-64MiB"]),
            load: Load { payloads, payload_bytes: ByteCount(BYTES), ids_per_call: 1, in_flight: 4 },
            shape: Shape { files: payloads, file_bytes: BYTES, block_bytes: 1 << 20, blocks_per_sync: 64 },
            depth: IO_DEPTH,
            rounds: if context.quick { 3 } else { 5 },
            note: format!("{payloads} x 64 MiB a round"),
        },
    )
}

/// The rows of 1 MiB: 4 calls with 16 payloads each, 16 MiB a sync of the floor.
pub fn run_1mib(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let round_bytes = if context.quick { 128 << 20 } else { 512 << 20 };
    run_small(context, findings, ["disk/write-1MiB", "disk/spill-1MiB"], round_bytes, (1 << 20, 16))
}

/// The rows of 64 KiB: 4 calls with 64 payloads each, 4 MiB a sync of the floor.
pub fn run_64kib(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let round_bytes = if context.quick { 64 << 20 } else { 256 << 20 };
    run_small(context, findings, ["disk/write-64KiB", "disk/spill-64KiB"], round_bytes, (64 << 10, 64))
}

fn run_small(
    context: &Context,
    findings: &mut Findings,
    write: [&'static str; 2],
    round_bytes: u64,
    (block_bytes, ids_per_call): (usize, usize),
) -> anyhow::Result<()> {
    let file_bytes = 64 << 20;
    let payloads = (round_bytes / block_bytes as u64) as usize;
    run(
        context,
        findings,
        Case {
            write,
            read: None,
            load: Load { payloads, payload_bytes: ByteCount(block_bytes as u64), ids_per_call, in_flight: 4 },
            shape: Shape {
                files: (round_bytes / file_bytes) as usize,
                file_bytes,
                block_bytes,
                blocks_per_sync: ids_per_call,
            },
            // As much in flight as for the large ones, and at least as many blocks.
            depth: (IO_DEPTH << 20).div_ceil(block_bytes).clamp(IO_DEPTH, ids_per_call),
            rounds: if context.quick { 3 } else { 5 },
            note: format!("{payloads} a round, {ids_per_call} a call, 4 calls in flight"),
        },
    )
}

fn run(context: &Context, findings: &mut Findings, case: Case) -> anyhow::Result<()> {
    context.require_own()?;
    let read = case.read.unwrap_or(case.write);
    let floors = [case.write[0], read[0]];
    let rows = [case.write[1], read[1]];
    let mut raw = match RawFiles::create(
        &context.directory().join(case.write[0].replace('/', "-")),
        case.shape,
        case.depth,
    ) {
        Ok(raw) => Some(raw),
        Err(error) => {
            findings.absent_all(&floors, &error);
            None
        }
    };
    let mut ours = None;
    if rows.iter().any(|row| context.wants(row)) {
        match Ours::start(context, case.load) {
            Ok(mut started) => {
                for turn in 0..WARM_BYTES.div_ceil(case.load.bytes()) as usize {
                    started.moves.put(turn)?;
                    started.moves.spill()?;
                    started.moves.delete()?;
                }
                ours = Some(started);
            }
            Err(error) => findings.absent_all(&rows, &error),
        }
    }
    let mut series: [(&'static str, Series); 4] =
        [floors[0], rows[0], floors[1], rows[1]].map(|row| (row, Series::default()));
    // The first turn warms up.
    for turn in 0..=case.rounds {
        let mut keep = |row: usize, bytes_per_s: f64| {
            if turn > 0 {
                series[row].1.push(bytes_per_s / 1e6);
            }
        };
        if let Some(raw) = &mut raw {
            keep(0, raw.write().context("raw writes")?);
        }
        if let Some(ours) = &mut ours {
            ours.moves.put(turn)?;
            keep(1, ours.timed(turn, 0, Moves::spill)?);
        }
        if let (Some(raw), Some(_)) = (&mut raw, case.read) {
            keep(2, raw.read().context("raw reads")?);
        }
        if let Some(ours) = &mut ours {
            if case.read.is_some() {
                keep(3, ours.timed(turn, 1, Moves::promote)?);
            }
            ours.moves.delete()?;
        }
    }
    for (number, (row, series)) in series.iter().enumerate() {
        if series.rounds() > 0 {
            // Floor, spills, floor, promotions.
            let used =
                ours.as_ref().filter(|_| number % 2 == 1).and_then(|ours| ours.used[number / 2].median());
            let used = used.map(|us| format!("; {us:.0} µs of the server's CPU time a payload"));
            findings.put(row, Figure::of(series)?.noted(case.note.clone() + &used.unwrap_or_default()));
        }
    }
    Ok(())
}

struct Ours {
    moves: Moves,
    server: Server,
    payloads: usize,
    /// The server's CPU time for each payload of a round, in µs: spills, promotions.
    used: [Series; 2],
}

impl Ours {
    fn start(context: &Context, load: Load) -> anyhow::Result<Self> {
        // Two rounds' worth: what was deleted is charged until it is proven free.
        let ram = ByteCount(2 * load.bytes() + (64 << 20));
        let server = Server::start(context, ram, DISK_BYTES)?;
        let moves = Moves::connect(server.address(), load)?;
        Ok(Self { moves, server, payloads: load.payloads, used: Default::default() })
    }

    /// A round of `kind`. The first one warms up. Where schedstat cannot be read, only bandwidth is told.
    fn timed(
        &mut self,
        turn: usize,
        kind: usize,
        does: fn(&Moves) -> anyhow::Result<f64>,
    ) -> anyhow::Result<f64> {
        let before = idle::cpu_ns(self.server.pid());
        let bytes_per_s = does(&self.moves)?;
        if let (Ok(before), Ok(after), true) = (before, idle::cpu_ns(self.server.pid()), turn > 0) {
            self.used[kind].push(after.saturating_sub(before) as f64 / 1e3 / self.payloads as f64);
        }
        Ok(bytes_per_s)
    }
}
