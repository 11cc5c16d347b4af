//! How a payload's row is bound and read. The columns stand in one order everywhere: that of the migrations.

use payload_types::policy::EvictionPriority;
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, Epoch, EvictionPolicy, Extent, Generation, Health, NamespaceId, PayloadId,
    PayloadKey, PayloadRow, PayloadState, Pin, ReplicaRow, Tier, Version, WallMs,
};
use rusqlite::{Row, Statement};

use super::errors::{RESTORE, rolled_back};
use crate::error::StoreError;

/// Inserts a row, or replaces it unless it is newer (see `supersedes`).
pub(super) const PUT: &str = "
    INSERT INTO payload (namespace, id, size, state, version, epoch, created_at, expires_at, no_evict, priority,
        require_durable, spill_target, min_residency, checksum, pinned_until, health, gpu, ram, disk, object,
        extent, unsound)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)
    ON CONFLICT (namespace, id) DO UPDATE SET
        size = excluded.size, state = excluded.state, version = excluded.version, epoch = excluded.epoch,
        created_at = excluded.created_at, expires_at = excluded.expires_at, no_evict = excluded.no_evict,
        priority = excluded.priority, require_durable = excluded.require_durable,
        spill_target = excluded.spill_target, min_residency = excluded.min_residency,
        checksum = excluded.checksum, pinned_until = excluded.pinned_until, health = excluded.health,
        gpu = excluded.gpu, ram = excluded.ram, disk = excluded.disk, object = excluded.object,
        extent = excluded.extent, unsound = excluded.unsound
    WHERE (excluded.epoch, excluded.version) >= (payload.epoch, payload.version)";

/// Removes a row unless it was written after the given epoch.
pub(super) const REMOVE: &str = "DELETE FROM payload WHERE namespace = ?1 AND id = ?2 AND epoch <= ?3";

/// Every row, in the order of keys.
pub(super) const ALL: &str = "
    SELECT namespace, id, size, state, version, epoch, created_at, expires_at, no_evict, priority,
        require_durable, spill_target, min_residency, checksum, pinned_until, health, gpu, ram, disk, object,
        extent, unsound
    FROM payload ORDER BY namespace, id";

/// One row.
pub(super) const ONE: &str = "
    SELECT namespace, id, size, state, version, epoch, created_at, expires_at, no_evict, priority,
        require_durable, spill_target, min_residency, checksum, pinned_until, health, gpu, ram, disk, object,
        extent, unsound
    FROM payload WHERE namespace = ?1 AND id = ?2";

/// `spill_target` for `TIER_VOID`, as the contract numbers it.
const VOID: i64 = 5;

/// `pinned_until` for `Pin::Forever`; `storable` keeps real moments below it.
const FOREVER: i64 = i64::MAX;

/// Runs [`PUT`]. Every number fits: the caller checked with `storable`.
pub(super) fn put(statement: &mut Statement<'_>, row: &PayloadRow) -> rusqlite::Result<()> {
    let spill_target = row.policy.spill_target.map(|target| match target {
        SpillTarget::Tier(tier) => tier as i64,
        SpillTarget::Void => VOID,
    });
    let pinned_until = match row.pin {
        Pin::None => None,
        Pin::Until(end) => Some(end.as_millis() as i64),
        Pin::Forever => Some(FOREVER),
    };
    statement.raw_bind_parameter(1, row.key.namespace.0)?;
    statement.raw_bind_parameter(2, &row.key.id.as_bytes()[..])?;
    statement.raw_bind_parameter(3, row.size.0 as i64)?;
    statement.raw_bind_parameter(4, row.state as i64)?;
    statement.raw_bind_parameter(5, row.version.0 as i64)?;
    statement.raw_bind_parameter(6, row.epoch.0)?;
    statement.raw_bind_parameter(7, row.created_at.as_millis() as i64)?;
    statement.raw_bind_parameter(8, row.expires_at.map(|moment| moment.as_millis() as i64))?;
    statement.raw_bind_parameter(9, row.no_evict)?;
    statement.raw_bind_parameter(10, row.policy.priority as i64)?;
    statement.raw_bind_parameter(11, row.policy.require_durable)?;
    statement.raw_bind_parameter(12, spill_target)?;
    statement.raw_bind_parameter(13, row.policy.min_residency.map(|tier| tier as i64))?;
    statement.raw_bind_parameter(14, row.checksum.map(|checksum| checksum.0.cast_signed()))?;
    statement.raw_bind_parameter(15, pinned_until)?;
    statement.raw_bind_parameter(16, row.health as i64)?;
    for (column, tier) in (17..).zip(Tier::ALL) {
        let replica = row.replicas.iter().find(|replica| replica.tier == tier);
        let stored = replica.map(|replica| (replica.generation.0 << 1) as i64 | i64::from(replica.synced));
        statement.raw_bind_parameter(column, stored)?;
    }
    let extent = row.replicas.iter().find_map(|replica| replica.extent);
    statement.raw_bind_parameter(21, extent.map(|extent| extent.to_bits().cast_signed()))?;
    let unsound =
        row.replicas.iter().filter(|replica| !replica.sound).map(|replica| unsound_bit(replica.tier));
    statement.raw_bind_parameter(22, unsound.sum::<i64>())?;
    statement.raw_execute()?;
    Ok(())
}

/// Reads a row selected by [`ALL`] or [`ONE`].
pub(super) fn read(row: &Row<'_>) -> Result<PayloadRow, StoreError> {
    let mut cells = Cells { row, column: 0 };
    let namespace = NamespaceId(cells.number("namespace")?);
    let id = PayloadId::from_bytes(row.get(1).map_err(|error| rolled_back(&error))?);
    cells.column = 2;
    let strange =
        |field: &str| StoreError::Corrupt(format!("row {id} has a {field} that has no meaning; {RESTORE}"));
    let tier = |number: i64, field: &str| Tier::from_number(number).ok_or_else(|| strange(field));

    let mut found = PayloadRow {
        key: PayloadKey { namespace, id },
        size: ByteCount(cells.number("size")?),
        state: PayloadState::from_number(cells.number("state")?).ok_or_else(|| strange("state"))?,
        version: Version(cells.number("version")?),
        epoch: Epoch(cells.number("epoch")?),
        created_at: WallMs::from_millis(cells.number("created_at")?),
        expires_at: cells.optional("expires_at")?.map(WallMs::from_millis),
        no_evict: cells.number::<u8>("no_evict")? != 0,
        policy: EvictionPolicy {
            priority: priority(cells.number("priority")?).ok_or_else(|| strange("priority"))?,
            require_durable: cells.number::<u8>("require_durable")? != 0,
            spill_target: match cells.optional("spill_target")? {
                None => None,
                Some(VOID) => Some(SpillTarget::Void),
                Some(number) => Some(SpillTarget::Tier(tier(number, "spill_target")?)),
            },
            min_residency: match cells.optional("min_residency")? {
                None => None,
                Some(number) => Some(tier(number, "min_residency")?),
            },
        },
        checksum: cells.optional("checksum")?.map(|bits: i64| Checksum(bits.cast_unsigned())),
        pin: match cells.optional::<i64>("pinned_until")? {
            None => Pin::None,
            Some(FOREVER) => Pin::Forever,
            Some(end) => {
                Pin::Until(WallMs::from_millis(end.try_into().map_err(|_| strange("pinned_until"))?))
            }
        },
        health: health(cells.number("health")?).ok_or_else(|| strange("health"))?,
        replicas: Vec::new(),
    };
    for tier in Tier::ALL {
        if let Some(stored) = cells.optional::<u64>("replica")? {
            found.replicas.push(ReplicaRow {
                tier,
                generation: Generation(stored >> 1),
                synced: stored & 1 == 1,
                sound: true,
                extent: None,
            });
        }
    }
    if let Some(bits) = cells.optional::<i64>("extent")? {
        let disk = found.replicas.iter_mut().find(|replica| replica.tier == Tier::Disk);
        let (replica, extent) =
            disk.zip(Extent::from_bits(bits.cast_unsigned())).ok_or_else(|| strange("extent"))?;
        replica.extent = Some(extent);
    }
    let mut unsound: i64 = cells.number("unsound")?;
    for replica in &mut found.replicas {
        let bit = unsound_bit(replica.tier);
        replica.sound = unsound & bit == 0;
        unsound &= !bit;
    }
    if unsound != 0 {
        return Err(strange("set of unsound replicas"));
    }
    Ok(found)
}

/// A tier's place in `unsound`.
fn unsound_bit(tier: Tier) -> i64 {
    1 << tier as i64
}

/// Reads a row's cells in order.
struct Cells<'row, 'statement> {
    row: &'row Row<'statement>,
    column: usize,
}

impl Cells<'_, '_> {
    fn number<T: TryFrom<i64>>(&mut self, field: &str) -> Result<T, StoreError> {
        self.optional(field)?.ok_or_else(|| StoreError::Corrupt(format!("a row has no {field}; {RESTORE}")))
    }

    fn optional<T: TryFrom<i64>>(&mut self, field: &str) -> Result<Option<T>, StoreError> {
        let cell: Option<i64> = self.row.get(self.column).map_err(|error| rolled_back(&error))?;
        self.column += 1;
        let Some(number) = cell else { return Ok(None) };
        T::try_from(number).map(Some).map_err(|_| {
            StoreError::Corrupt(format!("a row has {field} {number}, which is out of range; {RESTORE}"))
        })
    }
}

fn priority(number: i64) -> Option<EvictionPriority> {
    use EvictionPriority::{High, Low, Never, Normal, Unspecified};
    [Unspecified, Low, Normal, High, Never].into_iter().find(|priority| *priority as i64 == number)
}

fn health(number: i64) -> Option<Health> {
    [Health::Good, Health::Lost, Health::Damaged].into_iter().find(|health| *health as i64 == number)
}
