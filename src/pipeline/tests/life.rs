//! How the previous run ended, on simulated machines.

use super::*;
use crate::crash::exit::ExitCause;
use crate::sys::clock::system_time;
use crate::sys::disk::OomCount;

/// A simulated machine: its boot, its uptime and the count of its OOM killer.
#[derive(Debug)]
struct Machine {
    boot_id: u128,
    uptime: Duration,
    oom_kills: u64,
}

impl Gate for Machine {
    fn before(&self, _call: &Call<'_>) -> Verdict {
        Verdict::Go
    }

    fn boot_id(&self) -> Option<u128> {
        Some(self.boot_id)
    }

    fn uptime(&self) -> Option<Duration> {
        Some(self.uptime)
    }

    fn oom_count(&self) -> Option<OomCount> {
        Some(OomCount { path: 1, inode: 1, kills: self.oom_kills })
    }
}

const FIRST: Machine = Machine { boot_id: 1, uptime: Duration::from_secs(86_400), oom_kills: 3 };

/// What the next run finds out about a run that captured events `active_after` its start and then died, on the machine
/// [`FIRST`]. The next run begins on `machine`, another `active_after` later.
fn after_a_run(active_after: Duration, machine: Machine) -> PreviousRun {
    let mut first = fixture(|options| options.disk = Disk::gated(Arc::new(FIRST)));
    assert_eq!(first.pipeline.last_run(), None);
    first.advance(active_after);
    first.append(3);
    first.advance(Duration::from_secs(1));
    let (root, wall) = (Arc::clone(&first.root), first.pipeline.options.clock.wall_nanos());
    drop(first);
    let second = fixture_in(root, |options| {
        options.disk = Disk::gated(Arc::new(machine));
        let later = ManualClock::at(wall);
        later.advance(active_after);
        options.clock = Clock::Manual(later);
    });
    second.pipeline.last_run().unwrap().clone()
}

#[test]
fn a_run_without_an_end_mark_was_killed() {
    let run = after_a_run(HOUR, FIRST);
    assert_eq!((run.cause, run.pid, run.queued_events), (ExitCause::Killed, std::process::id(), 3));
    assert!(run.alive_for >= HOUR && run.alive_for <= HOUR + Duration::from_secs(1), "{:?}", run.alive_for);
    assert_eq!((run.started_at, run.machine_restarted), (system_time(1_700_000_000_000_000_000), Some(false)));
}

#[test]
fn a_grown_oom_kill_counter_is_proof_of_an_oom_kill() {
    assert_eq!(after_a_run(HOUR, Machine { oom_kills: 4, ..FIRST }).cause, ExitCause::OutOfMemory);
}

#[test]
fn an_oom_kill_before_the_last_sign_of_life_is_not_the_cause() {
    let killed = Arc::new(AtomicU64::new(3));
    #[derive(Debug)]
    struct Growing(Arc<AtomicU64>);
    impl Gate for Growing {
        fn before(&self, _call: &Call<'_>) -> Verdict {
            Verdict::Go
        }

        fn oom_count(&self) -> Option<OomCount> {
            Some(OomCount { path: 1, inode: 1, kills: self.0.load(Ordering::SeqCst) })
        }
    }
    let disk = Disk::gated(Arc::new(Growing(Arc::clone(&killed))));
    let mut first = fixture(|options| options.disk = disk.clone());
    killed.store(4, Ordering::SeqCst);
    first.advance(HOUR);
    first.append(1);
    first.advance(Duration::from_secs(1));
    let root = Arc::clone(&first.root);
    drop(first);
    let second = fixture_in(root, |options| options.disk = disk);
    assert_eq!(second.pipeline.last_run().unwrap().cause, ExitCause::Killed);
}

/// Calls `run` while SIGTERM has a handler, as in a program that awaits the signal.
fn with_a_handler_for_sigterm(run: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _within = runtime.enter();
    let _awaited = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    run();
}

#[test]
fn a_power_loss_under_an_active_run_differs_from_a_restart() {
    with_a_handler_for_sigterm(|| {
        let restarted = |uptime| Machine { boot_id: 2, uptime, oom_kills: 0 };
        // Booted a minute after the run's last sign of life.
        let up = HOUR - Duration::from_secs(60);
        let run = after_a_run(HOUR, restarted(up));
        assert_eq!((run.cause, run.machine_restarted), (ExitCause::PowerLoss, Some(true)));
        assert_eq!(after_a_run(HOUR, restarted(Duration::from_secs(60))).cause, ExitCause::Unknown, "idle for long");
        assert_eq!(after_a_run(HOUR, restarted(HOUR * 3)).cause, ExitCause::Unknown, "booted before its last sign");
    });
}

#[test]
fn an_idle_run_does_not_write_its_status_page() {
    let mut fixture = fixture(|_| ());
    fixture.append(1);
    fixture.advance(HOUR);
    let rows = fixture.lease();
    fixture.deliver(rows);
    fixture.advance(HOUR);
    let path = fixture.pipeline.shard.dir().join("status");
    let before = std::fs::read(&path).unwrap();
    for _ in 0..10 {
        fixture.advance(HOUR);
    }
    assert!(before == std::fs::read(&path).unwrap());
}
