//! The crash test: a real server that is killed again and again under load, and must never have lied.
//!
//! ```text
//! round: [ start, kill while it starts ]* -> start -> verify, books -> load (processes of clients) -> kill -9 | SIGTERM
//!          \______________ one data directory, one segment prefix, one ledger for all rounds ______________/
//! ```
//! The ledger of what was acknowledged and what is in doubt lies in the driver (`ledger`), fed by what the clients
//! announce (`fact`, `load`, `crew`); `verify` compares it with the restarted server; `watch` looks all the time at
//! what memory and disk hold. One seed draws what every round and client does; how they interleave with the kill is
//! the machine's affair, so a failure may need several runs of its seed to come again.

pub mod crew;
pub mod fact;
pub mod ledger;
pub mod load;
pub mod pressure;
pub mod verify;
pub mod watch;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use payload_client::Client;
use payload_ledger::segments::Geometry;
use payload_types::{ByteCount, WallMs};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::server::{Place, Server};
use crate::sys::Signal;
use crew::Worker;
use ledger::{Breach, Ledger, Rule, Tally};
use pressure::Pressure;
use watch::{Ground, Peak, Watch};

/// Free segment files that a server keeps at most: `FREE_FILES_MAX` of the books.
pub const FREE_FILES_MAX: usize = 4;

/// Client processes at a time.
const WORKERS: u64 = 2;

/// Small tiers, so that both are full now and then.
/// (With less disk, nothing would be packed.)
const CAPACITY: Peak = Peak { memory: 32 << 20, disk: 128 << 20 };

/// What a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How often the server is killed under load.
    pub rounds: u64,
    /// The longest time of load before the end of a round.
    pub load_max: Duration,
    /// How long what goes in the background may take: expiry, dropped space.
    pub patience: Duration,
    /// After a failure, leave the data directory and the segments where they are.
    pub keep: bool,
}

/// A run that kept every promise.
#[derive(Clone, Debug)]
pub struct Passed {
    /// How often everything happened.
    pub tally: Tally,
    /// The most that memory and disk held.
    pub peak: Peak,
}

/// A broken promise, where it was seen, and how to see it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The run's.
    pub seed: u64,
    /// What to run.
    pub again: String,
    /// What was broken.
    pub breach: Breach,
    /// What the server had logged last.
    pub log: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, breach, again, log } = self;
        write!(f, "seed {seed}: {breach}\nagain: {again}\n-- the server's log\n{log}")
    }
}

/// A data directory that servers are started on and killed, and what must be found there.
pub struct Run {
    seed: u64,
    place: Place,
    ground: Ground,
    /// What the clients were told.
    pub ledger: Arc<Mutex<Ledger>>,
    watch: Watch,
    random: SmallRng,
    options: Options,
    /// Of the last round; they still have payloads mapped.
    leavers: Vec<Worker>,
    log: String,
}

/// Runs one seed.
///
/// # Errors
/// The first broken promise.
pub fn run(seed: u64, options: Options) -> Result<Passed, Box<Failure>> {
    let mut run = Run::new(seed, options);
    let mut round = 1;
    let result = block_on(async {
        while round <= options.rounds {
            run.round().await?;
            round += 1;
        }
        run.finish().await
    });
    run.concluded(result, || {
        let seconds = options.load_max.as_secs_f64();
        // What is seen in one round may have been broken in the one before.
        format!(
            "round {round} of tests/crash --from {seed} --rounds {round} --seconds-per-round {seconds} --keep"
        )
    })
}

/// Runs one seed of the other kind: a server that is always full (`pressure`).
///
/// # Errors
/// The first broken promise.
pub fn press(seed: u64, options: Options, pressure: Pressure) -> Result<Passed, Box<Failure>> {
    let mut run = Run::with_capacity(seed, options, pressure.capacity);
    let result = block_on(pressure::run(&mut run, seed, pressure));
    run.concluded(result, || format!("tests/pressure --from {seed} --keep, as it was run"))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs only descriptors").block_on(work)
}

impl Run {
    /// Nothing there yet.
    pub fn new(seed: u64, options: Options) -> Self {
        Self::with_capacity(seed, options, CAPACITY)
    }

    fn with_capacity(seed: u64, options: Options, capacity: Peak) -> Self {
        let place = Place::new()
            .with("STORAGE__RAM__CAPACITY_BYTES", &capacity.memory.to_string())
            .with("STORAGE__DISK__CAPACITY_BYTES", &capacity.disk.to_string());
        // The one of each writer, the mover's, and the free ones.
        let geometry = Geometry::of_capacity(ByteCount(capacity.disk));
        let segments_kept = geometry.map_or(0, |geometry| geometry.writers() + 1 + FREE_FILES_MAX);
        let root = place.path().join("disk");
        let ground = Ground { prefix: place.prefix().to_owned(), root, segments_kept };
        let watch = Watch::start(ground.clone(), capacity);
        let random = SmallRng::seed_from_u64(seed);
        let (ledger, leavers, log) = Default::default();
        Self { seed, place, ground, ledger, watch, random, options, leavers, log }
    }

    fn concluded(
        mut self,
        result: Result<Passed, Breach>,
        again: impl FnOnce() -> String,
    ) -> Result<Passed, Box<Failure>> {
        result.map_err(|breach| {
            if self.options.keep {
                self.place.keep();
            }
            let log = std::mem::take(&mut self.log);
            Box::new(Failure { seed: self.seed, again: again(), breach, log })
        })
    }

    /// From a start to a kill.
    ///
    /// # Errors
    /// The first broken promise.
    pub async fn round(&mut self) -> Result<(), Breach> {
        if self.random.random_ratio(1, 4) {
            self.place.set("SHARDS__COUNT", &self.random.random_range(1..=4).to_string());
        }
        // Clients that die with the server, or soon after it; the others outlive the next start.
        if self.random.random_bool(0.5) {
            self.dismiss()?;
        }
        for _ in 0..[0, 0, 1, 2][self.random.random_range(0..4)] {
            self.kill_at_start()?;
        }
        let (mut server, client) = self.start().await?;
        let verified = self.verify(&client).await;
        self.hear(&server, verified)?;
        let loaded = self.load(&mut server).await;
        self.hear(&server, loaded)?;
        let compacted = self.count_compaction(&client).await;
        self.hear(&server, compacted)?;
        self.end(server)?;
        self.settle_round()
    }

    /// The last start: everything is verified, deleted, and nothing is left.
    async fn finish(&mut self) -> Result<Passed, Breach> {
        let (server, client) = self.start().await?;
        let mut result = self.verify(&client).await;
        if result.is_ok() {
            result = verify::delete_all(&client, &self.ledger).await;
        }
        if result.is_ok() {
            result = verify::books(&client, &self.ledger, &self.ground, self.options.patience).await;
        }
        self.hear(&server, result)?;
        stop(server)?;
        let left = [self.ground.memory(), self.ground.disk()].concat();
        if let Some(item) = left.first() {
            return Err(Breach::new(Rule::Leak, format!("{item:?} is left by a server that was stopped")));
        }
        let tally = self.ledger.lock().expect("nobody panicked").tally().clone();
        Ok(Passed { tally, peak: self.watch.peak()? })
    }

    /// Starts a server.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&mut self) -> Result<(Server, Client), Breach> {
        let does_not = |said| Breach::new(Rule::Starts, said);
        let server = self.place.launch().listening().map_err(does_not)?;
        let client = Client::connect_grpc(&server.address).await;
        let client = client.map_err(|error| does_not(format!("{error}; {}", server.log())))?;
        Ok((server, client.with_deadline(crate::server::PATIENCE)))
    }

    /// What must be true after every start.
    ///
    /// # Errors
    /// The first broken promise.
    pub async fn verify(&mut self, client: &Client) -> Result<(), Breach> {
        verify::payloads(client, &self.ledger).await?;
        self.dismiss()?;
        verify::books(client, &self.ledger, &self.ground, self.options.patience).await
    }

    /// Where the servers run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where they keep payloads.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Remembers what a server said before a promise was broken.
    fn hear<T>(&mut self, server: &Server, result: Result<T, Breach>) -> Result<T, Breach> {
        if result.is_err() {
            self.log = server.log();
        }
        result
    }

    fn kill_at_start(&mut self) -> Result<(), Breach> {
        let launch = self.place.launch();
        std::thread::sleep(Duration::from_micros(self.random.random_range(0..60_000)));
        self.count("killed while it started");
        launch.kill().map_err(|said| Breach::new(Rule::Starts, format!("it ended by itself: {said}")))
    }

    /// Clients at work, for a while drawn from the seed.
    async fn load(&mut self, server: &mut Server) -> Result<(), Breach> {
        for _ in 0..WORKERS {
            self.leavers.push(Worker::start(&server.address, self.random.random(), &self.ledger));
        }
        let longest = u64::try_from(self.options.load_max.as_micros()).expect("no such time");
        let mut rest = Duration::from_micros(self.random.random_range(0..=longest));
        if self.random.random_ratio(1, 6) {
            // A client dies before the server does.
            std::thread::sleep(rest / 2);
            rest /= 2;
            self.leavers.pop().expect("just started").kill();
            self.count("client killed");
        }
        std::thread::sleep(rest);
        if self.leavers.iter_mut().any(Worker::is_idle) || !server.is_running() {
            let detail =
                "a client was refused or cut off, or the server ended by itself, before it was killed";
            return Err(Breach::new(Rule::Answers, detail));
        }
        Ok(())
    }

    /// Counts what became of segment files since the start.
    async fn count_compaction(&self, client: &Client) -> Result<(), Breach> {
        let stats = client.accounting().await;
        let stats = stats.map_err(|error| Breach::new(Rule::Books, format!("Stats: {error}")))?;
        let segments = stats.disk_segments.unwrap_or_default();
        let mut ledger = self.ledger.lock().expect("nobody panicked");
        ledger.count_times("segment file used again or removed", segments.recycled_total);
        ledger.count_times("segment file emptied by compaction", segments.emptied_total);
        ledger.count_times("payload moved by compaction", segments.moved_total);
        Ok(())
    }

    fn end(&mut self, server: Server) -> Result<(), Breach> {
        if self.random.random_ratio(1, 6) {
            self.count("stopped");
            stop(server)
        } else {
            self.count("killed");
            server.kill();
            Ok(())
        }
    }

    /// Hears the clients out.
    fn settle_round(&mut self) -> Result<(), Breach> {
        self.leavers.iter_mut().try_for_each(Worker::wait_idle)?;
        self.watch.peak()?;
        let mut ledger = self.ledger.lock().expect("nobody panicked");
        ledger.count_open();
        ledger.judge(now())
    }

    /// Lets the clients of the last round go: what they still had mapped must not have changed.
    fn dismiss(&mut self) -> Result<(), Breach> {
        let leavers = std::mem::take(&mut self.leavers);
        leavers.into_iter().try_for_each(Worker::release)?;
        self.ledger.lock().expect("nobody panicked").judge(now())
    }

    fn count(&self, what: &str) {
        self.ledger.lock().expect("nobody panicked").count(what);
    }
}

/// The system's clock, which is the server's.
pub fn now() -> WallMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    WallMs::from_millis(u64::try_from(since.expect("after 1970").as_millis()).expect("before the year 2554"))
}

/// SIGTERM, and exit code 0.
fn stop(mut server: Server) -> Result<(), Breach> {
    server.signal(Signal::Term);
    let start = Instant::now();
    match server.exit_code() {
        Some(0) => Ok(()),
        code => {
            let detail = format!("SIGTERM, then {code:?} after {:?}; {}", start.elapsed(), server.log());
            Err(Breach::new(Rule::Starts, detail))
        }
    }
}
