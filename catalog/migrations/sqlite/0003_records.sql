-- Metadata, lineage and streams. Run in one transaction together with `PRAGMA user_version = 3`.
-- Texts that clients chose are BLOBs: any UTF-8, NULs included, compared byte for byte.

-- A payload's metadata: how many events there are, and which of them holds what is current (0: none was set).
-- AUTOINCREMENT: a number is never used again, so that events of a removed payload can go later.
CREATE TABLE history (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace INTEGER NOT NULL,
    payload   BLOB    NOT NULL,  -- 16 bytes
    events    INTEGER NOT NULL,
    current   INTEGER NOT NULL,
    UNIQUE (namespace, payload)
) STRICT;

-- `source` is the actor of an update or the source of a note; `kind` 1 replaced, 2 merged, 3 noted.
CREATE TABLE event (
    history INTEGER NOT NULL,
    number  INTEGER NOT NULL,  -- 1, 2, ... without a gap
    at      INTEGER NOT NULL,  -- milliseconds since 1970
    kind    INTEGER NOT NULL,
    data    BLOB    NOT NULL,
    schema  BLOB    NOT NULL,
    source  BLOB    NOT NULL,
    reason  BLOB    NOT NULL,
    version BLOB    NOT NULL,
    PRIMARY KEY (history, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE lineage (
    namespace  INTEGER NOT NULL,
    child      BLOB    NOT NULL,
    parent     BLOB    NOT NULL,
    operation  BLOB    NOT NULL,
    role       BLOB    NOT NULL,
    parameters BLOB    NOT NULL,
    PRIMARY KEY (namespace, child, parent, operation, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX lineage_down ON lineage (namespace, parent);

-- Removed payloads that had edges, until a sweep has looked whether anything living is connected with them.
CREATE TABLE lineage_dirty (
    namespace INTEGER NOT NULL,
    payload   BLOB    NOT NULL,
    PRIMARY KEY (namespace, payload)
) STRICT, WITHOUT ROWID;

-- The dead payloads that such a look has met so far.
CREATE TABLE lineage_walk (
    namespace INTEGER NOT NULL,
    payload   BLOB    NOT NULL,
    expanded  INTEGER NOT NULL,  -- 1: its neighbours are in the walk, too
    PRIMARY KEY (namespace, payload)
) STRICT, WITHOUT ROWID;
CREATE INDEX lineage_walk_next ON lineage_walk (expanded);

-- A stream keeps the entries from `first` on; `next` is the offset of the next one. AUTOINCREMENT: a stream that is made
-- anew under an old name never meets what is left of the old one.
CREATE TABLE stream (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace   BLOB    NOT NULL,
    name        BLOB    NOT NULL,
    entries_max INTEGER,           -- NULL: no limit
    age_ms_max  INTEGER,           -- NULL: no limit
    first       INTEGER NOT NULL,
    next        INTEGER NOT NULL,
    last_at     INTEGER NOT NULL,  -- milliseconds since 1970: the last append, 0 for none
    due_at      INTEGER,           -- milliseconds since 1970: when a sweep may find something to remove
    created_at  INTEGER NOT NULL,  -- milliseconds since 1970
    UNIQUE (namespace, name)
) STRICT;
CREATE INDEX stream_due ON stream (due_at) WHERE due_at IS NOT NULL;

-- Entries that were appended together, packed (catalog/src/records/codec.rs).
CREATE TABLE stream_batch (
    stream      INTEGER NOT NULL,
    first       INTEGER NOT NULL,  -- the offset of the first entry
    count       INTEGER NOT NULL,
    appended_at INTEGER NOT NULL,  -- milliseconds since 1970; never less than that of the batch before
    entries     BLOB    NOT NULL,
    PRIMARY KEY (stream, first)
) STRICT, WITHOUT ROWID;

-- The offset that a consumer group wants next.
CREATE TABLE stream_group (
    stream INTEGER NOT NULL,
    name   BLOB    NOT NULL,
    next   INTEGER NOT NULL,
    at     INTEGER NOT NULL,  -- milliseconds since 1970
    PRIMARY KEY (stream, name)
) STRICT, WITHOUT ROWID;

-- What is named no more, and is removed bit by bit: 1 a stream's batches and groups, 2 a history's events.
CREATE TABLE garbage (
    kind INTEGER NOT NULL,
    id   INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
