//! `stream`: streams of payloads, named `NAMESPACE/NAME`; a name without a slash is in the empty namespace.

use std::collections::BTreeMap;

use payload_client::{Client, ClientError, Start};
use payload_types::limits::{LIST_PAGE_MAX, STREAM_READ_MAX};
use payload_types::record::{StreamEntry, StreamGroup, StreamInfo, StreamItem, StreamLimits, StreamName};
use payload_types::time::format_millis;
use serde::Serialize;

use crate::common::{parse_id, positive_millis};
use crate::interrupt::Interrupt;
use crate::output::{Column, Output, Row, left, right};
use crate::view::{time, time_of};

/// Subcommands of `stream`.
#[derive(clap::Subcommand)]
pub enum StreamCommand {
    /// Make an empty stream.
    Create(CreateArgs),
    /// Append payloads, all or none, in this order.
    Append(AppendArgs),
    /// Show entries from an offset to the end.
    Read(ReadArgs),
    /// Show entries as they are appended, until Ctrl-C.
    Tail(TailArgs),
    /// Store how far a group of consumers has come.
    Commit(CommitArgs),
    /// Show how far a group of consumers has come.
    Committed(GroupArgs),
    /// Show the entries between two offsets, both included.
    Range(RangeArgs),
    /// List the streams there are.
    Ls,
    /// List or remove groups of consumers.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Remove a stream, with its entries and what groups have committed.
    Rm(RmArgs),
}

/// Subcommands of `stream group`.
#[derive(clap::Subcommand)]
pub enum GroupCommand {
    /// List the groups of a stream, and how far each has come.
    Ls(RmArgs),
    /// Forget a group that is never heard of again, and let go what only it held.
    Rm(GroupArgs),
}

/// Arguments of `stream create`.
#[derive(clap::Args)]
pub struct CreateArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
    /// Keep only the newest so many entries.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    max_entries: Option<u64>,
    /// Keep entries only so long, in whole seconds, like 1h.
    #[arg(long, value_name = "DURATION", value_parser = positive_millis)]
    max_age: Option<u64>,
    /// Keep the payloads that entries refer to until every group has committed past them.
    #[arg(long)]
    retain_payloads: bool,
}

/// Arguments of `stream append`.
#[derive(clap::Args)]
pub struct AppendArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
    /// What to append.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// A tag of each of them, KEY=VALUE; may be given several times.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

/// Arguments of `stream read`.
#[derive(clap::Args)]
pub struct ReadArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
    /// The first offset; the oldest that is kept without it.
    #[arg(long, value_name = "OFFSET", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// At most so many entries; all without it.
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
}

/// Arguments of `stream tail`.
#[derive(clap::Args)]
pub struct TailArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
    /// The first offset; only what is appended from now on without it.
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
}

/// Arguments of `stream commit`.
#[derive(clap::Args)]
pub struct CommitArgs {
    #[command(flatten)]
    group: GroupArgs,
    /// The offset that the group wants next.
    #[arg(long)]
    offset: u64,
}

/// Arguments of `stream committed`.
#[derive(clap::Args)]
pub struct GroupArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
    /// The group of consumers.
    #[arg(long)]
    group: String,
}

/// Arguments of `stream range`.
#[derive(clap::Args)]
pub struct RangeArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
    /// The first offset.
    #[arg(value_name = "FIRST")]
    first: u64,
    /// The last offset.
    #[arg(value_name = "LAST")]
    last: u64,
}

/// Arguments of `stream rm`.
#[derive(clap::Args)]
pub struct RmArgs {
    #[arg(value_name = "STREAM", value_parser = parse_name)]
    stream: StreamName,
}

/// What an item of `append` became.
#[derive(Serialize)]
struct Appended {
    offset: u64,
    payload_id: String,
}

impl Row for Appended {
    const COLUMNS: &'static [Column] = &[right("OFFSET", 10), left("PAYLOAD", 36)];
    fn cells(&self) -> Vec<String> {
        vec![self.offset.to_string(), self.payload_id.clone()]
    }
}

/// An entry.
#[derive(Serialize)]
struct Entry {
    offset: u64,
    payload_id: String,
    append_time: String,
    event_time: Option<String>,
    duration_ns: u64,
    tags: BTreeMap<String, String>,
}

impl From<StreamEntry> for Entry {
    fn from(entry: StreamEntry) -> Self {
        Self {
            offset: entry.offset,
            payload_id: entry.item.payload.to_string(),
            append_time: time(entry.appended_at),
            event_time: entry.item.event_time.map(time_of),
            duration_ns: entry.item.duration_ns,
            tags: entry.item.tags.into_iter().collect(),
        }
    }
}

impl Row for Entry {
    const COLUMNS: &'static [Column] = &[
        right("OFFSET", 10),
        left("PAYLOAD", 36),
        left("APPENDED", 24),
        left("EVENT TIME", 24),
        left("TAGS", 6),
    ];
    fn cells(&self) -> Vec<String> {
        let tags: Vec<String> = self.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            self.offset.to_string(),
            self.payload_id.clone(),
            self.append_time.clone(),
            self.event_time.clone().unwrap_or_else(|| "-".to_owned()),
            tags.join(" "),
        ]
    }
}

/// How far a group has come.
#[derive(Serialize)]
struct Committed {
    stream: String,
    group: String,
    offset: u64,
    committed: bool,
}

impl Row for Committed {
    const COLUMNS: &'static [Column] =
        &[left("STREAM", 20), left("GROUP", 12), right("OFFSET", 10), left("COMMITTED", 9)];
    fn cells(&self) -> Vec<String> {
        let committed = if self.committed { "yes" } else { "never" };
        vec![self.stream.clone(), self.group.clone(), self.offset.to_string(), committed.to_owned()]
    }
}

/// A line of `stream group ls`.
#[derive(Serialize)]
struct ListedGroup {
    stream: String,
    group: String,
    offset: u64,
    committed_at: String,
}

impl Row for ListedGroup {
    const COLUMNS: &'static [Column] =
        &[left("STREAM", 20), left("GROUP", 12), right("OFFSET", 10), left("COMMITTED AT", 24)];
    fn cells(&self) -> Vec<String> {
        vec![self.stream.clone(), self.group.clone(), self.offset.to_string(), self.committed_at.clone()]
    }
}

/// What `stream group rm` did.
#[derive(Serialize)]
struct RemovedGroup {
    stream: String,
    group: String,
    result: &'static str,
    /// Of a stream that retains payloads.
    retained_from_offset: Option<u64>,
}

impl Row for RemovedGroup {
    const COLUMNS: &'static [Column] =
        &[left("STREAM", 20), left("GROUP", 12), left("RESULT", 8), left("RETAINS FROM", 12)];
    fn cells(&self) -> Vec<String> {
        let from = self.retained_from_offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        vec![self.stream.clone(), self.group.clone(), self.result.to_owned(), from]
    }
}

/// A line of `stream ls`.
#[derive(Serialize)]
struct Listed {
    stream: String,
    first_offset: u64,
    end_offset: u64,
    retention_max_entries: u64,
    retention_max_age_sec: u64,
    retain_payloads: bool,
}

impl From<&StreamInfo> for Listed {
    fn from(info: &StreamInfo) -> Self {
        Self {
            stream: shown(&info.stream),
            first_offset: info.first,
            end_offset: info.end,
            retention_max_entries: info.limits.entries_max.unwrap_or_default(),
            retention_max_age_sec: info.limits.age_ms_max.unwrap_or_default() / 1_000,
            retain_payloads: info.limits.retains_payloads,
        }
    }
}

impl Row for Listed {
    const COLUMNS: &'static [Column] = &[
        left("STREAM", 24),
        right("FIRST", 10),
        right("END", 10),
        right("MAX ENTRIES", 11),
        right("MAX AGE", 8),
        left("RETAINS", 8),
    ];
    fn cells(&self) -> Vec<String> {
        let limit = |set: bool, text: String| if set { text } else { "-".to_owned() };
        vec![
            self.stream.clone(),
            self.first_offset.to_string(),
            self.end_offset.to_string(),
            limit(self.retention_max_entries > 0, self.retention_max_entries.to_string()),
            limit(
                self.retention_max_age_sec > 0,
                format_millis(self.retention_max_age_sec.saturating_mul(1_000)),
            ),
            limit(self.retain_payloads, "payloads".to_owned()),
        ]
    }
}

/// Runs `stream`.
pub async fn run(client: &Client, output: &mut Output, command: StreamCommand) -> anyhow::Result<()> {
    match command {
        StreamCommand::Create(CreateArgs { stream, max_entries, max_age, retain_payloads }) => {
            let limits = StreamLimits {
                entries_max: max_entries,
                age_ms_max: max_age,
                retains_payloads: retain_payloads,
            };
            client.stream_create(&stream, limits).await?;
            Ok(output.done("stream", &shown(&stream), "created")?)
        }
        StreamCommand::Append(args) => append(client, output, args).await,
        StreamCommand::Read(args) => read(client, output, args).await,
        StreamCommand::Tail(args) => tail(client, output, args).await,
        StreamCommand::Commit(CommitArgs { group: GroupArgs { stream, group }, offset }) => {
            client.stream_commit(&stream, &group, offset).await?;
            Ok(output.row(&Committed { stream: shown(&stream), group, offset, committed: true })?)
        }
        StreamCommand::Committed(GroupArgs { stream, group }) => {
            let committed = client.stream_committed(&stream, &group).await?;
            let (offset, stream) = (committed.unwrap_or_default(), shown(&stream));
            Ok(output.row(&Committed { stream, group, offset, committed: committed.is_some() })?)
        }
        StreamCommand::Range(RangeArgs { stream, first, last }) => {
            for entry in client.stream_range(&stream, first..=last).await? {
                output.row(&Entry::from(entry))?;
            }
            Ok(())
        }
        StreamCommand::Ls => list(client, output).await,
        StreamCommand::Group(GroupCommand::Ls(RmArgs { stream })) => groups(client, output, &stream).await,
        StreamCommand::Group(GroupCommand::Rm(GroupArgs { stream, group })) => {
            let retained_from_offset = client.stream_group_remove(&stream, &group).await?;
            let stream = shown(&stream);
            Ok(output.row(&RemovedGroup { stream, group, result: "deleted", retained_from_offset })?)
        }
        StreamCommand::Rm(RmArgs { stream }) => {
            client.stream_delete(&stream).await?;
            Ok(output.done("stream", &shown(&stream), "deleted")?)
        }
    }
}

async fn append(client: &Client, output: &mut Output, args: AppendArgs) -> anyhow::Result<()> {
    let ids = args.ids.iter().map(|text| parse_id(text)).collect::<Result<Vec<_>, _>>()?;
    let item = |payload: &_| StreamItem {
        payload: *payload,
        event_time: None,
        duration_ns: 0,
        tags: args.tags.clone(),
    };
    let offsets = client.stream_append(&args.stream, ids.iter().map(item).collect()).await?;
    for (offset, id) in offsets.zip(ids) {
        output.row(&Appended { offset, payload_id: id.to_string() })?;
    }
    Ok(())
}

async fn read(client: &Client, output: &mut Output, args: ReadArgs) -> anyhow::Result<()> {
    let (mut from, mut wanted) = (args.from, args.max.unwrap_or(u64::MAX));
    while wanted > 0 {
        let entries =
            client.stream_read(&args.stream, from, wanted.min(STREAM_READ_MAX as u64), None).await?;
        let Some(last) = entries.last() else { break };
        from = last.offset + 1;
        wanted -= entries.len() as u64;
        for entry in entries {
            output.row(&Entry::from(entry))?;
        }
        output.flush()?;
    }
    Ok(())
}

async fn tail(client: &Client, output: &mut Output, args: TailArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let start = args.from.map_or(Start::Latest, Start::Offset);
    let mut entries = client.stream_subscribe(&args.stream, start, 0).await?;
    loop {
        let entry = tokio::select! {
            entry = entries.next() => entry?,
            () = interrupt.wait() => return Ok(interrupt.check()?),
        };
        output.row(&Entry::from(entry))?;
        // Whoever follows a stream wants each entry now.
        output.flush()?;
    }
}

async fn list(client: &Client, output: &mut Output) -> anyhow::Result<()> {
    let mut token = None;
    loop {
        let page = client.streams(LIST_PAGE_MAX as u16, token).await?;
        for info in &page.streams {
            output.row(&Listed::from(info))?;
        }
        token = page.next_page_token;
        if token.is_none() {
            return Ok(());
        }
    }
}

async fn groups(client: &Client, output: &mut Output, stream: &StreamName) -> anyhow::Result<()> {
    let mut token = None;
    loop {
        let (groups, next) = client.stream_groups(stream, LIST_PAGE_MAX as u16, token).await?;
        for StreamGroup { name, next, at } in groups {
            let (stream, committed_at) = (shown(stream), time(at));
            output.row(&ListedGroup { stream, group: name, offset: next, committed_at })?;
        }
        token = next;
        if token.is_none() {
            return Ok(());
        }
    }
}

/// Reads `NAMESPACE/NAME`: the name is what stands behind the first slash.
fn parse_name(text: &str) -> Result<StreamName, ClientError> {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    if name.is_empty() {
        return Err(ClientError::Input(format!(
            "`{text}` names no stream; streams are written NAMESPACE/NAME"
        )));
    }
    Ok(StreamName { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// As [`parse_name`] reads it.
fn shown(stream: &StreamName) -> String {
    format!("{}/{}", stream.namespace, stream.name)
}

fn parse_tag(text: &str) -> Result<(String, String), ClientError> {
    let tag = text.split_once('=').filter(|(key, _)| !key.is_empty());
    tag.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| ClientError::Input(format!("`{text}` is not a tag; tags are written KEY=VALUE")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_names_of_streams_when_read_then_the_first_slash_parts_them() {
        let name =
            |namespace: &str, name: &str| StreamName { namespace: namespace.into(), name: name.into() };
        for (text, expected) in [
            ("cam/frames", name("cam", "frames")),
            ("frames", name("", "frames")),
            ("/frames", name("", "frames")),
            ("a/b/c", name("a", "b/c")),
        ] {
            assert_eq!(parse_name(text).expect("a name"), expected);
            assert_eq!(parse_name(&shown(&expected)).expect("a name"), expected);
        }
        for text in ["", "/", "cam/"] {
            assert!(parse_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn given_tags_when_read_then_the_first_equals_sign_parts_them() {
        assert_eq!(parse_tag("a=b=c").expect("a tag"), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(parse_tag("a=").expect("a tag"), ("a".to_owned(), String::new()));
        assert!(parse_tag("a").is_err() && parse_tag("=b").is_err());
    }
}
