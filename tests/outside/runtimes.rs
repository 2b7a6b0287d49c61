//! Clients in every kind of tokio runtime, on another executor, and without one.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use posthog::Client;
use tokio::runtime::{Builder, Runtime};

use crate::fixture::{Fixture, event, take};

/// A minimal executor.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Creates, uses, awaits, closes and drops a client in async code.
async fn live(fixture: &Fixture, name: &str) {
    let client = Client::new(fixture.config()).unwrap();
    let receipt = client.capture(event(name));
    assert_eq!(receipt.persisted().await, Ok(()));
    let report = client.flush().await;
    assert_eq!(report.remaining, 0, "{report:?}");
    let report = client.close().await;
    assert_eq!((report.remaining, report.persisted), (0, true));
    drop(client);
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

#[test]
fn a_client_lives_in_a_current_thread_runtime() {
    let fixture = Fixture::new();
    current_thread().block_on(live(&fixture, "tick"));
    assert_eq!(fixture.names(), ["tick"]);
}

#[test]
fn a_client_lives_in_a_multi_thread_runtime() {
    let fixture = Arc::new(Fixture::new());
    let inside = Arc::clone(&fixture);
    multi_thread().block_on(async { tokio::spawn(async move { live(&inside, "tick").await }).await.unwrap() });
    assert_eq!(fixture.names(), ["tick"]);
}

#[test]
fn a_client_lives_on_an_executor_that_is_not_tokio() {
    let fixture = Fixture::new();
    block_on(live(&fixture, "tick"));
    assert_eq!(fixture.names(), ["tick"]);
}

#[test]
fn a_client_made_inside_a_runtime_outlives_it() {
    let fixture = Fixture::new();
    let client = {
        let runtime = multi_thread();
        runtime.block_on(async { fixture.client() })
    };
    take(&client, "after");
    assert_eq!(block_on(client.flush()).remaining, 0);
    current_thread().block_on(async move { drop(client) });
    assert_eq!(fixture.names(), ["after"]);
}

#[test]
fn a_client_made_outside_is_used_inside_and_dropped_by_a_task() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let runtime = multi_thread();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.capture(event("tick")).persisted().await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(()));
        }
    });
    drop(client);
    let client = fixture.client();
    assert_eq!(client.stats().accepted, 20);
    runtime.block_on(async move {
        assert_eq!(client.close().await.remaining, 0);
    });
    // Events in flight when the first client was dropped are sent again, with the same uuids.
    assert_eq!(fixture.sink.inspect(sink::State::unique), 20);
}

#[test]
fn a_runtime_shut_down_under_a_wait_leaves_the_client_working() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(sink::Answer::hang().discarding());
    let client = fixture.client();
    take(&client, "tick");
    let runtime = multi_thread();
    let flush = client.flush();
    runtime.spawn(flush);
    runtime.shutdown_background();
    fixture.sink.default_answer(sink::Answer::ok());
    // The hanging request ends with its connection.
    fixture.sink.stop();
    fixture.sink.resume();
    assert!(fixture.sink.wait_for(|state| state.unique() == 1, crate::fixture::PATIENCE));
    drop(client);
}
