//! The cache, with scripted responses of PostHog.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Answer, ContextKey, Failure, FlagCache, FlagContext, Waiter};
use crate::flags::Evaluated;
use crate::sys::clock::{Clock, ManualClock};

const TTL: Duration = Duration::from_secs(60);

struct Fixture {
    clock: Arc<ManualClock>,
    cache: Arc<FlagCache>,
    received: Arc<Mutex<Vec<Answer>>>,
}

impl Fixture {
    fn new(time_to_live: Duration) -> Self {
        let clock = ManualClock::at(0);
        let most = NonZeroUsize::new(3).unwrap();
        let cache = Arc::new(FlagCache::new(Clock::Manual(Arc::clone(&clock)), time_to_live, most));
        Self { clock, cache, received: Arc::default() }
    }

    fn waiter(&self) -> Waiter {
        let received = Arc::clone(&self.received);
        Box::new(move |answer| received.lock().unwrap().push(answer.clone()))
    }

    /// Requests flags; PostHog responds if a request is made. Returns the answers, and whether a request was made.
    fn ask(&self, context: &FlagContext, posthog: Result<Answer, Failure>) -> (Vec<Answer>, bool) {
        let request = FlagCache::request(&self.cache, context, self.waiter());
        let was_asked = request.is_some();
        if let Some(request) = request {
            request.finish(posthog);
        }
        (std::mem::take(&mut *self.received.lock().unwrap()), was_asked)
    }
}

fn answer(flags: &[(&str, &str)]) -> Answer {
    let evaluated = |variant: &str| Evaluated::of(variant.into());
    Answer { flags: flags.iter().map(|(key, value)| ((*key).into(), evaluated(value))).collect(), ..Answer::default() }
}

fn values(answers: &[Answer]) -> Vec<Vec<(&str, &str)>> {
    answers
        .iter()
        .map(|answer| {
            answer.flags.iter().map(|(key, flag)| (key.as_str(), flag.value.variant().unwrap_or_default())).collect()
        })
        .collect()
}

#[test]
fn an_answer_serves_for_its_time_and_for_its_context_alone() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    assert!(fixture.ask(&user, Ok(answer(&[("f", "a")]))).1);
    let (received, was_asked) = fixture.ask(&user, Ok(answer(&[("f", "b")])));
    assert_eq!((values(&received), was_asked), (vec![vec![("f", "a")]], false));
    assert!(fixture.ask(&FlagContext::new("v"), Ok(answer(&[]))).1);
    fixture.clock.advance(TTL);
    let (received, was_asked) = fixture.ask(&user, Ok(answer(&[("f", "b")])));
    assert_eq!((values(&received), was_asked), (vec![vec![("f", "b")]], true));
}

#[test]
fn an_answer_for_all_flags_serves_requests_for_some() {
    let fixture = Fixture::new(TTL);
    assert!(fixture.ask(&FlagContext::new("u"), Ok(answer(&[("f", "a")]))).1);
    assert!(!fixture.ask(&FlagContext::new("u").only_keys(["f"]), Ok(answer(&[]))).1);
    assert!(!fixture.ask(&FlagContext::new("u").only_keys(["none"]), Ok(answer(&[]))).1);
    assert!(fixture.ask(&FlagContext::new("v").only_keys(["f"]), Ok(answer(&[]))).1);
    assert!(fixture.ask(&FlagContext::new("v"), Ok(answer(&[]))).1, "one for some does not serve for all");
}

#[test]
fn concurrent_callers_share_one_request() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    let request = FlagCache::request(&fixture.cache, &user, fixture.waiter()).unwrap();
    assert!(FlagCache::request(&fixture.cache, &user, fixture.waiter()).is_none());
    assert!(FlagCache::request(&fixture.cache, &FlagContext::new("v"), fixture.waiter()).is_some(), "another person");
    fixture.received.lock().unwrap().clear();
    request.finish(Ok(answer(&[("f", "a")])));
    assert_eq!(values(&fixture.received.lock().unwrap()), [[("f", "a")], [("f", "a")]]);
}

#[test]
fn a_question_that_is_lost_is_answered_and_can_be_put_again() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    drop(FlagCache::request(&fixture.cache, &user, fixture.waiter()));
    assert_eq!(fixture.received.lock().unwrap()[0].failure, Some(Failure::Closed));
    assert!(FlagCache::request(&fixture.cache, &user, fixture.waiter()).is_some());
}

#[test]
fn an_old_answer_serves_in_an_outage_with_its_failure() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    fixture.ask(&user, Ok(answer(&[("f", "a")])));
    fixture.clock.advance(TTL * 100);
    for _ in 0..2 {
        let (received, was_asked) = fixture.ask(&user, Err(Failure::Timeout));
        assert_eq!((values(&received), was_asked), (vec![vec![("f", "a")]], true));
        assert_eq!(received[0].failure, Some(Failure::Timeout));
        assert!(!fixture.ask(&user, Ok(answer(&[]))).1, "readers do not wait for a timeout each");
        fixture.clock.advance(Duration::from_secs(5));
    }
    let (received, _) = fixture.ask(&user, Ok(answer(&[("f", "b")])));
    assert_eq!((values(&received), &received[0].failure), (vec![vec![("f", "b")]], &None));
}

#[test]
fn for_one_flag_an_outage_falls_back_to_an_answer_for_all() {
    let fixture = Fixture::new(TTL);
    fixture.ask(&FlagContext::new("u"), Ok(answer(&[("f", "a"), ("g", "b")])));
    fixture.clock.advance(TTL);
    let (received, was_asked) = fixture.ask(&FlagContext::new("u").only_keys(["g"]), Err(Failure::Timeout));
    assert_eq!((values(&received), was_asked), (vec![vec![("g", "b")]], true));
}

#[test]
fn a_failure_without_anything_known_is_not_kept() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    assert_eq!(fixture.ask(&user, Err(Failure::Timeout)).0[0].failure, Some(Failure::Timeout));
    assert_eq!((fixture.cache.len(), fixture.ask(&user, Ok(answer(&[]))).1), (0, true));
}

#[test]
fn an_answer_with_errors_is_merged_over_the_previous_one() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    fixture.ask(&user, Ok(answer(&[("f", "a"), ("g", "a")])));
    fixture.clock.advance(TTL);
    let (received, _) = fixture.ask(&user, Ok(Answer { has_errors: true, ..answer(&[("g", "b")]) }));
    assert_eq!((values(&received), received[0].has_errors), (vec![vec![("f", "a"), ("g", "b")]], true));
    assert!(!fixture.ask(&user.clone().only_keys(["f"]), Ok(answer(&[]))).1);
    assert!(fixture.ask(&user.only_keys(["new"]), Ok(answer(&[]))).1);
}

#[test]
fn want_of_quota_changes_nothing_of_what_is_known() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    let limited = || Ok(Answer { is_quota_limited: true, ..Answer::default() });
    assert!(fixture.ask(&user, limited()).1 && fixture.ask(&user, Ok(answer(&[("f", "a")]))).1);
    fixture.clock.advance(TTL);
    let (received, _) = fixture.ask(&user, limited());
    assert_eq!((values(&received), received[0].is_quota_limited), (vec![vec![("f", "a")]], true));
}

#[test]
fn a_reset_drops_entries_and_responses_in_flight() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    fixture.ask(&user, Ok(answer(&[("f", "a")])));
    let request = FlagCache::request(&fixture.cache, &FlagContext::new("v"), fixture.waiter()).unwrap();
    fixture.cache.reset();
    request.finish(Ok(answer(&[("f", "a")])));
    assert_eq!((values(&fixture.received.lock().unwrap()), fixture.cache.len()), (vec![vec![("f", "a")]], 0));
    assert!(fixture.cache.known(&user).is_none());
}

#[test]
fn a_caller_after_a_reset_does_not_join_an_older_request() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    let before = FlagCache::request(&fixture.cache, &user, fixture.waiter()).unwrap();
    fixture.cache.reset();
    let after = FlagCache::request(&fixture.cache, &user, fixture.waiter()).expect("a question of its own");
    before.finish(Ok(answer(&[("f", "old")])));
    assert_eq!(values(&fixture.received.lock().unwrap()), [[("f", "old")]]);
    after.finish(Ok(answer(&[("f", "new")])));
    assert_eq!(values(&fixture.received.lock().unwrap()), [[("f", "old")], [("f", "new")]]);
    assert_eq!(values(&[Answer::clone(&fixture.cache.known(&user).unwrap())]), [[("f", "new")]]);
}

#[test]
fn a_late_response_to_an_earlier_request_replaces_nothing() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    for late in [Ok(answer(&[("f", "old")])), Err(Failure::Timeout)] {
        let slow = FlagCache::request_anew(&fixture.cache, &user, fixture.waiter());
        FlagCache::request_anew(&fixture.cache, &user, fixture.waiter()).finish(Ok(answer(&[("f", "new")])));
        slow.finish(late);
        let known = fixture.cache.known(&user).unwrap();
        assert_eq!((values(&[Answer::clone(&known)]), &known.failure), (vec![vec![("f", "new")]], &None));
    }
}

#[test]
fn a_caller_that_asks_again_gets_its_own_response_cached() {
    let fixture = Fixture::new(TTL);
    let user = FlagContext::new("u");
    fixture.ask(&user, Ok(answer(&[("f", "a")])));
    FlagCache::request_anew(&fixture.cache, &user, fixture.waiter()).finish(Ok(answer(&[("f", "b")])));
    assert_eq!(values(&fixture.received.lock().unwrap()), [[("f", "b")]]);
    fixture.received.lock().unwrap().clear();
    assert_eq!(values(&fixture.ask(&user, Ok(answer(&[]))).0), [[("f", "b")]]);
}

#[test]
fn entries_are_bounded_and_a_zero_ttl_keeps_nothing() {
    let fixture = Fixture::new(TTL);
    for user in ["a", "b", "c", "a", "d"] {
        fixture.ask(&FlagContext::new(user), Ok(answer(&[])));
    }
    assert_eq!(fixture.cache.len(), 3);
    assert!(
        fixture.cache.known(&FlagContext::new("a")).is_some() && fixture.cache.known(&FlagContext::new("b")).is_none()
    );
    let fixture = Fixture::new(Duration::ZERO);
    for _ in 0..2 {
        assert!(fixture.ask(&FlagContext::new("u"), Ok(answer(&[("f", "a")]))).1);
    }
    assert_eq!(fixture.cache.len(), 0);
}

#[test]
fn large_answers_evict_each_other_and_the_newest_stays() {
    let fixture = Fixture::new(TTL);
    let mut heavy = answer(&[("a", "b")]);
    heavy.flags.get_mut("a").unwrap().payload = Some("x".repeat(3 * 1024 * 1024).into());
    for user in ["1", "2", "3"] {
        assert!(fixture.ask(&FlagContext::new(user), Ok(heavy.clone())).1);
    }
    assert_eq!(fixture.cache.len(), 2, "each takes 12 of 32 MiB");
    assert!(!fixture.ask(&FlagContext::new("3"), Ok(heavy.clone())).1);
    // Small ones have the room of a heavy one that was answered anew.
    assert!(fixture.ask(&FlagContext::new("4"), Ok(answer(&[("a", "b")]))).1);
    assert_eq!(fixture.cache.len(), 3);
}

fn key(context: &FlagContext) -> ContextKey {
    ContextKey::of(context, context.flag_keys.as_deref())
}

#[test]
fn the_order_in_which_a_context_was_described_does_not_matter() {
    let one =
        FlagContext::new("u").group("company", "a").group("team", "b").person_property("x", 1).only_keys(["f", "g"]);
    let other = FlagContext::new("u")
        .only_keys(["g", "f", "g"])
        .person_property("x", 1)
        .group("team", "b")
        .group("company", "a");
    assert_eq!(key(&one), key(&other));
}

#[test]
fn whatever_changes_the_answer_changes_the_key() {
    let person = || FlagContext::new("u");
    let contexts = [
        person(),
        FlagContext::new("v"),
        person().device_id("d"),
        person().device_id(""),
        person().group("company", "a"),
        person().group("companya", ""),
        person().person_property("a", "1"),
        person().person_property("a", 1),
        person().person_property("a", serde_json::json!(["1"])),
        person().group_property("company", "a", 1),
        person().group_property("team", "a", 1),
        person().disable_geoip(true),
        person().only_keys([""; 0]),
        person().only_keys(["f"]),
        person().only_keys(["f", "g"]),
        person().only_keys(["fg"]),
    ];
    let mut keys: Vec<ContextKey> = Vec::new();
    for context in &contexts {
        let key = key(context);
        assert!(!keys.contains(&key), "{context:?}");
        keys.push(key);
    }
}
