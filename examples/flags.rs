//! Feature flags while PostHog responds, during an outage, and after a restart during the outage.
//!
//! `cargo run -p examples --bin flags` needs nothing but a Rust toolchain and takes a few seconds once it is built. It starts a
//! PostHog stand-in on loopback and itself again as the daemon, kills that daemon during an outage, and starts it once
//! more. Exits with 1 if a flag has another value than it should have, if PostHog is asked where it need not be, or if
//! an event is lost.
#![allow(clippy::print_stdout, reason = "the example talks to a human, the daemon to its parent")]

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use posthog::feature_flags::{FeatureFlags, FlagContext, FlagDefinitionsState, FlagsProblem};
use posthog::{Client, Config};
use serde_json::{Value, json};
use sink::{Answer, FlagRoute, Sink, State};

type Done = Result<(), Box<dyn Error>>;

/// Evaluated locally: half of all users get one variant, half the other.
const LOCAL: &str = "new-checkout";
/// Depends on a property that only PostHog knows.
const REMOTE: &str = "beta-report";
/// Short, so that a response becomes old within the example. One minute by default.
const CACHE_TTL: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
const EVALUATIONS: u32 = 10_000;
/// Printed when the daemon waits for its parent.
const READY: &str = ".";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "first", url, queue] => first_process(url, queue),
        [_, "second", url, queue] => second_process(url, queue),
        _ => supervise(),
    };
    if let Err(error) = &done {
        println!("FAILED: {error}");
    }
    Ok(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// ---- the daemon ---------------------------------------------------------------------------------------------------------

fn open(url: &str, queue: &str) -> Result<Client, posthog::Error> {
    Client::new(
        Config::new("phc_example").host(url).queue_dir(queue).secret_key("phs_example").flag_cache_ttl(CACHE_TTL),
    )
}

fn first_process(url: &str, queue: &str) -> Done {
    let client = open(url, queue)?;
    client.reload_flag_definitions().wait(PATIENCE)?;
    say_definitions(&client, FlagDefinitionsState::Fresh)?;

    let flags = evaluated(&client, "user_1", REMOTE)?;
    must(flags.get(REMOTE) == Some(true.into()) && flags.problem().is_none(), "PostHog says that it is on")?;
    say("requested from PostHog", "user_1", REMOTE, "true");
    local(&client, "user_1")?;
    time_of_one(&client)?;
    // Sends the captured reads. The definitions are on disk as well by then.
    must(client.flush().wait(PATIENCE)?.remaining == 0, "all events are sent")?;
    ready()?;

    // The outage.
    thread::sleep(CACHE_TTL);
    must(client.reload_flag_definitions().wait(PATIENCE).is_err(), "definitions cannot be loaded")?;
    say_definitions(&client, FlagDefinitionsState::Stale)?;
    local(&client, "user_2")?;
    let flags = evaluated(&client, "user_1", REMOTE)?;
    must(flags.get(REMOTE) == Some(true.into()), "the last known value is used")?;
    must(matches!(flags.problem(), Some(FlagsProblem::NoAnswer { .. })), "the snapshot says that the value is old")?;
    say("last known value", "user_1", REMOTE, "true");
    default(&client, "user_2")?;
    ready()
}

fn second_process(url: &str, queue: &str) -> Done {
    let started = Instant::now();
    let client = open(url, queue)?;
    local(&client, "user_1")?;
    println!("    {:.1?} after the start, with definitions from its queue", started.elapsed());
    // A load may have failed by now.
    let state = client.flag_definitions_state();
    must(
        matches!(state, FlagDefinitionsState::Restored | FlagDefinitionsState::Stale),
        "the definitions are not confirmed",
    )?;
    say_definitions(&client, state)?;
    default(&client, "user_1")?;
    println!("{} captured reads wait in the queue", client.stats().queued_events);
    ready()?;

    // PostHog is back. A flush right after a failure returns at once.
    let deadline = Instant::now() + PATIENCE;
    while client.flush().wait(PATIENCE)?.remaining > 0 && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
    client.reload_flag_definitions().wait(PATIENCE)?;
    say_definitions(&client, FlagDefinitionsState::Fresh)?;
    let left = client.close().wait(PATIENCE)?.remaining;
    must(left == 0, "all events are sent")
}

/// The recommended call: one evaluation, whose values can be read any number of times.
fn evaluated(client: &Client, who: &str, flag: &str) -> Result<FeatureFlags, posthog::reports::WaitTimeout> {
    client.evaluate_flags(FlagContext::new(who).only_keys([flag])).wait(PATIENCE)
}

/// Evaluated locally, whatever PostHog does: the result is available when the call returns.
fn local(client: &Client, who: &str) -> Done {
    let flags = client.evaluate_flags(FlagContext::new(who).only_keys([LOCAL])).try_get();
    let flags = flags.ok_or("an evaluation without a request is available at once")?;
    let value = flags.get(LOCAL).ok_or("the flag has a value")?;
    must(flags.problem().is_none(), "nothing is missing")?;
    say("evaluated locally", who, LOCAL, &value.to_string());
    Ok(())
}

/// The value is not known: the caller's default is used.
fn default(client: &Client, who: &str) -> Done {
    let asked = Instant::now();
    let is_on = client.is_feature_enabled_or(REMOTE, who, false).wait(PATIENCE)?;
    must(!is_on, "the caller's default is used")?;
    say("not known: the default", who, REMOTE, "false");
    println!("    after {:.0?}", asked.elapsed());
    Ok(())
}

fn time_of_one(client: &Client) -> Done {
    let who = FlagContext::new("user_1").only_keys([LOCAL]);
    let began = Instant::now();
    for _ in 0..EVALUATIONS {
        must(client.evaluate_flags(&who).try_get().is_some(), "the result is available at once")?;
    }
    let build = if cfg!(debug_assertions) { ", in a debug build" } else { "" };
    println!("    {:.1?} for one evaluation, no request{build}", began.elapsed() / EVALUATIONS);
    Ok(())
}

fn say(how: &str, who: &str, flag: &str, value: &str) {
    println!("{how:<27}{flag} for {who}: {value}");
}

fn say_definitions(client: &Client, expected: FlagDefinitionsState) -> Done {
    let state = client.flag_definitions_state();
    must(state == expected, &format!("the definitions are {expected:?}, not {state:?}"))?;
    let flags = client.local_flags().ok_or("there are definitions")?.len();
    let age = client.flag_definitions_age().ok_or("they have an age")?;
    println!("definitions of {flags} flags are loaded: {state:?}, {age:.1?} old");
    Ok(())
}

fn must(holds: bool, what: &str) -> Done {
    if holds { Ok(()) } else { Err(format!("does not hold: {what}").into()) }
}

/// Waits for the parent.
fn ready() -> Done {
    println!("{READY}");
    let read = io::stdin().lock().read_line(&mut String::new())?;
    must(read > 0, "the parent answers")
}

// ---- its supervisor -----------------------------------------------------------------------------------------------------

fn supervise() -> Done {
    let began = Instant::now();
    let queue = tempfile::tempdir()?;
    let sink = Sink::start();
    let values =
        json!({"flags": {REMOTE: {"enabled": true}}, "errorsWhileComputingFlags": false, "requestId": "request_1"});
    sink.flags(FlagRoute::Values, Answer::json(&values));
    sink.flags(FlagRoute::Definitions, Answer::json(&definitions()).etag("\"1\""));
    println!("a stand-in for PostHog listens on {}, the queue is in {}", sink.url(), queue.path().display());

    println!("\n== a daemon while PostHog responds");
    let mut first = Daemon::start("first", &sink, queue.path())?;
    first.show_until_ready()?;
    must(sink.inspect(|state| asked(state, "/flags/")) == 1, "one flag was requested once")?;
    let sent = sink.inspect(captured).len();
    must(sent == 2, "the two reads were captured")?;

    println!("\n== an outage begins");
    sink.stop();
    first.go_on()?;
    first.show_until_ready()?;

    println!("\n== the daemon is killed and started again during the outage");
    drop(first);
    let mut second = Daemon::start("second", &sink, queue.path())?;
    second.show_until_ready()?;
    must(sink.inspect(captured).len() == sent, "nothing was delivered")?;

    println!("\n== PostHog is back");
    sink.resume();
    second.go_on()?;
    second.show_to_the_end()?;
    let captured = sink.inspect(captured);
    captured.iter().for_each(|event| println!("at PostHog: {event}"));
    check(&sink, &captured)?;
    println!("\nall checks passed after {:.1?}", began.elapsed());
    Ok(())
}

fn definitions() -> Value {
    let variants = json!([{"key": "control", "rollout_percentage": 50}, {"key": "one-page", "rollout_percentage": 50}]);
    let of_pro = json!([{"key": "plan", "type": "person", "operator": "exact", "value": "pro"}]);
    json!({"group_type_mapping": {}, "cohorts": {}, "flags": [
        {"id": 1, "key": LOCAL, "active": true, "filters": {
            "groups": [{"properties": [], "rollout_percentage": 100}], "multivariate": {"variants": variants}
        }},
        {"id": 2, "key": REMOTE, "active": true, "filters": {"groups": [{"properties": of_pro, "rollout_percentage": 100}]}},
    ]})
}

/// The number of requests for this path.
fn asked(state: &State, path: &str) -> usize {
    state.requests().iter().filter(|request| request.path == path).count()
}

/// The captured reads that PostHog received, in order of arrival.
fn captured(state: &State) -> Vec<String> {
    let called = state.events().iter().filter(|event| event.event == "$feature_flag_called");
    let said = |event: &sink::Event| {
        let flag = event.properties["$feature_flag"].as_str().unwrap_or_default();
        let value = &event.properties["$feature_flag_response"];
        format!("{} has read {flag}: {}", event.distinct_id, value.as_str().map_or(value.to_string(), str::to_owned))
    };
    called.map(said).collect()
}

fn check(sink: &Sink, captured: &[String]) -> Done {
    let times = |start: &str| captured.iter().filter(|event| event.starts_with(start)).count();
    // Each read of each process. A value that the same process has read before is not captured again.
    for (event, expected) in [
        ("user_1 has read new-checkout: ", 2),
        ("user_2 has read new-checkout: ", 1),
        ("user_1 has read beta-report: true", 1),
        ("user_1 has read beta-report: null", 1),
        ("user_2 has read beta-report: null", 1),
    ] {
        must(times(event) == expected, &format!("{event:?} is captured {expected} time(s)"))?;
    }
    let mut of_both_processes = captured.iter().filter(|event| event.starts_with("user_1 has read new-checkout"));
    must(of_both_processes.next() == of_both_processes.next(), "both processes give a user the same variant")?;
    must(captured.len() == 6 && sink.duplicates() == 0, "nothing is captured twice")
}

/// This program in another role. Dropping it kills it.
struct Daemon {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Daemon {
    fn start(role: &str, sink: &Sink, queue: &Path) -> Result<Self, Box<dyn Error>> {
        let mut command = sink::command(std::env::current_exe()?);
        command.arg(role).arg(sink.url()).arg(queue).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().ok_or("the daemon has no stdin")?;
        let stdout = process.stdout.take().ok_or("the daemon has no stdout")?;
        Ok(Self { process, stdin, stdout: BufReader::new(stdout) })
    }

    /// Prints the daemon's output until it waits for the parent.
    fn show_until_ready(&mut self) -> Done {
        loop {
            let mut line = String::new();
            must(self.stdout.read_line(&mut line)? > 0, "the daemon goes on")?;
            if line.trim_end() == READY {
                return Ok(());
            }
            print!("{line}");
        }
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.stdin.write_all(b"\n")
    }

    fn show_to_the_end(mut self) -> Done {
        print!("{}", io::read_to_string(&mut self.stdout)?);
        must(self.process.wait()?.success(), "the daemon ends well")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
