-- The object store. Run in one transaction together with `PRAGMA user_version = 7`.

-- What a row knows of its replica on OBJECT: bytes in the store, how they are compressed (as the contract numbers it), and
-- the store's tag of this version.
ALTER TABLE payload ADD COLUMN object_stored INTEGER;
ALTER TABLE payload ADD COLUMN object_compression INTEGER;
ALTER TABLE payload ADD COLUMN object_etag TEXT;

-- What this node put, or is about to put, into the store and no row vouches for. One entry a payload: an upload (`removal` 0)
-- or an object that is to be deleted (1).
CREATE TABLE object_upload (
    payload     BLOB    NOT NULL PRIMARY KEY,  -- 16 bytes
    removal     INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    size        INTEGER NOT NULL,              -- of the payload, in bytes
    part_bytes  INTEGER NOT NULL,
    compression INTEGER NOT NULL,
    upload      TEXT                           -- the store's name for an upload in parts
) STRICT, WITHOUT ROWID;

CREATE TABLE object_part (
    payload BLOB    NOT NULL,
    number  INTEGER NOT NULL,  -- 0, 1, ...
    tag     TEXT    NOT NULL,  -- what completes the upload
    hash    INTEGER NOT NULL,  -- XXH3-64 of its bytes as stored, as a signed number
    PRIMARY KEY (payload, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER object_upload_gone AFTER DELETE ON object_upload BEGIN
    DELETE FROM object_part WHERE payload = old.payload;
END;

-- A row that names an object settles its upload, and one that is removed leaves an entry to delete it, each in the row's own
-- transaction.
CREATE TRIGGER object_named AFTER INSERT ON payload WHEN new.object IS NOT NULL BEGIN
    DELETE FROM object_upload WHERE payload = new.id AND removal = 0;
END;
CREATE TRIGGER object_named_anew AFTER UPDATE OF object ON payload WHEN new.object IS NOT NULL BEGIN
    DELETE FROM object_upload WHERE payload = new.id AND removal = 0;
END;
CREATE TRIGGER object_unnamed AFTER DELETE ON payload WHEN old.object IS NOT NULL BEGIN
    INSERT INTO object_upload (payload, removal, generation, size, part_bytes, compression)
    VALUES (old.id, 1, old.object >> 1, old.size, 0, 0)
    ON CONFLICT (payload) DO UPDATE SET removal = 1;
END;
