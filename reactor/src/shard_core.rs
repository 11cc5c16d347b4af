//! The one core that ships: a [`Shard`] with its [`Outbox`], and [`Reactor::start`] for it. The rest of the crate
//! knows the pump's `Core` trait only.

use std::sync::Arc;

use payload_shards::{Arbiter, Outbox, Shard};
use payload_types::effect::Effect;
use payload_types::event::Event;
use payload_types::{ByteCount, Monotonic, Now, Tier};

use crate::mailbox::Mailboxes;
use crate::pump::{ArbiterStep, Core, Ports};
use crate::start::{Reactor, ReactorConfig, StartError};

/// A shard and its outbox, as the pump drives them.
struct ShardCore {
    shard: Shard,
    outbox: Outbox,
}

impl Core for ShardCore {
    fn step(&mut self, now: Now, event: Event) {
        self.shard.step(now, event, &mut self.outbox);
    }

    fn pop(&mut self) -> Option<Effect> {
        self.outbox.pop()
    }

    fn has_credit(&self) -> bool {
        self.outbox.has_credit()
    }

    fn next_timer(&self) -> Option<Monotonic> {
        self.shard.next_timer()
    }
}

impl Reactor {
    /// Starts one thread for each shard and returns once all of them run. `shards[n]` is shard n.
    ///
    /// # Errors
    /// [`StartError`]; then no thread is left, and what waits in the mailboxes was answered UNAVAILABLE.
    pub fn start(
        config: ReactorConfig,
        mailboxes: Mailboxes,
        shards: Vec<Shard>,
        mut arbiter: Arbiter,
        ports: Arc<dyn Ports>,
    ) -> Result<Self, StartError> {
        let cores = shards.into_iter().map(|shard| ShardCore { shard, outbox: Outbox::new() }).collect();
        let (disk, mut told) = (Arc::clone(&ports), ByteCount::ZERO);
        let step: ArbiterStep = Box::new(move |request, out| {
            arbiter.step(request, out);
            let wanted = arbiter.wanted(Tier::Disk);
            if wanted != told {
                told = wanted;
                disk.disk_wanted(wanted);
            }
        });
        Self::start_cores(config, mailboxes, cores, step, ports)
    }
}
