//! `object/spill-64MiB`, `object/promote-64MiB`: the object store's driver against the `object_store` crate alone, on one S3 server.
//!
//! ```text
//! a round:  crate puts | driver stores from shared memory | crate gets | driver fetches into shared memory | delete (untimed)
//! ```
//! The driver hashes, compares, keeps its journal in a file and writes sidecars; the crate does none of it. Shards do not ask the
//! driver yet, so it is asked here directly, as they will.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_drivers::object::{
    Archive, Compression, Download, FileJournal, FileRange, ObjectConfig, ObjectDriver, ObjectError,
    S3Options, Upload,
};
use payload_types::{ByteCount, Generation, PayloadId};

use crate::context::{Context, Skip};
use crate::floors::object::RawObjects;
use crate::noise::Noise;
use crate::report::{Figure, Findings};
use crate::seaweed::{ACCESS_KEY, SECRET_KEY, Seaweed};
use crate::series::Series;

const BYTES: u64 = 64 << 20;
/// At a time.
const IN_FLIGHT: usize = 8;
/// An operation that takes longer is no measurement any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = Seaweed::start().map_err(Skip)?;
    server.bucket("bench");
    let (count, rounds) = if context.quick { (8, 3) } else { (16, 5) };
    let mut bytes = vec![0; BYTES as usize];
    Noise::new(7).fill(&mut bytes);
    let ours = Ours::open(context, &server.endpoint(), &bytes, count)?;
    let keys = (ACCESS_KEY, SECRET_KEY);
    let raw = RawObjects::open(&server.endpoint(), "bench", keys, bytes, count, IN_FLIGHT)?;
    let rows = ["object/put-64MiB", "object/spill-64MiB", "object/get-64MiB", "object/promote-64MiB"];
    let mut series: [Series; 4] = Default::default();
    // The first turn warms up.
    for turn in 0..=rounds {
        let figures = [raw.put()?, ours.spill(turn)?, raw.get()?, ours.promote(turn)?];
        raw.delete()?;
        ours.delete(turn)?;
        if turn > 0 {
            series.iter_mut().zip(figures).for_each(|(series, figure)| series.push(figure / 1e6));
        }
    }
    let health = ours.driver.health();
    for (row, series) in rows.into_iter().zip(&series) {
        let note = format!(
            "{count} x 64 MiB a round, 8 at a time; at most {} parts of 8 MiB in the driver's memory",
            health.parts_in_flight_max
        );
        findings.put(row, Figure::of(series)?.noted(note));
    }
    Ok(())
}

struct Ours {
    driver: ObjectDriver,
    source: FileRange,
    sink: FileRange,
    count: usize,
}

impl Ours {
    fn open(context: &Context, endpoint: &str, bytes: &[u8], count: usize) -> anyhow::Result<Self> {
        let config = ObjectConfig {
            root: "s3://bench/ours".to_owned(),
            s3: S3Options {
                endpoint: Some(endpoint.to_owned()),
                allow_http: true,
                region: Some("us-east-1".to_owned()),
                access_key: Some(ACCESS_KEY.to_owned()),
                secret_key: Some(SECRET_KEY.to_owned()),
                ..S3Options::default()
            },
            objects_in_flight: IN_FLIGHT,
            ..ObjectConfig::default()
        };
        let journal = FileJournal::open(context.directory().join("uploads"))?;
        let driver = ObjectDriver::open(config, Arc::new(journal))?;
        driver.probe()?;
        let shared = |fill: &[u8]| -> anyhow::Result<FileRange> {
            let file: File = tempfile::tempfile_in("/dev/shm").context("shared memory")?;
            file.write_all_at(fill, 0)?;
            Ok(FileRange { file: Arc::new(file), offset: 0, size: ByteCount(BYTES) })
        };
        Ok(Self { driver, source: shared(bytes)?, sink: shared(&vec![1; bytes.len()])?, count })
    }

    fn id(turn: usize, number: usize) -> PayloadId {
        PayloadId::mint((turn as u64 + 1) << 12, number as u64 + 1)
    }

    fn spill(&self, turn: usize) -> anyhow::Result<f64> {
        self.timed(turn, |id, done| {
            let upload = Upload {
                id,
                generation: Generation(1),
                source: Arc::new(self.source.clone()),
                expected: None,
                archive: Archive::default(),
            };
            self.driver.upload(upload, move |result| done(result.map(drop)))
        })
    }

    fn promote(&self, turn: usize) -> anyhow::Result<f64> {
        self.timed(turn, |id, done| {
            let download = Download {
                id,
                size: ByteCount(BYTES),
                expected: None,
                compression: Compression::None,
                etag: None,
                sink: Arc::new(self.sink.clone()),
            };
            self.driver.download(download, move |result| done(result.map(drop)))
        })
    }

    fn delete(&self, turn: usize) -> anyhow::Result<()> {
        self.timed(turn, |id, done| self.driver.remove(id, done)).map(drop)
    }

    /// All payloads of a round; the driver takes them all, and moves eight at a time.
    fn timed(
        &self,
        turn: usize,
        submit: impl Fn(PayloadId, Box<dyn FnOnce(Result<(), ObjectError>) + Send>) -> Result<(), ObjectError>,
    ) -> anyhow::Result<f64> {
        let (sender, answers) = mpsc::sync_channel(self.count);
        let started = Instant::now();
        for number in 0..self.count {
            let sender = sender.clone();
            submit(Self::id(turn, number), Box::new(move |result| drop(sender.send(result))))?;
        }
        for _ in 0..self.count {
            answers.recv_timeout(PATIENCE).context("an answer")??;
        }
        Ok((self.count as u64 * BYTES) as f64 / started.elapsed().as_secs_f64())
    }
}
