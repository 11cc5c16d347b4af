-- The first schema. Run in one transaction together with `PRAGMA user_version = 1`.
-- Numbers that the contract has (tier, state, priority) are stored as the contract numbers them.

-- "Payl": tells our files from those of other programs. Stands in bytes 68..72 of the file.
PRAGMA application_id = 0x5061796C;

-- One row a start-up identity. `epoch` is the number of its latest start; numbers are shared by all names, so that
-- renaming a node never makes its new rows look older than its old ones.
-- `disk_root` is the id of the disk root that its rows speak of: what another root holds is not this catalog's.
CREATE TABLE node (
    name      TEXT PRIMARY KEY,
    epoch     INTEGER NOT NULL,
    disk_root TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE namespace (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO namespace (id, name) VALUES (1, 'default');

-- Committed payloads. WITHOUT ROWID: one b-tree in the order of creation (ids are UUIDv7), 76 bytes a row, where a
-- rowid table with its index took 99; inserting is as fast. Nothing today asks for a secondary index.
-- `namespace` has no enforced foreign key: one change of a batch must never fail the others.
CREATE TABLE payload (
    namespace       INTEGER NOT NULL,
    id              BLOB    NOT NULL,  -- 16 bytes
    size            INTEGER NOT NULL,  -- bytes
    state           INTEGER NOT NULL,
    version         INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,  -- the start in which the row was written
    created_at      INTEGER NOT NULL,  -- milliseconds since 1970
    expires_at      INTEGER,           -- milliseconds since 1970; NULL: never
    no_evict        INTEGER NOT NULL,
    priority        INTEGER NOT NULL,
    require_durable INTEGER NOT NULL,
    spill_target    INTEGER,           -- tier, 5: VOID
    min_residency   INTEGER,           -- tier
    checksum        INTEGER,           -- XXH3-64, its 64 bits as a signed number
    pinned_until    INTEGER,           -- milliseconds since 1970; 2^63-1: until Unpin; NULL: not pinned
    health          INTEGER NOT NULL,  -- 0 good, 1 lost, 2 damaged
    -- The replica on each tier, if the row vouches for one: generation * 2 + (1 if on stable storage).
    gpu             INTEGER,
    ram             INTEGER,
    disk            INTEGER,
    object          INTEGER,
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;
