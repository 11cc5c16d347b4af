//! How one list of tests is run over several backends.

/// Runs each test, a function generic over its backend, as a test of each module.
macro_rules! suite {
    ($($backend:ident: $module:ident),* => $list:tt) => {
        $(mod $module { suite!(@tests $backend $list); })*
    };
    (@tests $backend:ident [$($test:ident),* $(,)?]) => {
        $(#[test] fn $test() { super::$test::<crate::backends::$backend>(); })*
    };
}

/// The same over all backends that keep records. A new backend adds itself here.
macro_rules! suite_of_records {
    ($list:tt) => {
        suite! { Memory: memory, Decorated: decorated, Sqlite: sqlite, Postgres: postgres, PostgresPooled: postgres_pooled => $list }
    };
}
