//! Tests of the configuration, on a machine of fixed size: 16 GiB of memory, 8 cores, 100 GiB of free disk.

mod defaults;
mod docs;
mod environment;
mod every_key;
mod object;
mod refusals;

use std::path::Path;

use payload_reactor::preflight::{DiskSpace, Machine};
use payload_types::ByteCount;

use super::{Config, ConfigError, Loaded};

const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    Machine {
        memory: ByteCount(16 * GIB),
        memory_limit: None,
        shm: Some(ByteCount(8 * GIB)),
        cores: 8,
        disk_space: |_| Ok(DiskSpace { free: ByteCount(90 * GIB), held: ByteCount(10 * GIB) }),
    }
}

/// Loads this text as a file would be, with these variables, on this machine.
fn load_on(machine: &Machine, yaml: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
    std::fs::write(file.path(), yaml).expect("writable");
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Config::load_on(machine, Some(file.path()), Path::new("/srv/payload-data"), variables)
}

fn load(yaml: &str) -> Result<Loaded, ConfigError> {
    load_on(&machine(), yaml, &[])
}

fn load_with(yaml: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_on(&machine(), yaml, variables)
}

/// The sentence with which this text is refused.
fn refusal(yaml: &str) -> String {
    match load(yaml) {
        Ok(loaded) => panic!("{yaml} was taken as {:?}", loaded.config),
        Err(error) => error.to_string(),
    }
}
