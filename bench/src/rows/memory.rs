//! `memory/payload`: bytes of a shard's memory for each payload, with 10^6 of them.
//!
//! ```text
//! this program again, as a process of its own: resident memory -> a shard adopts 10^6 rows -> resident memory
//! ```
//! What counts is what the kernel gave (RssAnon), so allocator and half-empty nodes are in it. A process of its own,
//! because memory that an earlier row gave back to the allocator would be used again and not be seen. The payloads are
//! on disk, committed and idle, as nearly all of 10^6 are: no lease, no operation. A payload with a ttl has a timer as
//! well; what that adds is in the note.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use payload_reactor::clock;
use payload_shards::payload::Payload;
use payload_shards::{Adopted, Shard, ShardConfig};
use payload_types::{ByteCount, Epoch, PayloadId, PerTier, ShardIndex, Tier, WallMs, limits};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::context::{Context, Skip};
use crate::report::{Figure, Findings};
use crate::rows::stored;

/// Payloads adopted.
const PAYLOADS: u64 = 1_000_000;

/// When the ttl of the payloads that have one ends: far from now, each at its own moment.
const TTL_MS: u64 = 3_600_000;

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let plain = probe_as_process(false)?;
    let with_ttl = probe_as_process(true)?;
    let note = format!("the record is {} bytes; a ttl adds {:.0}", size_of::<Payload>(), with_ttl - plain);
    findings.put("memory/payload", Figure { value: plain, rounds: 1, ..Figure::default() }.noted(note));
    Ok(())
}

fn probe_as_process(with_ttl: bool) -> anyhow::Result<f64> {
    let program = std::env::current_exe().context("the bench cannot find its own program")?;
    let output = Command::new(program)
        .args(["--memory-probe", if with_ttl { "true" } else { "false" }])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("the probe could not be started")?;
    anyhow::ensure!(output.status.success(), "the probe ended with {}", output.status);
    let text = String::from_utf8(output.stdout).context("the probe speaks text")?;
    text.trim().parse().with_context(|| format!("the probe said `{}` and no number", text.trim()))
}

/// The process that is measured: adopts, and prints the bytes of one payload.
///
/// # Errors
/// Where /proc tells no RssAnon.
pub fn probe(with_ttl: bool) -> anyhow::Result<()> {
    let mut shard = Shard::new(ShardConfig {
        dead_grace_ms: 1_000,
        shard: ShardIndex(0),
        shard_count: 1,
        epoch: Epoch(2),
        capacity: PerTier(Tier::ALL.map(|_| Some(ByteCount(PAYLOADS * limits::PAGE_BYTES)))),
        lease_ms_default: limits::LEASE_MS_DEFAULT,
        lease_ms_max: limits::LEASE_MS_MAX_DEFAULT,
        allocation_timeout_ms: limits::ALLOCATION_TIMEOUT_MS_DEFAULT,
        disk_fsync: true,
        retry_backoff_ms: 500,
        session_caps: payload_shards::SessionCaps::default(),
    });
    let now = clock::now();
    let mut random = SmallRng::seed_from_u64(1);
    let before = resident_bytes()?;
    let mut present = PerTier::default();
    present[Tier::Disk] = true;
    for number in 0..PAYLOADS {
        let made_at = WallMs::from_millis(now.wall.as_millis() - TTL_MS + number / 100);
        let ticks = (made_at.as_millis() << 12) + number % 100;
        let id = PayloadId::mint(ticks, random.next_u64());
        let ttl = with_ttl.then(|| WallMs::from_millis(now.wall.as_millis() + TTL_MS + number));
        let adopted = shard.adopt(now, stored::row(id, number, Epoch(1), made_at, ttl), present);
        anyhow::ensure!(adopted == Adopted::Live, "a row was not adopted: {adopted:?}");
    }
    println!("{}", (resident_bytes()? - before) as f64 / PAYLOADS as f64);
    Ok(())
}

/// Memory of this process that is no file's.
fn resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc is not mounted")?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB"));
    let kibibytes =
        kibibytes.ok_or_else(|| Skip("this kernel tells no RssAnon in /proc/self/status".to_owned()))?;
    Ok(kibibytes.trim().parse::<u64>().context("RssAnon is no number")? * 1024)
}
