//! Limbo against a model of sessions that hold what they please: nothing is free while somebody held it at the scan.

use std::collections::{BTreeMap, BTreeSet};

use payload_ledger::limbo::{
    Entering, HOLDERS_MAX, Held, Limbo, Outcome, Overdue, Purpose, REVOKED_TURN_MAX, SCAN_BATCH_MAX, Scan,
    ScanDone,
};
use payload_types::{ByteCount, Generation, Monotonic, SessionId};

fn session(number: u32) -> SessionId {
    SessionId::new(number).expect("from 1 on")
}

fn at(milliseconds: u64) -> Monotonic {
    Monotonic(0).plus_millis(milliseconds)
}

fn entering(generation: u64, bytes: u64, purpose: Purpose) -> Entering {
    Entering { generation: Generation(generation), bytes: ByteCount(bytes), purpose }
}

type Holdings = BTreeMap<SessionId, BTreeSet<Generation>>;

/// What a driver finds.
fn answer(scan: &Scan, holdings: &Holdings) -> ScanDone {
    let mut held = Vec::new();
    for (session, holds) in holdings {
        let mut marks = [0; SCAN_BATCH_MAX / 64];
        for (at, _) in
            scan.generations.iter().enumerate().filter(|(_, generation)| holds.contains(generation))
        {
            marks[at / 64] |= 1u64 << (at % 64);
        }
        held.push(Held { session: *session, marks });
    }
    ScanDone { number: scan.number, held }
}

fn finish(limbo: &mut Limbo, now: Monotonic, done: &ScanDone) -> Vec<Outcome> {
    let mut told = Vec::new();
    limbo.finish(now, done, |outcome| told.push(outcome));
    told
}

fn scanned(limbo: &mut Limbo, now: Monotonic, holdings: &Holdings) -> Vec<Outcome> {
    let scan = limbo.take_scan(now).expect("something is due");
    finish(limbo, now, &answer(&scan, holdings))
}

/// SplitMix64: tests need no more.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ (value >> 31)) % end
    }
}

#[test]
fn given_what_nobody_holds_when_scanned_then_it_is_free_and_limbo_is_empty() {
    let mut limbo = Limbo::new();
    limbo.enter(at(0), entering(1, 4096, Purpose::Drop));
    limbo.enter(at(0), entering(2, 100, Purpose::Ask));
    assert_eq!((limbo.bytes(), limbo.next_at()), (ByteCount(4096), Some(at(0))));
    let told = scanned(&mut limbo, at(0), &Holdings::new());
    assert_eq!(told, [1, 2].map(|number| Outcome::Free { generation: Generation(number) }));
    assert_eq!((limbo.len(), limbo.bytes(), limbo.next_at()), (0, ByteCount(0), None));
    assert_eq!(limbo.take_scan(at(9)), None);
}

#[test]
fn given_what_entered_while_a_scan_is_under_way_when_it_is_answered_then_only_the_next_scan_counts_for_it() {
    let mut limbo = Limbo::new();
    limbo.enter(at(0), entering(1, 1, Purpose::Drop));
    let scan = limbo.take_scan(at(0)).expect("due");
    limbo.enter(at(0), entering(2, 1, Purpose::Drop));
    assert_eq!((limbo.take_scan(at(0)), limbo.next_at()), (None, None), "one at a time");
    let told = finish(&mut limbo, at(0), &answer(&scan, &Holdings::new()));
    assert_eq!(told, [Outcome::Free { generation: Generation(1) }]);
    assert_eq!(limbo.take_scan(at(0)).expect("due").generations, [Generation(2)]);
}

#[test]
fn given_a_question_when_somebody_holds_it_then_it_is_answered_at_once_and_forgotten() {
    let mut limbo = Limbo::new();
    limbo.enter(at(0), entering(7, 1, Purpose::Ask));
    let holdings = Holdings::from([(session(3), BTreeSet::from([Generation(7)]))]);
    let told = scanned(&mut limbo, at(0), &holdings);
    assert_eq!(told, [Outcome::Held { generation: Generation(7), by: session(3) }]);
    assert!(limbo.is_empty() && limbo.bytes_held_by(session(3)) == ByteCount(0));
    limbo.enter(at(1), entering(7, 1, Purpose::Ask));
    assert_eq!(limbo.len(), 1, "restored, and withdrawn once more");
}

#[test]
fn given_what_is_held_for_long_when_looked_for_then_ever_more_seldom_and_charged_to_who_holds_it() {
    let mut limbo = Limbo::new();
    limbo.enter(at(0), entering(1, 1000, Purpose::Drop));
    let mut holdings = Holdings::from([
        (session(1), BTreeSet::from([Generation(1)])),
        (session(2), BTreeSet::from([Generation(1)])),
    ]);
    let (mut now, mut looks) = (at(0), 0);
    while now < at(10_000) {
        assert_eq!(scanned(&mut limbo, now, &holdings), []);
        assert_eq!(limbo.bytes_held_by(session(1)), ByteCount(1000));
        assert_eq!(limbo.bytes_held_by(session(2)), ByteCount(1000));
        now = limbo.next_at().expect("looked for again");
        looks += 1;
    }
    assert!((20..40).contains(&looks), "{looks} looks in 10 s");
    holdings.remove(&session(1));
    assert_eq!(scanned(&mut limbo, now, &holdings), []);
    assert_eq!(limbo.bytes_held_by(session(1)), ByteCount(0));
    let now = limbo.next_at().expect("looked for again");
    assert_eq!(scanned(&mut limbo, now, &Holdings::new()), [Outcome::Free { generation: Generation(1) }]);
    assert_eq!(limbo.bytes_held_by(session(2)), ByteCount(0));
}

#[test]
fn given_a_session_over_its_quota_when_asked_then_its_oldest_leases_are_named_until_it_is_within() {
    let mut limbo = Limbo::new();
    for generation in 1..=10 {
        limbo.enter(at(generation), entering(generation, 100, Purpose::Drop));
    }
    let all: BTreeSet<_> = (1..=10).map(Generation).collect();
    let holdings = Holdings::from([(session(1), all), (session(2), BTreeSet::from([Generation(1)]))]);
    scanned(&mut limbo, at(20), &holdings);
    let named = limbo.overdue(at(5), |_| ByteCount(650));
    let of_first = |number| Overdue { generation: Generation(number), session: session(1) };
    assert_eq!(named, [1, 2, 3, 4].map(of_first), "350 over, 4 leases of 100");
    assert_eq!(limbo.overdue(at(2), |_| ByteCount(650)).len(), 2, "younger ones have time");
    assert_eq!(limbo.overdue(at(5), |_| ByteCount(1000)), []);
    for Overdue { generation, .. } in named {
        assert!(limbo.revoke(generation, at(1_000)));
    }
    assert_eq!(limbo.overdue(at(5), |_| ByteCount(650)), []);
    assert_eq!((limbo.len(), limbo.bytes()), (10, ByteCount(1000)), "quarantined, and not given back yet");
    let mut told = Vec::new();
    assert!(!limbo.tick(at(999), |outcome| told.push(outcome)) && told.is_empty());
    assert!(!limbo.tick(at(1_000), |outcome| told.push(outcome)));
    assert_eq!(told, [1, 2, 3, 4].map(|number| Outcome::Quarantined { generation: Generation(number) }));
    assert_eq!(limbo.bytes(), ByteCount(600));
}

#[test]
fn given_thousands_that_are_overdue_when_asked_then_no_more_than_a_turns_worth_is_named() {
    let mut limbo = Limbo::new();
    (1..=2_000).for_each(|generation| limbo.enter(at(0), entering(generation, 1, Purpose::Drop)));
    let holdings = Holdings::from([(session(1), (1..=2_000).map(Generation).collect())]);
    for _ in 0..8 {
        scanned(&mut limbo, at(0), &holdings);
    }
    assert_eq!(limbo.overdue(at(0), |_| ByteCount(0)).len(), REVOKED_TURN_MAX);
}

#[test]
fn given_a_forced_delete_when_somebody_holds_it_then_that_is_told_once_and_it_stays_until_its_grace_is_over()
{
    let mut limbo = Limbo::new();
    limbo.enter(at(0), entering(1, 10, Purpose::Take));
    let holdings = Holdings::from([(session(4), BTreeSet::from([Generation(1)]))]);
    assert_eq!(
        scanned(&mut limbo, at(0), &holdings),
        [Outcome::Held { generation: Generation(1), by: session(4) }]
    );
    assert_eq!(scanned(&mut limbo, at(1), &holdings), [], "told once");
    assert!(limbo.revoke(Generation(1), at(50)) && !limbo.revoke(Generation(2), at(50)));
    assert_eq!((limbo.len(), limbo.bytes(), limbo.take_scan(at(49))), (1, ByteCount(10), None));
    let mut told = Vec::new();
    limbo.tick(at(50), |outcome| told.push(outcome));
    assert_eq!(told, [Outcome::Quarantined { generation: Generation(1) }]);
    assert!(limbo.is_empty() && limbo.bytes() == ByteCount(0));
}

#[test]
fn given_more_holders_than_are_counted_when_scanned_then_it_is_held_and_the_first_are_charged() {
    let mut limbo = Limbo::new();
    limbo.enter(at(0), entering(1, 10, Purpose::Drop));
    let many = HOLDERS_MAX as u32 + 5;
    let holdings: Holdings =
        (1..=many).map(|number| (session(number), BTreeSet::from([Generation(1)]))).collect();
    assert_eq!(scanned(&mut limbo, at(0), &holdings), []);
    let charged = (1..=many).filter(|number| limbo.bytes_held_by(session(*number)) == ByteCount(10));
    assert_eq!(charged.count(), HOLDERS_MAX);
}

/// Sessions take and release what is published, the shard withdraws, asks and revokes; a model says what is true.
// Long because: one arm a kind of step, and what the model says of each.
fn run(seed: u64, is_blind: bool) {
    let mut random = Random(seed);
    let (mut limbo, mut holdings, mut now) = (Limbo::new(), Holdings::new(), 0);
    let (mut published, mut withdrawn) = (BTreeSet::new(), BTreeMap::<Generation, (Purpose, u64)>::new());
    let mut revoked = BTreeMap::new();
    let (mut under_way, mut next, mut seen) = (None::<Scan>, 1, [0; 3]);
    for _ in 0..20_000 {
        now += random.below(3);
        let who = session(1 + random.below(12) as u32);
        match random.below(8) {
            0 | 1 => {
                published.insert(Generation(next));
                next += 1;
            }
            // Only what is published can be taken; that is what readers' second looks are for.
            2 | 3 => holdings.entry(who).or_default().extend(published.iter().nth(random.below(20) as usize)),
            4 => holdings.get_mut(&who).map_or((), |holds| {
                holds.pop_first();
            }),
            5 if under_way.is_none() => under_way = limbo.take_scan(at(now)),
            5 => {
                let scan = under_way.take().expect("looked at");
                let mut seen_by_driver = holdings.clone();
                if is_blind {
                    seen_by_driver.remove(&session(5));
                }
                for outcome in finish(&mut limbo, at(now), &answer(&scan, &seen_by_driver)) {
                    let (generation, is_free) = match outcome {
                        Outcome::Free { generation } => (generation, true),
                        Outcome::Held { generation, .. } => (generation, false),
                        Outcome::Quarantined { .. } => panic!("seed {seed}: not from a scan"),
                    };
                    let held = holdings.values().any(|holds| holds.contains(&generation));
                    assert_eq!(held, !is_free, "seed {seed}: {outcome:?}");
                    let (purpose, _) = withdrawn.remove(&generation).expect("withdrawn");
                    assert!(is_free || purpose == Purpose::Ask, "seed {seed}");
                    if !is_free {
                        published.insert(generation);
                    }
                    seen[usize::from(!is_free)] += 1;
                }
            }
            6 => {
                let Some(generation) = published.pop_first() else { continue };
                let purpose = if random.below(2) == 0 { Purpose::Drop } else { Purpose::Ask };
                limbo.enter(at(now), entering(generation.0, generation.0, purpose));
                withdrawn.insert(generation, (purpose, now));
            }
            _ => {
                let victim = withdrawn.iter().find(|(of, (purpose, since))| {
                    *purpose == Purpose::Drop && since + 50 < now && !revoked.contains_key(*of)
                });
                // False of what no scan has found to be held.
                if let Some(generation) = victim.map(|(generation, _)| *generation)
                    && limbo.revoke(generation, at(now + 20))
                {
                    revoked.insert(generation, now + 20);
                }
                limbo.tick(at(now), |outcome| {
                    let Outcome::Quarantined { generation } = outcome else {
                        panic!("seed {seed}: {outcome:?}")
                    };
                    assert!(revoked.remove(&generation).expect("revoked") <= now, "seed {seed}: too early");
                    withdrawn.remove(&generation);
                    seen[2] += 1;
                });
            }
        }
        let bytes = withdrawn.iter().filter(|(_, (purpose, _))| *purpose == Purpose::Drop);
        assert_eq!(limbo.bytes().0, bytes.map(|(generation, _)| generation.0).sum::<u64>(), "seed {seed}");
        assert_eq!(limbo.len(), withdrawn.len(), "seed {seed}");
    }
    assert!(seen.iter().all(|count| *count > 20), "seed {seed} has seen {seen:?}");
    // Everybody lets go: nothing stays.
    holdings.clear();
    if let Some(scan) = under_way {
        finish(&mut limbo, at(now), &answer(&scan, &holdings));
    }
    while !limbo.is_empty() {
        let next = limbo.next_at().expect("nothing is forgotten").max(at(now));
        limbo.tick(next, |_| ());
        if let Some(scan) = limbo.take_scan(next) {
            finish(&mut limbo, next, &answer(&scan, &holdings));
        }
    }
    assert_eq!(limbo.bytes(), ByteCount(0));
    assert!((1..13).all(|number| limbo.bytes_held_by(session(number)) == ByteCount(0)));
}

#[test]
fn given_sessions_that_do_anything_when_the_shard_drops_and_asks_then_nothing_is_free_that_is_held() {
    (0..20).for_each(|seed| run(seed, false));
    let blind = std::panic::catch_unwind(|| (0..20).for_each(|seed| run(seed, true)));
    assert!(blind.is_err(), "the model does not notice a scan that leaves a session out");
}
