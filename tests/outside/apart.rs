//! Tests with a part that runs in a process of its own: this test program again, with the filter of the one test.
//!
//! `apart` is the whole body of such a test. In the test run it sets up the fixture, starts the child process, and
//! checks the result. In the child process it finds the fixture in the environment, runs the part, and ends the
//! process.

use std::any::type_name;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use crate::fixture::{Fixture, PATIENCE, Place};

const PART: &str = "POSTHOG_OUTSIDE_PART";
const HOST: &str = "POSTHOG_OUTSIDE_HOST";
const QUEUE: &str = "POSTHOG_OUTSIDE_QUEUE";
/// The user `nobody`, if the test is run by root, with a single group of the same number.
pub(crate) const NOBODY: u32 = 65534;

/// How the child process is started.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    env: Vec<(String, String)>,
    as_nobody: bool,
    as_first: bool,
}

impl Terms {
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Not as root, which may write everywhere and start any number of threads.
    pub(crate) fn run_as_nobody(mut self) -> Self {
        self.as_nobody = true;
        self
    }

    /// As process 1 of a namespace of its own, as in a container.
    pub(crate) fn run_as_the_first_process(mut self) -> Self {
        self.as_first = true;
        self
    }
}

/// Whether this process is a child of a test.
pub(crate) fn is_a_part() -> bool {
    std::env::var_os(PART).is_some()
}

/// Sets up a fixture, runs `part` on it in a child process, and checks the result.
pub(crate) fn apart<P: FnOnce(&Place), J: FnOnce(&Fixture)>(part: P, judge: J) {
    apart_on(Fixture::new, |_| Terms::default(), part, judge);
}

/// [`apart`] with a part that kills itself with SIGKILL.
pub(crate) fn apart_to_death<P: FnOnce(&Place), J: FnOnce(&Fixture)>(set: impl FnOnce() -> Fixture, part: P, judge: J) {
    apart_until(|status| status.signal() == Some(9), set, |_| Terms::default(), part, judge);
}

/// [`apart`] with a given fixture and given terms.
pub(crate) fn apart_on<P: FnOnce(&Place), J: FnOnce(&Fixture)>(
    set: impl FnOnce() -> Fixture,
    terms: impl FnOnce(&Fixture) -> Terms,
    part: P,
    judge: J,
) {
    apart_until(ExitStatus::success, set, terms, part, judge);
}

/// [`apart_on`] with a part that ends in a given way.
pub(crate) fn apart_until<P: FnOnce(&Place), J: FnOnce(&Fixture)>(
    is_expected: impl FnOnce(&ExitStatus) -> bool,
    set: impl FnOnce() -> Fixture,
    terms: impl FnOnce(&Fixture) -> Terms,
    part: P,
    judge: J,
) {
    let name = test_name::<P>();
    if scripted(&name, part) {
        std::process::exit(0);
    }
    let fixture = set();
    let status = play(&name, &fixture, &terms(&fixture));
    assert!(is_expected(&status), "the part of {name} ended with {status}");
    judge(&fixture);
}

/// [`apart`] with a child process that ends by returning from the `main` of the test harness.
pub(crate) fn apart_through_main<P: FnOnce(&Place), J: FnOnce(&Fixture)>(part: P, judge: J) {
    let name = test_name::<P>();
    if scripted(&name, part) {
        return;
    }
    let fixture = Fixture::new();
    let status = play(&name, &fixture, &Terms::default());
    assert!(status.success(), "the part of {name} ended with {status}");
    judge(&fixture);
}

/// Runs the part, if this process was started for it.
fn scripted<P: FnOnce(&Place)>(name: &str, part: P) -> bool {
    let is_ours = std::env::var(PART).is_ok_and(|scripted| scripted == name);
    if is_ours {
        let var = |name| std::env::var(name).unwrap();
        part(&Place { host: var(HOST), queue: var(QUEUE).into() });
    }
    is_ours
}

/// The name of the test that contains the closure, as the test harness knows it.
fn test_name<P>() -> String {
    let path = type_name::<P>();
    let (_crate, path) = path.split_once("::").unwrap();
    path.split("::{{closure}}").next().unwrap().to_owned()
}

fn play(name: &str, fixture: &Fixture, terms: &Terms) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let mut command = sink::command(if terms.as_first { "unshare".as_ref() } else { program.as_os_str() });
    if terms.as_first {
        command.args(["--pid", "--fork"]).arg(program);
    }
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(PART, name).env(HOST, &fixture.host).env(QUEUE, &fixture.queue);
    command.envs(terms.env.iter().map(|(name, value)| (name, value)));
    if terms.as_nobody && nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    // The output of the child's test harness adds nothing.
    command.stdout(std::process::Stdio::null());
    wait(name, command.spawn().unwrap())
}

fn wait(name: &str, mut child: Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the part of {name} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
