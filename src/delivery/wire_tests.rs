//! The engine, the transport and a server on loopback together.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sink::{Answer, Sink};

use super::engine_tests::{Rig, queue_of};
use super::*;
use crate::report::{Diagnostic, EndpointStatus};
use crate::sys::clock::Clock;
use crate::transport::{Proxy, Transport, TransportOptions};

/// An engine on real sockets and real time, its waits shortened.
fn start(sink: &Sink, chunks: u64, events: u64) -> Rig {
    let transport = TransportOptions {
        request_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        proxy: Proxy::None,
        ca_pem: Vec::new(),
        identity: None,
        user_agent: "posthog-durable/0.0.0".to_owned(),
        headers: Vec::new(),
    };
    let (transport, _) = Transport::new(transport).unwrap();
    let url: Arc<str> = format!("{}/batch/", sink.url()).into();
    Rig::with(
        queue_of(chunks, events),
        |_| unreachable!("the endpoint in memory is not used"),
        |parts| {
            parts.transport = Arc::new(transport);
            parts.clock = Clock::System;
            parts.options.url = url;
            parts.options.compression = Compression::Gzip;
            parts.options.pace.backoff.first = Duration::from_millis(10);
        },
    )
}

#[tokio::test]
async fn a_batch_arrives_as_posthog_wants_it() {
    let sink = Sink::start();
    let rig = start(&sink, 3, 50);
    assert_eq!(rig.flush().await.delivered, 150);
    let request = sink.requests().remove(0);
    assert_eq!((request.path.as_str(), request.query.as_str()), ("/batch/", "compression=gzip"));
    assert_eq!((request.api_key.as_str(), request.event_count), ("phc_test", 150));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    assert_eq!(request.header("user-agent"), Some("posthog-durable/0.0.0"));
    assert_eq!(sink.unique().len(), 150);
    rig.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_server_that_goes_away_and_comes_back_gets_everything_once() {
    let sink = Sink::start();
    sink.stop();
    let rig = start(&sink, 3, 50);
    assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    assert!(rig.noticed(|notice| matches!(notice, Diagnostic::EndpointFailing { .. })) > 0);
    sink.resume();
    rig.drained().await;
    assert_eq!((sink.unique().len(), sink.duplicates()), (150, 0));
    rig.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_lost_response_repeats_the_batch_with_the_same_uuids() {
    let sink = Sink::start();
    sink.script([Answer::close().taking()]);
    let rig = start(&sink, 1, 20);
    rig.drained().await;
    assert_eq!((sink.unique().len(), sink.duplicates()), (20, 20));
    rig.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_poisonous_event_is_found_over_the_wire() {
    let sink = Sink::start();
    let is_poison = |event: &Value| event["event"] == "event 42";
    sink.refuse_if(is_poison, 400, "event submitted with an empty event name");
    let rig = start(&sink, 4, 25);
    rig.drained().await;
    assert_eq!((rig.dead_lettered(), sink.unique().len()), (vec![42], 99));
    rig.stop(Duration::from_secs(5)).await;
}
