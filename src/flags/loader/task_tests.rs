//! The loader with a scripted transport.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::fake::{DENIED, ONE, Rig, SECRET, TWO, reply, tagged};
use super::*;
use crate::report::Diagnostic;
use crate::transport::{Response, RetryAfter};

use FlagDefinitionsState::{Fresh, Missing, Restored as FromBefore, Stale};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn fdl_01_a_refresh_loads_definitions_and_reports_them_fresh() {
    let rig = Rig::new([reply(200, ONE), reply(200, TWO)]);
    assert_eq!((rig.keys(), rig.loader.state(), rig.loader.generation()), (None, Missing, 0));
    // The first load begins at once, and callers join it.
    assert_eq!(rig.load().await, Ok(()));
    assert_eq!((rig.requests(), rig.keys(), rig.loader.state(), rig.loader.generation()), (1, Some(1), Fresh, 1));
    assert_eq!(rig.load().await, Ok(()));
    assert_eq!((rig.requests(), rig.keys(), rig.loader.generation()), (2, Some(2), 2));
    assert_eq!(rig.reported(), []);
}

#[tokio::test(start_paused = true)]
async fn fdl_02_a_failed_refresh_keeps_definitions_and_reports_once() {
    let rig = Rig::new([reply(200, ONE), reply(503, "busy"), reply(503, "busy"), reply(200, ONE)]);
    rig.load().await.unwrap();
    for _ in 0..2 {
        assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Unavailable(why)) if why.contains("503: busy")));
        assert_eq!((rig.keys(), rig.loader.state()), (Some(1), Stale));
    }
    assert!(matches!(&rig.reported()[..], [Diagnostic::FlagDefinitionsUnavailable { why }] if why.contains("503")));
    rig.load().await.unwrap();
    assert_eq!((rig.reported(), rig.loader.state()), (vec![Diagnostic::FlagDefinitionsRecovered], Fresh));
}

#[tokio::test(start_paused = true)]
async fn fdl_03_definitions_are_polled_at_the_interval() {
    let rig = Rig::new((0..4).map(|_| reply(200, ONE)));
    rig.load().await.unwrap();
    for polls in 1..4 {
        assert_eq!(rig.requests(), polls);
        sleep(secs(34)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_04_a_reset_drops_loaded_and_kept_definitions() {
    let rig = Rig::new([tagged(200, ONE, "W/\"1\""), tagged(200, TWO, "W/\"2\"")]);
    rig.load().await.unwrap();
    rig.loader.reset();
    assert_eq!((rig.keys(), rig.loader.state()), (None, Missing));
    assert_eq!(rig.load().await, Ok(()));
    assert_eq!((rig.keys(), rig.requests(), rig.loader.state()), (Some(2), 2, Fresh));
    assert_eq!(rig.network.asked.lock().unwrap()[1], None, "no ETag is sent after a reset");
    assert!(matches!(&rig.kept.lock().unwrap()[..], [Some(_), None, Some(_)]));
}

#[tokio::test(start_paused = true)]
async fn fdl_04_a_load_from_before_a_reset_is_discarded() {
    let rig = Rig::new([tagged(200, ONE, "W/\"1\"")]);
    rig.load().await.unwrap();
    let (answer, asked) = oneshot::channel();
    rig.network.hold(asked);
    rig.then([tagged(304, "", "W/\"1\""), tagged(200, TWO, "W/\"2\"")]);
    let mut loading = rig.ask();
    sleep(secs(1)).await;
    rig.loader.reset();
    let (answer_next, asked) = oneshot::channel();
    rig.network.hold(asked);
    answer.send(()).unwrap();
    sleep(secs(1)).await;
    assert!(loading.try_recv().is_err() && rig.keys().is_none(), "a 304 from before the reset is no result");
    answer_next.send(()).unwrap();
    assert_eq!(loading.await.unwrap(), Ok(()));
    assert_eq!((rig.keys(), rig.requests(), rig.loader.state()), (Some(2), 3, Fresh));
}

#[tokio::test(start_paused = true)]
async fn fdl_04_an_unchanged_version_is_confirmed_with_a_new_etag() {
    let rig = Rig::new([tagged(200, ONE, "W/\"1\""), tagged(304, "", "W/\"2\""), reply(304, ""), reply(200, TWO)]);
    for generation in 1..4 {
        rig.load().await.unwrap();
        assert_eq!((rig.keys(), rig.loader.state(), rig.loader.generation()), (Some(1), Fresh, generation));
    }
    rig.load().await.unwrap();
    let tag = |tag: &str| Some(tag.to_owned());
    assert_eq!(*rig.network.asked.lock().unwrap(), [None, tag("W/\"1\""), tag("W/\"2\""), tag("W/\"2\"")]);
    assert_eq!(rig.keys(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn fdl_04_a_refused_key_or_quota_clears_the_definitions() {
    for status in [401, 402, 403] {
        let rig = Rig::new([tagged(200, ONE, "\"1\""), reply(status, DENIED), reply(status, DENIED), reply(200, ONE)]);
        rig.load().await.unwrap();
        for _ in 0..2 {
            assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Refused { status: s, .. }) if s == status));
        }
        assert_eq!((rig.keys(), rig.loader.state()), (None, Missing));
        assert!(
            matches!(&rig.reported()[..], [Diagnostic::FlagDefinitionsUnavailable { .. }]),
            "{status} is reported once"
        );
        assert!(matches!(&rig.kept.lock().unwrap()[..], [Some(_), None]));
        sleep(secs(290)).await;
        assert_eq!(rig.requests(), 3, "no request is sent for a long time after a refusal");
        // After the key was fixed, a requested load does not have to wait.
        rig.load().await.unwrap();
        assert_eq!(rig.network.asked.lock().unwrap()[2..], [None, None]);
        assert_eq!((rig.keys(), rig.reported()), (Some(1), vec![Diagnostic::FlagDefinitionsRecovered]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_not_from_posthog_keeps_the_definitions() {
    let rig = Rig::new([reply(200, ONE), reply(403, "<html>blocked</html>"), reply(200, "<html>sign in</html>")]);
    rig.load().await.unwrap();
    assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Unavailable(_))));
    assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Unreadable(_))));
    assert_eq!((rig.keys(), rig.loader.state(), rig.reported().len()), (Some(1), Stale, 2));
}

#[tokio::test(start_paused = true)]
async fn a_truncated_or_missing_response_keeps_the_definitions() {
    let cut = Response { status: 200, body: TWO.into(), is_cut: true, ..Response::default() };
    let rig = Rig::new([reply(200, ONE), Some(Ok(cut)), None]);
    rig.load().await.unwrap();
    assert!(rig.load().await.is_err());
    let began = Instant::now();
    assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Unavailable(why)) if why.contains("10s")));
    assert_eq!((began.elapsed(), rig.keys()), (secs(10), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn callers_during_a_load_get_its_result() {
    let rig = Rig::new([None, reply(200, ONE)]);
    let asked = [rig.ask(), rig.ask(), rig.ask()];
    for answer in asked {
        assert!(answer.await.unwrap().is_err());
    }
    assert_eq!(rig.requests(), 1);
    rig.load().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn retry_after_delays_the_next_load() {
    let wait = Some(RetryAfter::In(secs(600)));
    let busy = Response { status: 429, retry_after: wait, ..Response::default() };
    let rig = Rig::new([Some(Ok(busy)), reply(200, ONE)]);
    assert!(rig.load().await.is_err());
    assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Unavailable(why)) if why.contains("wait")));
    sleep(secs(599)).await;
    assert_eq!(rig.requests(), 1);
    sleep(secs(12)).await;
    assert_eq!((rig.requests(), rig.keys()), (2, Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_load_is_allowed_once_retry_after_has_passed() {
    let busy = || Some(Ok(Response { status: 429, retry_after: Some(RetryAfter::In(secs(2))), ..Response::default() }));
    let rig = Rig::new([reply(200, ONE), busy(), reply(200, TWO)]);
    rig.load().await.unwrap();
    assert!(rig.load().await.is_err());
    sleep(secs(1)).await;
    assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Unavailable(why)) if why.contains("wait")));
    sleep(secs(1)).await;
    assert_eq!((rig.load().await, rig.requests(), rig.keys()), (Ok(()), 3, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn kept_definitions_are_used_before_the_first_request() {
    let first = Rig::new([tagged(200, ONE, "W/\"7\"")]);
    first.load().await.unwrap();
    let Some(bytes) = first.kept.lock().unwrap().pop().unwrap() else { panic!("nothing was kept") };
    let fetched_at = first.loader.current().unwrap().fetched_at;

    let next = Rig::restored(decode(&bytes), [reply(503, ""), reply(304, "")]);
    let restored = next.loader.current().unwrap();
    assert_eq!((restored.fetched_at, restored.is_restored), (fetched_at, true));
    assert!(next.load().await.is_err());
    assert_eq!((next.keys(), next.loader.state()), (Some(1), FromBefore));
    next.load().await.unwrap();
    assert_eq!((next.keys(), next.loader.state()), (Some(1), Fresh));
    assert_eq!(*next.network.asked.lock().unwrap(), [Some("W/\"7\"".to_owned()), Some("W/\"7\"".to_owned())]);
    assert!(next.kept.lock().unwrap().is_empty(), "restored definitions are not written again");
}

#[tokio::test(start_paused = true)]
async fn a_reset_before_the_first_load_removes_kept_definitions() {
    let first = Rig::new([tagged(200, ONE, "W/\"7\"")]);
    first.load().await.unwrap();
    let Some(bytes) = first.kept.lock().unwrap().pop().unwrap() else { panic!("nothing was kept") };
    let next = Rig::restored(decode(&bytes), []);
    next.loader.reset();
    assert!(next.load().await.is_err());
    assert_eq!((next.keys(), &next.kept.lock().unwrap()[..]), (None, &[None][..]));
    assert!(next.network.asked.lock().unwrap().iter().all(Option::is_none));
}

#[tokio::test(start_paused = true)]
async fn definitions_are_kept_when_changed_and_again_when_lost() {
    let rig = Rig::new([tagged(200, ONE, "1"), reply(304, ""), tagged(200, ONE, "2"), tagged(200, TWO, "3")]);
    for kept in [1, 1, 1, 2] {
        rig.load().await.unwrap();
        assert_eq!(rig.kept.lock().unwrap().len(), kept);
    }
    rig.loader.keep_again();
    rig.then([tagged(200, TWO, "3")]);
    rig.load().await.unwrap();
    assert_eq!((rig.kept.lock().unwrap().len(), rig.network.asked.lock().unwrap().last()), (3, Some(&None)));
}

#[tokio::test(start_paused = true)]
async fn definitions_too_large_to_keep_are_used_and_reported() {
    let rig = Rig::with([reply(200, ONE), reply(200, ONE)], |parts| parts.options.keep = Some(10));
    rig.load().await.unwrap();
    rig.load().await.unwrap();
    assert_eq!((rig.keys(), &rig.kept.lock().unwrap()[..]), (Some(1), &[None][..]));
    assert_eq!(rig.cache_failures(), ["keep"]);
    let off = Rig::with([reply(200, ONE)], |parts| parts.options.keep = None);
    off.load().await.unwrap();
    assert!(off.kept.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_flag_is_reported_once_and_the_others_load() {
    let broken =
        r#"{"flags":[{"key":"a","active":true,"filters":{"groups":[]}},{"key":"bad","active":true,"filters":7}]}"#;
    let rig = Rig::new([reply(200, broken), reply(200, broken)]);
    rig.load().await.unwrap();
    rig.load().await.unwrap();
    assert_eq!(rig.reported(), [Diagnostic::FlagsInvalid { keys: vec!["bad".into()] }]);
    assert!(rig.loader.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_load_under_way_and_answers_its_callers() {
    let mut rig = Rig::new([None]);
    let waiting = rig.ask();
    tokio::task::yield_now().await;
    rig.stop().await;
    assert_eq!(waiting.await.unwrap(), Err(FlagDefinitionsError::Closed));
    assert_eq!(rig.load().await, Err(FlagDefinitionsError::Closed));
}

#[tokio::test(start_paused = true)]
async fn the_secret_key_is_neither_reported_nor_kept() {
    let rig = Rig::new([reply(401, DENIED), reply(503, ""), reply(200, "[]"), reply(200, ONE)]);
    let mut shown = String::new();
    for _ in 0..4 {
        shown.push_str(&format!("{:?}", rig.load().await));
    }
    shown.push_str(&format!("{:?} {:?} {:?}", rig.reported(), rig.loader, super::fake::options()));
    assert!(!shown.contains(SECRET) && shown.contains("SecretKey"), "{shown}");
    let kept = format!("{:?}", rig.kept.lock().unwrap());
    assert!(!kept.contains(&format!("{:?}", SECRET.as_bytes()).replace(['[', ']'], "")), "{kept}");
}
