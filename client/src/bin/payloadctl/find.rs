//! `find`: payloads by what they are and by their metadata.

use payload_client::{Client, FindOptions};
use payload_types::{ByteCount, PayloadError, PayloadState, WallMs, limits, time};

use crate::common::TierWord;
use crate::output::Output;
use crate::view::Listed;

/// Arguments of `find`.
#[derive(clap::Args)]
pub struct FindArgs {
    /// Only payloads on this tier.
    #[arg(long, value_enum, ignore_case = true)]
    tier: Option<TierWord>,
    /// Only payloads in this state.
    #[arg(long, value_enum, ignore_case = true)]
    state: Option<StateWord>,
    /// Created then or later: a time like 2026-11-22T10:30:00Z, a date, milliseconds since 1970, or an age like 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    created_after: Option<WallMs>,
    /// Created earlier than then.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    created_before: Option<WallMs>,
    /// At least so large.
    #[arg(long, value_name = "SIZE")]
    size_min: Option<ByteCount>,
    /// At most so large.
    #[arg(long, value_name = "SIZE")]
    size_max: Option<ByteCount>,
    /// Only payloads with metadata of this schema.
    #[arg(long)]
    schema: Option<String>,
    /// Only payloads whose metadata are a JSON object with this member. PATH: names with dots between them, or a JSON pointer.
    /// VALUE: a JSON string, number, true, false or null; what is no JSON is a string.
    #[arg(long, value_name = "PATH=VALUE", value_parser = field)]
    field: Vec<(String, String)>,
    /// Only payloads whose metadata have this tag, in the member `tags` of the JSON object.
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// The oldest first, instead of the newest.
    #[arg(long)]
    oldest_first: bool,
    /// At most so many.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// A state, as it is written on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum StateWord {
    /// Space is reserved; the producer writes.
    Allocated,
    /// Committed, in memory.
    Active,
    /// A slower copy is being written.
    Spilling,
    /// Committed, on disk or in an object store.
    Durable,
    /// Being moved under memory pressure.
    Evicting,
    /// Being deleted.
    Deleting,
    /// Its time has passed.
    Expired,
    /// Gone.
    Deleted,
}

impl From<StateWord> for PayloadState {
    fn from(word: StateWord) -> Self {
        match word {
            StateWord::Allocated => Self::Allocated,
            StateWord::Active => Self::Active,
            StateWord::Spilling => Self::Spilling,
            StateWord::Durable => Self::Durable,
            StateWord::Evicting => Self::Evicting,
            StateWord::Deleting => Self::Deleting,
            StateWord::Expired => Self::Expired,
            StateWord::Deleted => Self::Deleted,
        }
    }
}

/// Finds page after page, printing each as it comes.
pub async fn run(client: &Client, output: &mut Output, args: FindArgs) -> anyhow::Result<()> {
    const PAGE_SIZE: u64 = limits::LIST_PAGE_MAX as u64;
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut options = FindOptions {
        tier: args.tier.map(Into::into),
        state: args.state.map(Into::into),
        created_from: args.created_after,
        created_before: args.created_before,
        size_min: args.size_min.map(|size| size.0),
        size_max: args.size_max.map(|size| size.0),
        schema: args.schema,
        fields: args.field,
        tags: args.tag,
        oldest_first: args.oldest_first,
        page_size: 0,
    };
    let mut token = None;
    loop {
        options.page_size = left.min(PAGE_SIZE) as u16;
        let page = client.find(&options, token).await?;
        for summary in &page.rows {
            output.row(&Listed::from(summary))?;
        }
        output.flush()?;
        left = left.saturating_sub(page.rows.len() as u64);
        token = page.next_page_token;
        if token.is_none() || left == 0 {
            return Ok(());
        }
    }
}

/// Reads a moment.
fn moment(text: &str) -> Result<WallMs, PayloadError> {
    let wrong = || {
        PayloadError::invalid(format!(
            "`{text}` is no time; write one like 2026-11-22T10:30:00Z, a date, milliseconds since 1970, or an age like 2h"
        ))
    };
    if let Ok(millis) = text.parse::<u64>() {
        return Some(millis)
            .filter(|millis| *millis <= limits::STORED_INTEGER_MAX)
            .map(WallMs::from_millis)
            .ok_or_else(wrong);
    }
    if let Ok(age) = time::parse_millis(text) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|_| wrong())?;
        return Ok(WallMs::from_millis((now.as_millis() as u64).saturating_sub(age)));
    }
    let time: prost_types::Timestamp = text.parse().map_err(|_| wrong())?;
    let seconds = u64::try_from(time.seconds).map_err(|_| wrong())?;
    Ok(WallMs::from_millis(seconds * 1000 + time.nanos as u64 / 1_000_000))
}

/// Reads `PATH=VALUE`; the value becomes JSON.
fn field(text: &str) -> Result<(String, String), PayloadError> {
    let (path, value) = text.split_once('=').ok_or_else(|| {
        PayloadError::invalid(format!("`{text}` has no `=`; write PATH=VALUE, like model.depth=18"))
    })?;
    // What was meant to be JSON is left to the server, which says what is wrong with it.
    let is_json =
        value.starts_with(['{', '[', '"']) || serde_json::from_str::<serde_json::Value>(value).is_ok();
    let value = if is_json { value.to_owned() } else { serde_json::Value::from(value).to_string() };
    Ok((path.to_owned(), value))
}

/// Reads `KEY=VALUE`, or `KEY` for a tag without a value.
fn tag(text: &str) -> Result<(String, String), PayloadError> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(PayloadError::invalid(format!("`{text}` names no tag; write KEY=VALUE, or KEY alone")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_moments_in_every_spelling_when_read_then_the_same_millisecond() {
        let at = WallMs::from_millis(1_795_343_400_250);
        for text in ["1795343400250", "2026-11-22T10:30:00.250Z", "2026-11-22T11:30:00.25+01:00"] {
            assert_eq!(moment(text), Ok(at), "{text}");
        }
        assert_eq!(moment("2026-11-22").map(WallMs::as_millis), Ok(1_795_305_600_000));
        let ages = [moment("2h").expect("an age"), moment("1h").expect("an age")];
        assert!(ages[0] < ages[1] && ages[1].as_millis() - ages[0].as_millis() >= 3_590_000);
        for text in ["", "soon", "-5", "2026-13-01", "1900-01-01", "99999999999999999999"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn given_fields_and_tags_when_read_then_json_is_json_and_words_are_strings() {
        for (text, path, value) in [
            ("a.b=1.50", "a.b", "1.50"),
            ("a=true", "a", "true"),
            ("a=\"1\"", "a", "\"1\""),
            ("a=resnet", "a", "\"resnet\""),
            ("a=x=y", "a", "\"x=y\""),
            ("a=", "a", "\"\""),
            ("a=[1", "a", "[1"),
            ("/a~1b=null", "/a~1b", "null"),
        ] {
            assert_eq!(field(text), Ok((path.to_owned(), value.to_owned())), "{text}");
        }
        assert!(field("a").expect_err("no value").message.contains("PATH=VALUE"));
        assert_eq!(tag("k=v=w"), Ok(("k".to_owned(), "v=w".to_owned())));
        assert_eq!(tag("k"), Ok(("k".to_owned(), String::new())));
        assert!(tag("=v").is_err());
    }
}
