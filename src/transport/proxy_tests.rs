//! Which proxy a request uses, and what errors say about it.

use std::time::Duration;

use reqwest::Url;

use super::pool::NO_CERTIFICATES;
use super::proxy::Ways;
use super::tests::{answer_one, listen, options, request, transport};
use super::*;

type Vars<'a> = &'a [(&'static str, &'a str)];

fn ways(vars: Vars<'_>) -> (Ways, Vec<String>) {
    let env = |name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Ways::new(&Proxy::FromEnv, &env).unwrap()
}

/// The variable whose proxy is used for `url`.
fn by(vars: Vars<'_>, url: &str) -> Option<&'static str> {
    ways(vars).0.to(&Url::parse(url).unwrap()).map(|named| named.by)
}

#[test]
fn variables_choose_the_proxy_as_documented() {
    const S: &str = "https://h/";
    const P: &str = "http://h/";
    let (low, up) = ("http://low", "http://up");
    for (vars, url, expected) in [
        // The variable of the scheme, lower case before upper case.
        (&[("https_proxy", low), ("HTTPS_PROXY", up)][..], S, Some("https_proxy")),
        (&[("HTTPS_PROXY", up)], S, Some("HTTPS_PROXY")),
        (&[("https_proxy", low)], P, None),
        (&[("http_proxy", low)], P, Some("http_proxy")),
        (&[("http_proxy", low)], S, None),
        // HTTP_PROXY in capitals is not read: in a CGI program it contains the `Proxy:` header of a client.
        (&[("HTTP_PROXY", up)], P, None),
        (&[("HTTP_PROXY", up), ("ALL_PROXY", up)], P, Some("ALL_PROXY")),
        (&[("HTTP_PROXY", up), ("http_proxy", low)], P, Some("http_proxy")),
        // all_proxy applies if the scheme has no variable of its own.
        (&[("all_proxy", low), ("ALL_PROXY", up)], S, Some("all_proxy")),
        (&[("all_proxy", low)], P, Some("all_proxy")),
        (&[("ALL_PROXY", up), ("https_proxy", low)], S, Some("https_proxy")),
        (&[("ALL_PROXY", up), ("HTTPS_PROXY", low)], S, Some("HTTPS_PROXY")),
        (&[("all_proxy", low), ("HTTPS_PROXY", up)], S, Some("HTTPS_PROXY")),
        // An empty variable counts as unset.
        (&[("https_proxy", ""), ("HTTPS_PROXY", up)], S, Some("HTTPS_PROXY")),
        (&[("https_proxy", " "), ("ALL_PROXY", up)], S, Some("ALL_PROXY")),
        (&[("http_proxy", ""), ("HTTP_PROXY", up)], P, None),
        (&[("all_proxy", ""), ("ALL_PROXY", "")], S, None),
        // An invalid value counts as unset and causes a warning.
        (&[("https_proxy", "socks5://h"), ("HTTPS_PROXY", up)], S, Some("HTTPS_PROXY")),
        (&[("HTTPS_PROXY", "::::"), ("ALL_PROXY", up)], S, Some("ALL_PROXY")),
        // `*` alone exempts every host. A `no_proxy` that is not empty replaces `NO_PROXY`.
        (&[("https_proxy", low), ("NO_PROXY", "*")], S, None),
        (&[("https_proxy", low), ("no_proxy", " * ")], S, None),
        (&[("https_proxy", low), ("no_proxy", "x"), ("NO_PROXY", "*")], S, Some("https_proxy")),
        (&[("https_proxy", low), ("no_proxy", ""), ("NO_PROXY", "*")], S, None),
        (&[("https_proxy", low), ("no_proxy", "*,x")], S, Some("https_proxy")),
        (&[], S, None),
    ] {
        assert_eq!(by(vars, url), expected, "{vars:?} {url}");
    }
}

#[test]
fn no_proxy_exempts_hosts_as_documented() {
    for (list, url, is_direct) in [
        ("example.com", "https://example.com/", true),
        ("example.com", "https://www.example.com/", true),
        ("example.com", "https://EXAMPLE.com./", true),
        ("example.com", "https://notexample.com/", false),
        ("example.com", "https://example.com.evil/", false),
        (".example.com", "https://example.com/", true),
        (".example.com", "https://a.b.example.com/", true),
        ("example.com.", "https://example.com/", true),
        ("Example.COM", "https://example.com/", true),
        ("*.example.com", "https://www.example.com/", false),
        ("www.example.com", "https://example.com/", false),
        ("a.com,b.com", "https://b.com/", true),
        ("a.com , ,b.com", "https://b.com/", true),
        ("a.com b.com", "https://b.com/", true),
        (",,.", "https://b.com/", false),
        ("localhost", "http://localhost:8000/", true),
        ("localhost", "http://127.0.0.1/", false),
        // Ports.
        ("example.com:8443", "https://example.com:8443/", true),
        ("example.com:8443", "https://example.com/", false),
        ("example.com:443", "https://www.example.com/", true),
        ("10.0.0.1:80", "http://10.0.0.1/", true),
        ("10.0.0.1:81", "http://10.0.0.1/", false),
        ("[::1]:8000", "http://[::1]:8000/", true),
        ("[::1]:8000", "http://[::1]/", false),
        // Addresses and networks.
        ("10.0.0.1", "http://10.0.0.1:8000/", true),
        ("10.0.0.1", "http://10.0.0.10/", false),
        ("10.0.0.0/8", "http://10.255.1.2/", true),
        ("10.0.0.0/8", "http://11.0.0.1/", false),
        ("10.1.2.3/8", "http://10.9.9.9/", true),
        ("0.0.0.0/0", "http://8.8.8.8/", true),
        ("0.0.0.0/0", "http://[::1]/", false),
        ("192.168.0.0/33", "http://192.168.0.1/", false),
        ("0.0.1", "http://10.0.0.1/", false),
        ("::1", "http://[::1]/", true),
        ("[::1]", "http://[::1]/", true),
        ("fd00::/8", "http://[fd12:3456::1]/", true),
        ("fd00::/8", "http://[fe80::1]/", false),
        ("10.0.0.0/8", "http://ten.example/", false),
    ] {
        let vars = [("https_proxy", "http://p"), ("http_proxy", "http://p"), ("NO_PROXY", list)];
        assert_eq!(by(&vars, url).is_none(), is_direct, "{list:?} {url}");
    }
}

#[test]
fn a_proxys_password_is_never_shown_and_its_scheme_optional() {
    for (good, shown) in [
        ("proxy:3128", "proxy:3128 (from https_proxy)"),
        ("http://proxy", "proxy:80 (from https_proxy)"),
        ("https://user:pa%40ss@proxy.corp", "proxy.corp:443 (from https_proxy)"),
        (" 10.0.0.1:3128 ", "10.0.0.1:3128 (from https_proxy)"),
        ("[::1]:3128", "[::1]:3128 (from https_proxy)"),
    ] {
        let (ways, warnings) = ways(&[("https_proxy", good)]);
        let named = ways.to(&Url::parse("https://h/").unwrap()).unwrap();
        assert_eq!((named.to_string(), warnings.len()), (shown.to_owned(), 0));
        assert!(!format!("{ways:?}").contains("pa%40ss"));
    }
}

#[test]
fn a_malformed_variable_is_a_warning_without_its_value() {
    for bad in ["http://", "::::", "http://user:secret@ho st", "socks5://proxy:1080", "http://proxy:99999"] {
        let (ways, warnings) = ways(&[("all_proxy", bad)]);
        assert!(ways.proxy().is_none(), "{bad}");
        assert!(warnings.len() == 1 && warnings[0].starts_with("all_proxy is ignored: "), "{bad}");
        assert!(!warnings[0].contains("secret"));
    }
    assert!(ways(&[("HTTPS_PROXY", ""), ("http_proxy", " ")]).1.is_empty(), "an empty variable is not an error");
}

#[test]
fn http_proxy_in_capitals_is_mentioned_where_it_matters() {
    let hint = |vars, url| ways(vars).0.hint(&Url::parse(url).unwrap());
    assert!(hint(&[("HTTP_PROXY", "p:1")], "http://h/").is_some_and(|hint| hint.contains("http_proxy")));
    assert_eq!(hint(&[("HTTP_PROXY", "p:1")], "https://h/"), None);
    assert_eq!(hint(&[("HTTP_PROXY", "p:1"), ("http_proxy", "p:2")], "http://h/"), None);
}

#[test]
fn a_malformed_proxy_of_the_options_is_an_error() {
    for bad in ["socks5://p", "nope", "proxy:3128", "http://"] {
        let refused = Ways::new(&Proxy::Url(bad.into()), &|_| None);
        assert!(matches!(refused, Err(TransportError::BadProxy { .. })), "{bad}");
    }
    let (ways, _) = Ways::new(&Proxy::Url("http://u:p@proxy:1".into()), &|_| Some("*".into())).unwrap();
    let named = ways.to(&Url::parse("http://h/").unwrap()).unwrap();
    assert_eq!(named.to_string(), "proxy:1 (from Config::proxy)", "whatever the environment says");
}

#[tokio::test]
async fn a_proxy_that_refuses_the_tunnel_is_named() {
    let (listener, address) = listen().await;
    let proxied = transport(TransportOptions { proxy: Proxy::Url(format!("http://{address}")), ..options() });
    let server = async {
        let stream = listener.accept().await.unwrap().0;
        answer_one(stream, b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await
    };
    let (response, seen) = tokio::join!(proxied.send(request("https://posthog.example/batch/")), server);
    assert!(seen.starts_with("CONNECT posthog.example:443"));
    let error = response.unwrap_err();
    assert!(matches!(error, TransportError::Proxy { .. }) && error.is_unreachable(), "{error:?}");
    let text = error.describe();
    assert!(text.contains(&format!("the proxy {address} (from Config::proxy) refused")), "{text}");
}

#[tokio::test]
async fn a_dead_proxy_is_named_with_its_variable_and_a_remedy() {
    let (listener, address) = listen().await;
    drop(listener);
    let env = |_| Some(format!("http://user:secret@{address}"));
    let env_without = |name: &'static str| if name.eq_ignore_ascii_case("no_proxy") { None } else { env(name) };
    let from_env = TransportOptions { proxy: Proxy::FromEnv, ..options() };
    let (transport, _) = Transport::with_surroundings(from_env, &env_without, Box::new(Vec::new)).unwrap();
    for (url, variable) in [("https://posthog.example/", "https_proxy"), ("http://posthog.example/", "http_proxy")] {
        let error = transport.send(request(url)).await.unwrap_err();
        assert!(matches!(error, TransportError::ProxyDown { .. }) && error.is_unreachable(), "{error:?}");
        let text = error.describe();
        let expected = format!("could not connect to the proxy {address} (from {variable}); check that it runs");
        assert!(text.contains(&expected) && text.contains("no_proxy") && !text.contains("secret"), "{text}");
        assert!(!text.contains("host name"), "{text}");
    }
    let nowhere = "http://no-such-proxy.invalid:3128".to_owned();
    let given = self::transport(TransportOptions { proxy: Proxy::Url(nowhere), ..options() });
    let text = given.send(request("https://posthog.example/")).await.unwrap_err().describe();
    assert!(text.contains("the proxy no-such-proxy.invalid:3128 (from Config::proxy)"), "{text}");
}

#[tokio::test]
async fn a_timeout_behind_a_proxy_names_the_proxy() {
    let (listener, address) = listen().await;
    let timeout = Duration::from_millis(200);
    let proxy = Proxy::Url(format!("http://{address}"));
    let proxied = transport(TransportOptions { proxy, request_timeout: timeout, ..options() });
    let silent = proxied.send(request("http://posthog.example/")).await.unwrap_err();
    assert!(matches!(silent, TransportError::Timeout(_)), "{silent:?}");
    let expected = format!("through the proxy {address} (from Config::proxy)");
    assert!(silent.describe().contains(&expected), "{}", silent.describe());
    drop(listener);
}

#[tokio::test]
async fn an_ignored_http_proxy_is_mentioned_when_connecting_fails() {
    let (listener, address) = listen().await;
    drop(listener);
    let env = |name| (name == "HTTP_PROXY").then(|| "http://proxy:3128".to_owned());
    let from_env = TransportOptions { proxy: Proxy::FromEnv, ..options() };
    let (transport, _) = Transport::with_surroundings(from_env, &env, Box::new(Vec::new)).unwrap();
    let error = transport.send(request(&format!("http://{address}/"))).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
    assert!(error.describe().contains("HTTP_PROXY is set and not used"), "{}", error.describe());
}

#[tokio::test]
async fn no_proxy_exempts_hosts_from_the_environments_proxy() {
    let (listener, address) = listen().await;
    let env = |name| match name {
        "http_proxy" => Some(format!("http://{address}")),
        "NO_PROXY" => Some("direct.example".to_owned()),
        _ => None,
    };
    let from_env = TransportOptions { proxy: Proxy::FromEnv, ..options() };
    let (proxied, warnings) = Transport::with_surroundings(from_env, &env, Box::new(Vec::new)).unwrap();
    assert_eq!(warnings, [NO_CERTIFICATES]);
    let server =
        async { answer_one(listener.accept().await.unwrap().0, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await };
    let (response, seen) = tokio::join!(proxied.send(request("http://posthog.example/batch/")), server);
    assert!(seen.starts_with("POST http://posthog.example/batch/"), "{seen}");
    assert_eq!(response.unwrap().status, 200);
    // `.example` never resolves, so a direct request fails; one through the proxy would not resolve the name.
    assert!(matches!(proxied.send(request("http://direct.example/")).await, Err(TransportError::Connect(_))));
}
