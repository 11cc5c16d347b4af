//! The demo: the product's main job, end to end, with real processes and real bytes.
//!
//! ```text
//! this process            server process               worker process
//!   put ------------------> RAM segment
//!   (write in place)        RAM segment <--- lease, map, hash ---+
//!   spill -----------------> file on disk <-- lease, map, hash --+
//!   promote ---------------> RAM segment <--- lease, map, hash --+
//!   delete ----------------> nothing left
//! ```
//!
//! All calls go through a relay that counts them ([`meter`]). Succeeds only when the worker found every byte as it
//! was put, three times. Processes, files and segments are gone afterwards, also after a failure or Ctrl-C.

mod inputs;
mod meter;
mod report;
mod server;
pub mod worker;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use payload_client::{AllocateOptions, Client, Location, SpillOptions};
use payload_reactor::preflight::Machine;
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, PayloadId, Tier, limits};

use crate::shutdown::Signals;
use inputs::Input;
use meter::Meter;
use report::{PayloadLine, Report, Step};
use server::DemoServer;
use worker::Worker;

/// RAM the demo asks for at most; less where shared memory is smaller. What does not fit at once goes in batches.
const RAM_BYTES_MAX: u64 = 1 << 30;

/// Runs the demo with these files, or with what it finds and generates.
///
/// # Errors
/// Whatever kept a byte from being moved or from matching. Everything was cleaned up by then.
pub fn run(files: &[PathBuf]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::install()?;
        tokio::select! {
            outcome = demo(files) => outcome,
            kind = signals.next() => Err(anyhow::anyhow!("stopped by signal {}; everything was cleaned up", kind.as_raw_value())),
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn demo(files: &[PathBuf]) -> anyhow::Result<()> {
    let inputs = if files.is_empty() { inputs::found_and_generated()? } else { inputs::from_files(files)? };
    let largest = inputs.iter().map(|input| input.size.in_pages().0).max().unwrap_or_default();
    let total: u64 = inputs.iter().map(|input| input.size.in_pages().0).sum();
    // A quarter is left to whoever else uses shared memory.
    let machine = Machine::probe();
    let free = (machine.disk_space)(Path::new("/dev/shm")).map_or(RAM_BYTES_MAX, |shm| shm.free.0);
    let shared_memory = (free - free / 4).min(machine.memory_usable().0 / 4);
    let ram = RAM_BYTES_MAX.min(shared_memory).max(largest).max(limits::PAGE_BYTES);
    let disk = ByteCount(total.max(ram).saturating_mul(2));

    let server = DemoServer::start(ByteCount(ram), disk).await?;
    let meter =
        Meter::start(server.address()).await.context("the relay that counts bytes could not be started")?;
    let client = Client::connect_grpc(meter.address()).await?;
    let mut worker = Worker::start(meter.address())?;
    println!(
        "server: process {}, {} of RAM, files below {}; worker: process {}",
        server.pid(),
        ByteCount(ram),
        server.directory().display(),
        worker.pid()
    );
    println!(
        "{} payloads, {} in all\n",
        inputs.len(),
        ByteCount(inputs.iter().map(|input| input.size.0).sum())
    );

    let mut report = Report::default();
    for batch in batches(inputs, ram) {
        batch_move(&client, &mut worker, &batch, &mut report).await?;
    }
    let wire_bytes = meter.bytes();
    worker.stop().await;
    server.stop().await?;
    report.print(wire_bytes);
    Ok(())
}

/// Groups that fit RAM together, in the order given.
fn batches(inputs: Vec<Input>, ram: u64) -> Vec<Vec<Input>> {
    let mut batches: Vec<Vec<Input>> = Vec::new();
    let mut room = 0;
    for input in inputs {
        let size = input.size.in_pages().0;
        if size > room || batches.is_empty() {
            batches.push(Vec::new());
            room = ram;
        }
        room = room.saturating_sub(size);
        batches.last_mut().expect("one was pushed").push(input);
    }
    batches
}

/// All steps for one batch.
async fn batch_move(
    client: &Client,
    worker: &mut Worker,
    batch: &[Input],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut put = Vec::with_capacity(batch.len());
    for input in batch {
        let start = Instant::now();
        let source = input.open().with_context(|| format!("{} cannot be opened", input.name))?;
        let descriptor = client.put_bytes(source, input.size, &AllocateOptions::default()).await?;
        report.add(Step::Put, start.elapsed());
        put.push((descriptor.id, input));
        report.payloads.push(PayloadLine {
            name: input.name.clone(),
            size: input.size,
            checksum: input.checksum.to_string(),
            id: descriptor.id.to_string(),
            segment: shown(descriptor.location.as_ref()),
            file: String::new(),
        });
    }
    all_verify(worker, &put, Tier::Ram, Step::ReadRam, report).await?;
    batch_spill(client, &put, report).await?;
    all_verify(worker, &put, Tier::Disk, Step::ReadDisk, report).await?;
    for (id, input) in &put {
        let start = Instant::now();
        let descriptor = client.promote(*id, Tier::Ram, None, None).await?;
        report.add(Step::Promote, start.elapsed());
        anyhow::ensure!(
            descriptor.tier == Tier::Ram,
            "{} was promoted and is shown on {}",
            input.name,
            descriptor.tier
        );
    }
    all_verify(worker, &put, Tier::Ram, Step::ReadAgain, report).await?;
    for (id, _) in &put {
        let start = Instant::now();
        client.delete(*id, false, None).await?;
        report.add(Step::Delete, start.elapsed());
    }
    Ok(())
}

/// Spills the batch in as few calls as the contract allows.
async fn batch_spill(
    client: &Client,
    put: &[(PayloadId, &Input)],
    report: &mut Report,
) -> anyhow::Result<()> {
    let options =
        SpillOptions { target: Some(SpillTarget::Tier(Tier::Disk)), fsync: true, ..SpillOptions::default() };
    let first = report.payloads.len() - put.len();
    let mut done = 0;
    for part in put.chunks(limits::SPILL_IDS_MAX) {
        let ids: Vec<PayloadId> = part.iter().map(|(id, _)| *id).collect();
        let start = Instant::now();
        let spilled = client.spill(&ids, &options).await?;
        report.add(Step::Spill, start.elapsed());
        for (spilled, (_, input)) in spilled.into_iter().zip(part) {
            let descriptor = spilled
                .result
                .map_err(|reason| anyhow::anyhow!("{} was not spilled: {reason}", input.name))?;
            let location = descriptor.as_ref().and_then(|descriptor| descriptor.location.as_ref());
            report.payloads[first + done].file = shown(location);
            done += 1;
        }
    }
    Ok(())
}

async fn all_verify(
    worker: &mut Worker,
    put: &[(PayloadId, &Input)],
    tier: Tier,
    step: Step,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (id, input) in put {
        let took = worker.verify(*id, input.checksum, tier).await.with_context(|| input.name.clone())?;
        report.add(step, took);
    }
    Ok(())
}

/// A location as the report shows it.
fn shown(location: Option<&Location>) -> String {
    match location {
        Some(Location::Segment { shm_name, .. }) => shm_name.clone(),
        Some(Location::File { path, offset: 0, .. }) => path.display().to_string(),
        Some(Location::File { path, offset, .. }) => format!("{} from byte {offset} on", path.display()),
        Some(Location::Block { .. } | Location::Gpu { .. } | Location::Object { .. }) | None => {
            "-".to_owned()
        }
    }
}
