//! Host programs: written in other languages, with signal handlers of their own, and with the client as a loaded
//! library.
//!
//! They are in `crash-tests/hosts`, and are built by the system's compiler when they are run. Each is an example of
//! what a managed runtime does with signals. The next start, which reports their crashes, is `dying`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Ending::{Exit, Signal};
use super::fixture::RUN_MOST;
use super::scenarios::SEGMENTATION;
use super::{Build, Ending, Expected, Fixture, Outcome, Scenario, UNAVAILABLE};

const SEGV: i32 = 11;

/// A host program.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// What is expected of it.
    pub scenario: Scenario,
    /// File name of the source, without `.c`.
    source: &'static str,
    arguments: &'static [&'static str],
    /// How it ends with the client, if that differs from without.
    with_client: Option<Ending>,
    is_first_process: bool,
}

/// All hosts. A fault without an expected exception was repaired.
pub const HOSTS: &[Host] = &[
    // Repaired faults: on many threads at once, and one that is not repaired after thousands that were.
    Host::new("many", &["300", "3"], Scenario::new("host_many", Exit(0), &[])),
    Host::new("fill", &["8", "2000"], Scenario::new("host_fill", Signal(SEGV), &[IN_THE_HOST])),
    Host::new("raise", &["8"], Scenario::new("host_raise", Signal(SEGV), &[IN_THE_HOST])),
    Host::new("often", &["10000"], Scenario::new("host_often", Exit(0), &[])),
    // A fault that is not repaired where a hundred were.
    Host::new(
        "familiar",
        &["again"],
        Scenario::new("host_familiar_again", Signal(SEGV), &[Expected { frames: 3, ..IN_THE_HOST }]),
    ),
    Host::new(
        "familiar",
        &["abort"],
        Scenario::new("host_familiar_abort", Signal(6), &[Expected::signal("SIGABRT", "Aborted").anywhere()]),
    ),
    Host::new("familiar", &["raise"], Scenario::new("host_familiar_raise", Signal(SEGV), &[IN_THE_HOST])),
    Host::new("repaired_then_killed", &[], Scenario::new("host_repaired_then_killed", Signal(9), &[])),
    // A lock that the thread holds when it aborts.
    Host::new("heap", &[], Scenario::new("host_heap", Signal(6), &[Expected::signal("SIGABRT", "Aborted").anywhere()])),
    // Handlers that check or use the stack and mask that the kernel gave them.
    Host::new("stack", &[], Scenario::new("host_stack", Exit(0), &[])),
    Host::new("onstack", &[], Scenario::new("host_onstack", Exit(0), &[])),
    Host::new("mask", &[], Scenario::new("host_mask", Signal(15), &[])),
    // Handlers that are left by a jump.
    Host::new("jump", &[], Scenario::new("host_jump", Exit(0), &[])),
    // The library's own stack walk faults.
    Host::new("unmapped", &[], Scenario::new("host_unmapped", Signal(SEGV), &[IN_THE_HOST])),
    // Process 1 of a container.
    #[cfg(target_arch = "x86_64")]
    Host::new(
        "first_process",
        &["trap"],
        Scenario::new("host_first_trap", Signal(5), &[Expected::signal("SIGTRAP", "Trap").anywhere()]),
    )
    .first_process()
    .ending_with_client(Exit(128 + 5)),
    Host::new(
        "first_process",
        &["abort"],
        Scenario::new("host_first_abort", Signal(SEGV), &[Expected::signal("SIGABRT", "Aborted").anywhere()]),
    )
    .first_process()
    .ending_with_client(Exit(128 + 6)),
    Host::new("first_process", &["raised"], Scenario::new("host_first_raised", Exit(0), &[])).first_process(),
    Host::new("first_process", &["fault"], Scenario::new("host_first_fault", Signal(SEGV), &[IN_THE_HOST]))
        .first_process(),
    // A real runtime.
    Host::new(JAVA, &["250"], Scenario::new("host_java", Exit(0), &[])),
];

const IN_THE_HOST: Expected = SEGMENTATION.anywhere();
const JAVA: &str = "Host.java";
/// All its threads run at once.
const JAVA_MOST: Duration = Duration::from_secs(60);
/// How much longer a host may take with the client: this many times, and this much for the start.
const TIMES_LONGER: u32 = 4;
const START_MILLIS: u128 = 6_000;

impl Host {
    const fn new(source: &'static str, arguments: &'static [&'static str], scenario: Scenario) -> Self {
        Self { scenario, source, arguments, with_client: None, is_first_process: false }
    }

    const fn first_process(self) -> Self {
        Self { is_first_process: true, ..self }
    }

    const fn ending_with_client(self, ending: Ending) -> Self {
        Self { with_client: Some(ending), ..self }
    }

    /// Runs it once, and returns how it differs from what is expected. `dying` is the program of the next start; the
    /// library is beside it.
    pub fn check(&self, dying: &Path) -> Result<Outcome, String> {
        let fixture = Fixture::new(dying, false)?;
        let Some(library) = library_beside(dying) else {
            return Ok(Outcome::Skipped("this build has no shared object of the library".to_owned()));
        };
        let program = match build(self.source, fixture.dir()) {
            Ok(program) => program,
            Err(why) => return Ok(Outcome::Skipped(why)),
        };
        if self.is_first_process && !can_be_first() {
            return Ok(Outcome::Skipped("no right to create a PID namespace".to_owned()));
        }
        let run_host = |with_client: bool| {
            let began = Instant::now();
            let most = if self.source == JAVA { JAVA_MOST } else { RUN_MOST };
            let ending = fixture.end(self.command(&program, &fixture, &library, with_client), with_client, most)?;
            Ok::<_, String>((ending, began.elapsed().as_millis()))
        };
        let (without, took_without) = run_host(false)?;
        if without == UNAVAILABLE {
            return Ok(Outcome::Skipped("the system lacks what the host needs".to_owned()));
        }
        let (with, took) = run_host(true)?;
        if without != self.scenario.ending {
            return Err(format!("ended by {without:?} instead of {:?} without the client", self.scenario.ending));
        }
        let expected = self.with_client.unwrap_or(without);
        if with != expected {
            return Err(format!(
                "ended by {with:?} instead of {expected:?} with the client, and by {without:?} without"
            ));
        }
        if took > took_without * u128::from(TIMES_LONGER) + START_MILLIS {
            return Err(format!("took {took} ms with the client, {took_without} ms without"));
        }
        let reported = fixture.reported(self.scenario.exceptions.iter().map(|one| one.times).sum())?;
        if !reported.problems.is_empty() {
            return Err(format!("problems of the next start: {}", reported.problems.join("; ")));
        }
        self.scenario.compare(self.scenario.exceptions, &reported, Build::default())?;
        Ok(Outcome::Passed { ending: with, reported: reported.exceptions.len() })
    }

    fn command(&self, program: &Path, fixture: &Fixture, library: &Path, with_client: bool) -> Command {
        let mut command = sink::command(if self.is_first_process { Path::new("unshare") } else { program });
        if self.is_first_process {
            command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(program);
        }
        if self.source == JAVA {
            command
                .args(["-Xmx64m", "-XX:+UseSerialGC", "-cp"])
                .arg(fixture.dir())
                .args(["Host", if with_client { "+" } else { "-" }]);
        } else if with_client {
            command.arg(fixture.queue_dir()).arg(fixture.sink.url());
        } else {
            command.args(["-", "-"]);
        }
        command.args(self.arguments).current_dir(fixture.dir()).env("PH_LIB", library);
        command.env("PH_DIR", fixture.queue_dir()).env("PH_HOST", fixture.sink.url());
        command
    }
}

/// Cargo leaves a copy outside of `deps` only if the library was built by name.
fn library_beside(dying: &Path) -> Option<PathBuf> {
    let folder = dying.parent()?;
    let found = [folder.join("deps/libcrash_host.so"), folder.join("libcrash_host.so")];
    found.into_iter().find(|path| path.exists())
}

fn build(source: &str, to: &Path) -> Result<PathBuf, String> {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts");
    let mut compiler;
    let program;
    if source == JAVA {
        program = PathBuf::from("java");
        run(Command::new(&program).arg("-version"))?;
        compiler = Command::new("javac");
        compiler.arg("-d").arg(to).arg(hosts.join(source));
    } else {
        program = to.join(source);
        compiler = Command::new("cc");
        compiler.args(["-O1", "-w", "-pthread", "-o"]).arg(&program).arg(hosts.join(format!("{source}.c"))).arg("-ldl");
    }
    run(&mut compiler)?;
    Ok(program)
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run `{name}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{name}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn can_be_first() -> bool {
    run(Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "--kill-child", "true"])).is_ok()
}
