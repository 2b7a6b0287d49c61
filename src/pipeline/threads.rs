//! The two threads of a client, shared by its lanes, and how threads of this library are started.
//!
//! * `posthog-commit` runs [`committer::run`](super::committer::run): one turn for each lane in a circle.
//! * `posthog-deliver` runs a current-thread tokio runtime with one delivery engine for each lane, the requests for
//!   flags and the loader of their definitions.
//!
//! The first lane starts both. Every further lane is opened on a thread of its own, because opening may be slow, and is
//! then added to the two that run ([`Threads::deliver`], [`Threads::add`]). Either thread ends with the last lane that
//! it serves.
//!
//! The threads block every signal except those of synchronous faults, and they are detached: a host that stops waits
//! for an answer with a deadline, never for a thread.

use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::mailbox::Wake;
use super::shared::{Pipeline, lock};
use crate::delivery::{self, DeliveryHandle, EngineParts};
#[cfg(feature = "metrics")]
use crate::report::Stats;
use crate::report::ThreadState;
use crate::sys::clock::Clock;
use crate::sys::reentry;

/// What the lanes of a client share: their two threads.
#[derive(Default)]
pub(super) struct Threads {
    /// Wakes the committer.
    wake: Arc<Wake>,
    lanes: Mutex<Lanes>,
    delivery: OnceLock<DeliveryThread>,
    is_opening: AtomicBool,
    /// Publishes the state of the lanes, if anything does.
    #[cfg(feature = "metrics")]
    publishing: Publishing,
    /// What the committer thread is doing.
    pub(super) commit: Beat,
    /// What the delivery thread is doing.
    deliver: Arc<Beat>,
}

/// Publishes statistics, given a function that collects them.
#[cfg(feature = "metrics")]
pub(crate) type Publish = Box<dyn Fn(&dyn Fn() -> Option<Stats>) + Send + Sync>;

/// Minimum time between two publications while the committer is busy.
#[cfg(feature = "metrics")]
const PUBLISH_SPACING: Duration = Duration::from_secs(1);

#[cfg(feature = "metrics")]
#[derive(Default)]
struct Publishing {
    publish: OnceLock<Publish>,
    published_at: Mutex<Option<Instant>>,
}

/// What one of the two threads is doing, for statistics. Written by that thread whenever it falls asleep and wakes.
#[derive(Debug, Default)]
pub(super) struct Beat(Mutex<Activity>);

#[derive(Clone, Copy, Debug, Default)]
enum Activity {
    #[default]
    NotStarted,
    Asleep,
    AwakeSince(Instant),
    Ended,
}

impl Beat {
    /// The thread waits for something to do. Also set before it has begun, so that it is never seen as missing.
    pub(super) fn asleep(&self) {
        *lock(&self.0) = Activity::Asleep;
    }

    /// The thread has something to do.
    pub(super) fn awake(&self, now: Instant) {
        *lock(&self.0) = Activity::AwakeSince(now);
    }

    /// Held by the thread until it ends, also by a panic.
    pub(super) fn running(&self) -> impl Drop + '_ {
        struct Ends<'a>(&'a Beat);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                *lock(&self.0.0) = Activity::Ended;
            }
        }
        self.asleep();
        Ends(self)
    }

    fn state(&self, now: Instant) -> ThreadState {
        match *lock(&self.0) {
            Activity::NotStarted => ThreadState::NotStarted,
            Activity::Asleep => ThreadState::Asleep,
            Activity::AwakeSince(since) => ThreadState::Working { since: now.saturating_duration_since(since) },
            Activity::Ended => ThreadState::Ended,
        }
    }
}

#[derive(Default)]
struct Lanes {
    all: Vec<Weak<Pipeline>>,
    /// Lanes that the committer has not taken over yet.
    opened: Vec<Arc<Pipeline>>,
    /// A committer thread runs.
    is_served: bool,
}

struct DeliveryThread {
    runtime: Handle,
    engines: UnboundedSender<(EngineParts, DeliveryHandle)>,
    /// The engines of all lanes: they are asleep while the thread is.
    #[cfg(feature = "testing")]
    handles: Arc<Mutex<Vec<DeliveryHandle>>>,
}

/// At most one lane is being opened beside the ones that run, however long its disk takes.
pub(super) struct OpeningPermit(Arc<Threads>);

impl Drop for OpeningPermit {
    fn drop(&mut self) {
        self.0.is_opening.store(false, Ordering::Release);
    }
}

impl Threads {
    /// The wake-up of the committer thread.
    pub(super) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    /// Publishes the state of the lanes: when the committer is about to sleep for no known time, and otherwise at most
    /// once a second.
    #[cfg(feature = "metrics")]
    pub(super) fn publish(&self, is_idle: bool, now: Option<Instant>) {
        let Some(publish) = self.publishing.publish.get() else { return };
        let is_due = |at: Instant| now.is_none_or(|now| now.saturating_duration_since(at) >= PUBLISH_SPACING);
        if is_idle || lock(&self.publishing.published_at).is_none_or(is_due) {
            *lock(&self.publishing.published_at) = now;
            publish(&|| self.lanes().iter().map(|lane| lane.stats()).reduce(Stats::with_ai));
        }
    }

    /// What the committer thread is doing.
    pub(super) fn commit_state(&self, now: Instant) -> ThreadState {
        self.commit.state(now)
    }

    /// What the delivery thread is doing.
    pub(super) fn deliver_state(&self, now: Instant) -> ThreadState {
        self.deliver.state(now)
    }

    /// The delivery's runtime, once a lane is delivered.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.delivery.get().map(|delivery| &delivery.runtime)
    }

    /// The permit to open a further lane. `None` while another opening has not returned.
    pub(super) fn permit_opening(self: &Arc<Self>) -> Option<OpeningPermit> {
        (!self.is_opening.swap(true, Ordering::AcqRel)).then(|| OpeningPermit(Arc::clone(self)))
    }

    /// Gives a lane's engine to the delivery thread, which is started for the first. `beside` runs on its runtime as
    /// well, and is waited for at its end.
    pub(super) fn deliver(
        &self,
        engine: (EngineParts, DeliveryHandle),
        beside: Option<impl Future<Output = ()> + Send + 'static>,
    ) -> io::Result<()> {
        if let Some(delivery) = self.delivery.get() {
            // Not asleep before it has begun.
            #[cfg(feature = "testing")]
            {
                engine.1.look_again();
                lock(&delivery.handles).push(engine.1.clone());
            }
            if let Some(beside) = beside {
                drop(delivery.runtime.spawn(beside));
            }
            return delivery.engines.send(engine).map_err(|_| io::Error::other("the delivery thread has ended"));
        }
        #[cfg(feature = "testing")]
        let handles = Arc::new(Mutex::new(vec![engine.1.clone()]));
        let runtime = event_loop(
            &self.deliver,
            &engine.0.clock,
            #[cfg(feature = "testing")]
            &handles,
        )?;
        let (engines, added) = unbounded_channel();
        let engine_clock = engine.0.clock.clone();
        let _ = engines.send(engine);
        let delivery = DeliveryThread {
            runtime: runtime.handle().clone(),
            engines,
            #[cfg(feature = "testing")]
            handles,
        };
        let _ = self.delivery.set(delivery);
        // The committer begins when the caller has its answer.
        self.commit.asleep();
        let (beat, began) = (Arc::clone(&self.deliver), engine_clock.now());
        spawn("posthog-deliver", move || {
            let _ends = beat.running();
            // The runtime reports nothing before it first sleeps.
            beat.awake(began);
            runtime.block_on(async {
                // As a task of its own: a panic in it does not end the delivery.
                let beside = beside.map(tokio::spawn);
                serve_all(added).await;
                if let Some(beside) = beside {
                    let _ = beside.await;
                }
            });
            // A resolver that never answers may hold a thread of the runtime: it ends in the background.
            runtime.shutdown_background();
        })
    }

    /// Adds a lane for the committer to serve. Returns true if no committer thread runs: then the calling thread has to
    /// run it.
    pub(super) fn add(&self, pipeline: Arc<Pipeline>) -> bool {
        let is_served = {
            let mut lanes = lock(&self.lanes);
            lanes.all.retain(|lane| lane.strong_count() > 0);
            lanes.all.push(Arc::downgrade(&pipeline));
            lanes.opened.push(pipeline);
            std::mem::replace(&mut lanes.is_served, true)
        };
        self.wake.wake();
        !is_served
    }

    /// Lanes that were opened since the last call. `None` ends the committer thread: it serves no lane and none was
    /// added.
    pub(super) fn opened_lanes(&self, is_idle: bool) -> Option<Vec<Arc<Pipeline>>> {
        let mut lanes = lock(&self.lanes);
        if is_idle && lanes.opened.is_empty() {
            lanes.is_served = false;
            return None;
        }
        Some(std::mem::take(&mut lanes.opened))
    }

    /// All lanes that the committer serves.
    pub(super) fn lanes(&self) -> Vec<Arc<Pipeline>> {
        lock(&self.lanes).all.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Runs every engine that is added, until the last of them has ended.
async fn serve_all(mut added: UnboundedReceiver<(EngineParts, DeliveryHandle)>) {
    let mut engines = JoinSet::new();
    loop {
        tokio::select! {
            Some((parts, handle)) = added.recv() => drop(engines.spawn(delivery::serve(parts, handle))),
            Some(_) = engines.join_next() => if engines.is_empty() {
                // What was added before this is still received, and nothing after it.
                added.close();
            },
            else => return,
        }
    }
}

fn event_loop(
    beat: &Arc<Beat>,
    clock: &Clock,
    #[cfg(feature = "testing")] handles: &Arc<Mutex<Vec<DeliveryHandle>>>,
) -> io::Result<Runtime> {
    // Where the program has tokio watch signals, each runtime has a part in that, whose making panics without a
    // descriptor. So it is seen first whether there are some; another thread may still take them in between.
    drop((UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?));
    let mut builder = Builder::new_current_thread();
    #[cfg(feature = "testing")]
    let parked = |parked: bool| {
        let handles = Arc::clone(handles);
        move || lock(&handles).iter().for_each(|handle| handle.parked(parked))
    };
    #[cfg(not(feature = "testing"))]
    let parked = |_: bool| || ();
    let (asleep, awake) = (Arc::clone(beat), Arc::clone(beat));
    let (parks, unparks, clock) = (parked(true), parked(false), clock.clone());
    builder.on_thread_park(move || {
        asleep.asleep();
        parks();
    });
    builder.on_thread_unpark(move || {
        unparks();
        awake.awake(clock.now());
    });
    // Names are looked up on threads that it makes.
    builder.on_thread_start(reentry::this_thread_runs_packages);
    catch_unwind(AssertUnwindSafe(|| builder.enable_all().build()))
        .unwrap_or_else(|_| Err(io::Error::other("tokio could not make a runtime")))
}

impl Pipeline {
    /// Has the committer call `publish` when it is awake.
    #[cfg(feature = "metrics")]
    pub(crate) fn publish_by(&self, publish: Publish) {
        if self.threads.publishing.publish.set(publish).is_ok() {
            self.mailbox.wake();
        }
    }

    /// Runs `task` on the delivery's runtime; the call does not wait. False if there is no runtime, because this is a
    /// forked child or the client closes. A task is dropped where it stands when the delivery ends: an answer that it
    /// owes has to be given by its `drop`.
    ///
    /// A clock that stands still takes a task to have done what was due when it waits for
    /// [`Clock::sleep`](crate::sys::clock::Clock::sleep) or for an answer.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        // In this order: in a forked child nothing that was inherited is touched.
        if self.is_forked() || self.is_closing() {
            return false;
        }
        let Some(runtime) = self.threads.runtime() else { return false };
        drop(runtime.spawn(task));
        // The thread may be taken to be asleep until it has seen this, and with it the task that stands before it in
        // the queue.
        #[cfg(feature = "testing")]
        if let Some(delivery) = self.delivery() {
            delivery.look_again();
        }
        true
    }

    /// Has `call` called on the delivery's thread after that time; it must not block. False where
    /// [`spawn`](Self::spawn) says so: then it is never called.
    pub(crate) fn call_after(&self, after: Duration, call: impl FnOnce() + Send + 'static) -> bool {
        let clock = self.options.clock.clone();
        self.spawn(async move {
            clock.sleep(after).await;
            call();
        })
    }
}

/// Starts a detached thread of ours. It takes no signal of the host's: every one is blocked but those that a fault of
/// the thread itself raises, which would otherwise be delivered as soon as they were unblocked, or never.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_apart(name, move || {
        reentry::this_thread_is_ours();
        run();
    })
}

/// The same for a thread that no client needs to go on: it may wait for one, as any thread of the program may.
pub(crate) fn spawn_apart(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let before = block_all();
    // The mask is inherited: set before the thread exists, there is no moment at which it could take a signal.
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    if let Some(before) = before {
        let _ = before.thread_set_mask();
    }
    started.map(drop)
}

fn block_all() -> Option<SigSet> {
    let mut blocked = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGSYS] {
        blocked.remove(fault);
    }
    blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_threads_take_no_signals_and_keep_the_callers_mask() {
        let before = SigSet::thread_get_mask().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        spawn("test", move || send.send(SigSet::thread_get_mask().unwrap()).unwrap()).unwrap();
        let mask = receive.recv().unwrap();
        assert!(mask.contains(Signal::SIGTERM) && mask.contains(Signal::SIGXFSZ) && !mask.contains(Signal::SIGSEGV));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
