//! A payload row as numbers: how every SQL backend stores it. The columns stand in one order everywhere, that of the
//! migrations; numbers that the contract has (tier, state, priority) are stored as the contract numbers them.

use payload_types::policy::EvictionPriority;
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, Epoch, EvictionPolicy, Extent, Generation, Health, PayloadKey, PayloadRow,
    PayloadState, Pin, ReplicaRow, Tier, Version, WallMs,
};

use crate::error::{RESTORE, StoreError};

/// The columns behind `namespace` and `id`, in the order of [`NAMES`], for a statement's text.
macro_rules! list {
    () => {
        "size, state, version, epoch, created_at, expires_at, no_evict, priority, require_durable,
        spill_target, min_residency, checksum, pinned_until, health, gpu, ram, disk, object, extent, unsound"
    };
}
pub(crate) use list;

/// What an upsert sets when the row is there: all of [`list`].
macro_rules! replacing {
    () => {
        "size = excluded.size, state = excluded.state, version = excluded.version, epoch = excluded.epoch,
        created_at = excluded.created_at, expires_at = excluded.expires_at, no_evict = excluded.no_evict,
        priority = excluded.priority, require_durable = excluded.require_durable,
        spill_target = excluded.spill_target, min_residency = excluded.min_residency,
        checksum = excluded.checksum, pinned_until = excluded.pinned_until, health = excluded.health,
        gpu = excluded.gpu, ram = excluded.ram, disk = excluded.disk, object = excluded.object,
        extent = excluded.extent, unsound = excluded.unsound"
    };
}
pub(crate) use replacing;

/// The columns behind `namespace` and `id`, by their names.
pub(crate) const NAMES: [&str; COUNT] = [
    "size",
    "state",
    "version",
    "epoch",
    "created_at",
    "expires_at",
    "no_evict",
    "priority",
    "require_durable",
    "spill_target",
    "min_residency",
    "checksum",
    "pinned_until",
    "health",
    "gpu",
    "ram",
    "disk",
    "object",
    "extent",
    "unsound",
];

/// How many they are.
pub(crate) const COUNT: usize = 20;

/// `spill_target` for `TIER_VOID`, as the contract numbers it.
const VOID: i64 = 5;

/// `pinned_until` for `Pin::Forever`; `storable` keeps real moments below it.
const FOREVER: i64 = i64::MAX;

/// What stands in the columns of [`NAMES`]. Every number fits: the caller checked with `storable`.
pub(crate) fn numbers_of(row: &PayloadRow) -> [Option<i64>; COUNT] {
    let spill_target = row.policy.spill_target.map(|target| match target {
        SpillTarget::Tier(tier) => tier as i64,
        SpillTarget::Void => VOID,
    });
    let pinned_until = match row.pin {
        Pin::None => None,
        Pin::Until(end) => Some(end.as_millis() as i64),
        Pin::Forever => Some(FOREVER),
    };
    let replica = |tier: Tier| {
        let replica = row.replicas.iter().find(|replica| replica.tier == tier)?;
        Some((replica.generation.0 << 1) as i64 | i64::from(replica.synced))
    };
    let [gpu, ram, disk, object] = Tier::ALL.map(replica);
    let extent = row.replicas.iter().find_map(|replica| replica.extent);
    let unsound =
        row.replicas.iter().filter(|replica| !replica.sound).map(|replica| unsound_bit(replica.tier));
    [
        Some(row.size.0 as i64),
        Some(row.state as i64),
        Some(row.version.0 as i64),
        Some(i64::from(row.epoch.0)),
        Some(row.created_at.as_millis() as i64),
        row.expires_at.map(|moment| moment.as_millis() as i64),
        Some(i64::from(row.no_evict)),
        Some(row.policy.priority as i64),
        Some(i64::from(row.policy.require_durable)),
        spill_target,
        row.policy.min_residency.map(|tier| tier as i64),
        row.checksum.map(|checksum| checksum.0.cast_signed()),
        pinned_until,
        Some(row.health as i64),
        gpu,
        ram,
        disk,
        object,
        extent.map(|extent| extent.to_bits().cast_signed()),
        Some(unsound.sum::<i64>()),
    ]
}

/// The row that these numbers say.
///
/// # Errors
/// [`StoreError::Corrupt`], naming the column, for numbers that [`numbers_of`] does not make.
pub(crate) fn row_of(key: PayloadKey, numbers: [Option<i64>; COUNT]) -> Result<PayloadRow, StoreError> {
    let strange = |field: &str| {
        StoreError::Corrupt(format!("row {} has a {field} that has no meaning; {RESTORE}", key.id))
    };
    let tier = |number: i64, field: &str| Tier::from_number(number).ok_or_else(|| strange(field));
    let mut cells = NAMES.into_iter().zip(numbers);

    let mut found = PayloadRow {
        key,
        size: ByteCount(number(&mut cells)?),
        state: PayloadState::from_number(number(&mut cells)?).ok_or_else(|| strange("state"))?,
        version: Version(number(&mut cells)?),
        epoch: Epoch(number(&mut cells)?),
        created_at: WallMs::from_millis(number(&mut cells)?),
        expires_at: optional(&mut cells)?.map(WallMs::from_millis),
        no_evict: number::<u8>(&mut cells)? != 0,
        policy: EvictionPolicy {
            priority: priority(number(&mut cells)?).ok_or_else(|| strange("priority"))?,
            require_durable: number::<u8>(&mut cells)? != 0,
            spill_target: match optional(&mut cells)? {
                None => None,
                Some(VOID) => Some(SpillTarget::Void),
                Some(number) => Some(SpillTarget::Tier(tier(number, "spill_target")?)),
            },
            min_residency: match optional(&mut cells)? {
                None => None,
                Some(number) => Some(tier(number, "min_residency")?),
            },
        },
        checksum: optional(&mut cells)?.map(|bits: i64| Checksum(bits.cast_unsigned())),
        pin: match optional::<i64>(&mut cells)? {
            None => Pin::None,
            Some(FOREVER) => Pin::Forever,
            Some(end) => {
                Pin::Until(WallMs::from_millis(end.try_into().map_err(|_| strange("pinned_until"))?))
            }
        },
        health: health(number(&mut cells)?).ok_or_else(|| strange("health"))?,
        replicas: Vec::new(),
    };
    for tier in Tier::ALL {
        if let Some(stored) = optional::<u64>(&mut cells)? {
            found.replicas.push(ReplicaRow {
                tier,
                generation: Generation(stored >> 1),
                synced: stored & 1 == 1,
                sound: true,
                extent: None,
            });
        }
    }
    if let Some(bits) = optional::<i64>(&mut cells)? {
        let disk = found.replicas.iter_mut().find(|replica| replica.tier == Tier::Disk);
        let (replica, extent) =
            disk.zip(Extent::from_bits(bits.cast_unsigned())).ok_or_else(|| strange("extent"))?;
        replica.extent = Some(extent);
    }
    let mut unsound: i64 = number(&mut cells)?;
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

type Cell = (&'static str, Option<i64>);

fn number<T: TryFrom<i64>>(cells: &mut impl Iterator<Item = Cell>) -> Result<T, StoreError> {
    let (field, cell) = cells.next().expect("as many columns as are read");
    let number = cell.ok_or_else(|| StoreError::Corrupt(format!("a row has no {field}; {RESTORE}")))?;
    fitting(field, number)
}

fn optional<T: TryFrom<i64>>(cells: &mut impl Iterator<Item = Cell>) -> Result<Option<T>, StoreError> {
    let (field, cell) = cells.next().expect("as many columns as are read");
    cell.map(|number| fitting(field, number)).transpose()
}

fn fitting<T: TryFrom<i64>>(field: &str, number: i64) -> Result<T, StoreError> {
    T::try_from(number).map_err(|_| {
        StoreError::Corrupt(format!("a row has {field} {number}, which is out of range; {RESTORE}"))
    })
}

fn priority(number: i64) -> Option<EvictionPriority> {
    use EvictionPriority::{High, Low, Never, Normal, Unspecified};
    [Unspecified, Low, Normal, High, Never].into_iter().find(|priority| *priority as i64 == number)
}

/// What a stored health means.
pub(crate) fn health(number: i64) -> Option<Health> {
    [Health::Good, Health::Lost, Health::Damaged].into_iter().find(|health| *health as i64 == number)
}
