//! Prometheus' text format, version 0.0.4: a family has its HELP and TYPE lines once, then its samples.
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>)

use std::fmt::Write as _;

use super::histogram::Distribution;
use super::table::{Family, Kind, Sample, Value};

/// What `families` are at this moment, as text. Dots in names become underscores.
pub fn render<'a>(families: impl IntoIterator<Item = (&'a Family, Vec<Sample>)>) -> String {
    let mut text = String::new();
    for (family, samples) in families {
        write_family(&mut text, family, &samples).expect("a String takes all that is written");
    }
    text
}

fn write_family(text: &mut String, family: &Family, samples: &[Sample]) -> std::fmt::Result {
    let name = family.prometheus_name();
    let kind = match family.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::Histogram => "histogram",
    };
    let help = family.help.replace('\\', r"\\").replace('\n', r"\n");
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for Sample { labels, value } in samples {
        let labels: Vec<String> = family
            .labels
            .iter()
            .zip(labels)
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        match value {
            Value::Whole(value) => writeln!(text, "{name}{} {value}", braced(&labels))?,
            Value::Real(value) => writeln!(text, "{name}{} {value}", braced(&labels))?,
            Value::Spread(spread) => write_histogram(text, &name, &labels, spread)?,
        }
    }
    Ok(())
}

/// Prometheus' buckets count all that is at most as long as their end.
fn write_histogram(
    text: &mut String,
    name: &str,
    labels: &[String],
    spread: &Distribution,
) -> std::fmt::Result {
    let ends = spread.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    let mut below = 0;
    for (end, count) in ends.zip(&spread.counts) {
        below += count;
        let mut labels = labels.to_vec();
        labels.push(format!("le=\"{end}\""));
        writeln!(text, "{name}_bucket{} {below}", braced(&labels))?;
    }
    writeln!(text, "{name}_sum{0} {1}\n{name}_count{0} {2}", braced(labels), spread.sum, spread.count())
}

fn braced(labels: &[String]) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::super::table::Source;
    use super::*;

    const fn family(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Family {
        Family { name, kind, unit: "1", labels, help, source: Source::Many(|_, _| {}) }
    }

    #[test]
    fn given_families_when_written_then_they_read_as_prometheus_demands() {
        let calls = family("pm.calls_total", Kind::Counter, &["rpc", "code"], "Calls.\nAll of them.");
        let up = family("pm_up", Kind::Gauge, &[], "Up.");
        let took = family("pm.took_ms", Kind::Histogram, &["rpc"], "Took.");
        let labels = vec!["Spill".to_owned(), "a\"b\\c\nd".to_owned()];
        let spread = Distribution { bounds: vec![0.5, 1.0], counts: vec![1, 2, 3], sum: 7.5 };
        let text = render([
            (&calls, vec![Sample { labels, value: Value::Whole(3) }]),
            (&up, vec![Sample { labels: Vec::new(), value: Value::Real(1.5) }]),
            (&took, vec![Sample { labels: vec!["Spill".to_owned()], value: Value::Spread(spread) }]),
        ]);
        let expected = r#"# HELP pm_calls_total Calls.\nAll of them.
# TYPE pm_calls_total counter
pm_calls_total{rpc="Spill",code="a\"b\\c\nd"} 3
# HELP pm_up Up.
# TYPE pm_up gauge
pm_up 1.5
# HELP pm_took_ms Took.
# TYPE pm_took_ms histogram
pm_took_ms_bucket{rpc="Spill",le="0.5"} 1
pm_took_ms_bucket{rpc="Spill",le="1"} 3
pm_took_ms_bucket{rpc="Spill",le="+Inf"} 6
pm_took_ms_sum{rpc="Spill"} 7.5
pm_took_ms_count{rpc="Spill"} 6
"#;
        assert_eq!(text, expected);
    }
}
