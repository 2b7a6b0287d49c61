//! What was evaluated here and what PostHog answered, as one.

use std::collections::BTreeMap;

use super::{Answer, Evaluated};

/// What was evaluated here with what PostHog answered for the rest. A value of our own is never overwritten, and nothing is in it that
/// was not asked for: an answer may be one for more keys, or of a server that does not know how to answer for some alone.
pub(crate) fn merge(local: BTreeMap<String, Evaluated>, remote: &Answer, keys: Option<&[String]>) -> Answer {
    let mut flags = local;
    for (key, evaluated) in &remote.flags {
        if is_wanted(keys, key) && !flags.contains_key(key) {
            flags.insert(key.clone(), evaluated.clone());
        }
    }
    flags.retain(|key, _| is_wanted(keys, key));
    Answer {
        flags,
        request_id: remote.request_id.clone(),
        evaluated_at: remote.evaluated_at,
        has_errors: remote.has_errors,
        is_quota_limited: remote.is_quota_limited,
        failure: remote.failure.clone(),
        wants_minimal_events: remote.wants_minimal_events,
    }
}

/// Whether a flag is among those that were asked for.
pub(crate) fn is_wanted(keys: Option<&[String]>, key: &str) -> bool {
    keys.is_none_or(|keys| keys.iter().any(|wanted| wanted == key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Failure;

    fn flags(pairs: &[(&str, &str)], is_local: bool) -> BTreeMap<String, Evaluated> {
        let evaluated = |variant: &str| Evaluated {
            value: variant.into(),
            payload: None,
            id: None,
            version: None,
            reason: None,
            has_experiment: None,
            is_local,
        };
        pairs.iter().map(|(key, variant)| ((*key).to_owned(), evaluated(variant))).collect()
    }

    fn shown(answer: &Answer) -> Vec<(&str, &str, bool)> {
        answer
            .flags
            .iter()
            .map(|(key, flag)| (key.as_str(), flag.value.variant().unwrap_or_default(), flag.is_local))
            .collect()
    }

    #[test]
    fn what_was_evaluated_here_is_never_overwritten_and_the_rest_is_posthogs() {
        let remote = Answer { flags: flags(&[("a", "theirs"), ("b", "theirs")], false), ..Answer::default() };
        let merged = merge(flags(&[("a", "ours")], true), &remote, None);
        assert_eq!(shown(&merged), [("a", "ours", true), ("b", "theirs", false)]);
    }

    #[test]
    fn nothing_is_there_that_was_not_asked_for() {
        let remote = Answer { flags: flags(&[("a", "theirs"), ("b", "theirs")], false), ..Answer::default() };
        let keys = ["b".to_owned(), "d".to_owned()];
        let merged = merge(flags(&[("c", "ours"), ("d", "ours")], true), &remote, Some(&keys));
        assert_eq!(shown(&merged), [("b", "theirs", false), ("d", "ours", true)]);
    }

    #[test]
    fn a_failure_keeps_what_was_evaluated_here_and_says_that_it_was_one() {
        let remote = Answer { failure: Some(Failure::Timeout), ..Answer::default() };
        let merged = merge(flags(&[("a", "ours")], true), &remote, None);
        assert_eq!((shown(&merged), &merged.failure), (vec![("a", "ours", true)], &Some(Failure::Timeout)));
    }
}
