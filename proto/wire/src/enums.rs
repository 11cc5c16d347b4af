//! The contract's enums, both ways.
//!
//! proto3 enums are open: any i32 may arrive. A number that the contract does not list is refused with the field
//! and the number in the message (behaviour.md, "Everywhere"); nothing of such a request is stored.
//! `TIER_UNSPECIFIED` and `TIER_VOID` are no tiers of a replica, so a tier field decodes to `Option<SpillTarget>`
//! and each RPC says what the two mean to it.

use payload_types::record::{MetadataEventKind, MetadataMode};
use payload_types::tier::SpillTarget;
use payload_types::{EvictionPriority, PayloadError, PayloadState, PromotionPolicy, SpillPolicy, Tier};

use crate::pb::core::v1 as core;
use crate::pb::operations::v1 as own;

/// The enum value with this number.
///
/// # Errors
/// `INVALID_ARGUMENT` naming field and number when the contract's enum `name` has no such value.
fn known<E: TryFrom<i32>>(field: &str, name: &str, number: i32) -> Result<E, PayloadError> {
    E::try_from(number).map_err(|_| {
        PayloadError::invalid(format!(
            "{field} is {number}, which is no value of {name}; send one that the contract lists"
        ))
    })
}

/// Reads a tier field; `None` is UNSPECIFIED.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number outside the contract.
pub fn tier_or_void(field: &str, number: i32) -> Result<Option<SpillTarget>, PayloadError> {
    Ok(match known(field, "Tier", number)? {
        core::Tier::Unspecified => None,
        core::Tier::Gpu => Some(SpillTarget::Tier(Tier::Gpu)),
        core::Tier::Ram => Some(SpillTarget::Tier(Tier::Ram)),
        core::Tier::Disk => Some(SpillTarget::Tier(Tier::Disk)),
        core::Tier::Object => Some(SpillTarget::Tier(Tier::Object)),
        core::Tier::Void => Some(SpillTarget::Void),
    })
}

/// Reads a tier field in which UNSPECIFIED means "any" or "none" and VOID means nothing.
///
/// # Errors
/// `INVALID_ARGUMENT` for VOID and for a number outside the contract.
pub fn tier_optional(field: &str, number: i32) -> Result<Option<Tier>, PayloadError> {
    match tier_or_void(field, number)? {
        None => Ok(None),
        Some(SpillTarget::Tier(tier)) => Ok(Some(tier)),
        Some(SpillTarget::Void) => Err(PayloadError::invalid(format!(
            "{field} is TIER_VOID, where no bytes can lie; send TIER_GPU, TIER_RAM, TIER_DISK, TIER_OBJECT, or leave it out"
        ))),
    }
}

/// Reads a tier field that must name a tier.
///
/// # Errors
/// `FAILED_PRECONDITION` for UNSPECIFIED, which clients of the contract rely on; `INVALID_ARGUMENT` for VOID and
/// for a number outside the contract.
pub fn tier_required(field: &str, number: i32) -> Result<Tier, PayloadError> {
    tier_optional(field, number)?.ok_or_else(|| {
        PayloadError::precondition(format!(
            "{field} is TIER_UNSPECIFIED; send the tier: TIER_GPU, TIER_RAM, TIER_DISK or TIER_OBJECT"
        ))
    })
}

/// Reads a state in which UNSPECIFIED means "any".
///
/// # Errors
/// `INVALID_ARGUMENT` for a number outside the contract.
pub fn state_optional(field: &str, number: i32) -> Result<Option<PayloadState>, PayloadError> {
    Ok(match known(field, "PayloadState", number)? {
        core::PayloadState::Unspecified => None,
        core::PayloadState::Allocated => Some(PayloadState::Allocated),
        core::PayloadState::Active => Some(PayloadState::Active),
        core::PayloadState::Spilling => Some(PayloadState::Spilling),
        core::PayloadState::Durable => Some(PayloadState::Durable),
        core::PayloadState::Evicting => Some(PayloadState::Evicting),
        core::PayloadState::Deleting => Some(PayloadState::Deleting),
        core::PayloadState::Expired => Some(PayloadState::Expired),
        core::PayloadState::Deleted => Some(PayloadState::Deleted),
    })
}

/// Reads a promotion policy; UNSPECIFIED is BLOCKING.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number outside the contract.
pub fn promotion_policy(field: &str, number: i32) -> Result<PromotionPolicy, PayloadError> {
    Ok(match known(field, "PromotionPolicy", number)? {
        core::PromotionPolicy::Unspecified | core::PromotionPolicy::Blocking => PromotionPolicy::Blocking,
        core::PromotionPolicy::BestEffort => PromotionPolicy::BestEffort,
    })
}

/// Reads a spill policy; UNSPECIFIED is BLOCKING.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number outside the contract.
pub fn spill_policy(field: &str, number: i32) -> Result<SpillPolicy, PayloadError> {
    Ok(match known(field, "SpillPolicy", number)? {
        core::SpillPolicy::Unspecified | core::SpillPolicy::Blocking => SpillPolicy::Blocking,
        core::SpillPolicy::BestEffort => SpillPolicy::BestEffort,
    })
}

/// Reads an eviction priority.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number outside the contract.
pub fn eviction_priority(field: &str, number: i32) -> Result<EvictionPriority, PayloadError> {
    Ok(match known(field, "EvictionPriority", number)? {
        core::EvictionPriority::Unspecified => EvictionPriority::Unspecified,
        core::EvictionPriority::Low => EvictionPriority::Low,
        core::EvictionPriority::Normal => EvictionPriority::Normal,
        core::EvictionPriority::High => EvictionPriority::High,
        core::EvictionPriority::Never => EvictionPriority::Never,
    })
}

/// Reads how metadata are updated; UNSPECIFIED is MERGE.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number outside the contract.
pub fn metadata_mode(field: &str, number: i32) -> Result<MetadataMode, PayloadError> {
    Ok(match known(field, "MetadataUpdateMode", number)? {
        core::MetadataUpdateMode::Unspecified | core::MetadataUpdateMode::Merge => MetadataMode::Merge,
        core::MetadataUpdateMode::Replace => MetadataMode::Replace,
    })
}

/// What left an event, as our own messages write it.
pub const fn event_kind_to_pb(kind: MetadataEventKind) -> own::MetadataEventKind {
    match kind {
        MetadataEventKind::Replaced => own::MetadataEventKind::Replaced,
        MetadataEventKind::Merged => own::MetadataEventKind::Merged,
        MetadataEventKind::Noted => own::MetadataEventKind::Noted,
    }
}

/// A tier as the contract writes it.
pub const fn tier_to_pb(tier: Tier) -> core::Tier {
    match tier {
        Tier::Gpu => core::Tier::Gpu,
        Tier::Ram => core::Tier::Ram,
        Tier::Disk => core::Tier::Disk,
        Tier::Object => core::Tier::Object,
    }
}

/// A tier, nowhere, or not said, as the contract writes it.
pub const fn spill_target_to_pb(target: Option<SpillTarget>) -> core::Tier {
    match target {
        None => core::Tier::Unspecified,
        Some(SpillTarget::Void) => core::Tier::Void,
        Some(SpillTarget::Tier(tier)) => tier_to_pb(tier),
    }
}

/// An eviction priority as the contract writes it.
pub const fn eviction_priority_to_pb(priority: EvictionPriority) -> core::EvictionPriority {
    match priority {
        EvictionPriority::Unspecified => core::EvictionPriority::Unspecified,
        EvictionPriority::Low => core::EvictionPriority::Low,
        EvictionPriority::Normal => core::EvictionPriority::Normal,
        EvictionPriority::High => core::EvictionPriority::High,
        EvictionPriority::Never => core::EvictionPriority::Never,
    }
}

/// A state as the contract writes it: COMMITTING is ours alone and shows as ALLOCATED.
pub const fn state_to_pb(state: PayloadState) -> core::PayloadState {
    match state {
        PayloadState::Allocated | PayloadState::Committing => core::PayloadState::Allocated,
        PayloadState::Active => core::PayloadState::Active,
        PayloadState::Spilling => core::PayloadState::Spilling,
        PayloadState::Durable => core::PayloadState::Durable,
        PayloadState::Evicting => core::PayloadState::Evicting,
        PayloadState::Deleting => core::PayloadState::Deleting,
        PayloadState::Expired => core::PayloadState::Expired,
        PayloadState::Deleted => core::PayloadState::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind;

    use super::*;

    #[test]
    fn given_numbers_outside_the_contract_when_decoded_then_invalid_argument_names_field_and_number() {
        for number in [-1, 6, i32::MAX, i32::MIN] {
            let errors = [
                tier_or_void("the_field", number).expect_err("no tier"),
                tier_optional("the_field", number).expect_err("no tier"),
                tier_required("the_field", number).expect_err("no tier"),
                promotion_policy("the_field", number).expect_err("no policy"),
                spill_policy("the_field", number).expect_err("no policy"),
                eviction_priority("the_field", number).expect_err("no priority"),
            ];
            for error in errors {
                assert_eq!(error.kind, ErrorKind::InvalidArgument);
                assert!(error.message.contains("the_field"), "{error}");
                assert!(error.message.contains(&number.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn given_every_tier_when_written_and_read_then_it_is_the_same() {
        for tier in Tier::ALL {
            assert_eq!(tier_required("tier", tier_to_pb(tier).into()), Ok(tier));
            assert_eq!(tier_to_pb(tier) as i64, tier as i64, "types and contract number tiers alike");
        }
        for target in [None, Some(SpillTarget::Void), Some(SpillTarget::Tier(Tier::Disk))] {
            assert_eq!(tier_or_void("tier", spill_target_to_pb(target).into()), Ok(target));
        }
    }

    #[test]
    fn given_unspecified_and_void_when_a_tier_is_required_then_each_has_its_kept_code() {
        let unspecified = tier_required("tier", core::Tier::Unspecified.into()).expect_err("unspecified");
        assert_eq!(unspecified.kind, ErrorKind::FailedPrecondition);
        let void = tier_required("tier", core::Tier::Void.into()).expect_err("void");
        assert_eq!(void.kind, ErrorKind::InvalidArgument);
        assert_eq!(tier_optional("tier", core::Tier::Unspecified.into()), Ok(None));
    }

    #[test]
    fn given_unspecified_policies_when_decoded_then_they_block() {
        assert_eq!(promotion_policy("policy", 0), Ok(PromotionPolicy::Blocking));
        assert_eq!(promotion_policy("policy", 1), Ok(PromotionPolicy::BestEffort));
        assert_eq!(promotion_policy("policy", 2), Ok(PromotionPolicy::Blocking));
        assert_eq!(spill_policy("policy", 0), Ok(SpillPolicy::Blocking));
        assert_eq!(spill_policy("policy", 1), Ok(SpillPolicy::BestEffort));
        assert_eq!(spill_policy("policy", 2), Ok(SpillPolicy::Blocking));
    }

    #[test]
    fn given_every_priority_when_written_and_read_then_it_is_the_same() {
        for number in 0..5 {
            let priority = eviction_priority("priority", number).expect("in the contract");
            assert_eq!(i32::from(eviction_priority_to_pb(priority)), number);
        }
    }

    #[test]
    fn given_every_state_when_shown_then_committing_is_allocated_and_the_rest_keep_their_number() {
        for state in PayloadState::ALL {
            let shown = i64::from(i32::from(state_to_pb(state)));
            let expected = if state == PayloadState::Committing { 1 } else { state as i64 };
            assert_eq!(shown, expected, "{state}");
            let read = state_optional("state", state_to_pb(state).into()).expect("in the contract");
            assert_eq!(read.map(state_to_pb), Some(state_to_pb(state)));
        }
        assert_eq!(state_optional("state", 0), Ok(None));
        for number in [-1, 9, i32::MAX] {
            let error = state_optional("state", number).expect_err("no state");
            assert!(error.message.contains("PayloadState"), "{error}");
        }
    }
}
