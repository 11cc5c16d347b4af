//! Which interesting situations a run came across. A simulator that never meets them proves nothing, so a test fails
//! when one of [`SITUATIONS`] was never reached.

use std::collections::BTreeMap;

/// Every situation that must be reached.
pub const SITUATIONS: &[&str] = &[
    "acquire_blocking_promoted_first",
    "acquire_best_effort_on_slower_replica",
    "acquire_fenced",
    "append_found_a_payload_gone",
    "append_settled_behind_its_floor",
    "allocation_timed_out",
    "allocation_refused_tier_full",
    "allocation_refused_over_capacity",
    "allocated_in_a_slab",
    "allocated_in_a_slab_small",
    "allocated_sealed",
    "batch_across_shards",
    "batch_committed",
    "batch_of_many_changes",
    "batch_part_put_back",
    "batch_refused",
    "batch_without_an_answer_survived_a_crash",
    "boot_with_less_capacity",
    "boot_with_other_shard_count",
    "budget_asked",
    "budget_denied",
    "budget_recalled_from_another_shard",
    "catalog_transaction_failed",
    "catalog_unavailable_answered",
    "collector_cancelled",
    "commit_joined",
    "commit_accepted_before_its_row",
    "commit_repeated_refused",
    "commit_refused_truncated_or_missing",
    "commit_with_wrong_checksum",
    "copy_destination_failed",
    "copy_source_failed",
    "crash",
    "crash_with_a_batch_that_waits",
    "crash_with_an_append_in_the_catalog",
    "crash_with_copy_in_flight",
    "crash_with_transaction_that_happened",
    "crash_with_transaction_that_did_not",
    "crash_with_effects_in_the_outbox",
    "create_failed",
    "damaged_replica_marked_in_its_row",
    "damaged_replica_moved",
    "damaged_replica_of_an_earlier_start",
    "data_loss_answered",
    "dead_record_adopted",
    "deadline_while_waiting",
    "delete_during_copy",
    "delete_forced_under_lease",
    "delete_refused_held",
    "delete_refused_leased",
    "delete_refused_read_directly",
    "delete_while_committing",
    "direct_lease",
    "direct_lease_came_too_late",
    "direct_lease_revoked",
    "drop_waited_for_a_flush",
    "end_of_a_larger_file_charged",
    "enrolled_and_lost_at_a_boot",
    "enrolled_before_its_commit",
    "evict_discarded_void",
    "evict_dropped_clean_replica",
    "evict_failed",
    "evict_merged_by_rank",
    "evict_raced_acquire",
    "evict_raced_delete",
    "evict_to_a_full_disk",
    "evict_to_disk",
    "evict_while_leased_elsewhere",
    "evict_while_pinned_elsewhere",
    "expiry_under_lease",
    "expiry_while_committing",
    "file_of_its_own_in_flight_at_crash",
    "file_of_its_own_joined",
    "file_of_its_own_raced_delete",
    "find_of_several_parts",
    "flush_failed",
    "flush_while_somebody_waits_for_space",
    "freed_long_after_detached",
    "full_disk_compacted",
    "group_went_back",
    "held_again",
    "held_again_at_boot",
    "held_block_adopted",
    "lease_during_copy",
    "lease_kept_an_old_extent",
    "lease_expired_by_itself",
    "lease_got_a_file_of_its_own",
    "lease_of_a_held_payload_after_its_ttl",
    "lease_on_file",
    "list_of_several_pages",
    "lost_answered",
    "mass_expiry",
    "namespace_kept_apart",
    "packed",
    "packed_sync_failed",
    "packed_without_a_segment_file",
    "pinned_spill_refused",
    "power_loss",
    "power_loss_undid_removals",
    "promote_added_replica",
    "promote_as_spill",
    "promote_evicted_others",
    "promote_while_segment_in_limbo",
    "reader_kept_a_file_from_being_recycled",
    "refused_while_the_server_stops",
    "relocation_in_flight_at_crash",
    "relocation_published",
    "relocation_raced_delete",
    "relocation_raced_promote",
    "relocation_raced_spill",
    "relocation_refused",
    "saved_from_slabs_by_a_stop",
    "scan_found_a_reader",
    "scrubbed_bad",
    "scrubbed_bad_and_repaired",
    "scrubbed_sound",
    "seal_failed",
    "segment_file_recycled",
    "segment_made_again_after_detach",
    "segment_of_its_own",
    "session_aborted",
    "session_allocation_taken_back",
    "session_ended_while_it_waits_for_a_replica",
    "session_ended_while_it_waits_for_space",
    "session_ended_while_its_commit_was_in_flight",
    "session_ended_with_more_than_a_step_ends",
    "session_leased_after_its_end",
    "session_refused_at_its_limit",
    "slab_could_not_be_made",
    "slab_place_used_again",
    "slab_returned",
    "slab_still_writable_at_commit",
    "slab_writer_died_after_mapping",
    "slab_writer_died_before_mapping",
    "slab_zeroed_for_another_namespace",
    "spill_best_effort",
    "spill_fsync_of_unsynced_replica",
    "spill_leased_refused",
    "spill_to_void",
    "spill_waited_for_lease",
    "served_after_power_loss_undid_its_removal",
    "stop_named_who_will_be_lost",
    "stopped_gracefully",
    "sync_failed",
    "torn_table_at_boot",
    "ttl_reclaimed",
    "verify_failed",
    "version_fence_refused",
    "waiter_served_by_a_free",
    "waiter_served_by_an_eviction",
    "waiter_served_by_compaction",
    "waiter_timed_out",
    "volatile_payload_lost_with_power",
];

/// How often each situation was met.
#[derive(Clone, Debug)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { counts: SITUATIONS.iter().map(|name| (*name, 0)).collect() }
    }
}

impl Coverage {
    /// Counts a situation.
    ///
    /// # Panics
    /// For a name that is not one of [`SITUATIONS`].
    pub(super) fn hit(&mut self, name: &'static str) {
        *self.counts.get_mut(name).unwrap_or_else(|| panic!("`{name}` is not listed in SITUATIONS")) += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }

    /// Names and counts, in the order of names.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().map(|(name, count)| (*name, *count))
    }

    /// Situations never met.
    pub fn missed(&self) -> Vec<&'static str> {
        self.counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect()
    }
}
