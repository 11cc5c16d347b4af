//! Prometheus' text format, version 0.0.4: a family has its HELP and TYPE lines once, then its samples.
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>)

use std::fmt::{Display, Write as _};

/// What a family's values mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Grows until the next start; its name ends in `_total`.
    Counter,
}

/// All metrics of one scrape.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// The text so far.
    pub fn into_string(self) -> String {
        self.0
    }

    /// Writes one family: `samples` are label pairs and values. Dots in `name` become underscores.
    pub fn family<'a, V: Display>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, String)>, V)>,
    ) {
        let name = name.replace('.', "_");
        debug_assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let mut put = |arguments: std::fmt::Arguments<'_>| {
            self.0.write_fmt(arguments).expect("a String takes all that is written");
        };
        put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.into_iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(&text))).collect();
            if labels.is_empty() {
                put(format_args!("{name} {value}\n"));
            } else {
                put(format_args!("{name}{{{}}} {value}\n", labels.join(",")));
            }
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_family_when_written_then_it_reads_as_prometheus_demands() {
        let mut text = Text::default();
        let labels = vec![("rpc", "Spill".to_owned()), ("code", "a\"b\\c\nd".to_owned())];
        text.family("pm.calls_total", Kind::Counter, "Calls.\nAll of them.", [(labels, 3u64)]);
        text.family("pm_up", Kind::Gauge, "Up.", [(Vec::new(), 1.5)]);
        let expected = r#"# HELP pm_calls_total Calls.\nAll of them.
# TYPE pm_calls_total counter
pm_calls_total{rpc="Spill",code="a\"b\\c\nd"} 3
# HELP pm_up Up.
# TYPE pm_up gauge
pm_up 1.5
"#;
        assert_eq!(text.into_string(), expected);
    }
}
