//! Starts logging: one event a line on standard error, as text for people or JSON for programs.
//!
//! Called once by main. Standard output is left to what commands print. What repeats is left out (`limit`). A line that
//! is written while a call is served which is traced ends with the call's ids, `trace_id` and `span_id` (`traced`).

mod limit;
mod traced;

use std::io::{self, IsTerminal};

use traced::Traced;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogLevel, LoggingConfig};
use crate::telemetry::context;

/// Variables that replace `logging.level`, the first that is set; the syntax is tracing-subscriber's.
const FILTER_VARIABLES: [&str; 2] = ["PAYLOAD_MANAGER_LOG", "RUST_LOG"];

/// Dependencies that tell every frame and wake at debug and trace.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,tower=warn,tonic=warn,glommio=warn";

/// Lines that were left out because they repeated others, since the start.
pub fn lines_suppressed() -> u64 {
    limit::suppressed()
}

/// Starts logging for this process.
///
/// # Errors
/// A sentence, when the filter in the environment cannot be read, or logging was started before.
pub fn start(config: &LoggingConfig) -> Result<(), String> {
    let filter = filter(config, |name| std::env::var(name).ok())?;
    context::show_in_lines(config.include_trace_context);
    let is_terminal = io::stderr().is_terminal();
    subscriber(config.format, filter, is_terminal, io::stderr)
        .try_init()
        .map_err(|error| format!("logging cannot be started: {error}"))
}

/// The filter from the environment, or the configured level with chatty dependencies kept quiet.
fn filter(config: &LoggingConfig, variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter, String> {
    let mut given = FILTER_VARIABLES.into_iter().filter_map(|name| Some((name, variable(name)?)));
    if let Some((name, text)) = given.find(|(_, text)| !text.is_empty()) {
        return EnvFilter::try_new(&text).map_err(|error| {
            format!("{name} is `{text}`, which is no filter ({error}); write it like `info`")
        });
    }
    let level = match config.level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
        LogLevel::Off => "off",
    };
    let quiet = matches!(config.level, LogLevel::Trace | LogLevel::Debug | LogLevel::Info);
    let directives = if quiet { format!("{level},{QUIET}") } else { level.to_owned() };
    Ok(EnvFilter::new(directives))
}

/// What writes events of this format to `writer`.
fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    is_terminal: bool,
    writer: W,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(is_terminal).with_writer(writer);
    let limited = tracing_subscriber::registry().with(filter).with(limit::Limit::default());
    match format {
        LogFormat::Text => {
            let format = Traced::text(tracing_subscriber::fmt::format());
            Box::new(limited.with(lines.event_format(format)))
        }
        LogFormat::Json => {
            let format = Traced::json(tracing_subscriber::fmt::format().json().flatten_event(true));
            Box::new(limited.with(lines.json().event_format(format)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects what is written.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(level: LogLevel, format: LogFormat, variables: &[(&str, &str)]) -> Vec<String> {
        let config = LoggingConfig { level, format, include_trace_context: false };
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        };
        let filter = filter(&config, variable).expect("a filter");
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(subscriber(format, filter, false, move || writer.clone()), || {
            tracing::error!(shard = 3, "went wrong");
            tracing::info!("as it should be");
            tracing::debug!("in detail");
            tracing::info!(target: "h2", "a frame");
        });
        let bytes = sink.0.lock().expect("no panic while writing").clone();
        String::from_utf8(bytes).expect("UTF-8").lines().map(str::to_owned).collect()
    }

    #[test]
    fn given_levels_when_logging_then_what_is_below_is_silent_and_dependencies_are_quiet() {
        assert_eq!(lines(LogLevel::Debug, LogFormat::Text, &[]).len(), 3);
        assert_eq!(lines(LogLevel::Info, LogFormat::Text, &[]).len(), 2);
        assert_eq!(lines(LogLevel::Warn, LogFormat::Text, &[]).len(), 1);
        assert_eq!(lines(LogLevel::Off, LogFormat::Text, &[]).len(), 0);
    }

    #[test]
    fn given_json_when_logging_then_each_line_is_an_object_with_its_fields() {
        let lines = lines(LogLevel::Error, LogFormat::Json, &[]);
        let object: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!((object["level"].as_str(), object["shard"].as_u64()), (Some("ERROR"), Some(3)));
        assert_eq!(object["message"].as_str(), Some("went wrong"));
    }

    #[test]
    fn given_a_filter_in_the_environment_when_logging_then_it_takes_precedence() {
        let both = [("RUST_LOG", "off"), ("PAYLOAD_MANAGER_LOG", "debug")];
        assert_eq!(lines(LogLevel::Off, LogFormat::Text, &both).len(), 4);
        assert_eq!(lines(LogLevel::Info, LogFormat::Text, &[("RUST_LOG", "error")]).len(), 1);
        let config =
            LoggingConfig { level: LogLevel::Info, format: LogFormat::Text, include_trace_context: false };
        let broken = filter(&config, |name| (name == "RUST_LOG").then(|| "a=b=c".to_owned()));
        assert!(broken.is_err_and(|sentence| sentence.contains("RUST_LOG")));
    }
}
