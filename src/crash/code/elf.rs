//! The little of ELF that says which build a file or an image is of.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of notes that are read of a file.
const NOTES_READ: usize = 64 * 1024;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Segments that are looked at: an executable has about a dozen.
const MOST_SEGMENTS: u64 = 128;
const NOTE_SEGMENT: u32 = 4;
const GNU_BUILD_ID: u32 = 3;

/// The build id among the notes of a segment, whose entries begin at multiples of `align`.
pub(super) fn build_id(notes: &[u8], align: usize) -> Option<&[u8]> {
    // Four, whatever is said: eight is the one other value there is.
    let align = if align == 8 { 8 } else { 4 };
    let mut rest = notes;
    loop {
        let (name_len, content_len, kind) = (u32_at(rest, 0)?, u32_at(rest, 4)?, u32_at(rest, 8)?);
        let name = rest.get(12..)?.get(..usize::try_from(name_len).ok()?)?;
        let at = name.len().checked_add(12)?.checked_next_multiple_of(align)?;
        let content = rest.get(at..)?.get(..usize::try_from(content_len).ok()?)?;
        if kind == GNU_BUILD_ID && name == b"GNU\0" && !content.is_empty() {
            return Some(content);
        }
        let next = at.checked_add(content.len())?.checked_next_multiple_of(align)?;
        rest = rest.get(next..)?;
    }
}

/// The build id of a file of 64 bits.
pub(super) fn build_id_of(file: &File) -> Option<Vec<u8>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    (header.starts_with(b"\x7fELF\x02\x01")).then_some(())?;
    let (start, count) = (u64_at(&header, 32)?, u64::from(u16_at(&header, 56)?));
    (u16_at(&header, 54)? as usize == PROGRAM_HEADER).then_some(())?;
    for place in 0..count.min(MOST_SEGMENTS) {
        let mut segment = [0; PROGRAM_HEADER];
        let at = start.checked_add(place * PROGRAM_HEADER as u64)?;
        file.read_exact_at(&mut segment, at).ok()?;
        if u32_at(&segment, 0)? != NOTE_SEGMENT {
            continue;
        }
        let len = usize::try_from(u64_at(&segment, 32)?).ok()?.min(NOTES_READ);
        let mut notes = vec![0; len];
        file.read_exact_at(&mut notes, u64_at(&segment, 8)?).ok()?;
        let align = usize::try_from(u64_at(&segment, 48)?).unwrap_or(0);
        if let Some(found) = build_id(&notes, align) {
            return Some(found.to_vec());
        }
    }
    None
}

// All machines that the library is for are little-endian.

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, content.len() as u32, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [name, content] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let notes = [note(b"GNU\0", 1, &[1; 16]), note(b"stapsdt\0", 3, &[2; 5]), note(b"GNU\0", 3, &[3; 20])].concat();
        assert_eq!(build_id(&notes, 4), Some(&[3; 20][..]));
        assert_eq!(build_id(&notes[..notes.len() - 1], 4), None);
        assert_eq!(build_id(&[0xff; 64], 4), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_file_of_this_process_has_the_build_id_of_its_image() {
        let modules = super::super::Modules::loaded();
        let main = modules.images().find(|image| image.is_main).unwrap();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(build_id_of(&file).unwrap_or_default(), main.build_id);
        assert_eq!(build_id_of(&File::open(file!()).unwrap()), None, "a source is no executable");
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_build_id_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), align in 0usize..20) {
            let _found = build_id(&bytes, align);
        }
    }
}
