//! The pace, with a clock and a seed that the test chooses.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

struct World {
    pace: Pace,
    now: Instant,
    rng: StdRng,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { pace: Pace::new(PaceOptions::default()), now: Instant::now(), rng: StdRng::seed_from_u64(seed) }
    }

    /// Waits until the next request may be sent. Returns its ticket, whether it must be small, and the wait.
    fn next(&mut self) -> (Ticket, bool, Duration) {
        let before = self.now;
        loop {
            match self.pace.permit(self.now, 0, false) {
                Permit::Send { ticket, small } => return (ticket, small, self.now - before),
                Permit::Wait(until) => self.now = until,
                Permit::Full => panic!("no request is in flight"),
            }
        }
    }

    fn fail(&mut self, ticket: Ticket, retry_after: Option<u64>) {
        self.pace.failed(self.now, ticket, retry_after.map(Duration::from_secs), &mut self.rng);
    }

    fn force(&mut self) -> Ticket {
        match self.pace.permit(self.now, 0, true) {
            Permit::Send { ticket, .. } => ticket,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn four_attempts_and_then_a_cooldown_of_at_least_30_seconds() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        let mut waits = Vec::new();
        for _ in 0..5 {
            let (ticket, _, waited) = world.next();
            waits.push(waited);
            world.fail(ticket, None);
        }
        let secs = Duration::from_secs;
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits[1..4].iter().all(|&wait| wait >= SHORTEST), "{waits:?}");
        assert!(waits[1] <= secs(1) && waits[2] <= secs(2) && waits[3] <= secs(4), "{waits:?}");
        assert!(waits[4] >= secs(30) && waits[4] <= secs(60), "{waits:?}");
    }
}

#[test]
fn cooldowns_grow_to_five_minutes_and_stay_there() {
    let mut world = World::new(1);
    let mut cooldowns = Vec::new();
    for attempt in 1..=40 {
        let (ticket, _, waited) = world.next();
        if attempt % 4 == 1 && attempt > 1 {
            cooldowns.push(waited.as_secs());
        }
        world.fail(ticket, None);
    }
    assert!((60..=120).contains(&cooldowns[1]) && (120..=240).contains(&cooldowns[2]), "{cooldowns:?}");
    assert!(cooldowns[3..].iter().all(|cooldown| (150..=300).contains(cooldown)), "{cooldowns:?}");
}

#[test]
fn a_retry_after_is_kept_and_capped_at_an_hour() {
    let mut world = World::new(2);
    for (asked, least, most) in [(3, 3, 4), (120, 120, 132), (365 * 86_400, 3600, 3630)] {
        let (ticket, ..) = world.next();
        world.fail(ticket, Some(asked));
        let (ticket, _, waited) = world.next();
        assert!(waited >= Duration::from_secs(least) && waited <= Duration::from_secs(most), "{asked}: {waited:?}");
        world.pace.accepted(ticket);
    }
}

#[test]
fn a_retry_after_is_not_shortened_by_a_flush() {
    let mut world = World::new(3);
    let (ticket, ..) = world.next();
    world.fail(ticket, Some(60));
    world.now += Duration::from_secs(30);
    assert!(matches!(world.pace.permit(world.now, 0, true), Permit::Wait(_)));
    assert!(world.pace.flush_is_futile(world.now));
    let (ticket, ..) = world.next();
    assert!(world.pace.accepted(ticket));
    assert!(world.pace.waits_until(world.now).is_none());
}

#[test]
fn a_retry_after_outlasts_acceptance_in_the_same_generation() {
    let mut world = World::new(0);
    let (ticket, ..) = world.next();
    // A response with a Retry-After for one event accepts the others, so the generation does not end.
    world.pace.asked_to_wait(world.now, Some(Duration::from_secs(30)), &mut world.rng);
    world.pace.responded(ticket);
    world.pace.accepted(ticket);
    let (.., waited) = world.next();
    assert!(waited >= Duration::from_secs(30), "{waited:?}");
}

#[test]
fn a_retry_after_of_an_earlier_process_is_capped() {
    let mut world = World::new(4);
    world.pace.resume_retry_after(world.now, Duration::from_secs(1 << 40));
    assert_eq!(world.next().2, Duration::from_secs(3600));
}

#[test]
fn requests_that_fail_together_are_one_failure() {
    let mut world = World::new(5);
    let mut tickets = Vec::new();
    for _ in 0..4 {
        let (ticket, ..) = world.next();
        world.pace.accepted(ticket);
        tickets.push(world.next().0);
    }
    for &ticket in &tickets {
        world.fail(ticket, None);
    }
    assert_eq!(world.pace.consecutive_failures(), 1);
    assert!(matches!(world.pace.health(), Health::Backoff { .. }));
    assert!(!world.pace.accepted(tickets[0]), "an answer of the ended generation does not end the outage");
    assert!(world.pace.waits_until(world.now).is_some());
}

#[test]
fn a_probe_goes_alone_and_the_window_opens_again_step_by_step() {
    let mut world = World::new(6);
    let open = |world: &World| (0..9).take_while(|&n| world.pace.permit(world.now, n, false) != Permit::Full).count();
    let (ticket, ..) = world.next();
    world.fail(ticket, None);
    let (mut ticket, ..) = world.next();
    assert_eq!(open(&world), 1);
    for window in [2, 4, 4] {
        world.pace.accepted(ticket);
        assert_eq!(open(&world), window);
        ticket = world.next().0;
    }
}

#[test]
fn only_a_flush_that_succeeds_ends_a_cooldown_early() {
    let mut world = World::new(7);
    for _ in 0..4 {
        let (ticket, ..) = world.next();
        world.fail(ticket, None);
    }
    let Health::Cooldown { until } = world.pace.health() else { panic!("no cooldown") };
    assert!(world.pace.flush_is_futile(world.now), "the answer is known");
    world.now += Duration::from_secs(2);
    for _ in 0..10 {
        assert!(!world.pace.flush_is_futile(world.now));
        let forced = world.force();
        world.fail(forced, None);
        world.now += Duration::from_secs(2);
    }
    assert_eq!(world.pace.health(), Health::Cooldown { until });
    let forced = world.force();
    world.pace.accepted(forced);
    assert_eq!(world.pace.health(), Health::Up);
}

#[test]
fn probes_of_a_pause_are_small_and_further_and_further_apart() {
    let mut world = World::new(8);
    let (ticket, small, _) = world.next();
    assert!(!small && world.pace.paused(world.now, ticket, 401, &mut world.rng));
    let mut waits = Vec::new();
    for _ in 0..6 {
        let (ticket, small, waited) = world.next();
        waits.push(waited.as_secs());
        assert!(small && world.pace.paused(world.now, ticket, 401, &mut world.rng));
    }
    assert!((30..=60).contains(&waits[0]) && waits.iter().all(|wait| *wait <= 300) && waits[5] >= 150, "{waits:?}");
    let (ticket, ..) = world.next();
    assert!(world.pace.accepted(ticket));
    assert_eq!(world.pace.health(), Health::Up);
}

#[test]
fn a_flush_that_finds_the_key_refused_keeps_the_cooldown() {
    let mut world = World::new(9);
    for _ in 0..4 {
        let (ticket, ..) = world.next();
        world.fail(ticket, None);
    }
    let Health::Cooldown { until } = world.pace.health() else { panic!("no cooldown") };
    let forced = world.force();
    assert!(world.pace.paused(world.now, forced, 401, &mut world.rng));
    assert_eq!(world.pace.health(), Health::Paused { status: 401, until });
}

#[test]
fn the_first_send_of_a_backlog_is_spread_over_a_second() {
    let mut waits: Vec<_> = (0..50)
        .map(|seed| {
            let mut world = World::new(seed);
            world.pace.delay_first_send(world.now, &mut world.rng);
            assert!(matches!(world.pace.permit(world.now, 0, true), Permit::Send { .. }));
            world.next().2
        })
        .collect();
    waits.sort();
    assert!(waits[0] < Duration::from_millis(200) && waits[49] > Duration::from_millis(800));
    assert!(waits[49] <= Duration::from_secs(1));
}
