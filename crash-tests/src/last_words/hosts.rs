//! Hosts: programs in other languages that have handlers of their own, and load the client as a library.
//!
//! They lie in `crash-tests/hosts`, and are built when they are played, by the system's compiler. Each is an example of what a managed
//! runtime does to signals; the next start, which tells of them, is that of `dying`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Ending::{Exit, Signal};
use super::scenarios::SEGMENTATION;
use super::stage::LIFE_MOST;
use super::{Build, Ending, Held, NOT_HERE, Scenario, Stage, Told};

const SEGV: i32 = 11;

/// A program in another language.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// What is expected of it.
    pub scenario: Scenario,
    /// Name of the source, without `.c`.
    source: &'static str,
    arguments: &'static [&'static str],
    /// How it ends with the client, where that is not how it ends without.
    with_client: Option<Ending>,
    is_first_process: bool,
}

/// All of them. What is not told was survived.
pub const HOSTS: &[Host] = &[
    // Repaired faults: of many threads at once, and one that is not repaired after thousands that were.
    Host::new("many", &["300", "3"], Scenario::new("host_many", Exit(0), &[])),
    Host::new("fill", &["8", "2000"], Scenario::new("host_fill", Signal(SEGV), &[IN_THE_HOST])),
    Host::new("raise", &["8"], Scenario::new("host_raise", Signal(SEGV), &[IN_THE_HOST])),
    Host::new("often", &["10000"], Scenario::new("host_often", Exit(0), &[])),
    // What is not repaired where a hundred were.
    Host::new(
        "familiar",
        &["again"],
        Scenario::new("host_familiar_again", Signal(SEGV), &[Told { frames: 3, ..IN_THE_HOST }]),
    ),
    Host::new(
        "familiar",
        &["abort"],
        Scenario::new("host_familiar_abort", Signal(6), &[Told::signal("SIGABRT", "Aborted").anywhere()]),
    ),
    Host::new("familiar", &["raise"], Scenario::new("host_familiar_raise", Signal(SEGV), &[IN_THE_HOST])),
    Host::new("repaired_then_killed", &[], Scenario::new("host_repaired_then_killed", Signal(9), &[])),
    // A lock that the thread has when it aborts.
    Host::new("heap", &[], Scenario::new("host_heap", Signal(6), &[Told::signal("SIGABRT", "Aborted").anywhere()])),
    // Handlers that look at what the kernel gave them, or need it.
    Host::new("stack", &[], Scenario::new("host_stack", Exit(0), &[])),
    Host::new("onstack", &[], Scenario::new("host_onstack", Exit(0), &[])),
    Host::new("mask", &[], Scenario::new("host_mask", Signal(15), &[])),
    // Handlers that are left by a jump.
    Host::new("jump", &[], Scenario::new("host_jump", Exit(0), &[])),
    // Our own walk faults.
    Host::new("unmapped", &[], Scenario::new("host_unmapped", Signal(SEGV), &[IN_THE_HOST])),
    // The first process of a container.
    #[cfg(target_arch = "x86_64")]
    Host::new(
        "first_process",
        &["trap"],
        Scenario::new("host_first_trap", Signal(5), &[Told::signal("SIGTRAP", "Trap").anywhere()]),
    )
    .first_process()
    .ending_with_client(Exit(128 + 5)),
    Host::new(
        "first_process",
        &["abort"],
        Scenario::new("host_first_abort", Signal(SEGV), &[Told::signal("SIGABRT", "Aborted").anywhere()]),
    )
    .first_process()
    .ending_with_client(Exit(128 + 6)),
    Host::new("first_process", &["raised"], Scenario::new("host_first_raised", Exit(0), &[])).first_process(),
    Host::new("first_process", &["fault"], Scenario::new("host_first_fault", Signal(SEGV), &[IN_THE_HOST]))
        .first_process(),
    // A real one.
    Host::new(JAVA, &["250"], Scenario::new("host_java", Exit(0), &[])),
];

const IN_THE_HOST: Told = SEGMENTATION.anywhere();
const JAVA: &str = "Host.java";
/// All its threads run at once.
const JAVA_MOST: Duration = Duration::from_secs(60);
/// How much longer a host may need with the client: so many times, and for its start.
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

    /// Plays it once, and says what is not as it has to be. `dying` is the program of the next start; the library lies beside it.
    pub fn hold(&self, dying: &Path) -> Result<Held, String> {
        let stage = Stage::new(dying, false)?;
        let Some(library) = library_beside(dying) else {
            return Ok(Held::NotHere("this build has no shared object of the library".to_owned()));
        };
        let program = match build(self.source, stage.dir()) {
            Ok(program) => program,
            Err(why) => return Ok(Held::NotHere(why)),
        };
        if self.is_first_process && !can_be_first() {
            return Ok(Held::NotHere("no right to make a namespace of processes".to_owned()));
        }
        let play = |with_client: bool| {
            let began = Instant::now();
            let most = if self.source == JAVA { JAVA_MOST } else { LIFE_MOST };
            let ending = stage.end(self.command(&program, &stage, &library, with_client), with_client, most)?;
            Ok::<_, String>((ending, began.elapsed().as_millis()))
        };
        let (without, took_without) = play(false)?;
        if without == NOT_HERE {
            return Ok(Held::NotHere("the system has not got what the host needs".to_owned()));
        }
        let (with, took) = play(true)?;
        if without != self.scenario.ending {
            return Err(format!("{without:?} instead of {:?}, without the client", self.scenario.ending));
        }
        let expected = self.with_client.unwrap_or(without);
        if with != expected {
            return Err(format!("{with:?} instead of {expected:?} with the client, {without:?} without"));
        }
        if took > took_without * u128::from(TIMES_LONGER) + START_MILLIS {
            return Err(format!("{took} ms with the client, {took_without} ms without"));
        }
        let heard = stage.heard(self.scenario.told.iter().map(|told| told.times).sum())?;
        if !heard.amiss.is_empty() {
            return Err(format!("the reader says: {}", heard.amiss.join("; ")));
        }
        self.scenario.compare(self.scenario.told, &heard, Build::default())?;
        Ok(Held::Yes { ending: with, told: heard.exceptions.len() })
    }

    fn command(&self, program: &Path, stage: &Stage, library: &Path, with_client: bool) -> Command {
        let mut command = sink::command(if self.is_first_process { Path::new("unshare") } else { program });
        if self.is_first_process {
            command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(program);
        }
        if self.source == JAVA {
            command
                .args(["-Xmx64m", "-XX:+UseSerialGC", "-cp"])
                .arg(stage.dir())
                .args(["Host", if with_client { "+" } else { "-" }]);
        } else if with_client {
            command.arg(stage.queue_dir()).arg(stage.sink.url());
        } else {
            command.args(["-", "-"]);
        }
        command.args(self.arguments).current_dir(stage.dir()).env("PH_LIB", library);
        command.env("PH_DIR", stage.queue_dir()).env("PH_HOST", stage.sink.url());
        command
    }
}

/// The newest: cargo leaves one beside the programs only where the library was asked for by name.
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
    let output = command.output().map_err(|error| format!("no `{name}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{name}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn can_be_first() -> bool {
    run(Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "--kill-child", "true"])).is_ok()
}
