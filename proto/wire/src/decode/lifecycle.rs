//! Allocate, Commit, Delete, List: the life of a payload (behaviour.md, "Lifecycle").

use payload_types::request::{Allocate, List, Request};
use payload_types::{
    ByteCount, Checksum, EvictionPolicy, EvictionPriority, Memory, NamespaceId, PayloadError, PayloadKey,
    Peer, Tier, WallMs, limits,
};

use super::{fence, page_size, storable};
use crate::page_token::{self, Listing};
use crate::pb::core::v1 as core;
use crate::pb::runtime::v1 as pb;
use crate::{enums, ids};

/// An Allocate before it has an id: the front mints one that hashes to the shard it chose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocateParts {
    /// 1 ..= `limits::PAYLOAD_BYTES_MAX`.
    pub size: ByteCount,
    /// Where.
    pub tier: Tier,
    /// Life after creation; `None`: no expiry.
    pub ttl_ms: Option<u64>,
    /// Never evicted automatically.
    pub no_evict: bool,
    /// Not contradictory.
    pub policy: EvictionPolicy,
}

impl AllocateParts {
    /// The request for the shard that `key` hashes to.
    pub fn into_allocate(self, key: PayloadKey) -> Allocate {
        let Self { size, tier, ttl_ms, no_evict, policy } = self;
        Allocate { key, size, tier, ttl_ms, no_evict, policy, memory: Memory::Segment, owner: Peer::UNKNOWN }
    }
}

/// Decodes AllocatePayload. `now` is the wall clock, against which the ttl is checked.
///
/// # Errors
/// `INVALID_ARGUMENT`: size 0 or over 128 GiB, tier VOID, a ttl beyond 2^63-1 or past the year 9999, a
/// contradictory policy, an enum value outside the contract. `FAILED_PRECONDITION`: tier UNSPECIFIED.
pub fn allocate(request: pb::AllocatePayloadRequest, now: WallMs) -> Result<AllocateParts, PayloadError> {
    let size = size_bytes(request.size_bytes)?;
    let tier = enums::tier_required("preferred_tier", request.preferred_tier)?;
    let policy = request.eviction_policy.map_or(Ok(EvictionPolicy::default()), eviction_policy)?;
    let ttl_ms = storable("ttl_ms", request.ttl_ms)?;
    let expires = ttl_ms > 0 && !request.no_evict && policy.priority != EvictionPriority::Never;
    if expires && now.checked_plus(ttl_ms).is_none() {
        return Err(PayloadError::invalid(format!(
            "ttl_ms is {ttl_ms}, which ends after the year 9999; send a shorter one, or 0 for no expiry"
        )));
    }
    Ok(AllocateParts { size, tier, ttl_ms: expires.then_some(ttl_ms), no_evict: request.no_evict, policy })
}

fn size_bytes(bytes: u64) -> Result<ByteCount, PayloadError> {
    match bytes {
        0 => Err(PayloadError::invalid("size_bytes is 0; a payload needs at least 1 byte")),
        1..=limits::PAYLOAD_BYTES_MAX => Ok(ByteCount(bytes)),
        _ => Err(PayloadError::invalid(format!(
            "size_bytes is {bytes}; a payload has at most {} ({}): split it",
            limits::PAYLOAD_BYTES_MAX,
            ByteCount(limits::PAYLOAD_BYTES_MAX)
        ))),
    }
}

fn eviction_policy(policy: core::EvictionPolicy) -> Result<EvictionPolicy, PayloadError> {
    let policy = EvictionPolicy {
        priority: enums::eviction_priority("eviction_policy.priority", policy.priority)?,
        require_durable: policy.require_durable,
        spill_target: enums::tier_or_void("eviction_policy.spill_target", policy.spill_target)?,
        min_residency: enums::tier_optional("eviction_policy.min_residency_tier", policy.min_residency_tier)?,
    };
    policy.validate()?;
    Ok(policy)
}

/// Decodes CommitPayload. Any 64 bits are a checksum.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn commit(namespace: NamespaceId, request: pb::CommitPayloadRequest) -> Result<Request, PayloadError> {
    let key = ids::payload_key(namespace, request.id.as_ref())?;
    Ok(Request::Commit { key, checksum: request.checksum_xxh3_64.map(Checksum), batch: None })
}

/// Decodes Delete.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id or an expected version beyond 2^63-1.
pub fn delete(namespace: NamespaceId, request: pb::DeleteRequest) -> Result<Request, PayloadError> {
    let key = ids::payload_key(namespace, request.id.as_ref())?;
    Ok(Request::Delete { key, force: request.force, expected_version: fence(request.expected_version)? })
}

/// A decoded ListPayloads: what each shard is asked, and what the answer is put together with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListParts {
    /// For every shard. Asks for one row more than the page holds: that row tells that there is a next page.
    pub list: List,
    /// Rows of the page, 1 ..= `limits::LIST_PAGE_MAX`.
    pub page_size: usize,
    /// Whose tokens these are.
    pub listing: Listing,
}

/// Decodes ListPayloads: a page size of 0 or less is 50, one over 500 is 500.
///
/// # Errors
/// `INVALID_ARGUMENT`: a filter that is VOID or outside the contract, a page token that is mangled or belongs to
/// another listing.
pub fn list(namespace: NamespaceId, request: pb::ListPayloadsRequest) -> Result<ListParts, PayloadError> {
    let tier = enums::tier_optional("tier_filter", request.tier_filter)?;
    let listing = Listing { namespace, tier };
    let before = page_token::decode(listing, &request.page_token)?;
    let page_size = page_size(request.page_size, limits::LIST_PAGE_DEFAULT, limits::LIST_PAGE_MAX);
    Ok(ListParts { list: List { namespace, tier, before, page_size: page_size + 1 }, page_size, listing })
}

/// A decoded ImportPayload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImportParts {
    /// Whose object.
    pub key: PayloadKey,
    /// What it must be long.
    pub size: ByteCount,
    /// What it must have, when the producer knows it.
    pub checksum: Option<Checksum>,
}

/// Decodes ImportPayload.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id, or a size that no payload has.
pub fn import(
    namespace: NamespaceId,
    request: pb::ImportPayloadRequest,
) -> Result<ImportParts, PayloadError> {
    let key = ids::payload_key(namespace, request.id.as_ref())?;
    let size = size_bytes(request.size_bytes)?;
    Ok(ImportParts { key, size, checksum: request.checksum_xxh3_64.map(Checksum) })
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::{FailedPrecondition, InvalidArgument};
    use payload_types::tier::SpillTarget;
    use payload_types::{PayloadId, Version};

    use super::*;
    use crate::decode::testing::{NAMESPACE, TOO_LARGE, id, key, refused};

    const NOW: WallMs = WallMs::from_millis(1_800_000_000_000);

    fn request() -> pb::AllocatePayloadRequest {
        pb::AllocatePayloadRequest {
            size_bytes: 640,
            preferred_tier: core::Tier::Ram.into(),
            ..Default::default()
        }
    }

    fn with_policy(policy: core::EvictionPolicy) -> pb::AllocatePayloadRequest {
        pb::AllocatePayloadRequest { eviction_policy: Some(policy), ..request() }
    }

    #[test]
    fn given_a_plain_allocate_when_decoded_then_its_parts_are_there() {
        let full = pb::AllocatePayloadRequest {
            ttl_ms: 5_000,
            eviction_policy: Some(core::EvictionPolicy {
                priority: core::EvictionPriority::High.into(),
                require_durable: true,
                spill_target: core::Tier::Disk.into(),
                min_residency_tier: core::Tier::Disk.into(),
            }),
            ..request()
        };
        let parts = allocate(full, NOW).expect("valid");
        let policy = EvictionPolicy {
            priority: EvictionPriority::High,
            require_durable: true,
            spill_target: Some(SpillTarget::Tier(Tier::Disk)),
            min_residency: Some(Tier::Disk),
        };
        let expected = AllocateParts {
            size: ByteCount(640),
            tier: Tier::Ram,
            ttl_ms: Some(5_000),
            no_evict: false,
            policy,
        };
        assert_eq!(parts, expected);
        let request = parts.into_allocate(key(1));
        assert_eq!((request.key, request.size, request.policy), (key(1), ByteCount(640), policy));
    }

    #[test]
    fn given_absurd_sizes_when_allocated_then_invalid_argument() {
        for (size_bytes, word) in [(0, "at least 1"), ((128 << 30) + 1, "128 GiB"), (u64::MAX, "128 GiB")] {
            let sized = pb::AllocatePayloadRequest { size_bytes, ..request() };
            refused(allocate(sized, NOW), InvalidArgument, word);
        }
        for size_bytes in [1, 128 << 30] {
            let sized = pb::AllocatePayloadRequest { size_bytes, ..request() };
            assert_eq!(allocate(sized, NOW).expect("a legal size").size, ByteCount(size_bytes));
        }
    }

    #[test]
    fn given_no_usable_tier_when_allocated_then_each_has_its_kept_code() {
        for (tier, kind) in [(0, FailedPrecondition), (5, InvalidArgument), (6, InvalidArgument)] {
            let tiered = pb::AllocatePayloadRequest { preferred_tier: tier, ..request() };
            refused(allocate(tiered, NOW), kind, "preferred_tier");
        }
    }

    #[test]
    fn given_a_ttl_that_no_clock_can_show_when_allocated_then_invalid_argument() {
        let last = WallMs::MAX.as_millis() - NOW.as_millis();
        for ttl_ms in [last + 1, i64::MAX as u64, TOO_LARGE, u64::MAX] {
            let lasting = pb::AllocatePayloadRequest { ttl_ms, ..request() };
            refused(allocate(lasting, NOW), InvalidArgument, "ttl_ms");
        }
        let lasting = pb::AllocatePayloadRequest { ttl_ms: last, ..request() };
        assert_eq!(allocate(lasting, NOW).expect("the last moment").ttl_ms, Some(last));
    }

    #[test]
    fn given_no_evict_or_never_when_allocated_with_a_ttl_then_it_does_not_expire() {
        let never =
            core::EvictionPolicy { priority: core::EvictionPriority::Never.into(), ..Default::default() };
        for ttl_ms in [0, 5_000, i64::MAX as u64] {
            let kept = pb::AllocatePayloadRequest { ttl_ms, no_evict: true, ..request() };
            let parts = allocate(kept, NOW).expect("valid");
            assert_eq!((parts.ttl_ms, parts.no_evict), (None, true));
            let kept = pb::AllocatePayloadRequest { ttl_ms, ..with_policy(never) };
            assert_eq!(allocate(kept, NOW).expect("valid").ttl_ms, None);
        }
        let out_of_range = pb::AllocatePayloadRequest { ttl_ms: TOO_LARGE, no_evict: true, ..request() };
        refused(allocate(out_of_range, NOW), InvalidArgument, "ttl_ms");
        assert_eq!(allocate(request(), NOW).expect("ttl 0").ttl_ms, None);
    }

    #[test]
    fn given_a_policy_that_cannot_be_obeyed_when_allocated_then_invalid_argument() {
        let (void, disk, ram) = (5, 3, 2);
        let policies = [
            (core::EvictionPolicy { priority: 9, ..Default::default() }, "priority is 9"),
            (core::EvictionPolicy { spill_target: 9, ..Default::default() }, "spill_target is 9"),
            (
                core::EvictionPolicy { min_residency_tier: -1, ..Default::default() },
                "min_residency_tier is -1",
            ),
            (core::EvictionPolicy { min_residency_tier: void, ..Default::default() }, "TIER_VOID"),
            (
                core::EvictionPolicy { require_durable: true, spill_target: void, ..Default::default() },
                "require_durable",
            ),
            (
                core::EvictionPolicy { spill_target: disk, min_residency_tier: ram, ..Default::default() },
                "slower",
            ),
        ];
        for (policy, word) in policies {
            refused(allocate(with_policy(policy), NOW), InvalidArgument, word);
        }
    }

    #[test]
    fn given_a_commit_when_decoded_then_any_64_bits_are_a_checksum() {
        let bare = pb::CommitPayloadRequest { id: id(1), checksum_xxh3_64: None };
        assert_eq!(commit(NAMESPACE, bare), Ok(Request::Commit { key: key(1), checksum: None, batch: None }));
        let hashed = pb::CommitPayloadRequest { id: id(1), checksum_xxh3_64: Some(u64::MAX) };
        let checksum = Some(Checksum(u64::MAX));
        assert_eq!(commit(NAMESPACE, hashed), Ok(Request::Commit { key: key(1), checksum, batch: None }));
        refused(commit(NAMESPACE, pb::CommitPayloadRequest::default()), InvalidArgument, "payload id");
    }

    #[test]
    fn given_a_delete_when_decoded_then_force_and_fence_are_there() {
        let fenced = pb::DeleteRequest { id: id(1), force: true, expected_version: Some(3) };
        let expected_version = Some(Version(3));
        assert_eq!(
            delete(NAMESPACE, fenced),
            Ok(Request::Delete { key: key(1), force: true, expected_version })
        );
        let malformed = pb::DeleteRequest { expected_version: Some(TOO_LARGE), ..delete_of(id(1)) };
        refused(delete(NAMESPACE, malformed), InvalidArgument, "expected_version");
        refused(delete(NAMESPACE, delete_of(None)), InvalidArgument, "payload id");
    }

    fn delete_of(id: Option<core::PayloadId>) -> pb::DeleteRequest {
        pb::DeleteRequest { id, ..Default::default() }
    }

    #[test]
    fn given_any_page_size_when_listed_then_it_is_clamped_and_one_row_more_is_asked_for() {
        for (asked, page_size) in
            [(0, 50), (-1, 50), (i32::MIN, 50), (1, 1), (500, 500), (501, 500), (i32::MAX, 500)]
        {
            let request = pb::ListPayloadsRequest { page_size: asked, ..Default::default() };
            let parts = list(NAMESPACE, request).expect("every page size is legal");
            assert_eq!((parts.page_size, parts.list.page_size), (page_size, page_size + 1));
        }
    }

    #[test]
    fn given_a_page_token_when_listed_then_it_is_the_cursor_of_its_own_filter_only() {
        let listing = Listing { namespace: NAMESPACE, tier: Some(Tier::Disk) };
        let last = PayloadId::from_bytes([4; 16]);
        let page_token = page_token::encode(listing, last);
        let request = pb::ListPayloadsRequest { tier_filter: 3, page_size: 10, page_token };
        let parts = list(NAMESPACE, request.clone()).expect("its own token");
        assert_eq!(
            (parts.list.before, parts.list.tier, parts.listing),
            (Some(last), Some(Tier::Disk), listing)
        );
        let other = pb::ListPayloadsRequest { tier_filter: 2, ..request };
        refused(list(NAMESPACE, other), InvalidArgument, "tier_filter");
        let mangled = pb::ListPayloadsRequest { page_token: "!".into(), ..Default::default() };
        refused(list(NAMESPACE, mangled), InvalidArgument, "page_token");
    }

    #[test]
    fn given_a_filter_outside_the_tiers_when_listed_then_invalid_argument() {
        for tier_filter in [5, 6, -1] {
            let request = pb::ListPayloadsRequest { tier_filter, ..Default::default() };
            refused(list(NAMESPACE, request), InvalidArgument, "tier_filter");
        }
    }
}
