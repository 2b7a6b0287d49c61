//! The chart of the README: the cost of a capture and the events lost in an outage, as an SVG.
//!
//! It is drawn from the table in `docs/performance.md` that compares this library with the official Rust client, so it
//! shows no figure that was not measured. `tests/documents.rs` draws it too, and fails if `docs/peers.svg` is another.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const MARGIN: f64 = 16.0;
/// Where bars begin, to the right of their names.
const BARS_AT: f64 = 150.0;
/// The longest bar; its value stands to the right of it.
const BAR: f64 = 380.0;
const BAR_HEIGHT: f64 = 22.0;
const ROW: f64 = 30.0;
const PANEL: f64 = 2.0 * ROW + 44.0;

/// Readable on a light and on a dark page.
const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-weight: 600 }
    .note { font-size: 11px; fill: #6e7781 }
    .peer { fill: #8c959f }
    .own { fill: #1f883d }
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .note { fill: #8d96a0 } }";

/// One measurement of both clients.
struct Panel {
    title: String,
    /// What is written beside the bar, and its length in units of the measurement: the official client, this library.
    bars: [(String, f64); 2],
}

/// Draws the chart from the text of `docs/performance.md`.
///
/// # Errors
///
/// The row that is missing, or has no numbers.
pub(crate) fn draw(performance: &str) -> Result<String, String> {
    let rows: Vec<[&str; 3]> = performance.lines().filter_map(cells).collect();
    let heading = rows.iter().position(|[first, peer, _]| *first == "measurement" && peer.starts_with("posthog-rs"));
    let rows = &rows[heading.ok_or("no table of both clients")?..];
    let row = |begin: &str| rows.iter().rev().find(|row| row[0].starts_with(begin)).ok_or(format!("no row {begin:?}"));
    let peer = rows[0][1];
    let captures = row("build and capture, median")?;
    // The last one: the longest that was measured.
    let outage = row("lost of ")?;
    let of = first_number(outage[0])?;
    let length = outage[0].split_once("outage of ").map_or("", |(_, length)| length);
    let title = format!("Events lost in an outage of {length}, of {}", grouped(of));
    let share = |lost: f64| format!("{} ({:.1} %)", grouped(lost), lost * 100.0 / of.max(1.0));
    let panels = [
        panel("Build and capture one event, median".to_owned(), captures, |_, cell| cell.to_owned())?,
        panel(title, outage, |lost, _| share(lost))?,
    ];
    Ok(svg(peer, &panels))
}

/// The cells of a row of three.
fn cells(line: &str) -> Option<[&str; 3]> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    let cells: Vec<&str> = inner.split('|').map(str::trim).collect();
    cells.try_into().ok()
}

/// The first number of a text, which may have commas between thousands.
fn first_number(text: &str) -> Result<f64, String> {
    let from = text.find(|c: char| c.is_ascii_digit()).ok_or_else(|| format!("no number in {text:?}"))?;
    let rest = &text[from..];
    let to = rest.find(|c: char| !c.is_ascii_digit() && c != ',' && c != '.').unwrap_or(rest.len());
    rest[..to].replace(',', "").parse().map_err(|error| format!("{rest:?}: {error}"))
}

/// A whole number with commas between thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let first = digits.len() % 3;
    let separated = |(at, digit): (usize, char)| (at != 0 && at % 3 == first).then_some(',').into_iter().chain([digit]);
    digits.chars().enumerate().flat_map(separated).collect()
}

fn panel(title: String, row: &[&str; 3], text: impl Fn(f64, &str) -> String) -> Result<Panel, String> {
    let bar = |cell: &str| first_number(cell).map(|number| (text(number, cell), number));
    Ok(Panel { title, bars: [bar(row[1])?, bar(row[2])?] })
}

fn svg(peer: &str, panels: &[Panel]) -> String {
    let height = PANEL * panels.len() as f64 + ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"Comparison of {peer} and posthog-durable\">\n  <style>\n    \
         {STYLE}\n  </style>\n"
    );
    let mut line = |line: String| {
        let _ = writeln!(svg, "  {line}");
    };
    for (number, Panel { title, bars }) in panels.iter().enumerate() {
        let top = PANEL * number as f64 + MARGIN;
        line(text(MARGIN, top + 12.0, "title", title));
        let longest = bars.iter().map(|(_, length)| *length).fold(f64::MIN_POSITIVE, f64::max);
        for (bar, (name, class)) in [(peer, "peer"), ("posthog-durable", "own")].into_iter().enumerate() {
            let (value, length) = &bars[bar];
            // One that is not zero stays visible.
            let width = if *length > 0.0 { (length / longest * BAR).max(2.0) } else { 0.0 };
            let y = top + 24.0 + ROW * bar as f64;
            line(text(MARGIN, y + 16.0, "name", name));
            line(format!(
                "<rect x=\"{BARS_AT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" class=\"{class}\"/>"
            ));
            line(text(BARS_AT + width + 8.0, y + 16.0, "value", value));
        }
    }
    let note = "Measured by benches/peers; the figures and the machine are in docs/performance.md";
    line(text(MARGIN, height - MARGIN, "note", note));
    svg.push_str("</svg>\n");
    svg
}

fn text(x: f64, y: f64, class: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>")
}
