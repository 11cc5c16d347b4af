-- Packed segment files. Run in one transaction together with `PRAGMA user_version = 2`. Costs nothing for rows that
-- are there already: SQLite keeps the defaults in the schema.

-- Where the replica on DISK lies in a segment file: number of the file * 2^32 + first page, its 64 bits as a signed
-- number; NULL: it has a file of its own, or there is none.
ALTER TABLE payload ADD COLUMN extent INTEGER;

-- The replicas whose bytes were found damaged while another one serves the payload: 2^tier each.
ALTER TABLE payload ADD COLUMN unsound INTEGER NOT NULL DEFAULT 0;
