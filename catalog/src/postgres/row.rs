//! Payload rows in PostgreSQL: groups of changes as arrays, and the one statement that makes them.
//!
//! One statement fences, puts and removes: as a transaction of its own it is one round trip. No two changes of one
//! statement are of one key, so several changes of a key make several statements, in order. Keys are sorted: rows are
//! locked in that order.
//!
//! What belongs to a removed row goes with it, as `records::forget` says it: metadata in the same statement, or bit by bit
//! where it is long, and lineage when a sweep finds nothing living connected with it.

use payload_types::effect::CatalogChange;
use payload_types::{NamespaceId, PayloadId, PayloadKey, PayloadRow};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Sql, Value, cell};
use crate::columns;
use crate::error::{RESTORE, StoreError, Taken};

/// Who writes: what every write is fenced by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fence {
    pub node: i32,
    pub epoch: i64,
    pub session: i64,
}

/// The columns of `columns::list` as bigint.
macro_rules! numbers {
    () => {
        "size, state::bigint, version, epoch, created_at, expires_at, no_evict::bigint, priority::bigint,
        require_durable::bigint, spill_target::bigint, min_residency::bigint, checksum, pinned_until,
        health::bigint, gpu, ram, disk, object, extent, unsound::bigint"
    };
}
pub(super) use numbers;

/// Makes the changes of a group, if the fence stands: gives one row if so, none if not; in it how many rows were put, which
/// are fewer than were given where newer ones or another node's stand.
/// `owner + 0`: a plan made while the table is empty would read all rows of the node by their index on `owner`, and stay.
/// Arrays are unnested in a list of outputs: each as a table of its own, joined by `FROM unnest($5, $6, ...)`, took 2.2 ms
/// for 512 rows where this takes 0.3, more than all else of the statement.
/// `$1` to `$4`: node, epoch, session, number of the group. `$5` to `$26`: rows to put. `$27` to `$29`: namespaces, ids
/// and epochs of removals. `$30`: where fewer rows than so many are put the statement fails, by a division by zero
/// ([`too_few`]), and with it the transaction; 0: it does not.
pub(super) static WRITE: Sql = Sql {
    text: concat!(
        "WITH fence AS (
            UPDATE payload_manager.node SET last_group = $4
            WHERE id = $1 AND epoch = $2 AND session = $3 RETURNING id
        ), put AS (
            INSERT INTO payload_manager.payload AS kept (namespace, id, ",
        columns::list!(),
        ", owner)
            SELECT new.*, (SELECT id FROM fence) FROM (SELECT unnest($5), unnest($6), unnest($7), unnest($8),
                unnest($9), unnest($10), unnest($11), unnest($12), unnest($13), unnest($14), unnest($15), unnest($16),
                unnest($17), unnest($18), unnest($19), unnest($20), unnest($21), unnest($22), unnest($23), unnest($24),
                unnest($25), unnest($26)) AS new (namespace, id, ",
        columns::list!(),
        ")
            WHERE EXISTS (SELECT FROM fence)
            ON CONFLICT (namespace, id) DO UPDATE SET ",
        columns::replacing!(),
        "
            WHERE (excluded.epoch, excluded.version) >= (kept.epoch, kept.version) AND excluded.owner = kept.owner
            RETURNING 1
        ), gone AS (
            DELETE FROM payload_manager.payload AS kept
            USING (SELECT unnest($27), unnest($28), unnest($29)) AS old (namespace, id, epoch)
            WHERE kept.namespace = old.namespace AND kept.id = old.id AND kept.epoch <= old.epoch
                AND kept.owner + 0 = (SELECT id FROM fence)
            RETURNING kept.namespace, kept.id
        ), histories AS (
            DELETE FROM payload_manager.history AS history USING gone
            WHERE history.namespace = gone.namespace AND history.payload = gone.id
            RETURNING history.id, history.events, history.namespace, history.payload, history.terms
        ), terms AS (
            DELETE FROM payload_manager.metadata_term AS term USING (
                SELECT namespace, payload, unnest(terms) AS term FROM histories) AS old
            WHERE term.namespace = old.namespace AND term.term = old.term AND term.payload = old.payload
        ), events AS (
            DELETE FROM payload_manager.event AS event USING histories
            WHERE event.history = histories.id AND histories.events <= 64
        ), garbage AS (
            INSERT INTO payload_manager.garbage SELECT 2, id FROM histories WHERE events > 64
        ), dirty AS (
            INSERT INTO payload_manager.lineage_dirty SELECT namespace, id FROM gone
            WHERE EXISTS (SELECT FROM payload_manager.lineage AS edge
                    WHERE edge.namespace = gone.namespace AND edge.child = gone.id)
                OR EXISTS (SELECT FROM payload_manager.lineage AS edge
                    WHERE edge.namespace = gone.namespace AND edge.parent = gone.id)
            ON CONFLICT DO NOTHING
        )
        SELECT made.rows / (made.rows >= $30)::integer FROM fence, (SELECT count(*) FROM put) AS made (rows)"
    ),
    types: &[
        Type::INT4,
        Type::INT8,
        Type::INT8,
        Type::INT8,
        Type::INT8_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::UUID_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8,
    ],
};

/// True when [`WRITE`] failed because it put fewer rows than it was to.
pub(super) fn too_few(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::DIVISION_BY_ZERO)
}

/// Which of these keys rows of other nodes have, and who they are. `$1`: this node.
pub(super) static TAKEN: Sql = Sql {
    text: "SELECT kept.namespace, kept.id, node.name, node.address
        FROM (SELECT unnest($2), unnest($3)) AS own (namespace, id), LATERAL (
            SELECT namespace, id, owner FROM payload_manager.payload AS payload
            WHERE payload.namespace = own.namespace AND payload.id = own.id AND payload.owner <> $1 OFFSET 0) AS kept
        LEFT JOIN payload_manager.node AS node ON node.id = kept.owner",
    types: &[Type::INT4, Type::INT8_ARRAY, Type::UUID_ARRAY],
};

/// Reads a row selected by [`TAKEN`].
pub(super) fn taken(row: &Row) -> Result<Taken, StoreError> {
    // A node's row goes after its payloads' when it is removed by hand.
    let text = |column| Ok(cell::<Option<String>>(row, column)?.unwrap_or_else(|| "unknown".to_owned()));
    Ok(Taken { key: key(row)?, node: text(2)?, address: text(3)? })
}

/// Every row of a node, in the order of keys.
pub(super) static ALL: Sql = Sql {
    text: concat!(
        "SELECT namespace, id, ",
        numbers!(),
        " FROM payload_manager.payload WHERE owner = $1 ORDER BY namespace, id"
    ),
    types: &[Type::INT4],
};

/// One row of a node.
pub(super) static ONE: Sql = Sql {
    text: concat!(
        "SELECT namespace, id, ",
        numbers!(),
        " FROM payload_manager.payload WHERE owner = $1 AND namespace = $2 AND id = $3"
    ),
    types: &[Type::INT4, Type::INT8, Type::UUID],
};

/// Says of rows of a node how sound their payloads' bytes are. `$1` to `$3`: node, its epoch, health. `+ 0` keeps the planner
/// from reading all rows of the node by their index on `owner`, which it prefers while the table is small.
pub(super) static HEALTH: Sql = Sql {
    text:
        "UPDATE payload_manager.payload AS kept SET health = $3 FROM (SELECT unnest($4), unnest($5)) AS named (namespace, id)
        WHERE kept.namespace = named.namespace AND kept.id = named.id
            AND kept.owner + 0 = (SELECT id FROM payload_manager.node WHERE id = $1 AND epoch = $2)",
    types: &[Type::INT4, Type::INT8, Type::INT8, Type::INT8_ARRAY, Type::UUID_ARRAY],
};

/// How many rows a node has.
pub(super) static COUNT: Sql =
    Sql { text: "SELECT count(*) FROM payload_manager.payload WHERE owner = $1", types: &[Type::INT4] };

/// A payload's id as PostgreSQL keeps it.
pub(super) fn uuid(id: PayloadId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

/// The key in the first two columns.
pub(super) fn key(row: &Row) -> Result<PayloadKey, StoreError> {
    let namespace = u32::try_from(cell::<i64>(row, 0)?)
        .map_err(|_| StoreError::Corrupt(format!("a row has a namespace that is out of range; {RESTORE}")))?;
    let id = PayloadId::from_bytes(cell::<Uuid>(row, 1)?.into_bytes());
    Ok(PayloadKey { namespace: NamespaceId(namespace), id })
}

/// Reads a row selected by [`ALL`] or [`ONE`].
pub(super) fn read(row: &Row) -> Result<PayloadRow, StoreError> {
    let mut numbers = [None; columns::COUNT];
    for (column, number) in (2..).zip(&mut numbers) {
        *number = cell(row, column)?;
    }
    columns::row_of(key(row)?, numbers)
}

/// Changes that one statement makes: no two of one key, ordered by key.
#[derive(Default)]
pub(super) struct Round {
    namespaces: Vec<i64>,
    ids: Vec<Uuid>,
    numbers: [Vec<Option<i64>>; columns::COUNT],
    gone_namespaces: Vec<i64>,
    gone_ids: Vec<Uuid>,
    gone_epochs: Vec<i64>,
}

impl Round {
    /// Changes as rounds: the n-th change of a key is in the n-th round.
    pub fn of<'change>(changes: impl Iterator<Item = &'change CatalogChange>) -> Vec<Self> {
        let mut ordered: Vec<(PayloadKey, &CatalogChange)> =
            changes.map(|change| (key_of(change), change)).collect();
        ordered.sort_by_key(|(key, _)| *key);
        let mut rounds = Vec::with_capacity(1);
        for same in ordered.chunk_by(|one, next| one.0 == next.0) {
            for (number, (_, change)) in same.iter().enumerate() {
                if number == rounds.len() {
                    rounds.push(Self::default());
                }
                rounds[number].push(change);
            }
        }
        rounds
    }

    fn push(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::Put(row) => {
                self.namespaces.push(i64::from(row.key.namespace.0));
                self.ids.push(uuid(row.key.id));
                for (column, number) in self.numbers.iter_mut().zip(columns::numbers_of(row)) {
                    column.push(number);
                }
            }
            CatalogChange::Remove { key, epoch } => {
                self.gone_namespaces.push(i64::from(key.namespace.0));
                self.gone_ids.push(uuid(key.id));
                self.gone_epochs.push(i64::from(epoch.0));
            }
        }
    }

    /// The parameters of [`TAKEN`].
    pub fn keys<'value>(&'value self, fence: &'value Fence) -> [Value<'value>; 3] {
        [&fence.node, &self.namespaces, &self.ids]
    }

    /// How many rows it puts.
    pub fn puts(&self) -> usize {
        self.ids.len()
    }

    /// The parameters of [`WRITE`], which fails unless it puts so many rows.
    pub fn values<'value>(
        &'value self,
        fence: &'value Fence,
        group: &'value i64,
        puts_min: &'value i64,
    ) -> Vec<Value<'value>> {
        let mut values: Vec<Value<'value>> = Vec::with_capacity(WRITE.types.len());
        values.extend([&fence.node as Value<'_>, &fence.epoch, &fence.session, group, &self.namespaces]);
        values.push(&self.ids);
        values.extend(self.numbers.iter().map(|column| column as Value<'_>));
        values.extend([&self.gone_namespaces as Value<'_>, &self.gone_ids, &self.gone_epochs, puts_min]);
        values
    }
}

fn key_of(change: &CatalogChange) -> PayloadKey {
    match change {
        CatalogChange::Put(row) => row.key,
        CatalogChange::Remove { key, .. } => *key,
    }
}
