//! `meta`: the metadata of payloads and their history.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use payload_client::{Client, ClientError};
use payload_types::record::{Metadata, MetadataEvent, MetadataEventKind, MetadataMode};
use payload_types::{PayloadId, WallMs, limits};
use serde::Serialize;

use crate::common::parse_id;
use crate::get::replace;
use crate::output::{Block, Column, Output, Row, left, right};
use crate::view::{Opaque, time};

/// Subcommands of `meta`.
#[derive(clap::Subcommand)]
pub enum MetaCommand {
    /// Replace the metadata of a payload: both data and schema.
    Set(UpdateArgs),
    /// Merge into the metadata of a payload: JSON objects field by field (RFC 7396), other data as a whole.
    Merge(UpdateArgs),
    /// Show the metadata of a payload.
    Get(GetArgs),
    /// Show every change of a payload's metadata, oldest first.
    Log(LogArgs),
}

/// Arguments of `meta set` and `meta merge`.
#[derive(clap::Args)]
pub struct UpdateArgs {
    /// Whose metadata.
    #[arg(value_name = "ID")]
    id: String,
    /// The file with the data, at most 1 MiB of any bytes; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    data_file: PathBuf,
    /// The name of the data's schema.
    #[arg(long, default_value = "")]
    schema: String,
    /// Who does it; kept in the history.
    #[arg(long, default_value = "")]
    actor: String,
    /// Why; kept in the history.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Arguments of `meta get`.
#[derive(clap::Args)]
pub struct GetArgs {
    /// Whose metadata.
    #[arg(value_name = "ID")]
    id: String,
    /// Write the data into this file, byte for byte; `-` is standard output, alone.
    #[arg(long, value_name = "FILE")]
    data_out: Option<PathBuf>,
}

/// Arguments of `meta log`.
#[derive(clap::Args)]
pub struct LogArgs {
    /// Whose metadata.
    #[arg(value_name = "ID")]
    id: String,
}

/// Metadata as they are now.
#[derive(Serialize)]
struct Current {
    id: String,
    schema: String,
    updated_at: Option<String>,
    length_bytes: usize,
    #[serde(flatten)]
    data: Opaque,
}

impl Current {
    fn new(id: PayloadId, current: Option<(Metadata, WallMs)>) -> Self {
        let updated_at = current.as_ref().map(|(_, at)| time(*at));
        let Metadata { data, schema } = current.map(|(metadata, _)| metadata).unwrap_or_default();
        Self { id: id.to_string(), schema, updated_at, length_bytes: data.len(), data: Opaque::data(&data) }
    }
}

impl Block for Current {
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("id", self.id.clone()),
            ("schema", self.schema.clone()),
            ("updated at", self.updated_at.clone().unwrap_or_else(|| "never".to_owned())),
            ("data", self.data.shown(self.length_bytes)),
        ]
    }
}

/// A line of `meta log`.
#[derive(Serialize)]
struct Event {
    number: u64,
    ts: String,
    kind: &'static str,
    source: String,
    reason: String,
    version: String,
    schema: String,
    length_bytes: usize,
    #[serde(flatten)]
    data: Opaque,
}

impl From<MetadataEvent> for Event {
    fn from(event: MetadataEvent) -> Self {
        let Metadata { data, schema } = event.metadata;
        Self {
            number: event.number,
            ts: time(event.at),
            kind: match event.kind {
                MetadataEventKind::Replaced => "replaced",
                MetadataEventKind::Merged => "merged",
                MetadataEventKind::Noted => "noted",
            },
            source: event.source,
            reason: event.reason,
            version: event.version,
            schema,
            length_bytes: data.len(),
            data: Opaque::data(&data),
        }
    }
}

impl Row for Event {
    const COLUMNS: &'static [Column] = &[
        right("NUMBER", 6),
        left("TIME", 24),
        left("KIND", 8),
        left("BY", 10),
        left("REASON", 12),
        left("VERSION", 7),
        left("SCHEMA", 8),
        left("DATA", 10),
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            self.ts.clone(),
            self.kind.to_owned(),
            self.source.clone(),
            self.reason.clone(),
            self.version.clone(),
            self.schema.clone(),
            self.data.shown(self.length_bytes),
        ]
    }
}

/// Runs `meta`.
pub async fn run(client: &Client, output: &mut Output, command: MetaCommand) -> anyhow::Result<()> {
    match command {
        MetaCommand::Set(args) => update(client, output, MetadataMode::Replace, args).await,
        MetaCommand::Merge(args) => update(client, output, MetadataMode::Merge, args).await,
        MetaCommand::Get(args) => get(client, output, args).await,
        MetaCommand::Log(args) => log(client, output, args).await,
    }
}

async fn update(
    client: &Client,
    output: &mut Output,
    mode: MetadataMode,
    args: UpdateArgs,
) -> anyhow::Result<()> {
    let id = parse_id(&args.id)?;
    let metadata = Metadata { data: read(&args.data_file)?, schema: args.schema };
    let current = client.update_metadata(id, mode, metadata, &args.actor, &args.reason).await?;
    Ok(output.block(&Current::new(id, Some(current)))?)
}

async fn get(client: &Client, output: &mut Output, args: GetArgs) -> anyhow::Result<()> {
    let id = parse_id(&args.id)?;
    let current = client.metadata(id).await?;
    let Some(path) = args.data_out else {
        return Ok(output.block(&Current::new(id, current))?);
    };
    let data = current.as_ref().map_or(&[][..], |(metadata, _)| &metadata.data);
    let cannot_write = |reason| ClientError::Io { what: "cannot write the output", reason };
    if path == Path::new("-") {
        return Ok(output.stdout().write_all(data).map_err(cannot_write)?);
    }
    replace(&path, |mut file| file.write_all(data).map_err(cannot_write))?;
    Ok(output.block(&Current::new(id, current))?)
}

async fn log(client: &Client, output: &mut Output, args: LogArgs) -> anyhow::Result<()> {
    const PAGE_SIZE: u16 = limits::EVENT_PAGE_MAX as u16;
    let id = parse_id(&args.id)?;
    let mut token = None;
    loop {
        let page = client.metadata_events(id, PAGE_SIZE, token).await?;
        for event in page.events {
            output.row(&Event::from(event))?;
        }
        token = page.next_page_token;
        if token.is_none() {
            return Ok(());
        }
    }
}

/// The data to store. One byte more than may be is read, so that the server says what is wrong with it.
fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    let cannot_read = |reason| ClientError::Io { what: "cannot read the input", reason };
    let mut data = Vec::new();
    let limit = limits::OPAQUE_BYTES_MAX as u64 + 1;
    if path == Path::new("-") {
        io::stdin().take(limit).read_to_end(&mut data).map_err(cannot_read)?;
    } else {
        let file = File::open(path).map_err(cannot_read)?;
        file.take(limit).read_to_end(&mut data).map_err(cannot_read)?;
    }
    Ok(data)
}
