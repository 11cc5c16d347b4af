//! Boot: which of the replicas that the catalog's rows vouch for are there. Many at a time, from several threads.

use std::sync::PoisonError;

use payload_types::Tier;
use payload_types::effect::ReplicaRef;

use crate::Drivers;
use crate::store::boot::{Looker, Seen};

/// One thread's part of the verification; see [`Drivers::verify`], which is the same for one replica.
pub struct Verifier<'drivers> {
    drivers: &'drivers Drivers,
    ram: Looker<'drivers>,
    disk: Option<Looker<'drivers>>,
    seen: Vec<Seen>,
}

impl Drivers {
    /// Boot: verifies many replicas. Each thread that takes part has a verifier of its own.
    pub fn verifier(&self) -> Verifier<'_> {
        Verifier {
            drivers: self,
            ram: Looker::new(&self.stores.ram),
            disk: self.stores.disk.as_ref().map(Looker::new),
            seen: Vec::new(),
        }
    }
}

impl Verifier<'_> {
    /// [`Drivers::verify`] for each of `replicas`: `answer` is told its number and whether it is there.
    pub fn verify(&mut self, replicas: &[ReplicaRef], mut answer: impl FnMut(usize, bool)) {
        self.seen.clear();
        for replica in replicas {
            self.seen.push(match (replica.tier, &mut self.disk) {
                (Tier::Ram, _) => self.ram.look(replica),
                (Tier::Disk, Some(disk)) => match (replica.extent, &self.drivers.tables) {
                    (Some(extent), Some(tables)) => tables.vouch(replica, extent),
                    (Some(_), None) => Seen::Absent,
                    (None, _) => disk.look(replica),
                },
                (Tier::Disk, None) | (Tier::Gpu | Tier::Object, _) => Seen::Absent,
            });
        }
        // Looking is what takes time; it is over before anybody waits for the lock.
        let mut found = self.drivers.found.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, (replica, seen)) in replicas.iter().zip(&self.seen).enumerate() {
            // A store need not be up at start; what it lacks is found when it is asked for.
            if replica.tier == Tier::Object {
                answer(number, self.drivers.config.has_objects);
                continue;
            }
            // What is packed needs no table but its file's.
            if replica.extent.is_some() {
                answer(number, *seen == Seen::Whole);
                continue;
            }
            let tables = found.as_mut().and_then(|found| match replica.tier {
                Tier::Ram => Some(&mut found.ram),
                Tier::Disk => found.disk.as_mut(),
                Tier::Gpu | Tier::Object => None,
            });
            let is_there = match (tables, self.drivers.stores.get(replica.tier)) {
                (Some(tables), Ok(store)) => tables.vouch(store, replica, *seen),
                _ => false,
            };
            answer(number, is_there);
        }
    }
}
