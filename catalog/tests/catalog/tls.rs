//! TLS to a real PostgreSQL server: what `sslmode` and `sslrootcert` of the URI ask for is what is done, or refused.

use payload_catalog::{PostgresStore, Store as _, StoreError};

use crate::backends::postgres_config;
use crate::postgres_server::{Postgres, name_of};
use crate::rows::{put, row};

fn refusal(uri: &str) -> String {
    match PostgresStore::probe(uri, false) {
        Err(StoreError::Refused(why)) => why,
        other => panic!("{uri}: {other:?}"),
    }
}

/// Whether the connections of our own that are open are encrypted.
fn encrypted(server: &Postgres, uri: &str) -> Vec<String> {
    let question = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'payload-manager'";
    let answer = server.sql(name_of(uri), question).expect("an answer");
    answer.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn given_a_server_with_a_certificate_when_connected_then_as_safe_as_the_uri_asks_for() {
    let server = Postgres::start().expect("a server");
    let uri = server.database();
    let database = uri.clone();
    let asked = |parameters: &str| format!("{uri}?{parameters}");
    PostgresStore::probe(&asked("sslmode=prefer"), false).expect("without TLS where there is none");
    assert!(refusal(&asked("sslmode=require")).contains("does not speak TLS"));

    let authority = server.speak_tls().expect("TLS");
    let trusting = |mode: &str, root: &str| asked(&format!("sslmode={mode}&sslrootcert={root}"));
    let authority = authority.to_str().expect("UTF-8");
    let named = |uri: String| uri.replace("127.0.0.1", "localhost");
    for (uri, expected) in [
        (asked("sslmode=disable"), "f"),
        (uri.clone(), "t"),
        (asked("sslmode=require"), "t"),
        (trusting("verify-ca", authority), "t"),
        (named(trusting("verify-full", authority)), "t"),
    ] {
        let mut store = PostgresStore::open(postgres_config(&uri)).expect("it opens");
        store.begin_epoch("one").expect("registered");
        store.apply(&[put(row(1))]).expect("stored");
        assert_eq!(encrypted(&server, &database), [expected], "{uri}");
        Box::new(store).close().expect("closed");
    }

    assert!(refusal(&trusting("verify-full", authority)).contains("not trusted"), "by another name");

    let mut store =
        PostgresStore::open(postgres_config(&trusting("verify-ca", authority))).expect("it opens");
    store.begin_epoch("one").expect("registered");
    server.stop();
    assert!(store.apply(&[put(row(2))]).is_err(), "nobody is there");
    server.start_again().expect("it starts again");
    store.apply(&[put(row(2))]).expect("connected anew");
    assert_eq!(store.count(), Ok(2));
    assert_eq!(encrypted(&server, &uri), ["t"]);
}

#[test]
fn given_another_authority_when_asked_to_verify_then_refused_and_required_alone_it_is_taken() {
    let (server, other) = (Postgres::start().expect("a server"), Postgres::start().expect("a server"));
    let uri = server.database();
    server.speak_tls().expect("TLS");
    let stranger = other.speak_tls().expect("TLS");
    let stranger = stranger.to_str().expect("UTF-8");
    for mode in ["verify-ca", "verify-full", "require"] {
        let uri = format!("{uri}?sslmode={mode}&sslrootcert={stranger}").replace("127.0.0.1", "localhost");
        assert!(refusal(&uri).contains("not trusted"), "{mode}");
    }
    PostgresStore::probe(&format!("{uri}?sslmode=require"), false).expect("whoever it is");
}
