//! The stores that the conformance suite runs over.

use payload_catalog::{Faulty, MemoryStore, SqliteStore, Store, Synchronous};

/// How a suite gets at one backend's stores.
pub trait Backend {
    /// What lives as long as the stored rows.
    type Home;
    /// A new, empty home.
    fn home() -> Self::Home;
    /// A store at home, opened for the first time or again.
    fn open(home: &Self::Home) -> Box<dyn Store>;
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
