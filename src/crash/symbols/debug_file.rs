//! The debug information of one file, read one unit at a time to bound memory.
//!
//! `addr2line` parses all units of a file before it answers the first query; that takes 50 MiB for an executable of 70
//! MiB. Here each unit is parsed once for its address ranges and dropped, which leaves a short index. For a query,
//! `addr2line` gets a `.debug_info` in which runs of units that are not needed are covered by the header of a type
//! unit, which it skips. If an inlined function refers to a covered unit, the query fails with the offset, and is
//! repeated with that unit visible. The file is mapped, so the kernel can reclaim its pages.

#![allow(unsafe_code, reason = "mapping files; each block proves itself")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::slice;

use addr2line::gimli::{self, EndianSlice, LittleEndian, SectionId, UnitType};
use nix::libc::{c_void, off_t};
use nix::sys::mman::{self, MapFlags, ProtFlags};
use object::elf::{FileHeader64, SHN_UNDEF, STT_FUNC, STT_OBJECT};
use object::read::elf::{ElfFile64, FileHeader, Sym};
use object::{CompressionFormat, Object, ObjectSection};

use crate::record::symbols::Symbol;
use crate::sys::limits::beginning;

/// Files larger than this are not read: reading the headers of all units would take too long.
pub(super) const LARGEST_FILE: u64 = 1024 * 1024 * 1024;
/// Functions in larger units, or in units with larger line programs, only get names from the symbol table: parsing
/// takes a few times the size.
const LARGEST_UNIT: usize = 8 * 1024 * 1024;
const LARGEST_LINE_PROGRAM: usize = 1024 * 1024;
/// Maximum number of ranges in the index. With more, names come from the symbol table.
const MOST_RANGES: usize = 200_000;
/// Ranges of a unit that are at most this far apart are merged.
const PADDING: u64 = 64;
/// Maximum number of units parsed for one address.
const MOST_UNITS: usize = 64;
/// Maximum total size of decompressed sections of all open files.
pub(super) const MOST_DECOMPRESSED: usize = 12 * 1024 * 1024;
/// After the length: a version 5 header of a type unit, which makes `addr2line` skip everything up to its length.
const HIDDEN: [u8; 4] = [5, 0, 2, 8];
const HIDDEN_LEN: usize = 24;
/// Maximum number of functions inlined at one address.
const MOST_INLINED: usize = 32;
/// Maximum bytes kept of a function or file name.
pub(super) const NAME_KEPT: usize = 512;
const DEBUG_ROOT: &str = "/usr/lib/debug";

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Dwarf<'a> = gimli::Dwarf<Slice<'a>>;

/// A mapped file with debug information, and the index of its units.
#[derive(Debug)]
pub(super) struct DebugFile {
    map: Mapped,
    info: Option<Mapped>,
    sections: Vec<(SectionId, Section)>,
    /// The offset of each unit, and after the last one the end of the section.
    starts: Vec<usize>,
    /// Ranges of addresses, each with the number of its unit.
    ranges: Vec<(Range<u64>, usize)>,
}

#[derive(Debug)]
enum Section {
    InFile(Range<usize>),
    Decompressed(Vec<u8>),
}

impl DebugFile {
    /// Opens the debug information of an image: a separate file if the system has one, otherwise the image's own file.
    /// At most `budget` bytes may be decompressed.
    pub(super) fn of_image(path: &Path, build_id: &[u8], budget: usize) -> Option<Self> {
        if let Some(apart) = Self::open(&by_build_id(build_id), budget) {
            return Some(apart);
        }
        let own = Self::open(path, budget)?;
        let budget = budget.saturating_sub(own.decompressed());
        let linked = own.linked(path).into_iter().find_map(|linked| Self::open(&linked, budget));
        Some(linked.unwrap_or(own))
    }

    /// Maps the file and builds the index.
    fn open(path: &Path, budget: usize) -> Option<Self> {
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok().filter(|file| file.is_file() && file.len() <= LARGEST_FILE)?;
        let map = Mapped::new(&file, 0, usize::try_from(metadata.len()).ok()?, ProtFlags::PROT_READ).ok()?;
        let sections = sections_of(map.bytes(), budget)?;
        let mut opened = Self { map, info: None, sections, starts: Vec::new(), ranges: Vec::new() };
        if let Some((_, Section::InFile(range))) = opened.sections.iter().find(|(id, _)| *id == SectionId::DebugInfo) {
            let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            opened.info = Mapped::new(&file, range.start, range.len(), rights).ok();
        }
        opened.read_units();
        Some(opened)
    }

    /// Total bytes of decompressed sections.
    pub(super) fn decompressed(&self) -> usize {
        let unpacked = |section: &Section| if let Section::Decompressed(bytes) = section { bytes.len() } else { 0 };
        self.sections.iter().map(|(_, section)| unpacked(section)).sum()
    }

    /// Where the separate debug file that this file names may be.
    fn linked(&self, path: &Path) -> Vec<PathBuf> {
        let elf = ElfFile64::<object::LittleEndian>::parse(self.map.bytes()).ok();
        let section = elf.as_ref().and_then(|elf| elf.section_by_name(".gnu_debuglink")?.data().ok());
        let name = section.and_then(|bytes| bytes.split(|byte| *byte == 0).next()).filter(|name| !name.is_empty());
        let (Some(name), Ok(path)) = (name, path.canonicalize()) else { return Vec::new() };
        let (name, folder) = (Path::new(OsStr::from_bytes(name)), path.parent().unwrap_or(Path::new("/")));
        let below_root = folder.strip_prefix("/").unwrap_or(folder);
        let places =
            [folder.join(name), folder.join(".debug").join(name), Path::new(DEBUG_ROOT).join(below_root).join(name)];
        places.into_iter().filter(|place| *place != path).collect()
    }

    fn section(&self, id: SectionId) -> &[u8] {
        if let (SectionId::DebugInfo, Some(info)) = (id, &self.info) {
            return info.bytes();
        }
        match self.sections.iter().find(|(found, _)| *found == id) {
            Some((_, Section::InFile(range))) => self.map.bytes().get(range.clone()).unwrap_or_default(),
            Some((_, Section::Decompressed(bytes))) => bytes,
            None => &[],
        }
    }

    fn dwarf(&self) -> Dwarf<'_> {
        let loaded = gimli::Dwarf::load(|id| Ok::<_, gimli::Error>(EndianSlice::new(self.section(id), LittleEndian)));
        loaded.unwrap_or_default()
    }

    /// Builds the index: parses each unit, keeps its ranges, and drops it.
    fn read_units(&mut self) {
        let (mut starts, mut ranges) = (Vec::new(), Vec::new());
        let dwarf = self.dwarf();
        let mut units = dwarf.units();
        while let Ok(Some(header)) = units.next() {
            let Some(start) = header.debug_info_offset() else { continue };
            let (number, len) = (starts.len(), header.length_including_self());
            starts.push(start.0);
            let is_wanted =
                matches!(header.type_(), UnitType::Compilation | UnitType::Skeleton(_)) && len <= LARGEST_UNIT;
            let Some(unit) = is_wanted.then(|| dwarf.unit(header).ok()).flatten() else { continue };
            let program = unit.line_program.as_ref().map_or(0, |program| program.header().unit_length());
            if program <= LARGEST_LINE_PROGRAM && !add_ranges(&mut ranges, &dwarf, &unit, number) {
                ranges = Vec::new();
                break;
            }
        }
        starts.push(self.section(SectionId::DebugInfo).len());
        (self.starts, self.ranges) = (starts, ranges);
    }

    /// The functions at an address of the file, innermost first.
    pub(super) fn look_up(&mut self, probe: u64) -> Vec<Symbol> {
        let holds = |(range, _): &&(Range<u64>, usize)| range.contains(&probe);
        let mut shown: BTreeSet<usize> =
            self.ranges.iter().filter(holds).take(MOST_UNITS).map(|(_, unit)| *unit).collect();
        let mut found = Vec::new();
        while !shown.is_empty() {
            match self.look_up_in(&shown, probe) {
                Ok(frames) => {
                    found = frames;
                    break;
                }
                // It refers to a unit that is hidden.
                Err(gimli::Error::NoEntryAtGivenOffset(offset)) if shown.len() < MOST_UNITS => {
                    if self.unit_at(offset).is_none_or(|unit| !shown.insert(unit)) {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        let in_table = || self.name_in_table(probe);
        if found.is_empty() {
            return in_table().map(|function| Symbol { function, ..Symbol::default() }).into_iter().collect();
        }
        for unlinked in found.iter_mut().filter(|found| found.function.is_empty()) {
            unlinked.function = in_table().unwrap_or_default();
        }
        found
    }

    fn look_up_in(&mut self, shown: &BTreeSet<usize>, probe: u64) -> Result<Vec<Symbol>, gimli::Error> {
        let hidden = self.hide_all_but(shown);
        let found = frames_at(self.dwarf(), probe);
        for (start, bytes) in hidden {
            self.write_info(start, bytes);
        }
        found
    }

    /// Hides all other units by overwriting the header of each run. Returns the overwritten bytes.
    fn hide_all_but(&mut self, shown: &BTreeSet<usize>) -> Vec<(usize, [u8; HIDDEN_LEN])> {
        let mut hidden = Vec::new();
        let mut first = 0;
        let last = self.starts.len().saturating_sub(1);
        for unit in shown.iter().copied().chain([last]) {
            let (from, to) = (self.starts.get(first).copied(), self.starts.get(unit).copied());
            first = unit.saturating_add(1);
            let (Some(from), Some(to)) = (from, to) else { continue };
            let Some(before) =
                self.section(SectionId::DebugInfo).get(from..).and_then(|rest| rest.first_chunk().copied())
            else {
                continue;
            };
            // A run shorter than the header cannot be hidden.
            let len = to.saturating_sub(from);
            let Some(len) = u32::try_from(len).ok().filter(|_| len >= HIDDEN_LEN) else { continue };
            let mut header = [0; HIDDEN_LEN];
            header[..4].copy_from_slice(&(len - 4).to_le_bytes());
            header[4..8].copy_from_slice(&HIDDEN);
            self.write_info(from, header);
            hidden.push((from, before));
        }
        hidden
    }

    fn write_info(&mut self, start: usize, bytes: [u8; HIDDEN_LEN]) {
        let info = match &mut self.info {
            Some(info) => info.bytes_mut(),
            None => match self.sections.iter_mut().find(|(id, _)| *id == SectionId::DebugInfo) {
                Some((_, Section::Decompressed(bytes))) => bytes,
                _ => return,
            },
        };
        if let Some(place) = info.get_mut(start..).and_then(|rest| rest.first_chunk_mut()) {
            *place = bytes;
        }
    }

    /// The unit that contains the offset.
    fn unit_at(&self, offset: u64) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        let unit = self.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        let (start, end) = (self.starts.get(unit)?, self.starts.get(unit.checked_add(1)?)?);
        (end - start <= LARGEST_UNIT).then_some(unit)
    }

    /// The function at an address according to the symbol table, which is not copied.
    fn name_in_table(&self, probe: u64) -> Option<String> {
        let data = self.map.bytes();
        let header = FileHeader64::<object::LittleEndian>::parse(data).ok()?;
        let sections = header.sections(object::LittleEndian, data).ok()?;
        let mut table = sections.symbols(object::LittleEndian, data, object::elf::SHT_SYMTAB).ok()?;
        if table.is_empty() {
            table = sections.symbols(object::LittleEndian, data, object::elf::SHT_DYNSYM).ok()?;
        }
        let is_defined = |symbol: &&object::elf::Sym64<object::LittleEndian>| {
            matches!(symbol.st_type(), STT_FUNC | STT_OBJECT) && symbol.st_shndx(object::LittleEndian) != SHN_UNDEF
        };
        let address = |symbol: &&object::elf::Sym64<object::LittleEndian>| symbol.st_value(object::LittleEndian);
        let before = table.iter().filter(is_defined).filter(|symbol| address(symbol) <= probe);
        let nearest = before.max_by_key(address)?;
        let end = address(&nearest).saturating_add(nearest.st_size(object::LittleEndian));
        (probe <= end).then(|| nearest.name(object::LittleEndian, table.strings()).ok().map(demangled)).flatten()
    }
}

/// Adds the unit's ranges. Returns `false` if the index is too large.
fn add_ranges(
    ranges: &mut Vec<(Range<u64>, usize)>,
    dwarf: &Dwarf<'_>,
    unit: &gimli::Unit<Slice<'_>>,
    number: usize,
) -> bool {
    let Ok(mut of_unit) = dwarf.unit_ranges(unit) else { return true };
    while let Ok(Some(range)) = of_unit.next() {
        if range.begin >= range.end {
            continue;
        }
        let continues = |(last, unit): &&mut (Range<u64>, usize)| {
            *unit == number && (last.start..=last.end.saturating_add(PADDING)).contains(&range.begin)
        };
        if let Some((last, _)) = ranges.last_mut().filter(continues) {
            last.end = last.end.max(range.end);
        } else if ranges.len() < MOST_RANGES {
            ranges.push((range.begin..range.end, number));
        } else {
            return false;
        }
    }
    true
}

fn frames_at(dwarf: Dwarf<'_>, probe: u64) -> Result<Vec<Symbol>, gimli::Error> {
    let context = addr2line::Context::from_dwarf(dwarf)?;
    let mut frames = context.find_frames(probe).skip_all_loads()?;
    let mut found = Vec::new();
    while let (true, Ok(Some(frame))) = (found.len() < MOST_INLINED, frames.next()) {
        let location = frame.location.as_ref();
        found.push(Symbol {
            function: frame.function.map(|function| demangled(function.name.slice())).unwrap_or_default(),
            file: location.and_then(|at| at.file).map(|path| beginning(path, NAME_KEPT).to_owned()),
            line: location.and_then(|at| at.line),
        });
    }
    Ok(found)
}

/// The readable form of a name, without hash and disambiguators.
fn demangled(name: &[u8]) -> String {
    beginning(&format!("{:#}", backtrace::SymbolName::new(name)), NAME_KEPT).to_owned()
}

/// The debug sections. Compressed ones are decompressed within the budget; if one does not fit, none are returned.
fn sections_of(data: &[u8], mut budget: usize) -> Option<Vec<(SectionId, Section)>> {
    const WANTED: [SectionId; 10] = [
        SectionId::DebugAbbrev,
        SectionId::DebugAddr,
        SectionId::DebugAranges,
        SectionId::DebugInfo,
        SectionId::DebugLine,
        SectionId::DebugLineStr,
        SectionId::DebugRanges,
        SectionId::DebugRngLists,
        SectionId::DebugStr,
        SectionId::DebugStrOffsets,
    ];
    let elf = ElfFile64::<object::LittleEndian>::parse(data).ok()?;
    let mut sections = Vec::new();
    for id in WANTED {
        let Some(section) = elf.section_by_name(id.name()) else { continue };
        let Some(found) = section_of(&section, data, &mut budget) else { return Some(Vec::new()) };
        sections.push((id, found));
    }
    Some(sections)
}

fn section_of<'a>(section: &impl ObjectSection<'a>, data: &[u8], budget: &mut usize) -> Option<Section> {
    let at = section.compressed_file_range().ok()?;
    let from = usize::try_from(at.offset).ok()?;
    let range = from..from.checked_add(usize::try_from(at.compressed_size).ok()?)?;
    let bytes = data.get(range.clone())?;
    match at.format {
        CompressionFormat::None => Some(Section::InFile(range)),
        CompressionFormat::Zlib => {
            let len = usize::try_from(at.uncompressed_size).ok()?;
            *budget = budget.checked_sub(len)?;
            let mut unpacked = Vec::with_capacity(len);
            flate2::read::ZlibDecoder::new(bytes).take(at.uncompressed_size).read_to_end(&mut unpacked).ok()?;
            (unpacked.len() == len).then_some(Section::Decompressed(unpacked))
        }
        _ => None,
    }
}

/// Where distributions install debug files.
fn by_build_id(build_id: &[u8]) -> PathBuf {
    let name: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (folder, rest) = name.split_at_checked(2).unwrap_or((&name, ""));
    Path::new(DEBUG_ROOT).join(".build-id").join(folder).join(format!("{rest}.debug"))
}

/// Offsets of mappings are multiples of this, a multiple of every page size.
const GRAIN: usize = 64 * 1024;

/// A mapped part of a file. A private mapping is also writable; the changes are visible to this process only.
#[derive(Debug)]
struct Mapped {
    start: NonNull<c_void>,
    len: usize,
    /// Bytes of the mapping before the requested part.
    skipped: usize,
    is_private: bool,
}

// SAFETY: a mapping belongs to the process, and only its owner accesses it.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps a part of the file. Pages that are written to use memory of their own.
    fn new(file: &File, offset: usize, len: usize, rights: ProtFlags) -> io::Result<Self> {
        let skipped = offset % GRAIN;
        let len = len.checked_add(skipped).ok_or(io::ErrorKind::InvalidInput)?;
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let from = off_t::try_from(offset - skipped).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps no memory of Rust.
        let start = unsafe { mman::mmap(None, length, rights, MapFlags::MAP_PRIVATE, file, from)? };
        Ok(Self { start, len, skipped, is_private: rights.contains(ProtFlags::PROT_WRITE) })
    }

    /// The requested part.
    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and readable until this is dropped. The file is a loaded image or debug information beside it;
        // modifying such a file in place breaks the running program as well.
        let all = unsafe { slice::from_raw_parts(self.start.as_ptr().cast::<u8>().cast_const(), self.len) };
        all.get(self.skipped..).unwrap_or_default()
    }

    /// The requested part, writable; empty if the mapping is not private.
    fn bytes_mut(&mut self) -> &mut [u8] {
        if !self.is_private {
            return &mut [];
        }
        // SAFETY: as above; mapped writable, and mutably borrowed from its owner.
        let all = unsafe { slice::from_raw_parts_mut(self.start.as_ptr().cast::<u8>(), self.len) };
        all.get_mut(self.skipped..).unwrap_or_default()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and no slice of it is alive.
        let _unmapped = unsafe { mman::munmap(self.start, self.len) };
    }
}

/// For the fuzz target: a file of any content has names for an address, or none, within the bounds.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn look_up_in_any(content: &[u8], address: u64) {
    let path = std::env::temp_dir().join(format!("posthog-fuzz-{}.debug", std::process::id()));
    if std::fs::write(&path, content).is_err() {
        return;
    }
    if let Some(mut file) = DebugFile::open(&path, MOST_DECOMPRESSED) {
        assert!(file.decompressed() <= MOST_DECOMPRESSED);
        let _any = (file.linked(&path), file.look_up(address));
    }
    let _left = std::fs::remove_file(&path);
}
