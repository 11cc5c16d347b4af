//! `boot/1e6`: from the start of the server's process to a server that answers, with 10^6 payloads in its catalog. The
//! rows of `listing` are measured on the same server.
//!
//! ```text
//! once      a first start makes root and catalog | 10^6 rows through the Store, 10^6 files | a second start, untimed
//! a round   spawn -> recovery -> "listening" -> connected, health SERVING, Stats | Stats must count 10^6 | SIGTERM
//! ```
//! All payloads are of 4 KiB on disk, with a file each, as a server makes them for clients that write in place; the
//! files have no blocks. The second start vouches for them and so puts them into the intent log, as they would be had
//! the server made them. With `--quick` up to [`NAMES_PER_FILE`] names share one file: what a start does with a name is
//! the same, and making and removing them takes a third of the time. The machine's caches are warm: this is a server
//! that was updated or that crashed, not a machine that was.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use payload_catalog::{SqliteStore, Store, Synchronous};
use payload_client::Client;
use payload_front::config::{Config, DatabaseConfig};
use payload_types::effect::CatalogChange;
use payload_types::{ByteCount, Epoch, Generation, PayloadId, PayloadRow, Tier, WallMs};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::context::{Context, Skip};
use crate::report::{Figure, Findings};
use crate::rows::listing;
use crate::rows::stored::{self, PAYLOAD_BYTES};
use crate::scratch::Scratch;
use crate::series::Series;
use crate::server::Server;

/// Payloads in the catalog.
const PAYLOADS: u64 = 1_000_000;

/// The disk tier holds them all, and no more than a small machine has.
const DISK: ByteCount = ByteCount(PAYLOADS * PAYLOAD_BYTES + (64 << 20));

/// Nothing is put into it.
const RAM: ByteCount = ByteCount(64 << 20);

/// Rows of one transaction while the catalog is filled.
const ROWS_PER_TRANSACTION: usize = 20_000;

/// Names of one file with `--quick`: ext4 allows 65,000.
const NAMES_PER_FILE: usize = 50_000;

/// When the first payload was made, and how many a millisecond.
const START_MS: u64 = 1_795_000_000_000;
/// See [`START_MS`].
const PAYLOADS_PER_MS: u64 = 60;

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Server::start(context, RAM, DISK)?;
    if context.wants("scale/stats-1e6") {
        runtime.block_on(listing::stats(context, findings, "scale/stats-empty", server.address()))?;
    }
    let (scratch, _) = boot(server.stop()?)?;
    let names_per_file = if context.quick { NAMES_PER_FILE } else { 1 };
    fill(&scratch, names_per_file)?;
    // Vouches for the files, which nobody named in the intent log.
    let (mut scratch, _) = boot(scratch)?;
    if context.wants("boot/1e6") {
        let mut series = Series::default();
        for _ in 0..if context.quick { 2 } else { 5 } {
            let seconds;
            (scratch, seconds) = boot(scratch)?;
            series.push(seconds);
        }
        let files = PAYLOADS.div_ceil(names_per_file as u64);
        let note = format!("10^6 payloads on disk, a name each, {files} files; warm caches");
        findings.put("boot/1e6", Figure::of(&series)?.noted(note));
    }
    let server = Server::start_in(scratch)?;
    if context.wants("scale/list-1e6") {
        runtime.block_on(listing::pages(context, findings, server.address(), PAYLOADS))?;
    }
    if context.wants("scale/stats-1e6") {
        runtime.block_on(listing::stats(context, findings, "scale/stats-1e6", server.address()))?;
    }
    let scratch = server.stop()?;
    // Ten seconds of one core otherwise; the scratch directory's end removes the rest.
    remove_by_two(&payloads_directory(&config(&scratch)?))
}

fn config(scratch: &Scratch) -> anyhow::Result<Config> {
    Ok(Config::load(Some(&scratch.config()), &scratch.data_dir(), std::iter::empty())?.config)
}

/// Where the disk tier keeps its files, below directories of the last byte of their ids (tiers/drivers/src/naming.rs).
fn payloads_directory(config: &Config) -> PathBuf {
    config.storage.disk.root_path.join("payloads")
}

/// Starts a server on `scratch`, looks whether all payloads are there (or none yet), and ends it. Returns the seconds
/// until it answered.
fn boot(scratch: Scratch) -> anyhow::Result<(Scratch, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    let server = Server::start_in(scratch)?;
    let (is_serving, stats) = runtime.block_on(async {
        let client = Client::connect_grpc(server.address()).await?;
        anyhow::Ok((client.is_serving().await?, client.stats().await?))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let found = stats[Tier::Disk].payloads;
    anyhow::ensure!(is_serving, "the health service does not say that it serves");
    anyhow::ensure!(found == PAYLOADS || found == 0, "{found} of {PAYLOADS} payloads were recovered");
    Ok((server.stop()?, seconds))
}

/// Puts the rows into the catalog, and makes their files beside that.
fn fill(scratch: &Scratch, names_per_file: usize) -> anyhow::Result<()> {
    let config = config(scratch)?;
    let DatabaseConfig::Sqlite { path, .. } = &config.database else {
        anyhow::bail!("the row is about SQLite");
    };
    let mut store = SqliteStore::open(path, Synchronous::Full)?;
    // Rows of an earlier start: versions then grow as they do after a restart.
    let epoch = store.begin_epoch(&config.node.name)?;
    let root = payloads_directory(&config);
    thread::scope(|scope| {
        let files = [0, 1].map(|half| {
            let root = &root;
            scope.spawn(move || make_files(root, epoch, half, names_per_file))
        });
        let mut batch = Vec::with_capacity(ROWS_PER_TRANSACTION);
        for row in (0..PAYLOADS).map(|number| row(number, epoch)) {
            batch.push(CatalogChange::Put(Box::new(row)).into());
            if batch.len() == ROWS_PER_TRANSACTION {
                store.apply(&batch)?;
                batch.clear();
            }
        }
        store.apply(&batch)?;
        for half in files {
            half.join().map_err(|_panic| anyhow::anyhow!("making files panicked"))??;
        }
        store.checkpoint()?;
        Ok(Box::new(store).close()?)
    })
}

/// The same ids at every call.
fn id(number: u64) -> PayloadId {
    let ticks = ((START_MS + number / PAYLOADS_PER_MS) << 12) + number % PAYLOADS_PER_MS;
    PayloadId::mint(ticks, SmallRng::seed_from_u64(number).next_u64())
}

fn row(number: u64, epoch: Epoch) -> PayloadRow {
    let created_at = WallMs::from_millis(START_MS + number / PAYLOADS_PER_MS);
    stored::row(id(number), number, epoch, created_at, None)
}

/// The files of one half of the directories, as `tiers/drivers` names them; a start that does not find them fails the
/// row.
fn make_files(root: &Path, epoch: Epoch, half: u8, names_per_file: usize) -> anyhow::Result<()> {
    for byte in (0..=255u8).filter(|byte| byte % 2 == half) {
        let directory = root.join(format!("{byte:02x}"));
        DirBuilder::new()
            .mode(0o755)
            .create(&directory)
            .context("a directory for payloads cannot be made")?;
    }
    let mut shared: Option<(PathBuf, usize)> = None;
    for number in 0..PAYLOADS {
        let id = id(number);
        let byte = id.as_bytes()[15];
        if byte % 2 != half {
            continue;
        }
        let generation = Generation::new(epoch, number + 1).0;
        let path = root.join(format!("{byte:02x}/{id}-{generation:014x}.bin"));
        match &mut shared {
            Some((first, names)) if *names < names_per_file => {
                fs::hard_link(first, &path).context("a second name cannot be given to a file")?;
                *names += 1;
            }
            _ => {
                let file = make_file(&path);
                file.map_err(|error| Skip(format!("10^6 files cannot be made here: {error}")))?;
                shared = Some((path, 1));
            }
        }
    }
    Ok(())
}

fn make_file(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o440).open(path)?.set_len(PAYLOAD_BYTES)
}

/// Removes what is in `directory` with two threads.
fn remove_by_two(directory: &Path) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.context("the payloads' directory cannot be listed")?;
    let half = paths.split_off(paths.len() / 2);
    thread::scope(|scope| {
        for part in [paths, half] {
            scope.spawn(move || part.iter().for_each(|path| drop(fs::remove_dir_all(path))));
        }
    });
    Ok(())
}
