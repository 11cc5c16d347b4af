//! Holds: streams that keep payloads take them and let them go.
//!
//! ```text
//!   Take --every payload is there--> held under a token --Settle--> held by the stream at its new offsets, token let go
//!   Floor --> what it passed holds nothing --bounded a step--> taken out --> expired now, if the ttl has passed meanwhile
//! ```

use payload_types::hold::{HeldEntries, Hold};
use payload_types::reply::Reply;
use payload_types::{ErrorKind, Health, Now, PayloadError, PayloadKey};

use crate::holds::Holder;
use crate::shard::{Answer, Shard, Step};

impl Shard {
    pub(crate) fn hold(&mut self, step: &Step<'_>, hold: Hold) -> Answer {
        Some(match hold {
            Hold::Take { token, payloads } => self.hold_take(step.now, token, &payloads),
            Hold::Settle { token, held } => {
                if let Some(held) = held {
                    self.hold_entries(&held);
                }
                self.table.hold_floor(Holder::Append(token), 1);
                Ok(Reply::Held)
            }
            Hold::Again(held) => {
                self.hold_entries(&held);
                Ok(Reply::Held)
            }
            Hold::Floor { stream, floor } => {
                self.table.hold_floor(Holder::Stream(stream), floor);
                Ok(Reply::Held)
            }
        })
    }

    /// Holds all of them for an append, or none.
    fn hold_take(&mut self, now: Now, token: u64, payloads: &[PayloadKey]) -> Result<Reply, PayloadError> {
        if !self.table.holds_have_room(payloads.len()) {
            return Err(PayloadError::exhausted(
                "streams hold as many payloads of this shard as it can note; let their groups commit, or give the streams limits",
            ));
        }
        let found: Vec<_> = payloads.iter().map(|key| self.find(now, *key)).collect::<Result<_, _>>()?;
        for slot in found {
            self.table.hold(slot, Holder::Append(token), None, 0);
        }
        Ok(Reply::Held)
    }

    /// Holds what there is of them. One that is still COMMITTING here is committed for the catalog, which took the append.
    fn hold_entries(&mut self, held: &HeldEntries) {
        let holder = Holder::Stream(held.stream.stream);
        for (offset, key) in &held.entries {
            let found = self.table.find(*key);
            let found = found.filter(|slot| self.table.at(*slot).health != Health::Lost);
            if let Some(slot) = found {
                self.table.hold(slot, holder, Some(&held.stream), *offset);
            }
        }
    }

    /// Before the first step: entries of streams that retain payloads, as the catalog has them.
    pub fn adopt_holds(&mut self, now: Now, held: &HeldEntries) {
        self.hold_entries(held);
        self.table.settle(now.monotonic);
    }

    /// Takes out what floors have passed, as far as this step's work reaches.
    pub(crate) fn run_holds(&mut self, step: &Step<'_>, work_left: &mut usize) {
        while *work_left > 0
            && let Some(freed) = self.table.hold_drain()
        {
            *work_left -= 1;
            // Its ttl may have passed while it was held, and its timer with it.
            if let Some(slot) = freed
                && self.table.at(slot).timer.is_none()
            {
                self.arm_payload_timer(step.now, slot);
            }
        }
    }

    /// Refuses what would take a payload away that streams keep.
    pub(crate) fn check_held(
        &self,
        slot: payload_ledger::SlotKey,
        way_out: &str,
    ) -> Result<(), PayloadError> {
        let payload = self.table.at(slot);
        if !payload.held || payload.health == Health::Lost {
            return Ok(());
        }
        let holders = self.table.holders(slot);
        let Some(first) = holders.first() else { return Ok(()) };
        let by = match &first.stream {
            Some(stream) => format!(
                "entry {} of stream `{}` in namespace `{}`, which retains payloads and which some group has not committed past",
                first.offset, stream.name, stream.namespace
            ),
            None => "an append to a stream that retains payloads, which is under way".to_owned(),
        };
        let others = match holders.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        Err(PayloadError::new(
            ErrorKind::FailedPrecondition,
            format!("payload {} is held by {by}{others}; {way_out}", payload.key.id),
        ))
    }
}
