-- Finding payloads by their metadata. Run in one transaction together with `PRAGMA user_version = 5`, and before its end
-- the terms of the metadata that are there already are filled in (sqlite/terms.rs).

-- The terms of a payload's current metadata, 8 bytes each, so that they are taken away whatever made them.
ALTER TABLE history ADD COLUMN terms BLOB NOT NULL DEFAULT x'';

-- A term is a hash of a schema, of a field with its value, or of a tag (catalog/src/records/terms.rs), its 64 bits as a
-- signed number. The key is all there is: the payloads of a term, in the order of their creation.
CREATE TABLE metadata_term (
    namespace INTEGER NOT NULL,
    term      INTEGER NOT NULL,
    payload   BLOB    NOT NULL,  -- 16 bytes
    PRIMARY KEY (namespace, term, payload)
) STRICT, WITHOUT ROWID;
