//! The statements on the tables of records, with their parameters' types.
//!
//! A transaction that changes something locks what it decides by, so that nodes that share the database take turns: a
//! stream's row, a payload's history, and the rows of other nodes' payloads (a node's own are changed by its one writer).

use tokio_postgres::types::Type;

use super::super::link::Sql;

macro_rules! statements {
    ($($name:ident($($type:ident),*) = $($text:expr),+;)*) => {
        $(pub(super) static $name: Sql = Sql { text: concat!($($text),+), types: &[$(Type::$type),*] };)*
    };
}

macro_rules! stream_columns {
    () => {
        "SELECT id, namespace, name, entries_max, age_ms_max, retains, first, next, last_at, due_at FROM payload_manager.stream "
    };
}

macro_rules! edge_columns {
    () => {
        "SELECT child, parent, operation, role, parameters FROM payload_manager.lineage "
    };
}

/// As [`edge_columns`] has them, with NULL for each text that is longer than `$4` bytes.
macro_rules! walked_columns {
    () => {
        "SELECT child, parent, CASE WHEN octet_length(operation) <= $4 THEN operation END,
            CASE WHEN octet_length(role) <= $4 THEN role END,
            CASE WHEN octet_length(parameters) <= $4 THEN parameters END "
    };
}

statements! {
    // Payloads.
    STANDINGS(INT8, UUID_ARRAY) = "SELECT found.* FROM unnest($2) AS asked (id), LATERAL (
            SELECT id, state::bigint, expires_at, health::bigint FROM payload_manager.payload
            WHERE namespace = $1 AND id = asked.id OFFSET 0) AS found";
    // Locked in the order of ids.
    STANDINGS_LOCKED(INT8, UUID_ARRAY, INT4) = "WITH theirs AS (
            SELECT found.* FROM (SELECT DISTINCT id FROM unnest($2) AS given (id) ORDER BY id) AS asked, LATERAL (
                SELECT id, state, expires_at, health FROM payload_manager.payload
                WHERE namespace = $1 AND id = asked.id AND owner <> $3 OFFSET 0 FOR KEY SHARE) AS found)
        SELECT id, state::bigint, expires_at, health::bigint FROM theirs
        UNION ALL SELECT found.* FROM unnest($2) AS asked (id), LATERAL (
            SELECT id, state::bigint, expires_at, health::bigint FROM payload_manager.payload
            WHERE namespace = $1 AND id = asked.id AND owner = $3 OFFSET 0) AS found";

    // Metadata.
    HISTORY(INT8, UUID) = "SELECT id, events, current, terms FROM payload_manager.history
        WHERE namespace = $1 AND payload = $2";
    HISTORY_LOCKED(INT8, UUID) = "SELECT id, events, current, terms FROM payload_manager.history
        WHERE namespace = $1 AND payload = $2 FOR NO KEY UPDATE";
    HISTORY_ADD(INT8, UUID) = "INSERT INTO payload_manager.history (namespace, payload, events, current)
        VALUES ($1, $2, 0, 0) ON CONFLICT DO NOTHING RETURNING id";
    HISTORY_SET(INT8, UUID, INT8, INT8, INT8_ARRAY) = "UPDATE payload_manager.history
        SET events = $3, current = $4, terms = $5
        WHERE namespace = $1 AND payload = $2";
    HISTORY_REMOVE(INT8, UUID) = "DELETE FROM payload_manager.history WHERE namespace = $1 AND payload = $2";
    EVENTS(INT8, INT8, INT8) = "SELECT number, at, kind::bigint, data, schema, source, reason, version
        FROM payload_manager.event WHERE history = $1 AND number > $2 ORDER BY number LIMIT $3";
    EVENT_ADD(INT8, INT8, INT8, INT8, BYTEA, BYTEA, BYTEA, BYTEA, BYTEA) = "INSERT INTO payload_manager.event
        (history, number, at, kind, data, schema, source, reason, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    EVENTS_REMOVE(INT8, INT8) = "DELETE FROM payload_manager.event WHERE history = $1 AND number IN (
        SELECT number FROM payload_manager.event WHERE history = $1 ORDER BY number LIMIT $2)";

    // Terms of metadata.
    TERM_NEWEST(INT8, INT8, UUID, UUID, INT8) = "SELECT payload FROM payload_manager.metadata_term
        WHERE namespace = $1 AND term = $2 AND payload >= $3 AND payload <= $4 ORDER BY payload DESC LIMIT $5";
    TERM_OLDEST(INT8, INT8, UUID, UUID, INT8) = "SELECT payload FROM payload_manager.metadata_term
        WHERE namespace = $1 AND term = $2 AND payload >= $3 AND payload <= $4 ORDER BY payload LIMIT $5";
    CURRENT(INT8, UUID_ARRAY, BOOL) = "SELECT asked.id, event.data, event.schema FROM unnest($2) AS asked (id), LATERAL (
            SELECT id, current FROM payload_manager.history
            WHERE namespace = $1 AND payload = asked.id OFFSET 0) AS history, LATERAL (
            SELECT CASE WHEN $3 THEN data ELSE '' END AS data, schema FROM payload_manager.event
            WHERE event.history = history.id AND event.number = history.current OFFSET 0) AS event";
    TERMS_ADD(INT8, UUID, INT8_ARRAY) = "INSERT INTO payload_manager.metadata_term (namespace, term, payload)
        SELECT $1, term, $2 FROM unnest($3) AS new (term) ON CONFLICT DO NOTHING";
    TERMS_REMOVE(INT8, UUID, INT8_ARRAY) = "DELETE FROM payload_manager.metadata_term
        WHERE namespace = $1 AND term = ANY($3) AND payload = $2";

    // Lineage.
    // OFFSET 0, here and below: each is looked up, whatever the planner takes the tables' sizes for. With `= ANY` it has
    // taken the index by its first column alone, which reads a whole namespace.
    EDGES_UP(INT8, UUID_ARRAY) = "SELECT edge.* FROM unnest($2) AS asked (id), LATERAL (
            ", edge_columns!(), "WHERE namespace = $1 AND child = asked.id OFFSET 0) AS edge";
    EDGES_DOWN(INT8, UUID_ARRAY) = "SELECT edge.* FROM unnest($2) AS asked (id), LATERAL (
            ", edge_columns!(), "WHERE namespace = $1 AND parent = asked.id OFFSET 0) AS edge";
    EDGES_UP_ALL(INT8, UUID) = "WITH RECURSIVE walk (id) AS (
            SELECT $2 UNION SELECT edge.parent FROM walk, LATERAL (
                SELECT parent FROM payload_manager.lineage WHERE namespace = $1 AND child = walk.id OFFSET 0) AS edge)
        SELECT edge.* FROM walk, LATERAL (
            ", edge_columns!(), "WHERE namespace = $1 AND child = walk.id OFFSET 0) AS edge";
    EDGES_DOWN_ALL(INT8, UUID) = "WITH RECURSIVE walk (id) AS (
            SELECT $2 UNION SELECT edge.child FROM walk, LATERAL (
                SELECT child FROM payload_manager.lineage WHERE namespace = $1 AND parent = walk.id OFFSET 0) AS edge)
        SELECT edge.* FROM walk, LATERAL (
            ", edge_columns!(), "WHERE namespace = $1 AND parent = walk.id OFFSET 0) AS edge";
    // The same edges with one look-up each, but one that several paths lead to comes several times, and a cycle has no end
    // but the limit. Long texts are left out, so that what comes in vain is not much.
    EDGES_UP_PATHS(INT8, UUID, INT8, INT4) = "WITH RECURSIVE walk (child, parent, operation, role, parameters) AS (
            ", edge_columns!(), "WHERE namespace = $1 AND child = $2
            UNION ALL SELECT edge.* FROM walk, LATERAL (
            ", edge_columns!(), "WHERE namespace = $1 AND child = walk.parent OFFSET 0) AS edge)
        ", walked_columns!(), "FROM walk LIMIT $3";
    EDGES_DOWN_PATHS(INT8, UUID, INT8, INT4) = "WITH RECURSIVE walk (child, parent, operation, role, parameters) AS (
            ", edge_columns!(), "WHERE namespace = $1 AND parent = $2
            UNION ALL SELECT edge.* FROM walk, LATERAL (
            ", edge_columns!(), "WHERE namespace = $1 AND parent = walk.child OFFSET 0) AS edge)
        ", walked_columns!(), "FROM walk LIMIT $3";
    EDGES_PUT(INT8, UUID_ARRAY, UUID_ARRAY, BYTEA_ARRAY, BYTEA_ARRAY, BYTEA_ARRAY) = "INSERT INTO payload_manager.lineage
            (namespace, child, parent, digest, operation, role, parameters)
        SELECT $1, child, parent, sha256(int4send(octet_length(operation)) || operation || role), operation, role,
            parameters
        FROM unnest($2, $3, $4, $5, $6) AS new (child, parent, operation, role, parameters)
        ON CONFLICT (namespace, child, parent, digest) DO UPDATE SET parameters = excluded.parameters";
    EDGES_REMOVE(INT8, UUID) = "WITH up AS (
            DELETE FROM payload_manager.lineage WHERE namespace = $1 AND child = $2 RETURNING 1
        ), down AS (
            DELETE FROM payload_manager.lineage WHERE namespace = $1 AND parent = $2 AND child <> $2 RETURNING 1)
        SELECT (SELECT count(*) FROM up) + (SELECT count(*) FROM down)";
    DIRTY_NEXT() = "SELECT namespace, payload FROM payload_manager.lineage_dirty ORDER BY namespace, payload LIMIT 1";
    DIRTY_ADD(INT8, UUID) = "INSERT INTO payload_manager.lineage_dirty VALUES ($1, $2) ON CONFLICT DO NOTHING";
    DIRTY_REMOVE(INT8, UUID) = "DELETE FROM payload_manager.lineage_dirty WHERE namespace = $1 AND payload = $2";
    WALK_NEXT(BOOL) = "SELECT namespace, payload FROM payload_manager.lineage_walk WHERE expanded = $1
        ORDER BY namespace, payload LIMIT 1";
    WALK_ADD(INT8_ARRAY, UUID_ARRAY) = "INSERT INTO payload_manager.lineage_walk
        SELECT namespace, payload, false FROM unnest($1, $2) AS new (namespace, payload) ON CONFLICT DO NOTHING";
    WALK_EXPANDED(INT8, UUID) = "UPDATE payload_manager.lineage_walk SET expanded = true
        WHERE namespace = $1 AND payload = $2";
    WALK_REMOVE(INT8, UUID) = "DELETE FROM payload_manager.lineage_walk WHERE namespace = $1 AND payload = $2";
    WALK_END() = "WITH ended AS (DELETE FROM payload_manager.lineage_walk RETURNING namespace, payload)
        DELETE FROM payload_manager.lineage_dirty AS dirty USING ended
        WHERE dirty.namespace = ended.namespace AND dirty.payload = ended.payload";

    // Streams.
    STREAM(BYTEA, BYTEA) = stream_columns!(), "WHERE namespace = $1 AND name = $2";
    STREAM_LOCKED(BYTEA, BYTEA) = stream_columns!(), "WHERE namespace = $1 AND name = $2 FOR NO KEY UPDATE";
    STREAMS_LOCKED(BYTEA_ARRAY, BYTEA_ARRAY) = "SELECT id FROM payload_manager.stream
        WHERE (namespace, name) IN (SELECT * FROM unnest($1, $2)) ORDER BY namespace, name FOR NO KEY UPDATE";
    STREAM_ENDS(BYTEA_ARRAY, BYTEA_ARRAY) = "SELECT asked.place, stream.id, stream.next
        FROM unnest($1, $2) WITH ORDINALITY AS asked (namespace, name, place), LATERAL (
            SELECT id, next FROM payload_manager.stream
            WHERE namespace = asked.namespace AND name = asked.name OFFSET 0) AS stream";
    STREAMS(BYTEA, BYTEA, INT8) = stream_columns!(),
        "WHERE (namespace, name) > ($1, $2) ORDER BY namespace, name LIMIT $3";
    STREAMS_DUE(INT8, INT8) = stream_columns!(), "WHERE due_at <= $1 ORDER BY due_at, id LIMIT $2";
    STREAMS_DUE_LOCKED(INT8, INT8) = stream_columns!(),
        "WHERE due_at <= $1 ORDER BY due_at, id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED";
    STREAMS_RETAINING(INT8, INT8) = stream_columns!(), "WHERE retains AND id > $1 ORDER BY id LIMIT $2";
    STREAM_ADD(BYTEA, BYTEA, INT8, INT8, BOOL, INT8) = "INSERT INTO payload_manager.stream
        (namespace, name, entries_max, age_ms_max, retains, first, next, last_at, created_at)
        VALUES ($1, $2, $3, $4, $5, 0, 0, 0, $6) ON CONFLICT DO NOTHING RETURNING id";
    STREAM_SET(BYTEA, BYTEA, INT8, INT8, INT8, INT8) = "UPDATE payload_manager.stream
        SET first = $3, next = $4, last_at = $5, due_at = $6 WHERE namespace = $1 AND name = $2";
    STREAM_REMOVE(BYTEA, BYTEA) = "DELETE FROM payload_manager.stream WHERE namespace = $1 AND name = $2";
    BATCH_AT(INT8, INT8) = "SELECT first, count, appended_at FROM payload_manager.stream_batch
        WHERE stream = $1 AND first <= $2 ORDER BY first DESC LIMIT 1";
    BATCHES(INT8, INT8, INT8) = "SELECT first, count, appended_at, entries FROM payload_manager.stream_batch
        WHERE stream = $1 AND first >= $2 ORDER BY first LIMIT $3";
    BATCH_ADD(INT8, INT8, INT8, INT8, BYTEA) = "INSERT INTO payload_manager.stream_batch
        (stream, first, count, appended_at, entries) VALUES ($1, $2, $3, $4, $5)";
    BATCHES_REMOVE(INT8, INT8, INT8) = "DELETE FROM payload_manager.stream_batch WHERE stream = $1 AND first IN (
        SELECT first FROM payload_manager.stream_batch WHERE stream = $1 AND first < $2 AND first + count <= $2
        ORDER BY first LIMIT $3)";
    GROUPS_FLOOR(INT8) = "SELECT next FROM payload_manager.stream_group WHERE stream = $1 ORDER BY next LIMIT 1";
    COMMITTED(INT8, BYTEA) = "SELECT next FROM payload_manager.stream_group WHERE stream = $1 AND name = $2";
    GROUP_SET(INT8, BYTEA, INT8, INT8) = "INSERT INTO payload_manager.stream_group (stream, name, next, at)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (stream, name) DO UPDATE SET next = excluded.next, at = excluded.at";
    GROUPS_REMOVE(INT8, INT8) = "DELETE FROM payload_manager.stream_group WHERE stream = $1 AND name IN (
        SELECT name FROM payload_manager.stream_group WHERE stream = $1 ORDER BY name LIMIT $2)";

    GROUPS(INT8, BYTEA, INT8) = "SELECT name, next, at FROM payload_manager.stream_group
        WHERE stream = $1 AND name > $2 ORDER BY name LIMIT $3";
    GROUP_REMOVE(INT8, BYTEA) = "DELETE FROM payload_manager.stream_group WHERE stream = $1 AND name = $2";

    // Calls that are made once.
    NOTE(BYTEA) = "SELECT request, at, about, first, last FROM payload_manager.call_note WHERE call = $1";
    NOTES_DUE(INT8) = "SELECT at FROM payload_manager.call_note WHERE at <= $1 LIMIT 1";
    // None comes back where another node has made the same call meanwhile.
    NOTE_SET(BYTEA, INT8, INT8, INT8, INT8, INT8, INT8) = "INSERT INTO payload_manager.call_note AS known
        (call, request, at, about, first, last) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (call) DO UPDATE SET request = excluded.request, at = excluded.at, about = excluded.about,
            first = excluded.first, last = excluded.last
        WHERE known.at <= $7 RETURNING at";
    UPLOAD_ADD(INT4, UUID, BOOL, INT8, INT8, INT8, INT8, TEXT) = "INSERT INTO payload_manager.object_upload
        (owner, payload, removal, generation, size, part_bytes, compression, upload)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    UPLOAD_NAME(INT4, UUID, TEXT) = "UPDATE payload_manager.object_upload SET upload = $3
        WHERE owner = $1 AND payload = $2";
    UPLOAD_PART(INT4, UUID, INT8, TEXT, INT8) = "INSERT INTO payload_manager.object_part (payload, number, tag, hash)
        SELECT payload, $3, $4, $5 FROM payload_manager.object_upload WHERE owner = $1 AND payload = $2
        ON CONFLICT (payload, number) DO UPDATE SET tag = excluded.tag, hash = excluded.hash";
    UPLOAD_REMOVE(INT4, UUID) = "DELETE FROM payload_manager.object_upload WHERE owner = $1 AND payload = $2";
    NOTES_REMOVE(INT8, INT8) = "DELETE FROM payload_manager.call_note WHERE call IN (
        SELECT call FROM payload_manager.call_note WHERE at <= $1 ORDER BY at LIMIT $2)";

    // Cleaning up.
    GARBAGE_NEXT() = "SELECT kind::bigint, id FROM payload_manager.garbage ORDER BY kind, id LIMIT 1";
    GARBAGE_ADD(INT8, INT8) = "INSERT INTO payload_manager.garbage VALUES ($1, $2) ON CONFLICT DO NOTHING";
    GARBAGE_REMOVE(INT8, INT8) = "DELETE FROM payload_manager.garbage WHERE kind = $1 AND id = $2";
    // "sweep", so to say: held by the one node that sweeps, until its transaction ends.
    SWEEP_LOCK() = "SELECT pg_try_advisory_xact_lock(8097874551267943170)";
}
