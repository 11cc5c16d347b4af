//! The answer to ListHolders.

use payload_types::report::{Holders, LeaseHold, StreamHold};
use payload_types::{Peer, Pin, WallMs};

use super::timestamp;
use crate::pb::operations::v1 as pb;
use crate::pb::runtime::v1 as rt;
use crate::{enums, ids};

/// Everything that holds a payload: the leases that were gathered part by part, and the rest from the first part.
/// `owner` knows who is behind a peer; `complete` is false when the leases are not all.
pub fn holders(
    first: &Holders,
    leases: &[LeaseHold],
    complete: bool,
    now: WallMs,
    owner: impl Fn(Peer) -> pb::Owner,
) -> pb::ListHoldersResponse {
    let age = |since: WallMs| now.as_millis().saturating_sub(since.as_millis());
    let lease = |hold: &LeaseHold| pb::LeaseHolder {
        lease_id: Some(ids::lease_id_to_pb(hold.lease)),
        owner: Some(owner(hold.owner)),
        tier: enums::tier_to_pb(hold.tier).into(),
        length_bytes: first.size.0,
        acquired_at: Some(timestamp(hold.acquired_at)),
        age_ms: age(hold.acquired_at),
        expires_at: Some(timestamp(hold.expires_at)),
        limbo: hold.limbo,
    };
    let pin = first.pin.map(|hold| pb::PinHolder {
        owner: Some(match hold.owner {
            Some(set) => owner(set.peer),
            None => pb::Owner { note: "set before the last start".to_owned(), ..pb::Owner::default() },
        }),
        pinned_at: hold.owner.map(|set| timestamp(set.pinned_at)),
        age_ms: hold.owner.map_or(0, |set| age(set.pinned_at)),
        expires_at: match hold.pin {
            Pin::Until(end) => Some(timestamp(end)),
            Pin::Forever | Pin::None => None,
        },
        bytes: first.size.0 * u64::from(first.replicas),
    });
    pb::ListHoldersResponse {
        leases: leases.iter().map(lease).collect(),
        pin,
        lease_count: u64::from(first.lease_count),
        complete,
        streams: stream_holders(&first.streams),
        direct: Vec::new(),
    }
}

/// Streams that keep a payload.
pub(super) fn stream_holders(holds: &[StreamHold]) -> Vec<pb::StreamHolder> {
    let holder = |hold: &StreamHold| pb::StreamHolder {
        stream: hold
            .stream
            .as_ref()
            .map(|stream| rt::StreamId { name: stream.name.clone(), namespace: stream.namespace.clone() }),
        offset: hold.offset,
    };
    holds.iter().map(holder).collect()
}

#[cfg(test)]
mod tests {
    use payload_types::report::{PinHold, PinOwner};
    use payload_types::{ByteCount, LeaseId, LeaseNonce, ShardIndex, Tier};

    use super::*;

    fn named(peer: Peer) -> pb::Owner {
        pb::Owner { peer: peer.to_string(), ..pb::Owner::default() }
    }

    fn held(pin: PinHold) -> Holders {
        Holders { lease_count: 1, pin: Some(pin), size: ByteCount(100), replicas: 2, ..Holders::default() }
    }

    #[test]
    fn given_a_lease_and_a_pin_when_shown_then_owner_age_and_end_are_there() {
        let peer = Peer::new("127.0.0.1:9".parse().expect("an address"), 1);
        let at = WallMs::from_millis;
        let lease = LeaseHold {
            lease: LeaseId::new(ShardIndex(0), 3, LeaseNonce([1; 10])),
            owner: peer,
            tier: Tier::Ram,
            acquired_at: at(1_000),
            expires_at: at(21_000),
            limbo: true,
        };
        let owner = Some(PinOwner { peer, pinned_at: at(4_000) });
        let shown =
            holders(&held(PinHold { owner, pin: Pin::Until(at(9_000)) }), &[lease], true, at(5_000), named);
        let expected = pb::LeaseHolder {
            lease_id: Some(ids::lease_id_to_pb(lease.lease)),
            owner: Some(named(peer)),
            tier: 2,
            length_bytes: 100,
            acquired_at: Some(timestamp(at(1_000))),
            age_ms: 4_000,
            expires_at: Some(timestamp(at(21_000))),
            limbo: true,
        };
        assert_eq!((shown.leases, shown.lease_count, shown.complete), (vec![expected], 1, true));
        let pin = shown.pin.expect("pinned");
        assert_eq!((pin.age_ms, pin.expires_at, pin.bytes), (1_000, Some(timestamp(at(9_000))), 200));
        assert_eq!(pin.owner, Some(named(peer)));
    }

    #[test]
    fn given_a_pin_of_an_earlier_start_when_shown_then_its_owner_says_so() {
        let shown = holders(
            &held(PinHold { owner: None, pin: Pin::Forever }),
            &[],
            true,
            WallMs::from_millis(5),
            named,
        );
        let pin = shown.pin.expect("pinned");
        assert_eq!(pin.owner.expect("always there").note, "set before the last start");
        assert_eq!((pin.expires_at, pin.pinned_at), (None, None));
    }
}
