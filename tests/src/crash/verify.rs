//! What is asked of a server that came up again, before anything else is asked of it.
//!
//! ```text
//! every known payload: lease, compare in place, release  -> Ledger::settle
//! batches: all of each are there, or none
//! pins: a spill of a pinned one is refused; unclear ones are ended
//! graves: not found       listing, Stats: what was settled, and nothing else
//! names in /dev/shm and on disk, and places in segment files: the listing's
//! ```
//! Afterwards nothing of the ledger is in doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use payload_client::{AcquireOptions, Client, ClientError, Location, SpillOptions};
use payload_types::limits::PAGE_BYTES;
use payload_types::reply::Summary;
use payload_types::tier::SpillTarget;
use payload_types::{ErrorKind, PayloadId, Tier};

use super::ledger::{Breach, Expected, Known, Ledger, Rule, is_state_legal};
use super::load::expected;
use super::now;
use super::watch::{Ground, Item};
use crate::server::PATIENCE;

/// Payloads gone before that are asked for after each restart.
const GRAVES: usize = 40;

/// How often something waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Reads every payload, and settles what was in doubt.
///
/// # Errors
/// The first broken promise.
pub async fn payloads(client: &Client, ledger: &Mutex<Ledger>) -> Result<(), Breach> {
    let (known, graves, batches): (Vec<Known>, Vec<PayloadId>, _) = {
        let mut ledger = ledger.lock().expect("nobody panicked");
        (ledger.known().cloned().collect(), ledger.graves(GRAVES), ledger.batches_take())
    };
    let unclear: BTreeSet<PayloadId> =
        known.iter().filter(|known| known.is_commit_unclear()).map(|known| known.allocated.id).collect();
    let mut is_there = BTreeMap::new();
    for known in known {
        let id = known.allocated.id;
        let found = read(client, &known).await?;
        if known.tells_of_its_commit() {
            is_there.insert(id, found.is_some());
        }
        match found {
            None => ledger.lock().expect("nobody panicked").settle_gone(id),
            Some(tier) => {
                pin(client, &known, tier).await?;
                ledger.lock().expect("nobody panicked").settle_live(id, tier);
            }
        }
    }
    for batch in batches {
        let seen: BTreeSet<bool> = batch.iter().filter_map(|id| is_there.get(id).copied()).collect();
        if seen.len() > 1 {
            return Err(Breach::new(
                Rule::Batch,
                format!("half of it is committed: {batch:?}, {is_there:?}"),
            ));
        }
        if batch.iter().all(|id| unclear.contains(id)) {
            ledger.lock().expect("nobody panicked").count("batch in doubt");
        }
    }
    for id in graves {
        match client.resolve(id).await {
            Err(error) if is_absent(&error) => {}
            answer => {
                return Err(Breach::new(Rule::StaysGone, format!("{id} was gone, and now: {answer:?}")));
            }
        }
    }
    Ok(())
}

/// NOT_FOUND, and not because it was lost.
fn is_absent(error: &ClientError) -> bool {
    error.kind() == Some(ErrorKind::NotFound) && !error.to_string().contains("LOST")
}

/// Where it lies, if it is there; all that must be true of it then is checked.
async fn read(client: &Client, known: &Known) -> Result<Option<Tier>, Breach> {
    let breach = |rule, what: &dyn std::fmt::Debug| Err(Breach::new(rule, format!("{what:?}; {known:?}")));
    let start = Instant::now();
    loop {
        let before = known.expected(now());
        let lease = match client.acquire(known.allocated.id, &AcquireOptions::default()).await {
            Ok(lease) => lease,
            Err(error) if is_absent(&error) => {
                return match known.expected(now()) {
                    Expected::Live => breach(Rule::Kept, &error),
                    _ => Ok(None),
                };
            }
            Err(error) => return breach(Rule::Kept, &error),
        };
        if before == Expected::Leaving && start.elapsed() < PATIENCE {
            drop(lease);
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let shown = lease.descriptor();
        if matches!(before, Expected::Gone | Expected::Leaving) {
            return breach(Rule::StaysGone, shown);
        }
        let is_placed = known.may_lie_on(shown.tier) && is_state_legal(shown.tier, shown.state);
        if !is_placed || shown.size.0 != known.allocated.size {
            return breach(Rule::Placed, shown);
        }
        if *lease != *expected(&known.allocated) {
            return breach(Rule::Bytes, shown);
        }
        let tier = shown.tier;
        return match lease.release().await {
            Ok(()) => Ok(Some(tier)),
            Err(error) => breach(Rule::Answers, &error),
        };
    }
}

/// A pin that was acknowledged still refuses a spill; one that is in doubt is ended.
async fn pin(client: &Client, known: &Known, tier: Tier) -> Result<(), Breach> {
    let id = known.allocated.id;
    if known.is_pin_unclear() {
        // It may have expired or been evicted meanwhile: nothing is learnt from the answer.
        drop(client.unpin(id).await);
    } else if known.is_pinned() && tier == Tier::Ram {
        let options = SpillOptions { target: Some(SpillTarget::Tier(Tier::Disk)), ..SpillOptions::default() };
        if let Ok([spilled]) = client.spill(&[id], &options).await.as_deref()
            && spilled.result.is_ok()
        {
            return Err(Breach::new(Rule::Pinned, format!("it was spilled: {known:?}")));
        }
    }
    Ok(())
}

/// Listing, Stats and the names in memory and on disk agree with the ledger, all of which is settled, and no client
/// holds anything.
///
/// # Errors
/// What still disagrees after a while: expired payloads and dropped space go in the background.
pub async fn books(
    client: &Client,
    ledger: &Mutex<Ledger>,
    ground: &Ground,
    patience: Duration,
) -> Result<(), Breach> {
    let start = Instant::now();
    loop {
        let rows = rows(client).await?;
        let known = listed(&rows, &ledger.lock().expect("nobody panicked"));
        let found = known.and(totals(client, &rows).await).and(memory_names(&rows, ground));
        let found = found.and(disk_names(client, &rows, ground).await);
        match found {
            Ok(()) => return Ok(()),
            // What was deleted is back: waiting does not help.
            Err(breach) if breach.rule == Rule::StaysGone || start.elapsed() >= patience => {
                return Err(breach);
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// All rows of the listing.
async fn rows(client: &Client) -> Result<Vec<Summary>, Breach> {
    let (mut rows, mut token) = (Vec::new(), None);
    loop {
        let page = client.list(None, 500, token).await;
        let page = page.map_err(|error| Breach::new(Rule::Books, format!("List: {error}")))?;
        rows.extend(page.rows);
        match page.next_page_token {
            None => return Ok(rows),
            token_next => token = token_next,
        }
    }
}

fn listed(rows: &[Summary], ledger: &Ledger) -> Result<(), Breach> {
    let ids: BTreeSet<PayloadId> = rows.iter().map(|row| row.id).collect();
    let now = now();
    if let Some(row) = rows.iter().find(|row| ledger.get(row.id).is_none()) {
        // An expired one is answered NOT_FOUND at once, and listed until its removal is stored.
        let is_leaving = row.expires_at.is_some_and(|at| at <= now);
        let rule = if is_leaving { Rule::Books } else { Rule::StaysGone };
        return Err(Breach::new(rule, format!("nobody knows of {row:?}")));
    }
    for known in ledger.known() {
        if known.expected(now) == Expected::Live && !ids.contains(&known.allocated.id) {
            return Err(Breach::new(Rule::Books, format!("it is not listed: {known:?}")));
        }
    }
    Ok(())
}

async fn totals(client: &Client, rows: &[Summary]) -> Result<(), Breach> {
    let stats = client.stats().await.map_err(|error| Breach::new(Rule::Books, format!("Stats: {error}")))?;
    for tier in [Tier::Ram, Tier::Disk] {
        let of_tier = rows.iter().filter(|row| row.tier == tier);
        let (payloads, bytes) = of_tier.fold((0, 0), |(count, bytes), row| (count + 1, bytes + row.size.0));
        if (stats[tier].payloads, stats[tier].bytes) != (payloads, bytes) {
            let detail = format!("{tier}: {:?}, and {payloads} of {bytes} bytes are listed", stats[tier]);
            return Err(Breach::new(Rule::Books, detail));
        }
    }
    Ok(())
}

fn memory_names(rows: &[Summary], ground: &Ground) -> Result<(), Breach> {
    let ids = rows.iter().filter(|row| row.tier == Tier::Ram).map(|row| row.id.to_string());
    let mut left: BTreeSet<String> = ids.collect();
    let is_known = |item: &Item, left: &mut BTreeSet<String>| item.is_public && left.remove(&item.uuid);
    if let Some(item) = ground.memory().into_iter().find(|item| !is_known(item, &mut left)) {
        return Err(leak(&item.name));
    }
    match left.first() {
        Some(id) => Err(Breach::new(Rule::Books, format!("{id} is listed and has no segment"))),
        None => Ok(()),
    }
}

/// Every payload on DISK has its bytes where its descriptor says, no two share any, and nothing else lies there but
/// segment files, and of these no more than a server keeps when there is nothing to keep.
async fn disk_names(client: &Client, rows: &[Summary], ground: &Ground) -> Result<(), Breach> {
    let (own, segments) = (ground.disk(), ground.segments());
    let mut shared: BTreeMap<PathBuf, Vec<Part>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for row in rows.iter().filter(|row| row.tier == Tier::Disk) {
        let shown = client.resolve(row.id).await;
        let shown =
            shown.map_err(|error| Breach::new(Rule::Books, format!("{row:?} is listed, and {error}")))?;
        let Some(Location::File { path, offset, length }) = shown.location else {
            return Err(Breach::new(
                Rule::Books,
                format!("{row:?} is listed, and is at {:?}", shown.location),
            ));
        };
        if path.starts_with(ground.root.join("segments")) {
            shared.entry(path).or_default().push(Part { offset, end: offset + length.0, id: row.id });
        } else {
            named.insert(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    let is_named =
        |item: &Item, named: &mut BTreeSet<_>| item.is_public && named.remove(&Some(item.name.clone()));
    if let Some(item) = own.into_iter().find(|item| !is_named(item, &mut named)) {
        return Err(leak(&item.name));
    }
    if let Some(name) = named.first() {
        return Err(Breach::new(Rule::Books, format!("{name:?} is told, and is not there")));
    }
    if let Some(name) = ground.strangers().first() {
        return Err(leak(name));
    }
    if let Some(item) = segments.iter().find(|item| !item.is_public) {
        return Err(leak(&item.name));
    }
    if rows.is_empty() && segments.len() > ground.segments_kept {
        let detail = format!("{} segment files, and no payload: {segments:?}", segments.len());
        return Err(Breach::new(Rule::Leak, detail));
    }
    shared.into_iter().try_for_each(|(path, parts)| apart(&path, parts))
}

/// A payload in a segment file, in bytes from the file's start.
struct Part {
    offset: u64,
    end: u64,
    id: PayloadId,
}

/// All parts lie in the file, at pages of their own.
fn apart(path: &Path, mut parts: Vec<Part>) -> Result<(), Breach> {
    let broken = |detail: String| Err(Breach::new(Rule::Placed, format!("{}: {detail}", path.display())));
    let length = match path.metadata() {
        Ok(found) => found.len(),
        Err(error) => return broken(format!("it is told, and {error}")),
    };
    parts.sort_by_key(|part| part.offset);
    let mut free = 0;
    for Part { offset, end, id } in parts {
        if !offset.is_multiple_of(PAGE_BYTES) || offset < free.max(PAGE_BYTES) || end > length {
            return broken(format!(
                "{id} lies from {offset} to {end} of {length}, and {free} is the first free"
            ));
        }
        free = end.next_multiple_of(PAGE_BYTES);
    }
    Ok(())
}

fn leak(name: &str) -> Breach {
    Breach::new(Rule::Leak, format!("{name} belongs to no payload"))
}

/// Deletes everything; afterwards the books must be empty.
///
/// # Errors
/// A Delete by force that was refused.
pub async fn delete_all(client: &Client, ledger: &Mutex<Ledger>) -> Result<(), Breach> {
    let ids: Vec<PayloadId> = {
        let ledger = ledger.lock().expect("nobody panicked");
        ledger.known().map(|known| known.allocated.id).collect()
    };
    for id in ids {
        match client.delete(id, true, None).await {
            Err(error) if !is_absent(&error) => {
                return Err(Breach::new(Rule::Answers, format!("Delete of {id} by force: {error}")));
            }
            // Gone already: its ttl passed.
            _ => ledger.lock().expect("nobody panicked").settle_gone(id),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_parts_of_a_file_when_compared_then_those_that_share_a_page_or_leave_the_file_are_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(5 * PAGE_BYTES).expect("five pages");
        let part = |offset, end| Part { offset, end, id: PayloadId::mint(1, offset) };
        let found = |parts| apart(file.path(), parts);
        assert_eq!(found(vec![part(12_288, 20_480), part(4096, 4097), part(8192, 12_288)]), Ok(()));
        for wrong in [
            vec![part(4096, 8193), part(8192, 9000)],
            vec![part(4096, 4200), part(4096, 4200)],
            vec![part(4097, 4200)],
            vec![part(0, 10)],
            vec![part(16_384, 20_481)],
        ] {
            assert_eq!(found(wrong).expect_err("wrong").rule, Rule::Placed);
        }
        assert!(apart(Path::new("/nowhere/x.seg"), Vec::new()).is_err());
    }
}
