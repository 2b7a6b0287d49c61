//! Names and values of metrics, held against a golden text, a strict parser and the document.

use std::collections::HashSet;

use super::*;
use crate::report::stats::fixtures::{with_ai, working};

/// A sample as a strict parser reads it.
#[derive(Debug, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

/// Reads the text format by its grammar, and fails on anything else: `HELP` and `TYPE` before the samples of each
/// family, families in one piece, names of the allowed characters, labels in quotation marks with known escapes only.
pub(crate) fn parse(text: &str) -> Vec<(String, String, Vec<Parsed>)> {
    assert!(text.ends_with('\n'), "the last line ends");
    let is_name = |name: &str| {
        let mut chars = name.chars();
        chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && chars.all(|char| char.is_ascii_alphanumeric() || char == '_')
    };
    let mut families: Vec<(String, String, Vec<Parsed>)> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let (name, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        assert!(is_name(name) && !help.is_empty() && families.iter().all(|(known, ..)| known != name), "{name}");
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
        assert!(matches!(kind, "counter" | "gauge"), "{kind}");
        let mut samples = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (of, labels) = series.split_once('{').map_or((series, None), |(of, labels)| (of, Some(labels)));
            assert_eq!(of, name);
            let labels = labels.map(|labels| parse_labels(labels.strip_suffix('}').unwrap())).unwrap_or_default();
            assert!(labels.iter().all(|(name, _)| is_name(name) && !name.starts_with("__")), "{labels:?}");
            samples.push(Parsed { name: of.into(), labels, value: value.parse().unwrap() });
        }
        families.push((name.into(), kind.into(), samples));
    }
    families
}

fn parse_labels(mut text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").unwrap();
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().expect("a value ends") {
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    escaped @ ('\\' | '"') => value.push(escaped),
                    other => panic!("unknown escape {other}"),
                },
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.push((name.into(), value));
        text = &rest[end + 1..];
        if let Some(more) = text.strip_prefix(',') {
            text = more;
        } else {
            assert!(text.is_empty(), "{text}");
        }
    }
    labels
}

#[test]
fn the_text_is_what_a_strict_parser_reads_and_has_no_series_twice() {
    for stats in [working(), with_ai(), Stats::disabled(Vec::new())] {
        let families = parse(&stats.to_prometheus());
        assert_eq!(families.len(), FAMILIES.len());
        let samples: Vec<_> = families.iter().flat_map(|(_, _, samples)| samples).collect();
        let mut seen = HashSet::new();
        for sample in samples {
            let mut labels = sample.labels.clone();
            labels.sort();
            assert!(seen.insert(format!("{} {labels:?}", sample.name)), "twice: {sample:?}");
            assert!(sample.value.is_finite() && sample.value >= 0.0, "{sample:?}");
        }
    }
}

#[test]
fn counters_end_in_total_and_gauges_do_not() {
    for Family { name, kind, help, .. } in FAMILIES {
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(name.starts_with("posthog_") && help.ends_with('.') || *name == "posthog_build_info", "{name}: {help}");
        let unit = ["_seconds", "_bytes", "_ratio"].iter().find(|unit| name.contains(*unit));
        assert!(unit.is_none_or(|unit| name.ends_with(unit)), "{name}: the unit is at the end");
    }
}

#[test]
fn a_state_has_one_series_that_holds() {
    for (name, _, samples) in parse(&with_ai().to_prometheus()) {
        let is_state = ["posthog_queue_medium", "posthog_storage_mode", "posthog_delivery_phase"].contains(&&*name);
        for lane in ["analytics", "ai"] {
            let of_lane = |sample: &&Parsed| sample.labels.contains(&("lane".into(), lane.into()));
            let sum: f64 = samples.iter().filter(of_lane).map(|sample| sample.value).sum();
            assert!(!is_state || sum == 1.0, "{name} of {lane}: {sum}");
        }
        let sum: f64 = samples.iter().map(|sample| sample.value).sum();
        assert!(name != "posthog_health" || sum == 1.0, "{name}: {sum}");
    }
}

/// What dashboards and alerts depend on. A change of this text is a change of the public interface.
#[test]
fn names_labels_and_values_are_the_golden_ones() {
    let text = with_ai().to_prometheus().replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let golden = include_str!("golden_metrics.txt");
    let differs = text.lines().zip(golden.lines()).find(|(found, golden)| found != golden);
    assert!(text == golden, "first difference: {differs:?}; the whole text:\n{text}");
}

#[test]
fn labels_and_help_texts_are_escaped() {
    let labels = [("a", "one \"two\" \\three\nfour"), ("b", "")];
    let braced = braced(&labels);
    assert_eq!(braced, r#"{a="one \"two\" \\three\nfour",b=""}"#);
    let parsed = parse_labels(&braced[1..braced.len() - 1]);
    assert_eq!(parsed, labels.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(escaped("a \"b\"\n\\", false), r#"a "b"\n\\"#);
}

#[test]
fn the_document_names_each_metric_label_and_cause() {
    let document = include_str!("../../docs/monitoring.md");
    let quoted: HashSet<_> = document.split('`').skip(1).step_by(2).collect();
    let documented = |text: &str| quoted.iter().any(|quoted| *quoted == text);
    for family in FAMILIES {
        let labels: Vec<_> = family.series(&with_ai()).into_iter().next().map_or(Vec::new(), |(labels, _)| labels);
        assert!(documented(family.name), "docs/monitoring.md does not name {}", family.name);
        assert!(labels.iter().all(|(label, _)| documented(label)), "{labels:?} of {}", family.name);
    }
    for cause in HealthCause::ALL {
        assert!(documented(cause.name()), "docs/monitoring.md does not name the cause {cause}");
    }
    for name in
        QueueMedium::ALL.iter().map(|medium| medium.name()).chain(StorageMode::NAMES).chain(DeliveryPhase::NAMES)
    {
        assert!(documented(name), "docs/monitoring.md does not name the value {name}");
    }
    // The other way round, also in expressions.
    let is_of_name = |char: char| char.is_ascii_lowercase() || char == '_';
    for word in document.split(|char| !is_of_name(char)).filter(|word| word.starts_with("posthog_")) {
        assert!(FAMILIES.iter().any(|family| family.name == word), "{word} is no metric");
    }
}
