//! One connection, and a runtime of its own on the calling thread: the store's calls are synchronous.
//!
//! Statements are prepared once a connection, at their first use. Behind a transaction-pooling proxy
//! (`database.postgres.pooled`) consecutive transactions run on different connections of the server: then statements
//! have no name and are sent with their text each time, and nothing is set for the session.
//!
//! A call ends after [`ANSWER_WAIT`] at the latest. A link of which one call failed other than by an answer of the
//! server is of no use any more: the caller drops it and connects anew.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::runtime::Runtime;
use tokio_postgres::types::{FromSqlOwned, ToSql, Type};
use tokio_postgres::{Client, NoTls, Row, RowStream, SimpleQueryMessage, Statement};

use super::errors::{Doing, silent, strange, translate};
use super::target::Target;
use crate::error::StoreError;

/// How long one call to the server may take: a group of 16 MiB of records is written within a second, a sync of a busy
/// disk may take several.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// How long a connection attempt may take, address by address.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Rows of an answer that are taken from the connection together: an answer's buffer (8 KiB) holds fewer of most.
const ROWS_AT_ONCE: usize = 128;

/// Rounds of the runtime until an end that the kernel knows of has reached the client: one to poll the socket, one to
/// read the server's last words, one to read the end, and one to spare.
const YIELDS: usize = 4;

/// What the planner must not do with statements that were prepared while the tables were small: reading all of them, or all
/// that an index leads to before the first row is given.
/// Every statement of ours but `load` finds its rows by an index.
const SETTINGS: &str =
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off;
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off";

/// Opens a transaction that sees one state.
const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The same where nothing is set for the session: statements are planned for what there is, which before the first
/// statistics is not known.
const READ_POOLED: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_seqscan = off;
    SET LOCAL enable_bitmapscan = off";

/// A statement and the types of its parameters.
#[derive(Debug)]
pub(super) struct Sql {
    pub text: &'static str,
    pub types: &'static [Type],
}

/// A parameter.
pub(super) type Value<'value> = &'value (dyn ToSql + Sync);

/// See the module.
pub(super) struct Link {
    runtime: Runtime,
    session: Session,
}

/// What runs inside a link's runtime.
pub(super) struct Session {
    client: Client,
    pooled: bool,
    prepared: HashMap<&'static str, Statement>,
}

impl Link {
    /// Connects once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached now; [`StoreError::Refused`].
    pub fn connect(target: &Target, pooled: bool) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unavailable(format!("no runtime could be made ({error})")))?;
        let mut config = target.config.clone();
        config.connect_timeout(CONNECT_WAIT).tcp_user_timeout(ANSWER_WAIT);
        if config.get_application_name().is_none() {
            config.application_name("payload-manager");
        }
        let connecting = async {
            let failed = |error| translate(&error, Doing::Asking);
            // A connection's errors reach whoever waits for an answer.
            let client = match &target.tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
                    tokio::spawn(async move { drop(connection.await) });
                    client
                }
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await.map_err(failed)?;
                    tokio::spawn(async move { drop(connection.await) });
                    client
                }
            };
            let mut session = Session { client, pooled, prepared: HashMap::new() };
            if !pooled {
                session.run(SETTINGS).await?;
            }
            Ok(session)
        };
        let connected = runtime.block_on(async { tokio::time::timeout(ANSWER_WAIT, connecting).await });
        let session = connected.unwrap_or_else(|_| Err(silent(ANSWER_WAIT.as_secs(), Doing::Asking)))?;
        Ok(Self { runtime, session })
    }

    /// True when the server has ended the connection: what was not sent by then is not in doubt. Only what a runtime
    /// was given the time to read is known, so it is given some here.
    pub fn is_closed(&mut self) -> bool {
        let Self { runtime, session } = self;
        runtime.block_on(async {
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
            }
        });
        session.client.is_closed()
    }

    /// Runs `work`, for at most [`ANSWER_WAIT`]. `doing` is what is assumed when no answer came.
    pub fn run<T>(
        &mut self,
        doing: Doing,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Self { runtime, session } = self;
        let limited = async { tokio::time::timeout(ANSWER_WAIT, work(session)).await };
        runtime.block_on(limited).unwrap_or_else(|_| Err(silent(ANSWER_WAIT.as_secs(), doing)))
    }

    /// Gives each row of the answer to `each` as it comes in, until it returns false. Takes as long as it takes.
    pub fn each_row(
        &mut self,
        sql: &'static Sql,
        values: &[Value<'_>],
        each: &mut dyn FnMut(&Row) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let Self { runtime, session } = self;
        runtime.block_on(async {
            let asking = |error: tokio_postgres::Error| translate(&error, Doing::Asking);
            // What is there is taken at once: a timer a row would cost as much as the row.
            let mut rows = pin!(session.stream(sql, values).await?.ready_chunks(ROWS_AT_ONCE));
            loop {
                let next = tokio::time::timeout(ANSWER_WAIT, rows.next()).await;
                let next = next.map_err(|_| silent(ANSWER_WAIT.as_secs(), Doing::Asking))?;
                let Some(some) = next else { return Ok(()) };
                for row in some {
                    if !each(&row.map_err(asking)?)? {
                        // The rest is thrown away as it comes.
                        return Ok(());
                    }
                }
            }
        })
    }
}

impl Session {
    /// Runs statements without parameters.
    pub async fn run(&mut self, text: &str) -> Result<(), StoreError> {
        self.client.batch_execute(text).await.map_err(|error| translate(&error, Doing::Asking))
    }

    /// Ends a transaction. `Unknown` when it may have been made.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        self.client.batch_execute("COMMIT").await.map_err(|error| translate(&error, Doing::Committing))
    }

    /// Prepares a statement, unless it is or the connection is pooled.
    pub async fn prepare(&mut self, sql: &'static Sql) -> Result<(), StoreError> {
        if !self.pooled && !self.prepared.contains_key(sql.text) {
            let prepared = self.client.prepare_typed(sql.text, sql.types).await;
            let statement = prepared.map_err(|error| translate(&error, Doing::Asking))?;
            self.prepared.insert(sql.text, statement);
        }
        Ok(())
    }

    /// Runs a statement.
    pub async fn query(&mut self, sql: &'static Sql, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        self.prepare(sql).await?;
        self.query_prepared(sql, values).await.map_err(|error| translate(&error, Doing::Asking))
    }

    /// Runs a statement that [`Session::prepare`] was called for. Several of these, polled together, go to the server
    /// one behind the other without waiting for answers.
    pub async fn query_prepared(
        &self,
        sql: &'static Sql,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match self.prepared.get(sql.text) {
            Some(statement) => self.client.query(statement, values).await,
            None => self.client.query_typed(sql.text, &typed(sql, values)).await,
        }
    }

    /// Runs a statement, and returns how many rows it changed.
    pub async fn execute(&mut self, sql: &'static Sql, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.prepare(sql).await?;
        let executed = match self.prepared.get(sql.text) {
            Some(statement) => self.client.execute(statement, values).await,
            None => self.client.execute_typed(sql.text, &typed(sql, values)).await,
        };
        executed.map_err(|error| translate(&error, Doing::Asking))
    }

    /// Runs a statement that is not prepared, so that it is planned for what there is now, and gives its rows as they
    /// come.
    async fn stream(&self, sql: &'static Sql, values: &[Value<'_>]) -> Result<RowStream, StoreError> {
        let rows = self.client.query_typed_raw(sql.text, typed(sql, values)).await;
        rows.map_err(|error| translate(&error, Doing::Asking))
    }

    /// Opens a transaction that only reads. One round trip.
    pub async fn begin_reading(&mut self) -> Result<(), StoreError> {
        self.run(if self.pooled { READ_POOLED } else { READ }).await
    }

    /// Opens a transaction and fences it: false when the fence does not stand. One round trip.
    pub async fn begin(&mut self, update: &str) -> Result<bool, StoreError> {
        let messages = self.client.simple_query(&format!("BEGIN; {update}")).await;
        let messages = messages.map_err(|error| translate(&error, Doing::Asking))?;
        // The last answer is that of the update: how many rows it changed.
        Ok(matches!(messages.last(), Some(SimpleQueryMessage::CommandComplete(1))))
    }

    /// The one value of a statement's one row.
    pub async fn one<T: FromSqlOwned>(
        &mut self,
        sql: &'static Sql,
        values: &[Value<'_>],
    ) -> Result<T, StoreError> {
        let rows = self.query(sql, values).await?;
        let row = rows.first().ok_or_else(|| {
            StoreError::Corrupt("the catalog's database gave no row where there is always one".to_owned())
        })?;
        cell(row, 0)
    }
}

/// Parameters with their types.
fn typed<'value>(sql: &'static Sql, values: &[Value<'value>]) -> Vec<(Value<'value>, Type)> {
    values.iter().zip(sql.types).map(|(value, r#type)| (*value, r#type.clone())).collect()
}

/// One value of a row.
pub(super) fn cell<T: FromSqlOwned>(row: &Row, column: usize) -> Result<T, StoreError> {
    row.try_get(column).map_err(|error| strange(&error))
}
