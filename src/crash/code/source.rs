//! The lines of source around a place, where the source is there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use crate::record::symbols::{CONTEXT_LINES, SourceLines};

/// Bytes of a file that are read.
const FILE_READ: u64 = 4 * 1024 * 1024;
/// Bytes of a line that are kept.
const LINE_KEPT: usize = 400;

/// The line of a file, counted from 1, and those around it. `None` if the file is not there, is none, or ends before.
pub(super) fn lines_around(file: &str, line: u32) -> Option<SourceLines> {
    let at = usize::try_from(line).ok()?.checked_sub(1)?;
    // A name in debug information may be that of anything by now: opening a pipe would wait.
    std::fs::metadata(file).ok().filter(|metadata| metadata.is_file())?;
    let mut reader = BufReader::new(File::open(file).ok()?.take(FILE_READ));
    let first = at.saturating_sub(CONTEXT_LINES);
    let mut bytes = Vec::new();
    let mut found = SourceLines::default();
    let mut is_found = false;
    for number in 0..=at.saturating_add(CONTEXT_LINES) {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).ok()? == 0 {
            break;
        }
        if number < first {
            continue;
        }
        let text = text_of(&bytes);
        match number {
            _ if number < at => found.before.push(text),
            _ if number == at => (found.line, is_found) = (text, true),
            _ => found.after.push(text),
        }
    }
    is_found.then_some(found)
}

fn text_of(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line.get(..LINE_KEPT).unwrap_or(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(lines: u32) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source.rs");
        let text: String = (1..=lines).map(|line| format!("line {line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        (dir, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn five_lines_on_either_side_in_the_order_of_the_file() {
        let (_dir, path) = numbered(50);
        let found = lines_around(&path, 40).unwrap();
        assert_eq!(found.line, "line 40");
        assert_eq!(found.before, ["line 35", "line 36", "line 37", "line 38", "line 39"]);
        assert_eq!(found.after, ["line 41", "line 42", "line 43", "line 44", "line 45"]);
        let (first, last) = (lines_around(&path, 1).unwrap(), lines_around(&path, 50).unwrap());
        assert_eq!((first.before.len(), first.after.len()), (0, 5));
        assert_eq!((last.before.len(), last.after.len()), (5, 0));
    }

    #[test]
    fn what_is_not_there_has_no_lines() {
        let (dir, path) = numbered(3);
        for (file, line) in [(path.as_str(), 0), (&path, 4), (&path, u32::MAX), ("/nowhere/at/all.rs", 1)] {
            assert_eq!(lines_around(file, line), None, "{file}:{line}");
        }
        assert_eq!(lines_around(dir.path().to_str().unwrap(), 1), None, "a directory");
        assert_eq!(lines_around("/dev/zero", 1), None, "a device");
    }

    #[test]
    fn a_line_of_any_length_and_any_bytes_is_cut_and_is_text() {
        let (dir, _) = numbered(1);
        let path = dir.path().join("odd");
        std::fs::write(&path, [&[b'x'; 5000][..], b"\r\n\xff\xfe\n"].concat()).unwrap();
        let found = lines_around(path.to_str().unwrap(), 1).unwrap();
        assert_eq!((found.line.len(), found.after), (LINE_KEPT, vec!["\u{fffd}\u{fffd}".to_owned()]));
    }
}
