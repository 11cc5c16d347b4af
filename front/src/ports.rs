//! The shards' way out: hands their effects to the drivers and to the catalog writer.
//!
//! Owned by the node, called by the shard threads. Never blocks: both receivers have bounded queues, sized so that a
//! shard's own slot tables are full first, and a full queue hands the operation back for the pump to keep.

use std::sync::Arc;

use payload_catalog::Writer;
use payload_drivers::{DriverOp, Drivers};
use payload_reactor::Ports;
use payload_types::ByteCount;
use payload_types::effect::{CatalogChange, CatalogOp, StorageAction, StorageOp, TransferOp};

use crate::telemetry::flights::{Flights, Work};

/// Drivers and catalog writer of one node.
pub struct NodePorts {
    drivers: Drivers,
    writer: Writer,
    flights: Arc<Flights>,
}

impl NodePorts {
    /// Both must have been started.
    pub fn new(drivers: Drivers, writer: Writer, flights: Arc<Flights>) -> Self {
        Self { drivers, writer, flights }
    }

    /// Ends verifications, those under way and those to come.
    pub fn stop_scrubs(&self) {
        self.drivers.stop_scrubs();
    }

    /// Ends both, in the order in which nothing can be lost: the writer first flushes what the shards submitted, then
    /// the drivers finish what is under way.
    pub fn shutdown(self) {
        if let Err(error) = self.writer.shutdown().close() {
            tracing::warn!(%error, "the catalog was not closed in order; what it acknowledged is stored");
        }
        self.drivers.shutdown();
    }
}

impl Ports for NodePorts {
    fn storage(&self, op: StorageOp) -> Result<(), StorageOp> {
        // Of what is dropped or stays no slot waits.
        if !matches!(op.action, StorageAction::Drop | StorageAction::Stay) {
            self.flights.begun((op.shard, op.op), op.replica.id, Work::Storage(op.replica.tier));
        }
        self.drivers.submit(DriverOp::Storage(op)).map_err(|full| match full {
            DriverOp::Storage(op) => op,
            DriverOp::Transfer(_) => unreachable!("a queue hands back what it was given"),
        })
    }

    fn transfer(&self, op: TransferOp) -> Result<(), TransferOp> {
        let work = Work::Copy { from: op.from.tier, to: op.to.tier };
        self.flights.begun((op.shard, op.op), op.from.id, work);
        self.drivers.submit(DriverOp::Transfer(op)).map_err(|full| match full {
            DriverOp::Transfer(op) => op,
            DriverOp::Storage(_) => unreachable!("a queue hands back what it was given"),
        })
    }

    fn catalog(&self, op: CatalogOp) -> Result<(), CatalogOp> {
        let payload = match &op.change {
            CatalogChange::Put(row) => row.key.id,
            CatalogChange::Remove { key, .. } => key.id,
        };
        self.flights.begun((op.shard, op.op), payload, Work::Catalog);
        self.writer.submit(op)
    }

    fn disk_wanted(&self, bytes: ByteCount) {
        self.drivers.disk_wanted(bytes);
    }
}
