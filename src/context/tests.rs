//! When a context is current, what it inherits, what it reads from requests, and which hosts receive it.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Poll, Waker};

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::*;
use crate::record::json;

fn shown(context: &Context) -> Value {
    let mut text = Vec::new();
    json::write_entries(context.properties().entries(), &mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn named(id: &str) -> Context {
    Context::new().distinct_id(id)
}

/// Returns `Pending` once.
async fn elsewhere() {
    let mut was_here = false;
    poll_fn(|_| if std::mem::replace(&mut was_here, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

#[test]
fn contexts_nest_and_inner_values_win() {
    named("outer").session_id("s").prop("a", 1).enter(|| {
        named("inner").prop("a", 2).enter(|| {
            assert_eq!(current_distinct_id().as_deref(), Some("inner"));
            assert_eq!(shown(&current().unwrap()), serde_json::json!({"$session_id": "s", "a": 2}));
        });
        assert_eq!(current_distinct_id().as_deref(), Some("outer"));
        Context::new().prop("b", 3).enter(|| assert_eq!(current_distinct_id().as_deref(), Some("outer")));
        Context::fresh().enter(|| assert_eq!((current_distinct_id(), current_session_id()), (None, None)));
    });
    assert!(current().is_none());
}

#[test]
fn a_panic_leaves_no_context_behind() {
    let panicked = catch_unwind(AssertUnwindSafe(|| named("gone").enter(|| panic!("inside"))));
    assert!(panicked.is_err() && current().is_none());
    let mut future = pin!(named("gone").scope(async { panic!("inside") }));
    let mut task = std::task::Context::from_waker(Waker::noop());
    assert!(catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut task))).is_err());
    assert!(current().is_none());
}

#[test]
fn futures_that_share_a_thread_each_keep_their_own() {
    let serve = |id: &'static str| {
        named("unknown").scope(async move {
            assert!(Context::update(|context| context.distinct_id(id).prop("of", id)));
            elsewhere().await;
            let context = current().unwrap();
            (context.known_distinct_id().map(str::to_owned), shown(&context)["of"].clone())
        })
    };
    let (mut one, mut two) = (pin!(serve("one")), pin!(serve("two")));
    let mut task = std::task::Context::from_waker(Waker::noop());
    assert!(one.as_mut().poll(&mut task).is_pending() && two.as_mut().poll(&mut task).is_pending());
    assert!(current().is_none(), "between two polls nothing is current");
    named("around").enter(|| {
        let own = |id: &str| Poll::Ready((Some(id.to_owned()), Value::from(id)));
        assert_eq!((two.as_mut().poll(&mut task), one.as_mut().poll(&mut task)), (own("two"), own("one")));
        assert_eq!(current_distinct_id().as_deref(), Some("around"));
    });
}

#[test]
fn an_update_lasts_until_the_context_is_left() {
    named("outer").enter(|| {
        Context::new().enter(|| {
            Context::update(|context| context.distinct_id("inner"));
            assert_eq!(current_distinct_id().as_deref(), Some("inner"));
        });
        assert_eq!(current_distinct_id().as_deref(), Some("outer"));
        let panicked = catch_unwind(|| Context::update(|_| panic!("inside")));
        assert!(panicked.is_err() && current_distinct_id().as_deref() == Some("outer"));
    });
    assert!(!Context::update(|context| context));
}

#[test]
fn headers_are_read_whatever_their_case_and_cleaned() {
    let read = |name: &str, value: &[u8]| {
        let context = Context::from_headers([(name, value)]);
        (context.known_distinct_id().map(str::to_owned), context.known_session_id())
    };
    let distinct = |id: &str| (Some(id.to_owned()), None);
    assert_eq!(read("X-POSTHOG-DISTINCT-ID", b"user_1"), distinct("user_1"));
    assert_eq!(read("x-posthog-Distinct-Id", b" \tus\x00er\x1b_1\r\n "), distinct("user_1"));
    assert_eq!(read("X-Posthog-Session-Id", b"s"), (None, Some("s".into())));
    assert_eq!(read("x-posthog-distinct-id", "\u{e9}".repeat(1001).as_bytes()), distinct(&"\u{e9}".repeat(1000)));
    for nothing in [&b""[..], b"  ", b"\r\n\x7f", b"\xff"] {
        assert_eq!(read("x-posthog-distinct-id", nothing), (None, None));
    }
    assert_eq!(read("x-posthog-distinct-id-2", b"user_1"), (None, None));
    let several =
        [("x-posthog-distinct-id", ""), ("X-PostHog-Distinct-Id", "first"), ("x-posthog-distinct-id", "second")];
    assert_eq!(Context::from_headers(several).known_distinct_id(), Some("first"));
}

#[test]
fn a_request_says_where_it_goes_and_who_sends_it() {
    let headers = [("User-Agent", "curl/8"), ("X-Forwarded-For", "2001:db8::7, 10.0.0.1"), ("Accept", "*/*")];
    let context = Context::from_request("PUT", "https://example.org:8080/cart/7?x=/y#z", headers);
    let expected = serde_json::json!({
        "$current_url": "https://example.org:8080/cart/7", "$request_method": "PUT", "$request_path": "/cart/7",
        "$user_agent": "curl/8", "$ip": "2001:db8::7",
    });
    assert_eq!(shown(&context), expected);
    let path = |url| shown(&Context::from_request("GET", url, [("", "")]))["$request_path"].clone();
    assert_eq!([path("/a?b=/c"), path("https://example.org?b=/c"), path("")], ["/a", "/", "/"].map(Value::from));
    assert_eq!(shown(&Context::from_headers(headers)), serde_json::json!({}), "only by `from_request`");
}

#[test]
fn unusable_values_are_reported_once() {
    struct Unserializable;
    impl Serialize for Unserializable {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("not today"))
        }
    }
    let context =
        Context::from_headers([("x-posthog-distinct-id", [0xff])]).prop("bad", Unserializable).prop("good", 1);
    let again = context.clone();
    let reported = context.take_problems();
    assert!(
        reported.len() == 2 && reported[0].contains("X-POSTHOG-DISTINCT-ID") && reported[1].contains("\"bad\""),
        "{reported:?}"
    );
    assert!(context.take_problems().is_empty() && again.take_problems().is_empty());
    assert_eq!(shown(&context), serde_json::json!({"good": 1}));
}

#[test]
fn only_listed_hosts_and_those_below_them_get_the_headers() {
    let hosts: Vec<_> = ["api.example.com", " Example.NET. "].iter().filter_map(|host| host_pattern(host)).collect();
    assert_eq!(hosts, ["api.example.com", "example.net"]);
    let context = named("us\r\ner_1").session_id("s");
    let to = |url: &str| context.headers_for(url, &hosts);
    let both = [("X-POSTHOG-DISTINCT-ID", "user_1".to_owned()), ("X-POSTHOG-SESSION-ID", "s".to_owned())];
    for listed in [
        "https://api.example.com",
        "http://API.example.com:8080/x?y#z",
        "https://v2.api.example.com./",
        "https://user:secret@example.net/",
        "https://a.b.example.net?x",
    ] {
        assert_eq!(to(listed), both, "{listed}");
    }
    for foreign in [
        "https://example.com/",
        "https://api.example.com.evil.org/",
        "https://notapi.example.com.org",
        "https://evilapi.example.com@evil.org/",
        "https://evil.org/api.example.com",
        "https://evil.org?api.example.com",
        "https://evil.org#.api.example.com",
        "https://evil.org\\.api.example.com",
        "https://evil.org\\@api.example.com",
        "https://evilexample.net",
        "https://example.net\t.evil.org",
        "ftp://example.net/",
        "example.net",
        "https://[::1]:80/",
        "https:///example.net",
        "",
    ] {
        assert_eq!(to(foreign), [], "{foreign}");
    }
    assert!(
        ["", ".", ".example.com", "https://example.com", "example.com/x", "a b", "[::1]", "*"]
            .iter()
            .all(|host| host_pattern(host).is_none())
    );
}

#[test]
fn a_dropped_future_is_dropped_in_its_own_context() {
    struct Guard(std::rc::Rc<std::cell::RefCell<Option<String>>>);
    impl Drop for Guard {
        fn drop(&mut self) {
            *self.0.borrow_mut() = current_distinct_id();
        }
    }
    let seen = std::rc::Rc::default();
    let guard = Guard(std::rc::Rc::clone(&seen));
    let mut future = Box::pin(named("own").scope(async move {
        let _guard = guard;
        elsewhere().await;
    }));
    assert!(future.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())).is_pending());
    named("another's").enter(|| {
        drop(future);
        assert_eq!(current_distinct_id().as_deref(), Some("another's"));
    });
    assert_eq!(seen.borrow().as_deref(), Some("own"));
}

#[test]
fn the_path_of_a_url_without_a_host_is_not_in_its_query() {
    let path = |url| shown(&Context::from_request("GET", url, [("", "")]))["$request_path"].clone();
    assert_eq!(path("/login?next=https://example.org/cart"), "/login");
    assert_eq!(path("/proxy/https://example.org/cart"), "/proxy/https://example.org/cart");
    assert_eq!(path("https://example.org?next=https://example.org/cart"), "/");
}
