//! `import` and `sweep`: objects that were stored past the server, and what earlier runs of it left in the store.

use payload_client::{Client, ClientError};
use payload_types::{ByteCount, Checksum};
use payload_wire::ids;
use payload_wire::pb::operations::v1::{SweptObject, SweptOutcome};
use serde::Serialize;

use crate::common::parse_id;
use crate::lifecycle::parse_checksum;
use crate::output::{Column, Output, Row, left, right};
use crate::view::Brief;

/// Arguments of `import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// What was uploaded: the id that `allocate --tier object` gave.
    #[arg(value_name = "ID")]
    id: String,
    /// How many bytes were uploaded, like 4096 or 8GiB.
    size: ByteCount,
    /// The XXH3-64 of the bytes, 16 hexadecimal digits; without it the server reads the object once.
    #[arg(long, value_name = "HEX", value_parser = parse_checksum)]
    checksum: Option<Checksum>,
}

/// Arguments of `sweep`.
#[derive(clap::Args)]
pub struct SweepArgs {
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// One entry of the upload journal.
#[derive(Serialize)]
struct Swept {
    id: String,
    size_bytes: u64,
    outcome: &'static str,
    key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

/// Imports one object.
pub async fn run_import(client: &Client, output: &mut Output, args: ImportArgs) -> anyhow::Result<()> {
    let imported = match parse_id(&args.id) {
        Ok(id) => client.import_payload(id, args.size, args.checksum).await,
        Err(error) => Err(error),
    };
    match imported {
        Ok(descriptor) => output.row(&Brief::from(&descriptor))?,
        Err(error) => output.fail(&args.id, &error)?,
    }
    Ok(())
}

/// Sweeps, and shows what became of each entry.
pub async fn run_sweep(client: &Client, output: &mut Output, args: SweepArgs) -> anyhow::Result<()> {
    for swept in client.sweep_objects(args.dry_run).await? {
        let row = Swept::of(&swept, args.dry_run);
        output.row(&row)?;
        if !row.error.is_empty() {
            output.fail(&row.id, &ClientError::Input(row.error.clone()))?;
        }
    }
    Ok(())
}

impl Swept {
    fn of(swept: &SweptObject, is_dry: bool) -> Self {
        let outcome = match (swept.outcome(), is_dry) {
            _ if !swept.error.is_empty() => "failed",
            (SweptOutcome::Named, _) => "stays",
            (SweptOutcome::Unfinished, true) => "unfinished",
            (SweptOutcome::Unfinished, false) => "ended",
            (SweptOutcome::Orphan, true) => "orphan",
            (SweptOutcome::Orphan, false) => "deleted",
            (SweptOutcome::Unspecified, _) => "unknown",
        };
        Self {
            id: ids::payload_id(swept.id.as_ref()).map_or_else(|_| String::new(), |id| id.to_string()),
            size_bytes: swept.size_bytes,
            outcome,
            key: swept.key.clone(),
            error: swept.error.clone(),
        }
    }
}

impl Row for Swept {
    const COLUMNS: &'static [Column] =
        &[left("ID", 36), right("SIZE", 10), left("OUTCOME", 10), left("KEY", 0)];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            ByteCount(self.size_bytes).to_string(),
            self.outcome.to_owned(),
            self.key.clone(),
        ]
    }
}
