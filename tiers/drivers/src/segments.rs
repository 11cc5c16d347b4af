//! The RAM tier for clients that know only gRPC: one named shared-memory object per payload (DESIGN §5).
//!
//! The objects are files of tmpfs, so this is a [`FileStore`] over /dev/shm. Its intent log lies beside them and holds
//! for one boot of the machine, as they do; it is locked, so one node name serves one server. No memory of a client is
//! ever mapped here: what is copied is read with pread into private staging, so that a client that truncates its
//! segment causes a short read and no SIGBUS, and the checksum is of the bytes submitted, whatever is written meanwhile.

use std::path::Path;
use std::sync::Arc;

use payload_types::{ByteCount, Tier};

use crate::calls::System;
use crate::error::OpenError;
use crate::intent::{IntentLog, Live};
use crate::naming::{Names, SHM_DIRECTORY, file_name_part};
use crate::store::FileStore;
use crate::store::pool::Pool;

/// Where the kernel tells one boot from another: a UUID, new at every boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Longest prefix: `<prefix>-limbo-<14>-<36>` must fit NAME_MAX = 255.
const PREFIX_BYTES_MAX: usize = 128;

/// Opens the store of the RAM tier, and what its log names. With a `capacity`, segments are used again.
pub(crate) fn open(
    prefix: &str,
    node: &str,
    mode_sealed: u32,
    capacity: Option<ByteCount>,
) -> Result<(FileStore, Live), OpenError> {
    if prefix.is_empty()
        || prefix.len() > PREFIX_BYTES_MAX
        || prefix.contains(['/', '\0'])
        || prefix.starts_with('.')
    {
        return Err(OpenError::Prefix { prefix: prefix.to_owned(), bytes_max: PREFIX_BYTES_MAX });
    }
    let path = Path::new(SHM_DIRECTORY).join(format!("{prefix}-intent-{}", file_name_part(node)));
    let (log, live) = IntentLog::open(&path, Tier::Ram, false, Some(boot_id()?))
        .map_err(|error| OpenError::of_log(error, &path, node))?;
    let names = Names::Segments { prefix: prefix.into() };
    let mut store = FileStore::new(names, log, mode_sealed, Arc::new(System::new()), None, None);
    store.pool = capacity.map(Pool::new);
    Ok((store, live))
}

fn boot_id() -> Result<[u8; 16], OpenError> {
    let text =
        std::fs::read_to_string(BOOT_ID).map_err(|source| OpenError::io("reading", BOOT_ID, source))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(number) if digits.len() == 32 => Ok(number.to_be_bytes()),
        _ => Err(OpenError::io("reading", BOOT_ID, std::io::Error::other("it is not a UUID"))),
    }
}
