//! The cache, with a PostHog that answers when it is told to.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Answer, ContextKey, Failure, FlagCache, FlagContext, Waiter};
use crate::flags::Evaluated;
use crate::sys::clock::{Clock, ManualClock};

const TTL: Duration = Duration::from_secs(60);

struct Scene {
    clock: Arc<ManualClock>,
    cache: Arc<FlagCache>,
    heard: Arc<Mutex<Vec<Answer>>>,
}

impl Scene {
    fn new(time_to_live: Duration) -> Self {
        let clock = ManualClock::at(0);
        let most = NonZeroUsize::new(3).unwrap();
        let cache = Arc::new(FlagCache::new(Clock::Manual(Arc::clone(&clock)), time_to_live, most));
        Self { clock, cache, heard: Arc::default() }
    }

    fn waiter(&self) -> Waiter {
        let heard = Arc::clone(&self.heard);
        Box::new(move |answer| heard.lock().unwrap().push(answer.clone()))
    }

    /// Asks, and has PostHog answer if it is asked; what was heard, and whether it was.
    fn ask(&self, context: &FlagContext, posthog: Result<Answer, Failure>) -> (Vec<Answer>, bool) {
        let flight = FlagCache::ask(&self.cache, context, self.waiter());
        let was_asked = flight.is_some();
        if let Some(flight) = flight {
            flight.land(posthog);
        }
        (std::mem::take(&mut *self.heard.lock().unwrap()), was_asked)
    }
}

fn answer(flags: &[(&str, &str)]) -> Answer {
    let evaluated = |variant: &str| Evaluated {
        value: variant.into(),
        payload: None,
        id: None,
        version: None,
        reason: None,
        has_experiment: None,
        is_local: false,
    };
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
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    assert!(scene.ask(&user, Ok(answer(&[("f", "a")]))).1);
    let (heard, was_asked) = scene.ask(&user, Ok(answer(&[("f", "b")])));
    assert_eq!((values(&heard), was_asked), (vec![vec![("f", "a")]], false));
    assert!(scene.ask(&FlagContext::new("v"), Ok(answer(&[]))).1);
    scene.clock.advance(TTL);
    let (heard, was_asked) = scene.ask(&user, Ok(answer(&[("f", "b")])));
    assert_eq!((values(&heard), was_asked), (vec![vec![("f", "b")]], true));
}

#[test]
fn an_answer_for_all_flags_serves_for_some_and_knows_what_is_missing() {
    let scene = Scene::new(TTL);
    assert!(scene.ask(&FlagContext::new("u"), Ok(answer(&[("f", "a")]))).1);
    assert!(!scene.ask(&FlagContext::new("u").only_keys(["f"]), Ok(answer(&[]))).1);
    assert!(!scene.ask(&FlagContext::new("u").only_keys(["none"]), Ok(answer(&[]))).1);
    assert!(scene.ask(&FlagContext::new("v").only_keys(["f"]), Ok(answer(&[]))).1);
    assert!(scene.ask(&FlagContext::new("v"), Ok(answer(&[]))).1, "one for some does not serve for all");
}

#[test]
fn of_those_who_ask_at_once_one_asks_posthog_and_all_hear_the_answer() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    let flight = FlagCache::ask(&scene.cache, &user, scene.waiter()).unwrap();
    assert!(FlagCache::ask(&scene.cache, &user, scene.waiter()).is_none());
    assert!(FlagCache::ask(&scene.cache, &FlagContext::new("v"), scene.waiter()).is_some(), "somebody else");
    scene.heard.lock().unwrap().clear();
    flight.land(Ok(answer(&[("f", "a")])));
    assert_eq!(values(&scene.heard.lock().unwrap()), [[("f", "a")], [("f", "a")]]);
}

#[test]
fn a_question_that_is_lost_is_answered_and_can_be_put_again() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    drop(FlagCache::ask(&scene.cache, &user, scene.waiter()));
    assert_eq!(scene.heard.lock().unwrap()[0].failure, Some(Failure::Closed));
    assert!(FlagCache::ask(&scene.cache, &user, scene.waiter()).is_some());
}

#[test]
fn in_an_outage_what_is_known_is_the_answer_however_old_and_serves_for_a_moment() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    scene.ask(&user, Ok(answer(&[("f", "a")])));
    scene.clock.advance(TTL * 100);
    for _ in 0..2 {
        let (heard, was_asked) = scene.ask(&user, Err(Failure::Timeout));
        assert_eq!((values(&heard), was_asked), (vec![vec![("f", "a")]], true));
        assert_eq!(heard[0].failure, Some(Failure::Timeout));
        assert!(!scene.ask(&user, Ok(answer(&[]))).1, "not each reader waits for a timeout");
        scene.clock.advance(Duration::from_secs(5));
    }
    let (heard, _) = scene.ask(&user, Ok(answer(&[("f", "b")])));
    assert_eq!((values(&heard), &heard[0].failure), (vec![vec![("f", "b")]], &None));
}

#[test]
fn for_one_flag_an_outage_falls_back_to_an_answer_for_all() {
    let scene = Scene::new(TTL);
    scene.ask(&FlagContext::new("u"), Ok(answer(&[("f", "a"), ("g", "b")])));
    scene.clock.advance(TTL);
    let (heard, was_asked) = scene.ask(&FlagContext::new("u").only_keys(["g"]), Err(Failure::Timeout));
    assert_eq!((values(&heard), was_asked), (vec![vec![("g", "b")]], true));
}

#[test]
fn a_failure_without_anything_known_is_not_kept() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    assert_eq!(scene.ask(&user, Err(Failure::Timeout)).0[0].failure, Some(Failure::Timeout));
    assert_eq!((scene.cache.len(), scene.ask(&user, Ok(answer(&[]))).1), (0, true));
}

#[test]
fn an_answer_with_errors_is_laid_over_what_is_known_and_does_not_tell_what_is_missing() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    scene.ask(&user, Ok(answer(&[("f", "a"), ("g", "a")])));
    scene.clock.advance(TTL);
    let (heard, _) = scene.ask(&user, Ok(Answer { has_errors: true, ..answer(&[("g", "b")]) }));
    assert_eq!((values(&heard), heard[0].has_errors), (vec![vec![("f", "a"), ("g", "b")]], true));
    assert!(!scene.ask(&user.clone().only_keys(["f"]), Ok(answer(&[]))).1);
    assert!(scene.ask(&user.only_keys(["new"]), Ok(answer(&[]))).1);
}

#[test]
fn want_of_quota_changes_nothing_of_what_is_known() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    let limited = || Ok(Answer { is_quota_limited: true, ..Answer::default() });
    assert!(scene.ask(&user, limited()).1 && scene.ask(&user, Ok(answer(&[("f", "a")]))).1);
    scene.clock.advance(TTL);
    let (heard, _) = scene.ask(&user, limited());
    assert_eq!((values(&heard), heard[0].is_quota_limited), (vec![vec![("f", "a")]], true));
}

#[test]
fn a_reset_forgets_everything_and_what_was_asked_before_it_is_not_kept() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    scene.ask(&user, Ok(answer(&[("f", "a")])));
    let flight = FlagCache::ask(&scene.cache, &FlagContext::new("v"), scene.waiter()).unwrap();
    scene.cache.reset();
    flight.land(Ok(answer(&[("f", "a")])));
    assert_eq!((values(&scene.heard.lock().unwrap()), scene.cache.len()), (vec![vec![("f", "a")]], 0));
    assert!(scene.cache.known(&user).is_none());
}

#[test]
fn who_asks_after_a_reset_is_not_answered_by_what_was_asked_before_it() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    let before = FlagCache::ask(&scene.cache, &user, scene.waiter()).unwrap();
    scene.cache.reset();
    let after = FlagCache::ask(&scene.cache, &user, scene.waiter()).expect("a question of its own");
    before.land(Ok(answer(&[("f", "old")])));
    assert_eq!(values(&scene.heard.lock().unwrap()), [[("f", "old")]]);
    after.land(Ok(answer(&[("f", "new")])));
    assert_eq!(values(&scene.heard.lock().unwrap()), [[("f", "old")], [("f", "new")]]);
    assert_eq!(values(&[Answer::clone(&scene.cache.known(&user).unwrap())]), [[("f", "new")]]);
}

#[test]
fn an_answer_that_was_asked_for_earlier_and_comes_later_replaces_nothing() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    for late in [Ok(answer(&[("f", "old")])), Err(Failure::Timeout)] {
        let slow = FlagCache::ask_anew(&scene.cache, &user, scene.waiter());
        FlagCache::ask_anew(&scene.cache, &user, scene.waiter()).land(Ok(answer(&[("f", "new")])));
        slow.land(late);
        let known = scene.cache.known(&user).unwrap();
        assert_eq!((values(&[Answer::clone(&known)]), &known.failure), (vec![vec![("f", "new")]], &None));
    }
}

#[test]
fn who_asks_anew_gets_an_answer_of_his_own_which_is_kept() {
    let scene = Scene::new(TTL);
    let user = FlagContext::new("u");
    scene.ask(&user, Ok(answer(&[("f", "a")])));
    FlagCache::ask_anew(&scene.cache, &user, scene.waiter()).land(Ok(answer(&[("f", "b")])));
    assert_eq!(values(&scene.heard.lock().unwrap()), [[("f", "b")]]);
    scene.heard.lock().unwrap().clear();
    assert_eq!(values(&scene.ask(&user, Ok(answer(&[]))).0), [[("f", "b")]]);
}

#[test]
fn contexts_are_bounded_and_without_time_to_live_nothing_is_kept() {
    let scene = Scene::new(TTL);
    for user in ["a", "b", "c", "a", "d"] {
        scene.ask(&FlagContext::new(user), Ok(answer(&[])));
    }
    assert_eq!(scene.cache.len(), 3);
    assert!(scene.cache.known(&FlagContext::new("a")).is_some() && scene.cache.known(&FlagContext::new("b")).is_none());
    let scene = Scene::new(Duration::ZERO);
    for _ in 0..2 {
        assert!(scene.ask(&FlagContext::new("u"), Ok(answer(&[("f", "a")]))).1);
    }
    assert_eq!(scene.cache.len(), 0);
}

#[test]
fn answers_of_megabytes_make_room_for_each_other_and_the_newest_serves() {
    let scene = Scene::new(TTL);
    let mut heavy = answer(&[("a", "b")]);
    heavy.flags.get_mut("a").unwrap().payload = Some("x".repeat(3 * 1024 * 1024).into());
    for user in ["1", "2", "3"] {
        assert!(scene.ask(&FlagContext::new(user), Ok(heavy.clone())).1);
    }
    assert_eq!(scene.cache.len(), 2, "each takes 12 of 32 MiB");
    assert!(!scene.ask(&FlagContext::new("3"), Ok(heavy.clone())).1);
    // Small ones have the room of a heavy one that was answered anew.
    assert!(scene.ask(&FlagContext::new("4"), Ok(answer(&[("a", "b")]))).1);
    assert_eq!(scene.cache.len(), 3);
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
