//! `$feature_flag_called`, the event that tells PostHog that a person was exposed to a flag's value.

use super::super::{Client, Shared};
use super::snapshot::Origin;
use crate::event::Event;
use crate::flags::Evaluated;

const NAME: &str = "$feature_flag_called";

/// The properties of the minimal form, which PostHog asks for if the flag has no experiment: the flag and its
/// evaluation, the library, and the campaign. All others are removed (super properties, properties of contexts, those
/// added by hooks).
const MINIMAL: &[&str] = &[
    "$feature_flag",
    "$feature_flag_response",
    "$feature_flag_has_experiment",
    "$feature_flag_id",
    "$feature_flag_version",
    "$feature_flag_reason",
    "$feature_flag_request_id",
    "$feature_flag_evaluated_at",
    "$feature_flag_error",
    "locally_evaluated",
    "$groups",
    "$process_person_profile",
    "$session_id",
    "$lib",
    "$lib_version",
    "$is_server",
    "$geoip_disable",
    // Tells PostHog how to interpret the event's timestamp.
    "$ignore_sent_at",
    "$release_id",
    "$os",
    "$os_version",
    "$os_distro",
    "$referring_domain",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_content",
    "utm_term",
    "gad_source",
    "mc_cid",
    "gclid",
    "fbclid",
];

/// A read of a flag's value.
pub(super) struct Reading<'a> {
    pub(super) key: &'a str,
    /// `None`: the flag has no value.
    pub(super) evaluated: Option<&'a Evaluated>,
    pub(super) origin: &'a Origin,
}

impl Reading<'_> {
    /// Captures the event, unless it was captured for this value before.
    pub(super) fn capture(&self) {
        if self.origin.context.is_silent {
            return;
        }
        let Some(shared) = self.origin.client.upgrade() else { return };
        let Ok(client) = (Client { shared }).for_flags() else { return };
        let flags = &client.shared.flags;
        // Checked before the read is remembered as captured: after opting in again, the next read is captured.
        if !flags.settings.send_events || client.shared.rules.is_opted_out() {
            return;
        }
        let value = self.evaluated.map(|evaluated| &evaluated.value);
        if flags.called.is_new(self.distinct_id(), &self.origin.context.groups, self.key, value) {
            client.shared.capture_called(self.event(), self.is_minimal());
        }
    }

    fn distinct_id(&self) -> &str {
        self.origin.context.distinct_id.as_deref().unwrap_or_default()
    }

    fn is_minimal(&self) -> bool {
        let Some(evaluated) = self.evaluated else { return false };
        let is_wanted = match evaluated.is_local {
            true => self.origin.local_wants_minimal_events,
            false => self.origin.answer.wants_minimal_events,
        };
        is_wanted && evaluated.has_experiment == Some(false)
    }

    fn event(&self) -> Event {
        let is_local = self.evaluated.is_some_and(|evaluated| evaluated.is_local);
        let mut event = Event::new(NAME, self.distinct_id())
            .prop("$feature_flag", self.key)
            .prop("$feature_flag_response", self.evaluated.map(|evaluated| &evaluated.value))
            .prop("locally_evaluated", is_local);
        if let Some(evaluated) = self.evaluated {
            event.set_prop(format!("$feature/{}", self.key), &evaluated.value);
            set_known(&mut event, "$feature_flag_has_experiment", evaluated.has_experiment);
            set_known(&mut event, "$feature_flag_payload", evaluated.payload.as_ref());
            set_known(&mut event, "$feature_flag_id", evaluated.id.filter(|id| *id != 0));
            set_known(&mut event, "$feature_flag_version", evaluated.version.filter(|version| *version != 0));
            set_known(&mut event, "$feature_flag_reason", evaluated.reason.as_ref());
        }
        if !is_local {
            let answer = &self.origin.answer;
            set_known(&mut event, "$feature_flag_request_id", answer.request_id.as_ref());
            set_known(&mut event, "$feature_flag_evaluated_at", answer.evaluated_at);
            set_known(&mut event, "$feature_flag_error", self.error());
        }
        for (group_type, key) in &self.origin.context.groups {
            event = event.group(group_type, key);
        }
        if self.origin.context.disable_geoip == Some(true) { event.disable_geoip() } else { event }
    }

    /// The value of `$feature_flag_error`, named as in PostHog's SDKs.
    fn error(&self) -> Option<String> {
        let answer = &self.origin.answer;
        let failure = answer.failure.as_ref().map(|failure| failure.name());
        let errors: Vec<&str> = [
            answer.has_errors.then_some("errors_while_computing_flags"),
            answer.is_quota_limited.then_some("quota_limited"),
            failure.as_deref(),
            self.evaluated.is_none().then_some("flag_missing"),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!errors.is_empty()).then(|| errors.join(","))
    }
}

impl Shared {
    /// Captures the event like any other. The minimal form is made after the program's hooks.
    fn capture_called(&self, event: Event, is_minimal: bool) {
        let Some(pipeline) = &self.pipeline else { return };
        let prepared = self.prepare_and(pipeline, event, |event| {
            // An event that a hook has renamed is not reduced.
            if is_minimal && event.name() == NAME {
                event.keep_only(|name| MINIMAL.iter().any(|kept| kept.as_bytes() == name));
            }
        });
        if let Ok(prepared) = prepared {
            let _ = self.append(pipeline, prepared);
        }
    }
}

fn set_known(event: &mut Event, key: &str, value: Option<impl serde::Serialize>) {
    if let Some(value) = value {
        event.set_prop(key, value);
    }
}
