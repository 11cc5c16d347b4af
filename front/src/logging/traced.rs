//! Ends each line that is written while a traced call is served with the call's ids, so that a line leads to its trace.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::context::{self, Ids};

/// A format, and where in its lines the ids go.
pub(super) struct Traced<F> {
    lines: F,
    is_json: bool,
}

impl<F> Traced<F> {
    /// Ids as `key=value` at the end.
    pub fn text(lines: F) -> Self {
        Self { lines, is_json: false }
    }

    /// Ids as the last keys of the object.
    pub fn json(lines: F) -> Self {
        Self { lines, is_json: true }
    }
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(ids) = context::current_ids_for_lines() else {
            return self.lines.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with_ids(line.trim_end(), ids, self.is_json))?;
        writer.write_char('\n')
    }
}

fn with_ids(line: &str, Ids { trace, span }: Ids, is_json: bool) -> String {
    match line.strip_suffix('}') {
        Some(open) if is_json => format!("{open},\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"}}"),
        _ => format!("{line} trace_id={trace} span_id={span}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::context::{SpanId, TraceId};

    #[test]
    fn given_lines_when_ids_are_added_then_text_and_json_stay_what_they_are() {
        let ids = || Ids { trace: TraceId([0xAB; 16]), span: SpanId([1; 8]) };
        let text = with_ids("it happened", ids(), false);
        assert_eq!(text, format!("it happened trace_id={} span_id={}", "ab".repeat(16), "01".repeat(8)));
        let json = with_ids(r#"{"message":"it happened"}"#, ids(), true);
        let object: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(object["trace_id"].as_str(), Some("ab".repeat(16).as_str()));
        assert_eq!(object["message"].as_str(), Some("it happened"));
    }
}
