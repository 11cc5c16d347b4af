//! `write/warm`: a writer copies into the arena slabs of its session, which are sealed and whose pages are there.
//!
//! ```text
//! floor   memcpy of 64 MiB of noise into 16 areas of this process, one after another
//! ours    the same into 16 slabs: made, mapped by the writer, sealed, touched by the server (`payload_drivers::arena`)
//! ```
//! Both have been written before. What the first time costs, with and without touching ahead and with large pages, is in
//! the note.

use std::time::Instant;

use payload_drivers::arena::{LargePages, Maker, MakerConfig, Slab};
use payload_types::ByteCount;

use crate::context::{Context, ROUNDS};
use crate::floors::memory::{Plain, Writer};
use crate::noise::Noise;
use crate::report::{Figure, Findings};
use crate::series::Series;

/// The largest slab.
const SLAB_BYTES: u64 = 64 << 20;

/// A GiB.
const SLABS: u64 = 16;

const GIB: f64 = (1u64 << 30) as f64;

/// A slab and its writer's mapping.
struct Opened {
    writer: Writer,
    slab: Slab,
}

fn open(maker: &Maker, count: u64) -> anyhow::Result<Vec<Opened>> {
    let one = || {
        let draft = maker.slab(ByteCount(SLAB_BYTES), None)?;
        let writer = Writer::map(draft.writer())?;
        Ok(Opened { writer, slab: draft.seal().map_err(|(_, error)| error)? })
    };
    (0..count).map(|_| one()).collect()
}

fn gib(count: u64) -> f64 {
    (count * SLAB_BYTES) as f64 / GIB
}

/// Milliseconds a GiB of one pass over all slabs.
fn pass(count: u64, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    run()?;
    Ok(started.elapsed().as_secs_f64() * 1e3 / gib(count))
}

fn write_all(slabs: &[Opened], source: &[u8]) -> anyhow::Result<()> {
    slabs.iter().for_each(|opened| opened.writer.write(source));
    Ok(())
}

fn populate_all(slabs: &[Opened]) -> anyhow::Result<()> {
    slabs.iter().try_for_each(|opened| Ok(opened.slab.populate(0..SLAB_BYTES)?))
}

/// What the first write costs, and what it takes to make it cheap: milliseconds a GiB.
fn first_writes(count: u64, source: &[u8]) -> anyhow::Result<String> {
    let small = Maker::new(MakerConfig { large_pages: LargePages::No });
    let large = Maker::new(MakerConfig { large_pages: LargePages::Collapse });
    let cold = open(&small, count)?;
    let first = pass(count, || write_all(&cold, source))?;
    drop(cold);
    let warm = open(&small, count)?;
    let populate = pass(count, || populate_all(&warm))?;
    let touch =
        pass(count / 2, || warm.iter().skip(count as usize / 2).try_for_each(|it| Ok(it.writer.touch()?)))?;
    let (unmapped, mapped) = warm.split_at(count as usize / 2);
    let populated = pass(count / 2, || write_all(unmapped, source))?;
    let touched = pass(count / 2, || write_all(mapped, source))?;
    drop(warm);
    let mut slabs = Vec::new();
    let make = pass(count, || {
        slabs = open(&large, count)?;
        Ok(())
    })?;
    let large_first = pass(count, || write_all(&slabs, source))?;
    let granted: u64 = slabs.iter().map(|opened| opened.slab.granted().large_bytes).sum();
    Ok(format!(
        "first write, ms/GiB: {first:.0} of what nobody touched, {populated:.0} of what the server touched ahead ({populate:.0}), \
         {touched:.0} of what the writer touched, too ({touch:.0}); {large_first:.0} of {:.0} % large pages (made in {make:.0})",
        granted as f64 * 100.0 / (count * SLAB_BYTES) as f64
    ))
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let count = if context.quick { SLABS / 2 } else { SLABS };
    let mut source = vec![0; SLAB_BYTES as usize];
    Noise::new(1).fill(&mut source);
    let note = first_writes(count, &source)?;
    let mut areas =
        (0..count).map(|_| Plain::new(SLAB_BYTES as usize)).collect::<std::io::Result<Vec<_>>>()?;
    let slabs = open(&Maker::new(MakerConfig::default()), count)?;
    populate_all(&slabs)?;
    let (mut copy, mut warm) = (Series::default(), Series::default());
    for round in 0..=ROUNDS {
        let plain = pass(count, || {
            areas.iter_mut().for_each(|area| area.write(&source));
            Ok(())
        })?;
        let ours = pass(count, || write_all(&slabs, &source))?;
        // The first round warms up.
        if round > 0 {
            copy.push(1e3 / plain);
            warm.push(1e3 / ours);
        }
    }
    findings.put("memory/copy", Figure::of(&copy)?);
    findings.put("write/warm", Figure::of(&warm)?.noted(note));
    Ok(())
}
