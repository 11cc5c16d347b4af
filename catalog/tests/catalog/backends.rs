//! The stores that the conformance suite runs over.

use std::sync::OnceLock;

use payload_catalog::{Faulty, MemoryStore, PostgresConfig, PostgresStore, SqliteStore, Store, Synchronous};

use crate::postgres_server;

/// How a suite gets at one backend's stores.
pub trait Backend {
    /// What lives as long as the stored rows.
    type Home;
    /// A new, empty home.
    fn home() -> Self::Home;
    /// A store at home, opened for the first time or again.
    fn open(home: &Self::Home) -> Box<dyn Store>;
    /// As [`Backend::open`], with a start of node `a` registered: rows have an owner.
    fn start(home: &Self::Home) -> Box<dyn Store> {
        let mut store = Self::open(home);
        store.begin_epoch("a").expect("registered");
        store
    }
    /// False where rows end with the store.
    const KEEPS: bool;
}

/// `MemoryStore`.
pub struct Memory;

impl Backend for Memory {
    type Home = ();
    const KEEPS: bool = false;
    fn home() {}
    fn open(_home: &()) -> Box<dyn Store> {
        Box::new(MemoryStore::new())
    }
}

/// `Faulty` without a plan: a decorator must not be noticed.
pub struct Decorated;

impl Backend for Decorated {
    type Home = ();
    const KEEPS: bool = false;
    fn home() {}
    fn open(_home: &()) -> Box<dyn Store> {
        Box::new(Faulty::new(MemoryStore::new()))
    }
}

/// `SqliteStore` with `Synchronous::Normal` in a temporary directory.
pub struct SqliteNormal;

impl Backend for SqliteNormal {
    type Home = tempfile::TempDir;
    const KEEPS: bool = true;
    fn home() -> Self::Home {
        Sqlite::home()
    }
    fn open(home: &Self::Home) -> Box<dyn Store> {
        let opened = SqliteStore::open(&home.path().join("catalog.db"), Synchronous::Normal);
        Box::new(opened.expect("the database opens"))
    }
}

/// `SqliteStore` in a temporary directory.
pub struct Sqlite;

impl Backend for Sqlite {
    type Home = tempfile::TempDir;
    const KEEPS: bool = true;
    fn home() -> Self::Home {
        tempfile::tempdir().expect("a temporary directory")
    }
    fn open(home: &Self::Home) -> Box<dyn Store> {
        Box::new(
            SqliteStore::open(&home.path().join("catalog.db"), Synchronous::Full)
                .expect("the database opens"),
        )
    }
}

/// The server that all tests of this program share, each with a database of its own. It ends with the program.
pub fn server() -> &'static postgres_server::Postgres {
    static SERVER: OnceLock<postgres_server::Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        postgres_server::Postgres::start().expect("a PostgreSQL server starts; tests/run installs one")
    })
}

/// How tests connect: as node `a` on the disk root `second`.
pub fn postgres_config(uri: &str) -> PostgresConfig {
    PostgresConfig {
        connection_uri: uri.to_owned(),
        pooled: false,
        node: "a".to_owned(),
        disk_root: Some("second".to_owned()),
        address: "127.0.0.1:1".to_owned(),
    }
}

/// `PostgresStore` on a database of its own.
pub struct Postgres;

impl Backend for Postgres {
    type Home = String;
    const KEEPS: bool = true;
    fn home() -> Self::Home {
        server().database()
    }
    fn open(home: &Self::Home) -> Box<dyn Store> {
        Box::new(PostgresStore::open(postgres_config(home)).expect("the database opens"))
    }
}

/// The pooler before [`server`] that all tests of this program share. It ends with the program.
pub fn pooler() -> &'static postgres_server::Pooler {
    static POOLER: OnceLock<postgres_server::Pooler> = OnceLock::new();
    POOLER.get_or_init(|| server().pooler().expect("PgBouncer starts; tests/run installs it"))
}

/// The same through PgBouncer, which pools by transaction.
pub struct PostgresPooled;

impl Backend for PostgresPooled {
    type Home = String;
    const KEEPS: bool = true;
    fn home() -> Self::Home {
        pooler().uri(&Postgres::home())
    }
    fn open(home: &Self::Home) -> Box<dyn Store> {
        let config = PostgresConfig { pooled: true, ..postgres_config(home) };
        Box::new(PostgresStore::open(config).expect("the database opens"))
    }
}
