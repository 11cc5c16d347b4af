//! Direct leases (docs/decisions/2026-11-23-direct-leases.md), the shard's part so far: it hears what those lease who ask nobody.
//!
//! ```text
//! sessions -- a sample of what they lease --> driver -- Sampled, 64 ids at most --> here: the last to be evicted now
//! ```
//! A sample is a claim that costs its session nothing to forge. So it changes the order of victims and nothing else: it
//! keeps no payload alive, ends no wait, and is looked at where it names something in memory only.
//! Nothing is published yet: the decision says what has to come in one step with that.

use payload_types::direct::{SAMPLED_MAX, Sampled};
use payload_types::{PayloadKey, Tier};

use crate::shard::{Shard, Step};

impl Shard {
    /// Readers have leased these directly of late: they are used now, as by a lease that ends.
    pub(crate) fn sampled(&mut self, step: &Step<'_>, sampled: &Sampled) {
        for id in sampled.ids.iter().take(SAMPLED_MAX) {
            let key = PayloadKey { namespace: sampled.namespace, id: *id };
            let Some(slot) = self.table.find(key) else { continue };
            let payload = self.table.at(slot);
            // What was moved or deleted since it was sampled is nobody's any more to keep in memory.
            if payload.is_committed() && payload.replicas[Tier::Ram].is_some() {
                self.table.used(slot, step.now.monotonic);
            }
        }
    }
}
