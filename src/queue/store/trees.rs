//! Reading the trees of the database's file without the database, however damaged the file is.
//!
//! The database stops at the first page that it cannot use, and panics on some that only look right. So what must be read
//! of a damaged file is read here, by the file format of redb, version 3, which is fixed for the versions of redb that
//! this library accepts. Nothing is written, nothing panics, and each page is visited once, so the time depends on the
//! size of the file alone.
//!
//! A commit names the root of a tree of tables, and that one the root of each table. Whoever names a page also has its
//! checksum, so a page that is not what was written is noticed, wherever it came from. Of the header only the two roots
//! are used, one for each of the last two commits, and the bit that says which commit is the newer; everything else in it
//! is constant, or says how to write to the file. A later commit that the bit does not name may be one that failed.
//!
//! A table is read in four passes:
//! 1. From the root of the newest commit, the pages whose checksums are right.
//! 2. From the others, whose checksums are wrong, the rows that are whole all the same: they have checks of their own.
//! 3. In the ranges of keys of these others, the pages of the commit before, whose checksums are right. It shares most
//!    pages with the newest. The last commit may have removed or reduced some of these rows: then they are back.
//! 4. What else the damaged pages contain. A file that was cut ends in such a page.
//!
//! Where a page is lost that says where others are, no pass reaches those. [`Trees::search`] looks for them in the whole
//! file. It also finds pages that are free and have not been written since, so that the caller must choose.

use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_128;

use crate::queue::error::StoreError;
use crate::sys::disk::DiskFile;

/// The smallest page. Larger ones are a power of two of it.
const PAGE: u64 = 4096;
/// The header takes the first page. Regions of this size follow, each with pages alone.
const REGION: u64 = PAGE << 20;
/// No page is larger that this library makes: one row with an event of 16 MiB. The number of a page that is damaged must
/// not make it read the whole file at once.
const PAGE_MOST: u64 = 64 * 1024 * 1024;
/// Page types: the first byte of a page.
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Real trees are not nearly as deep.
const DEPTH_MOST: u32 = 128;
/// No key is longer that this library makes.
const KEY_MOST: usize = 64;

/// Bytes of the header that are used.
const HEADER: usize = 320;
/// The byte with the number of the newest commit's slot, in its lowest bit.
const FLAGS_AT: usize = 9;
/// Where the slots of the commits begin.
const SLOTS_AT: [usize; 2] = [64, 192];
/// Where the root is in a slot: behind a version and two flags, which are constant.
const ROOT_IN_SLOT: usize = 8;
/// Where the number of rows is in the description of a table, and the root: behind the type of the table, and behind a
/// flag.
const LEN_IN_TABLE: usize = 1;
const ROOT_IN_TABLE: usize = 10;

/// Gets a row that was found and its place, and returns whether it is one.
type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8], Place) -> bool;
/// Whether a row is whole, by its own checks.
type IsWhole<'a> = &'a dyn Fn(&[u8], &[u8]) -> bool;
/// Gets key and value of a row.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError>;

/// Gets a row, and whether the newest commit has it: the commit before may have rows that were removed since.
type RowSink<'a> = &'a mut dyn FnMut(&[u8], &[u8], bool) -> Result<(), StoreError>;

/// The trees of a file.
#[derive(Debug)]
pub(super) struct Trees {
    file: DiskFile,
    len: u64,
    /// The roots of the last two commits, the newest first.
    commits: [Option<Named>; 2],
}

/// A page, as the page above it names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    number: u64,
    checksum: u128,
}

/// Where the rows of a table begin.
#[derive(Debug)]
struct Roots {
    /// According to the newest commit, and to the one before; `None` inside for a table without rows, outside if that
    /// commit does not tell.
    newest: Option<Option<Named>>,
    before: Option<Option<Named>>,
    /// According to damaged pages.
    suspect: Vec<Named>,
}

impl Roots {
    fn into_all(self) -> impl Iterator<Item = Named> {
        [self.newest, self.before].into_iter().flatten().flatten().chain(self.suspect)
    }
}

/// A page to be visited.
#[derive(Clone, Debug)]
struct Visit {
    page: Named,
    /// The keys below it are above the first and not above the second, as far as pages say so that are whole.
    above: Option<Rc<[u8]>>,
    up_to: Option<Rc<[u8]>>,
    depth: u32,
    /// Whether an undamaged page says that it is there.
    is_certain: bool,
    /// Whether it was found to be damaged before.
    is_suspect: bool,
}

/// Which pages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Those whose checksum is right.
    Whole,
    /// Every one that can be taken for a page.
    Any,
}

/// What a walk has met.
#[derive(Clone, Debug, Default)]
struct Walk {
    /// A bit for each 4 KiB of the file: whether a page that was read begins there.
    seen: Vec<u64>,
    damaged: u64,
    /// Every leaf of a tree has the same depth.
    leaf_depth: Option<u32>,
}

impl Walk {
    /// The first `len` bytes of a page at `at`, which are in the file.
    fn see(&mut self, at: u64, len: usize) {
        for page in at / PAGE..=at.saturating_add(len.saturating_sub(1) as u64) / PAGE {
            let word = (page / 64) as usize;
            if self.seen.len() <= word {
                self.seen.resize(word + 1, 0);
            }
            self.seen[word] |= 1 << (page % 64);
        }
    }

    fn has_seen(&self, at: u64) -> bool {
        self.seen.get((at / PAGE / 64) as usize).is_some_and(|word| word & (1 << (at / PAGE % 64)) != 0)
    }
}

/// What [`Trees::rows`] could not reach.
#[derive(Debug, Default)]
pub(super) struct Unreached {
    /// Pages that do not say any more what is below them.
    below: Vec<Visit>,
    walk: Walk,
    /// The keys in these ranges that were found all the same.
    found: BTreeSet<Vec<u8>>,
}

/// Where [`Trees::search`] has found a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    page: u64,
    row: usize,
}

impl Trees {
    /// Fails if the file cannot be read at all.
    pub(super) fn open(file: DiskFile) -> io::Result<Self> {
        let len = file.len()?;
        let mut trees = Self { file, len, commits: [None; 2] };
        let mut header = trees.read(0, HEADER);
        header.resize(HEADER, 0);
        let primary = usize::from(header[FLAGS_AT] & 1);
        let slots = [primary, 1 - primary].map(|slot| &header[SLOTS_AT[slot]..]);
        trees.commits = slots.map(|slot| Named::parse(slot, ROOT_IN_SLOT));
        Ok(trees)
    }

    /// Passes every row of a table that can be reached to `sink`, each key once, until that fails. The newest come first.
    /// What comes from a damaged page and is not whole comes last, and may be anything.
    pub(super) fn rows(&self, table: &str, is_whole: IsWhole<'_>, sink: RowSink<'_>) -> Result<Unreached, StoreError> {
        let Roots { newest, before, suspect } = self.roots(table);
        let (mut walk, mut found) = (Walk::default(), BTreeSet::new());
        let is_known = newest.is_some();
        let suspects = match newest {
            Some(None) => return Ok(Unreached::default()),
            Some(Some(root)) => {
                let root = vec![Visit::root(root)];
                self.scan(root, Trust::Whole, &mut walk, &mut |key, value| sink(key, value, true))?
            }
            None if before.is_none() && suspect.is_empty() => return Ok(Unreached::everything()),
            // Where it is not known where the rows are, all that is found is of the commit before, or must be looked for.
            None => suspect.into_iter().chain([Named::NOWHERE]).map(Visit::root).collect(),
        };
        if suspects.is_empty() {
            return Ok(Unreached::default());
        }
        walk.damaged = suspects.len() as u64;
        // The commit before may have been a level lower.
        let leaf_depth = walk.leaf_depth;
        let mut trial = walk.clone();
        self.scan(suspects.clone(), Trust::Any, &mut trial, &mut |key, value| {
            if is_whole(key, value) && found.insert(key.to_vec()) { sink(key, value, true) } else { Ok(()) }
        })?;
        if let Some(Some(before)) = before {
            self.scan(vec![Visit::root(before)], Trust::Whole, &mut walk, &mut |key, value| {
                let is_wanted = suspects.iter().any(|suspect| suspect.has(key)) && found.insert(key.to_vec());
                if is_wanted { sink(key, value, false) } else { Ok(()) }
            })?;
        }
        walk.leaf_depth = leaf_depth;
        let mut below = self.scan(suspects, Trust::Any, &mut walk, &mut |key, value| {
            if found.insert(key.to_vec()) { sink(key, value, true) } else { Ok(()) }
        })?;
        // If it is certain where a leaf was, it is no use to look for it elsewhere.
        below.retain(|visit| !is_known || !visit.is_certain || walk.leaf_depth.is_none_or(|depth| visit.depth < depth));
        Ok(Unreached { below, walk, found })
    }

    /// The number of rows that a table has, according to the newest commit that can tell.
    pub(super) fn len(&self, table: &str) -> Option<u64> {
        self.commits.into_iter().flatten().find_map(|commit| {
            let mut len = None;
            let scanned =
                self.scan(vec![Visit::root(commit)], Trust::Whole, &mut Walk::default(), &mut |key, value| {
                    if key == table.as_bytes() {
                        len = array(value, LEN_IN_TABLE).map(u64::from_le_bytes);
                    }
                    Ok(())
                });
            scanned.ok().and(len)
        })
    }

    /// Passes the rows of a small table to `sink`: those of both commits, so that a key may come several times.
    pub(super) fn versions(&self, table: &str, sink: Sink<'_>) -> Result<(), StoreError> {
        for root in self.roots(table).into_all() {
            let mut walk = Walk::default();
            let suspects = self.scan(vec![Visit::root(root)], Trust::Whole, &mut walk, sink)?;
            self.scan(suspects, Trust::Any, &mut walk, sink)?;
        }
        Ok(())
    }

    /// Looks for leaves in the whole file, and passes the rows that [`rows`](Self::rows) has not reached to `each`: rows
    /// of this table and of others, also those that were removed long ago, and bytes that only look like rows.
    pub(super) fn search(&self, unreached: &Unreached, each: Each<'_>) {
        let mut at = PAGE;
        while at < self.len {
            let mut size = PAGE;
            // A page begins at a multiple of its size. So most places are too small for much, and the time to read what
            // only looks like a large page is bounded.
            let offset = (at - PAGE) % REGION;
            let room = if offset == 0 { PAGE_MOST } else { (1 << offset.trailing_zeros()).min(PAGE_MOST) };
            let beginning = if unreached.walk.has_seen(at) { None } else { self.beginning(at, room) };
            let beginning = beginning.filter(|page| page.is_leaf && page.is_in_order());
            if let Some(page) = beginning.and_then(|_| self.page_at(at, room, 0)) {
                let mut is_ours = false;
                for row in 0..page.count {
                    let Some((key, value)) = page.row(row).filter(|(key, _)| unreached.has(key)) else { continue };
                    is_ours |= each(key, value, Place { page: at, row });
                }
                if is_ours {
                    size = (page.bytes.len() as u64).next_multiple_of(PAGE);
                }
            }
            at += size;
        }
    }

    /// Passes a row that was found to `sink`.
    pub(super) fn row_at(&self, place: Place, sink: Sink<'_>) -> Result<(), StoreError> {
        let page = self.page_at(place.page, PAGE_MOST, 0);
        page.as_ref().and_then(|page| page.row(place.row)).map_or(Ok(()), |(key, value)| sink(key, value))
    }

    /// The roots of a table. What a damaged page says is believed only if it leads to a page that is right.
    fn roots(&self, table: &str) -> Roots {
        let mut suspect = Vec::new();
        let mut root_in = |commit: Option<Named>| {
            let mut walk = Walk::default();
            let mut scan = |from, trust| {
                let mut roots = Vec::new();
                let scanned = self.scan(from, trust, &mut walk, &mut |key, value| {
                    roots.extend((key == table.as_bytes()).then(|| Named::parse(value, ROOT_IN_TABLE)));
                    Ok(())
                });
                (scanned.unwrap_or_default(), roots)
            };
            let (suspects, sure) = scan(vec![Visit::root(commit?)], Trust::Whole);
            let (_, unsure) = scan(suspects, Trust::Any);
            let unsure = unsure.into_iter().flatten();
            let (right, wrong): (Vec<_>, Vec<_>) = unsure.partition(|root| self.is_whole(*root));
            suspect.extend(wrong);
            sure.first().copied().or_else(|| right.first().copied().map(Some))
        };
        let [newest, before] = self.commits.map(&mut root_in);
        Roots { newest, before, suspect }
    }

    fn is_whole(&self, page: Named) -> bool {
        self.page(page).is_some_and(|page| page.is_whole)
    }

    /// Visits the pages and what is below them, and passes their rows to `sink`. Returns the pages that are not trusted, or
    /// if all are, those that do not say what is below them. Pages that were seen before are passed over.
    fn scan(
        &self,
        mut next: Vec<Visit>,
        trust: Trust,
        walk: &mut Walk,
        sink: Sink<'_>,
    ) -> Result<Vec<Visit>, StoreError> {
        let mut left = Vec::new();
        next.reverse();
        while let Some(visit) = next.pop() {
            let Some((at, _)) = visit.page.place() else {
                walk.damaged += u64::from(trust == Trust::Any && !visit.is_suspect);
                left.push(Visit { is_suspect: true, ..visit });
                continue;
            };
            if walk.has_seen(at) {
                continue;
            }
            let page = self.page(visit.page);
            let is_whole = page.as_ref().is_some_and(|page| page.is_whole);
            if trust == Trust::Whole && !is_whole {
                left.push(Visit { is_suspect: true, ..visit });
                continue;
            }
            walk.damaged += u64::from(!is_whole && !visit.is_suspect);
            match page {
                Some(page) if page.is_leaf => {
                    // Of a damaged page the first bytes alone: where it ends is not known.
                    walk.see(at, if is_whole { page.bytes.len() } else { 1 });
                    if is_whole {
                        walk.leaf_depth = Some(visit.depth);
                    }
                    // A page of the same table may have been written over it, and have the only copy of its rows.
                    let is_possible = |key: &[u8]| key.len() <= KEY_MOST && (!is_whole || visit.has(key));
                    for (key, value) in (0..page.count).filter_map(|n| page.row(n)).filter(|(key, _)| is_possible(key))
                    {
                        sink(key, value)?;
                    }
                    left.extend((!is_whole && !visit.is_certain).then_some(visit));
                }
                Some(page) if visit.depth < DEPTH_MOST => {
                    walk.see(at, 1);
                    next.extend((0..=page.count).rev().filter_map(|n| page.visit(n, &visit)));
                    left.extend((!is_whole).then_some(visit));
                }
                _ => left.push(visit),
            }
        }
        Ok(left)
    }

    /// The page, if there is one; as much of it as the file has.
    fn page(&self, named: Named) -> Option<Page> {
        let (at, size) = named.place()?;
        self.page_at(at, size, named.checksum)
    }

    fn page_at(&self, at: u64, size: u64, checksum: u128) -> Option<Page> {
        let mut page = self.beginning(at, size)?;
        let end = page.content_end()?;
        if end > page.bytes.len() {
            let available = usize::try_from(self.len.saturating_sub(at).min(size)).ok()?;
            page.bytes = self.read(at, end.min(available));
        }
        page.bytes.truncate(end);
        page.is_whole = page.bytes.len() == end && xxh3_128(&page.bytes) == checksum;
        Some(page)
    }

    /// The page without its rows or keys, if there is one.
    fn beginning(&self, at: u64, size: u64) -> Option<Page> {
        let available = usize::try_from(self.len.saturating_sub(at).min(size)).ok()?;
        let mut bytes = self.read(at, available.min(PAGE as usize));
        let is_leaf = match *bytes.first()? {
            LEAF => true,
            BRANCH => false,
            _ => return None,
        };
        let count = usize::from(u16::from_le_bytes(array(&bytes, 2)?));
        let heads = if is_leaf { 4 + 8 * count } else { 8 + 24 * (count + 1) + 4 * count };
        // With keys as short as ours, every branch is a page of the smallest size.
        if heads as u64 > if is_leaf { size } else { PAGE } {
            return None;
        }
        if heads > bytes.len() {
            bytes = self.read(at, heads.min(available));
        }
        (count > 0).then_some(Page { bytes, is_leaf, count, heads, is_whole: false })
    }

    /// Bytes of the file, with zeros for what cannot be read: where the disk has a bad sector, the rest of a large page is
    /// of use. Shorter than `len` at the end of the file.
    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let available = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(available)];
        if self.file.read_exact_at(at, &mut bytes).is_err() {
            for (piece, at) in bytes.chunks_mut(PAGE as usize).zip((at..).step_by(PAGE as usize)) {
                if self.file.read_exact_at(at, piece).is_err() {
                    piece.fill(0);
                }
            }
        }
        bytes
    }
}

impl Named {
    /// A page that no file has.
    const NOWHERE: Self = Self { number: u64::MAX, checksum: 0 };

    /// Reads the number and the checksum at `at`; `None` for a tree without pages, of which both are zero.
    fn parse(bytes: &[u8], at: usize) -> Option<Self> {
        let named = Self {
            number: u64::from_le_bytes(array(bytes, at)?),
            checksum: u128::from_le_bytes(array(bytes, at.checked_add(8)?)?),
        };
        (named.number != 0 || named.checksum != 0).then_some(named)
    }

    /// Where the page begins, and its size; `None` for a number that no page has.
    fn place(self) -> Option<(u64, u64)> {
        let order = u32::try_from(self.number >> 59).ok()?;
        let size = PAGE.checked_shl(order).filter(|size| *size <= PAGE_MOST)?;
        let index = self.number & (0x000F_FFFF >> order);
        let region = (self.number >> 20) & 0x000F_FFFF;
        Some((PAGE + region * REGION + index * size, size))
    }
}

impl Visit {
    fn root(page: Named) -> Self {
        Self { page, above: None, up_to: None, depth: 0, is_certain: true, is_suspect: false }
    }

    /// Whether the key can be below this page.
    fn has(&self, key: &[u8]) -> bool {
        self.above.as_deref().is_none_or(|above| key > above) && self.up_to.as_deref().is_none_or(|most| key <= most)
    }
}

impl Unreached {
    /// Nothing tells where the table is.
    pub(super) fn everything() -> Self {
        let root = Visit::root(Named::NOWHERE);
        Self { below: vec![root], ..Self::default() }
    }

    /// Whether every page was reached that belongs to the table, though some of them may be damaged.
    pub(super) fn is_nothing(&self) -> bool {
        self.below.is_empty()
    }

    /// The number of damaged pages that were met.
    pub(super) fn damaged_pages(&self) -> u64 {
        self.walk.damaged
    }

    fn has(&self, key: &[u8]) -> bool {
        self.below.iter().any(|visit| visit.has(key)) && !self.found.contains(key)
    }
}

/// The content of a page.
#[derive(Debug)]
struct Page {
    bytes: Vec<u8>,
    is_leaf: bool,
    /// The number of rows, or of keys between the pages below.
    count: usize,
    /// Bytes before the first key.
    heads: usize,
    /// Whether its checksum is right.
    is_whole: bool,
}

impl Page {
    /// The `n`-th of the ends that begin at `from`.
    fn end(&self, from: usize, n: usize) -> Option<usize> {
        Some(u32::from_le_bytes(array(&self.bytes, from + 4 * n)?) as usize)
    }

    /// Key and value of a leaf's row. A value that the end of the file cuts is passed without its end.
    fn row(&self, n: usize) -> Option<(&[u8], &[u8])> {
        let (keys, values) = (4, 4 + 4 * self.count);
        let key_start = n.checked_sub(1).map_or(Some(self.heads), |before| self.end(keys, before))?;
        let value_start = match n.checked_sub(1) {
            Some(before) => self.end(values, before)?,
            None => self.end(keys, self.count - 1)?,
        };
        let value_end = self.end(values, n)?.min(self.bytes.len());
        Some((self.bytes.get(key_start..self.end(keys, n)?)?, self.bytes.get(value_start..value_end)?))
    }

    /// Where the last row or key ends: the checksum is about everything before.
    fn content_end(&self) -> Option<usize> {
        self.end(self.heads.checked_sub(4)?, 0)
    }

    /// Whether each row ends behind the one before, as in every leaf.
    fn is_in_order(&self) -> bool {
        (1..2 * self.count).all(|n| self.end(4, n - 1) <= self.end(4, n))
    }

    /// The `n`-th page below a branch. The branch's keys are used only if it is whole.
    fn visit(&self, n: usize, above: &Visit) -> Option<Visit> {
        let children = self.count + 1;
        let page = Named {
            checksum: u128::from_le_bytes(array(&self.bytes, 8 + 16 * n)?),
            number: u64::from_le_bytes(array(&self.bytes, 8 + 16 * children + 8 * n)?),
        };
        let ends = 8 + 24 * children;
        let key = |n: usize| {
            let start = n.checked_sub(1).map_or(Some(self.heads), |before| self.end(ends, before))?;
            let key = self.bytes.get(start..self.end(ends, n)?)?;
            self.is_whole.then(|| Rc::from(key))
        };
        let before = n.checked_sub(1).and_then(key).or_else(|| above.above.clone());
        let up_to = Some(n).filter(|n| *n < self.count).and_then(key).or_else(|| above.up_to.clone());
        Some(Visit { page, above: before, up_to, depth: above.depth + 1, is_certain: self.is_whole, is_suspect: false })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
