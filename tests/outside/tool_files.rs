//! The files that `posthog-queue` reads and writes for `import`, `export` and `metrics --output`: what is in them, what
//! they take the place of, and what a kill leaves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::fixture::{Fixture, KEY};
use crate::tool_move::{must, nth, objects, text, uuids, write_events};

/// An event as a line, without uuid and time.
fn bare(name: &str) -> String {
    json!({"event": name, "distinct_id": "u"}).to_string()
}

/// An import with the key of these tests.
fn import_args<'a>(fixture: &'a Fixture, file: &'a Path, dir: &'a Path) -> Vec<&'a str> {
    vec!["import", text(file), text(dir), "--host", &fixture.host, "--key", KEY]
}

#[test]
fn a_first_line_that_was_cut_off_costs_no_other_line() {
    let fixture = Fixture::new();
    let (file, folder) = (fixture.folder().join("events.jsonl"), fixture.folder());
    write_events(&file, 10);
    let good = fs::read_to_string(&file).unwrap();
    let cut = good.lines().next().unwrap().split("\"path\"").next().unwrap();
    fs::write(&file, format!("{cut}\n{good}")).unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    assert!(must(2, &args).contains("line 1 is no event"));
    let imported = objects(1, &[&args[..], &["--skip-bad"]].concat());
    assert_eq!((&imported[0]["events"], &imported[0]["bad_lines"]), (&json!(10), &json!(1)), "{imported:?}");
    assert_eq!(
        uuids(&objects(0, &["list", text(&fixture.queue)])),
        (0..10).map(|n| nth(n).to_string()).collect::<Vec<_>>()
    );

    // One object in several lines is still one, also behind what some tools write at the beginning.
    let batch = json!({"batch": [{"event": "a", "distinct_id": "u"}, {"event": "b", "distinct_id": "u"}]});
    let pretty = serde_json::to_string_pretty(&batch).unwrap();
    for (nth, begins) in ["", "\u{feff}", "\n \n", "\u{feff}\n"].iter().enumerate() {
        fs::write(&file, format!("{begins}{pretty}\n")).unwrap();
        let dir = folder.join(format!("pretty-{nth}"));
        assert_eq!(objects(0, &import_args(&fixture, &file, &dir))[0]["events"], 2, "{begins:?}");
    }
}

#[test]
fn a_resumed_import_refuses_what_was_changed_meanwhile() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    write_events(&file, 10);
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replacen("\"event\":\"tick\",\"distinct_id\":\"user_5\"", "\"distinct_id\":\"user_5\"", 1))
        .unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    assert!(must(2, &args).contains("line 6 is no event"));
    for changed in [
        good.replacen("\"n\":1,", "\"n\":100,", 1),
        good.replacen("\"distinct_id\":\"user_1\"", "\"distinct_id\":\"user_x\"", 1),
        good.replacen("12:00:01Z", "12:59:01Z", 1),
    ] {
        fs::write(&file, &changed).unwrap();
        let error = must(2, &args);
        assert!(error.contains("line 2") && error.contains("changed") && error.contains("--restart"), "{error}");
        assert!(must(2, &["list", text(&fixture.queue)]).contains("contains no queue"));
    }
    fs::write(&file, good.lines().take(3).collect::<Vec<_>>().join("\n")).unwrap();
    assert!(must(2, &args).contains("ends"), "a file that ends before what was imported of it is another one");
    let changed = good.replacen("\"n\":1,", "\"n\":100,", 1);
    fs::write(&file, &changed).unwrap();
    let imported = objects(0, &[&args[..], &["--restart", "--yes"]].concat());
    assert_eq!((&imported[0]["events"], &imported[0]["resumed"]), (&json!(10), &json!(0)));
    assert_eq!(must(0, &["export", "-", text(&fixture.queue)]).matches("\"n\":100,").count(), 1);

    // Where the file gives no time, that of the first attempt stays.
    let second = fixture.folder().join("second");
    fs::write(&file, format!("{}\n{}\n{{\"event\":\"c\"}}\n", bare("a"), bare("b"))).unwrap();
    let args = import_args(&fixture, &file, &second);
    assert!(must(2, &args).contains("line 3 is no event"));
    fs::write(&file, format!("{}\n{}\n{}\n", bare("a"), bare("b"), bare("c"))).unwrap();
    assert_eq!(objects(0, &args)[0]["resumed"], 2);
}

#[test]
fn events_without_uuids_keep_theirs_when_a_line_is_removed() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    let [same, other] = ["same", "other"].map(bare);
    let batch = format!("{{\"batch\":[{other},{same}]}}");
    let imported = |name: &str, status: i32, lines: &[&str]| {
        fs::write(&file, lines.join("\n")).unwrap();
        let dir = fixture.folder().join(name);
        must(status, &[&import_args(&fixture, &file, &dir)[..], &["--skip-bad"]].concat());
        uuids(&objects(0, &["list", text(&dir)]))
    };
    let first = imported("first", 1, &["no event", &same, &same, "no event", &batch]);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4, "identical lines are events of their own: {first:?}");
    assert_eq!(imported("second", 0, &[&same, &same, &batch]), first);
    assert_eq!(imported("third", 0, &["", &same, &same, &other, &same]), first, "wherever they stand");
}

#[test]
fn events_of_another_project_are_not_imported() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    let batch =
        |key: &str, name: &str| json!({"api_key": key, "batch": [{"event": name, "distinct_id": "u"}]}).to_string();
    let of_another = batch("phc_another_project", "a");
    let lines = [
        of_another,
        batch(KEY, "b"),
        json!({"token": "phc_another_project", "event": "c", "distinct_id": "u"}).to_string(),
        json!({"api_key": KEY, "event": "d", "distinct_id": "u"}).to_string(),
        json!({"event": "both", "distinct_id": "u", "batch": [{"event": "e", "distinct_id": "u"}]}).to_string(),
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    let error = must(2, &args);
    assert!(error.contains("line 1") && error.contains("another project") && error.contains("phc_anot"), "{error}");
    assert!(!error.contains("phc_another_project"), "a key is shown in part: {error}");
    assert_eq!(objects(1, &[&args[..], &["--skip-bad"]].concat())[0]["bad_lines"], 3);
    let listed = objects(0, &["list", text(&fixture.queue)]);
    assert_eq!(listed.iter().map(|row| row["event"].as_str().unwrap()).collect::<Vec<_>>(), ["b", "d"]);
}
