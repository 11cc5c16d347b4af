//! Payloads of other nodes of this database: what their rows say.
//!
//! ```text
//! Foreign(ids)  --one look-up an id--------------------------------------> rows, each with its node
//! ForeignPage   --nodes; totals that may have changed; one slice a node--> the newest of all of them, and how many
//! ```
//! Rows are of the nodes' own making, and read only. What is shown of them is what this node would show of its own after a
//! restart, but for payloads that are not committed: those are their node's until then.
//!
//! **Totals** are exact, and counting them reads every row of a node. So a total is kept with the number of the node's
//! last group (every write names it, in the same transaction) and counted again only when that has moved on, or when a
//! payload that was counted has expired since.

use std::collections::HashMap;
use std::sync::Arc;

use payload_types::find::{FIND_STEPS_MAX, FindOrder, IdSpan};
use payload_types::request::List;
use payload_types::{
    Descriptor, Epoch, Foreign, ForeignPage, NamespaceId, OtherNode, PayloadId, Tier, WallMs,
};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Session, Sql, Value, cell};
use super::row::{self, numbers, uuid};
use crate::columns;
use crate::error::{RESTORE, StoreError};

/// Totals kept: 16 nodes, each by 5 filters, in 51 namespaces. Beyond that they are forgotten, and counted anew.
const TOTALS_MAX: usize = 4096;

/// No id is greater, and none of ours is this one.
const ID_MAX: Uuid = Uuid::max();

/// What is told of a node: its row, and for how many milliseconds it was not heard of.
macro_rules! node_columns {
    () => {
        "node.id, node.name, node.address, node.epoch,
        (extract(epoch FROM clock_timestamp() - node.heartbeat) * 1000)::bigint"
    };
}

/// Committed, and not expired at `$3`.
macro_rules! living {
    () => {
        "payload.state BETWEEN 2 AND 5 AND (payload.expires_at IS NULL OR payload.expires_at > $3)"
    };
}

/// Living, with bytes, and on the tier `$4` (0: any).
macro_rules! listed {
    () => {
        concat!(
            living!(),
            " AND payload.health <> 1 AND coalesce(payload.gpu, payload.ram, payload.disk, payload.object) IS NOT NULL
            AND $4 IN (0, CASE WHEN payload.gpu IS NOT NULL THEN 1 WHEN payload.ram IS NOT NULL THEN 2
                WHEN payload.disk IS NOT NULL THEN 3 ELSE 4 END)"
        )
    };
}

/// `$1`: this node. `$2`: namespace. `$3`: now. `$4`: ids.
static FIND: Sql = Sql {
    text: concat!(
        "SELECT found.*, ",
        node_columns!(),
        " FROM unnest($4) AS asked (id), LATERAL (SELECT namespace, id, ",
        numbers!(),
        ", owner FROM payload_manager.payload AS payload
            WHERE payload.namespace = $2 AND payload.id = asked.id AND payload.owner <> $1 AND ",
        living!(),
        " OFFSET 0) AS found, payload_manager.node AS node WHERE node.id = found.owner"
    ),
    types: &[Type::INT4, Type::INT8, Type::INT8, Type::UUID_ARRAY],
};

static NODES: Sql = Sql {
    text: concat!(
        "SELECT ",
        node_columns!(),
        ", node.last_group FROM payload_manager.node AS node WHERE node.id <> $1 ORDER BY node.id"
    ),
    types: &[Type::INT4],
};

/// `$1`: the other node.
static TOTAL: Sql = Sql {
    text: concat!(
        "SELECT count(*), min(payload.expires_at) FROM payload_manager.payload AS payload
        WHERE payload.owner = $1 AND payload.namespace = $2 AND ",
        listed!()
    ),
    types: &[Type::INT4, Type::INT8, Type::INT8, Type::INT8],
};

/// `$1`: the other nodes. `$5`: the id that the page is below. `$6`: rows.
static PAGE: Sql = Sql {
    text: concat!(
        "SELECT slice.* FROM unnest($1) AS other (node), LATERAL (
            SELECT namespace, id, ",
        numbers!(),
        ", owner FROM payload_manager.payload AS payload
            WHERE payload.owner = other.node AND payload.namespace = $2 AND payload.id < $5 AND ",
        listed!(),
        " ORDER BY payload.id DESC LIMIT $6) AS slice
        ORDER BY slice.id DESC LIMIT $6"
    ),
    types: &[Type::INT4_ARRAY, Type::INT8, Type::INT8, Type::INT8, Type::UUID, Type::INT8],
};

/// `$1`: the other nodes. `$5` and `$6`: the least and the greatest id. `$7`: rows.
macro_rules! span {
    ($order:literal) => {
        Sql {
            text: concat!(
                "SELECT slice.* FROM unnest($1) AS other (node), LATERAL (
                    SELECT namespace, id, ",
                numbers!(),
                ", owner FROM payload_manager.payload AS payload
                    WHERE payload.owner = other.node AND payload.namespace = $2 AND payload.id >= $5
                        AND payload.id <= $6 AND ",
                listed!(),
                " ORDER BY payload.id ",
                $order,
                " LIMIT $7) AS slice ORDER BY slice.id ",
                $order,
                " LIMIT $7"
            ),
            types: &[
                Type::INT4_ARRAY,
                Type::INT8,
                Type::INT8,
                Type::INT8,
                Type::UUID,
                Type::UUID,
                Type::INT8,
            ],
        }
    };
}

static SPAN_NEWEST: Sql = span!("DESC");
static SPAN_OLDEST: Sql = span!("ASC");

/// Where the columns behind those of a row begin: its owner.
const BEHIND_ROW: usize = 2 + columns::COUNT;

/// How many payloads a node has.
struct Total {
    epoch: i64,
    group: i64,
    /// It was counted then, and changes by itself at `until`.
    at: WallMs,
    until: Option<WallMs>,
    count: u64,
}

/// The totals that one reader has counted, by node, namespace and tier.
#[derive(Default)]
pub(super) struct Totals(HashMap<(i32, NamespaceId, Option<Tier>), Total>);

/// A node, from the columns of `node_columns` on.
struct Node {
    id: i32,
    epoch: i64,
    shown: Arc<OtherNode>,
}

fn node(row: &Row, first: usize) -> Result<Node, StoreError> {
    let silent: Option<i64> = cell(row, first + 4)?;
    let shown = OtherNode {
        name: cell(row, first + 1)?,
        address: cell(row, first + 2)?,
        // The database's clock may have been set back.
        silent_ms: silent.map(|silent| u64::try_from(silent).unwrap_or(0)),
    };
    Ok(Node { id: cell(row, first)?, epoch: cell(row, first + 3)?, shown: Arc::new(shown) })
}

/// What the row of a payload says of it while `node` runs in its latest start.
fn foreign(row: &Row, node: &Node) -> Result<Foreign, StoreError> {
    let stored = row::read(row)?;
    let epoch = u32::try_from(node.epoch)
        .map_err(|_| StoreError::Corrupt(format!("a node has the epoch {}; {RESTORE}", node.epoch)))?;
    let fastest = stored.replicas.first().map(|replica| replica.tier);
    let descriptor = Descriptor {
        id: stored.key.id,
        // One without any replica is lost, and not described.
        tier: fastest.unwrap_or(Tier::Disk),
        state: stored.state,
        location: None,
        size: stored.size,
        version: stored.version.at_boot(stored.epoch, Epoch(epoch)),
        created_at: stored.created_at,
        expires_at: stored.expires_at,
        policy: stored.policy,
        checksum: stored.checksum,
    };
    let is_lost = stored.health == payload_types::Health::Lost || fastest.is_none();
    Ok(Foreign { descriptor, is_lost, node: Arc::clone(&node.shown) })
}

/// Those of `ids` that other nodes than `own` have.
pub(super) async fn find(
    session: &mut Session,
    own: i32,
    namespace: NamespaceId,
    ids: &[PayloadId],
    at: WallMs,
) -> Result<Vec<Foreign>, StoreError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| uuid(*id)).collect();
    let (namespace, at) = (i64::from(namespace.0), moment(at));
    let rows = session.query(&FIND, &[&own, &namespace, &at, &ids]).await?;
    rows.iter().map(|row| foreign(row, &node(row, BEHIND_ROW + 1)?)).collect()
}

/// A page of what other nodes than `own` have, in the transaction that is open: it sees one state.
pub(super) async fn page(
    session: &mut Session,
    own: i32,
    list: &List,
    at: WallMs,
    totals: &mut Totals,
) -> Result<ForeignPage, StoreError> {
    let (namespace, now) = (i64::from(list.namespace.0), moment(at));
    let tier = list.tier.map_or(0, |tier| tier as i64);
    let (mut nodes, mut total) = (HashMap::new(), 0);
    for row in session.query(&NODES, &[&own]).await? {
        let (node, group): (Node, i64) = (node(&row, 0)?, cell(&row, 5)?);
        if totals.0.len() >= TOTALS_MAX {
            totals.0.clear();
        }
        let key = (node.id, list.namespace, list.tier);
        if totals.0.get(&key).is_none_or(|total| !total.stands(&node, group, at)) {
            let counted = session.query(&TOTAL, &[&node.id, &namespace, &now, &tier]).await?;
            let row = counted.first().expect("an aggregate gives one row");
            let (count, until): (i64, Option<i64>) = (cell(row, 0)?, cell(row, 1)?);
            let until = until.map(|until| WallMs::from_millis(until.cast_unsigned()));
            let count = count.cast_unsigned();
            totals.0.insert(key, Total { epoch: node.epoch, group, at, until, count });
        }
        let count = totals.0[&key].count;
        total += count;
        if count > 0 {
            nodes.insert(node.id, node);
        }
    }
    if nodes.is_empty() {
        return Ok(ForeignPage::default());
    }
    let others: Vec<i32> = nodes.keys().copied().collect();
    let below = list.before.map_or(ID_MAX, uuid);
    let count_max = list.page_size as i64;
    let rows = session.query(&PAGE, &[&others, &namespace, &now, &tier, &below, &count_max]).await?;
    let rows = rows.iter().map(|row| {
        let owner: i32 = cell(row, BEHIND_ROW)?;
        foreign(row, &nodes[&owner])
    });
    Ok(ForeignPage { rows: rows.collect::<Result<_, _>>()?, total })
}

/// What FindPayloads asks of the payloads of other nodes.
pub(super) struct Wanted {
    pub namespace: NamespaceId,
    pub span: IdSpan,
    pub order: FindOrder,
    pub tier: Option<Tier>,
    pub at: WallMs,
}

/// What other nodes than `own` have from one end of a span on, at most [`FIND_STEPS_MAX`], in the transaction that is open.
pub(super) async fn span(session: &mut Session, own: i32, wanted: Wanted) -> Result<ForeignPage, StoreError> {
    let nodes = session.query(&NODES, &[&own]).await?;
    let nodes = nodes.iter().map(|row| node(row, 0).map(|node| (node.id, node)));
    let nodes: HashMap<i32, Node> = nodes.collect::<Result<_, _>>()?;
    let others: Vec<i32> = nodes.keys().copied().collect();
    let (namespace, now) = (i64::from(wanted.namespace.0), moment(wanted.at));
    let tier = wanted.tier.map_or(0, |tier| tier as i64);
    let (low, high) = (uuid(wanted.span.low), uuid(wanted.span.high));
    let statement = match wanted.order {
        FindOrder::NewestFirst => &SPAN_NEWEST,
        FindOrder::OldestFirst => &SPAN_OLDEST,
    };
    let count_max = FIND_STEPS_MAX as i64;
    let values: [Value<'_>; 7] = [&others, &namespace, &now, &tier, &low, &high, &count_max];
    let rows = session.query(statement, &values).await?;
    let rows = rows.iter().map(|row| {
        let owner: i32 = cell(row, BEHIND_ROW)?;
        foreign(row, &nodes[&owner])
    });
    Ok(ForeignPage { rows: rows.collect::<Result<_, _>>()?, total: 0 })
}

impl Total {
    /// True when a count now would find the same.
    fn stands(&self, node: &Node, group: i64, now: WallMs) -> bool {
        let is_written = (self.epoch, self.group) != (node.epoch, group);
        !is_written && self.at <= now && self.until.is_none_or(|until| now < until)
    }
}

/// A moment as rows have it.
fn moment(at: WallMs) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}
