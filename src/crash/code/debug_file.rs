//! Debug information of one file, looked up a unit at a time.
//!
//! `addr2line` reads all units of a file before it answers the first question: abbreviations and tables of source files of thousands of
//! them, some 50 MiB for an executable of 70 MiB. Here one unit after the other is asked for its ranges and forgotten, which leaves a
//! short index; and `addr2line` is shown a `.debug_info` in which all that is not needed for an address is hidden behind the header
//! of a type unit, which it steps over. What an inlined function refers to in a hidden unit makes it say so, and that unit is shown as
//! well. The file is mapped, so its bytes are the kernel's to take back.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use addr2line::gimli::{self, EndianSlice, LittleEndian, SectionId, UnitType};
use object::elf::{FileHeader64, SHN_UNDEF, STT_FUNC, STT_OBJECT};
use object::read::elf::{ElfFile64, FileHeader, Sym};
use object::{CompressionFormat, Object, ObjectSection};

use super::mapped::Mapped;

/// Larger files are not looked into: their debug information would take too long.
pub(super) const LARGEST_FILE: u64 = 256 * 1024 * 1024;
/// Larger units, and units with longer line programs, have no names but those of the symbol table: what is made of them for a look-up
/// is a few times as large.
const LARGEST_UNIT: usize = 8 * 1024 * 1024;
const LARGEST_LINE_PROGRAM: usize = 1024 * 1024;
/// Ranges of units that are kept. Without an index there are the names of the symbol table.
const MOST_RANGES: usize = 200_000;
/// What lies between two functions of a unit does not begin another range.
const PADDING: u64 = 64;
/// Units that one address may need.
const MOST_UNITS: usize = 64;
/// Of compressed sections, those of all files that are open together.
pub(super) const MOST_DECOMPRESSED: usize = 12 * 1024 * 1024;
/// A unit's header of version 5 that hides what follows it: a length, then this, then zeros.
const HIDDEN: [u8; 4] = [5, 0, 2, 8];
const HIDDEN_LEN: usize = 24;
const DEBUG_ROOT: &str = "/usr/lib/debug";

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Dwarf<'a> = gimli::Dwarf<Slice<'a>>;

/// A function at an address, as the file calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: Option<Vec<u8>>,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct DebugFile {
    map: Mapped,
    info: Option<Mapped>,
    sections: Vec<(SectionId, Section)>,
    /// Where each unit begins, and behind the last the end of the section.
    starts: Vec<usize>,
    ranges: Vec<UnitRange>,
}

#[derive(Debug)]
enum Section {
    InFile(Range<usize>),
    Decompressed(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
struct UnitRange {
    begin: u64,
    end: u64,
    unit: u32,
}

impl DebugFile {
    /// The debug information of an image: from a file of its own where the system has one, else from the image's file. So many bytes may
    /// be unpacked.
    pub(super) fn of_image(path: &Path, build_id: &[u8], room: usize) -> Option<Self> {
        if let Some(apart) = Self::open(&by_build_id(build_id), room) {
            return Some(apart);
        }
        let own = Self::open(path, room)?;
        let room = room.saturating_sub(own.decompressed());
        let linked = own.linked(path).into_iter().find_map(|linked| Self::open(&linked, room));
        Some(linked.unwrap_or(own))
    }

    /// Maps the file and reads which unit has which addresses.
    fn open(path: &Path, room: usize) -> Option<Self> {
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok().filter(|file| file.is_file() && file.len() <= LARGEST_FILE)?;
        let map = Mapped::whole(&file, usize::try_from(metadata.len()).ok()?).ok()?;
        let sections = sections_of(map.bytes(), room)?;
        let mut opened = Self { map, info: None, sections, starts: Vec::new(), ranges: Vec::new() };
        if let Some((_, Section::InFile(range))) = opened.sections.iter().find(|(id, _)| *id == SectionId::DebugInfo) {
            opened.info = Mapped::private(&file, range.start, range.len()).ok();
        }
        opened.read_units();
        Some(opened)
    }

    /// Bytes that were unpacked.
    pub(super) fn decompressed(&self) -> usize {
        let unpacked = |section: &Section| if let Section::Decompressed(bytes) = section { bytes.len() } else { 0 };
        self.sections.iter().map(|(_, section)| unpacked(section)).sum()
    }

    /// Where the file says that its debug information was put.
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

    /// One unit after the other is read, asked for its addresses, and forgotten.
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
            let Ok(number) = u32::try_from(number) else { break };
            if program <= LARGEST_LINE_PROGRAM && !add_ranges(&mut ranges, &dwarf, &unit, number) {
                ranges = Vec::new();
                break;
            }
        }
        starts.push(self.section(SectionId::DebugInfo).len());
        (self.starts, self.ranges) = (starts, ranges);
    }

    /// The functions at an address of the file, the innermost first.
    pub(super) fn look_up(&mut self, probe: u64) -> Vec<Found> {
        let holds = |range: &&UnitRange| (range.begin..range.end).contains(&probe);
        let mut shown: BTreeSet<usize> =
            self.ranges.iter().filter(holds).take(MOST_UNITS).map(|range| range.unit as usize).collect();
        let mut found = Vec::new();
        while !shown.is_empty() {
            match self.look_up_in(&shown, probe) {
                Ok(frames) => {
                    found = frames;
                    break;
                }
                // What is referred to lies in a unit that was hidden.
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
            return in_table().map(|name| Found { name: Some(name), ..Found::default() }).into_iter().collect();
        }
        for unlinked in found.iter_mut().filter(|found| found.name.is_none()) {
            unlinked.name = in_table();
        }
        found
    }

    fn look_up_in(&mut self, shown: &BTreeSet<usize>, probe: u64) -> Result<Vec<Found>, gimli::Error> {
        let hidden = self.hide_all_but(shown);
        let found = frames_at(self.dwarf(), probe);
        for (start, bytes) in hidden {
            self.write_info(start, bytes);
        }
        found
    }

    /// Hides runs of units, and returns what stood where they are hidden.
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
            // What is shorter than a header is not worth hiding.
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

    /// The unit that an offset lies in.
    fn unit_at(&self, offset: u64) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        let unit = self.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        let (start, end) = (self.starts.get(unit)?, self.starts.get(unit.checked_add(1)?)?);
        (end - start <= LARGEST_UNIT).then_some(unit)
    }

    /// What the symbol table calls the function at an address. Read where it lies, each time.
    fn name_in_table(&self, probe: u64) -> Option<Vec<u8>> {
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
        (probe <= end).then(|| nearest.name(object::LittleEndian, table.strings()).ok().map(<[u8]>::to_vec)).flatten()
    }
}

/// Adds a unit's addresses. `false` if there are too many.
fn add_ranges(ranges: &mut Vec<UnitRange>, dwarf: &Dwarf<'_>, unit: &gimli::Unit<Slice<'_>>, number: u32) -> bool {
    let Ok(mut of_unit) = dwarf.unit_ranges(unit) else { return true };
    while let Ok(Some(range)) = of_unit.next() {
        if range.begin >= range.end {
            continue;
        }
        let continues = |last: &&mut UnitRange| {
            last.unit == number && (last.begin..=last.end.saturating_add(PADDING)).contains(&range.begin)
        };
        if let Some(last) = ranges.last_mut().filter(continues) {
            last.end = last.end.max(range.end);
        } else if ranges.len() < MOST_RANGES {
            ranges.push(UnitRange { begin: range.begin, end: range.end, unit: number });
        } else {
            return false;
        }
    }
    true
}

fn frames_at(dwarf: Dwarf<'_>, probe: u64) -> Result<Vec<Found>, gimli::Error> {
    let context = addr2line::Context::from_dwarf(dwarf)?;
    let mut frames = context.find_frames(probe).skip_all_loads()?;
    let mut found = Vec::new();
    while let Ok(Some(frame)) = frames.next() {
        let location = frame.location.as_ref();
        found.push(Found {
            name: frame.function.map(|function| function.name.slice().to_vec()),
            file: location.and_then(|at| at.file).map(str::to_owned),
            line: location.and_then(|at| at.line),
        });
    }
    Ok(found)
}

/// The sections of debug information. Compressed ones are unpacked as far as the bound allows: without one of them there is none.
fn sections_of(data: &[u8], mut room: usize) -> Option<Vec<(SectionId, Section)>> {
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
        let Some(found) = section_of(&section, data, &mut room) else { return Some(Vec::new()) };
        sections.push((id, found));
    }
    Some(sections)
}

fn section_of<'a>(section: &impl ObjectSection<'a>, data: &[u8], room: &mut usize) -> Option<Section> {
    let at = section.compressed_file_range().ok()?;
    let from = usize::try_from(at.offset).ok()?;
    let range = from..from.checked_add(usize::try_from(at.compressed_size).ok()?)?;
    let bytes = data.get(range.clone())?;
    match at.format {
        CompressionFormat::None => Some(Section::InFile(range)),
        CompressionFormat::Zlib => {
            let len = usize::try_from(at.uncompressed_size).ok()?;
            *room = room.checked_sub(len)?;
            let mut unpacked = Vec::with_capacity(len);
            flate2::read::ZlibDecoder::new(bytes).take(at.uncompressed_size).read_to_end(&mut unpacked).ok()?;
            (unpacked.len() == len).then_some(Section::Decompressed(unpacked))
        }
        _ => None,
    }
}

/// Where distributions put debug information.
fn by_build_id(build_id: &[u8]) -> PathBuf {
    let name: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (folder, rest) = name.split_at_checked(2).unwrap_or((&name, ""));
    Path::new(DEBUG_ROOT).join(".build-id").join(folder).join(format!("{rest}.debug"))
}
