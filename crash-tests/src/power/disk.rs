//! A disk with a write cache, in memory: which bytes it has, which of them were flushed, and what a power cut leaves.
//! Pure.

use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Unit in which content is kept.
const PAGE: usize = 4096;
/// Unit that a disk writes or does not write as a whole.
const SECTOR: usize = 512;

/// Sparse content. What was never written is zero. A copy shares the pages that neither side changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pages: HashMap<u64, Arc<[u8; PAGE]>>,
}

impl Content {
    /// The content of `bytes`, without its zeros.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        for (number, page) in (0..).zip(bytes.chunks(PAGE)) {
            if page.iter().any(|byte| *byte != 0) {
                content.write(number * PAGE as u64, page);
            }
        }
        content
    }

    /// `length` bytes from `offset`.
    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (page, within, range) in pieces(offset, length) {
            if let Some(found) = self.pages.get(&page) {
                bytes[range.clone()].copy_from_slice(&found[within..within + range.len()]);
            }
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, within, range) in pieces(offset, bytes.len()) {
            let page = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])));
            page[within..within + range.len()].copy_from_slice(&bytes[range]);
        }
    }
}

/// The pages that `length` bytes from `offset` touch: number of the page, first byte in it, and which of the bytes.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE as u64).unwrap_or(0);
        let next = (done + PAGE - within).min(length);
        let piece = (done < length).then_some((at / PAGE as u64, within, done..next));
        done = next;
        piece
    })
}

/// Which writes since the last flush survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Survivors {
    /// None: the cache was never written back.
    None,
    /// The first ones, in their order.
    First,
    /// Each with even chances, whole.
    Writes,
    /// Each sector of each write with even chances: writes are torn.
    Sectors,
    /// All, as in a clone.
    All,
}

impl Survivors {
    /// Any of them.
    pub(super) fn any(random: &mut impl Rng) -> Self {
        [Self::None, Self::None, Self::First, Self::Writes, Self::Sectors, Self::All][random.random_range(0..6)]
    }
}

/// A disk with a write cache.
#[derive(Debug)]
pub(super) struct Disk {
    /// As of the last flush.
    stable: Content,
    /// With all writes.
    current: Content,
    /// The writes since the last flush, in their order.
    cached: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    /// A disk on which `content` was flushed.
    pub(super) fn new(content: Content) -> Self {
        Self { stable: content.clone(), current: content, cached: Vec::new() }
    }

    /// What a running machine reads.
    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        self.current.read(offset, length)
    }

    /// Takes a write into the cache.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.cached.push((offset, bytes.to_vec()));
    }

    /// Makes all writes so far survive a power cut.
    pub(super) fn flush(&mut self) {
        for (offset, bytes) in self.cached.drain(..) {
            self.stable.write(offset, &bytes);
        }
    }

    /// What is on the disk if the power is cut now. A later write to a sector never gives way to an earlier one that
    /// survives, because the survivors are applied in their order.
    pub(super) fn cut(&self, survivors: Survivors, random: &mut StdRng) -> Content {
        let mut left = self.stable.clone();
        let count = if survivors == Survivors::First { random.random_range(0..=self.cached.len()) } else { usize::MAX };
        for (offset, bytes) in self.cached.iter().take(count) {
            let pieces = match survivors {
                Survivors::Sectors => bytes.chunks(SECTOR),
                _ => bytes.chunks(bytes.len().max(1)),
            };
            let mut at = *offset;
            for piece in pieces {
                let survives = match survivors {
                    Survivors::None => false,
                    Survivors::First | Survivors::All => true,
                    Survivors::Writes | Survivors::Sectors => random.random(),
                };
                if survives {
                    left.write(at, piece);
                }
                at += piece.len() as u64;
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn random(seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed)
    }

    /// A disk with `flushed` sectors of ones and as many of twos in its cache, over the ones and behind them.
    fn disk(flushed: usize) -> Disk {
        let mut disk = Disk::new(Content::default());
        disk.write(0, &vec![1; flushed * SECTOR]);
        disk.flush();
        for sector in 0..flushed * 2 {
            disk.write((sector * SECTOR) as u64, &[2; SECTOR]);
        }
        disk
    }

    /// The first byte of each sector.
    fn sectors(content: &Content, count: usize) -> Vec<u8> {
        content.read(0, count * SECTOR).chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn content_reads_as_it_was_written_across_pages() {
        let bytes: Vec<u8> = (0..PAGE * 2).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
        let mut content = Content::default();
        content.write(PAGE as u64 - 100, &bytes);
        assert_eq!(content.read(PAGE as u64 - 100, bytes.len()), bytes);
        assert_eq!(content.read(0, 100), [0; 100]);
        let whole = Content::of(&content.read(0, PAGE * 4));
        assert_eq!(whole.pages.len(), 3, "pages of zeros are left out");
        assert_eq!(whole.read(PAGE as u64 - 100, bytes.len()), bytes);
    }

    #[test]
    fn what_was_flushed_survives_and_the_rest_may_not() {
        let disk = disk(4);
        assert_eq!(sectors(&disk.cut(Survivors::None, &mut random(1)), 8), [1, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(sectors(&disk.cut(Survivors::All, &mut random(1)), 8), [2; 8]);
        assert_eq!(disk.read(0, 1), [2], "a running machine reads its own writes");
    }

    #[test]
    fn the_first_writes_survive_without_a_gap() {
        let disk = disk(8);
        for seed in 0..20 {
            let left = sectors(&disk.cut(Survivors::First, &mut random(seed)), 16);
            let written = left.iter().take_while(|byte| **byte == 2).count();
            assert!(left[written..].iter().all(|byte| *byte != 2), "{left:?}");
        }
    }

    #[test]
    fn some_writes_survive_whole_or_some_sectors_of_them() {
        let mut disk = disk(0);
        for page in 0..64 {
            disk.write(page * PAGE as u64, &[3; PAGE]);
        }
        let torn = |survivors| {
            let left = sectors(&disk.cut(survivors, &mut random(7)), 64 * 8);
            let counts: Vec<_> = left.chunks(8).map(|page| page.iter().filter(|byte| **byte == 3).count()).collect();
            assert!(counts.contains(&8) || survivors == Survivors::Sectors, "some survive whole");
            assert!(counts.iter().sum::<usize>() < 64 * 8, "some are lost");
            counts.iter().any(|count| !matches!(count, 0 | 8))
        };
        assert!(!torn(Survivors::Writes));
        assert!(torn(Survivors::Sectors));
    }

    #[test]
    fn an_earlier_write_survives_a_later_one_that_is_lost() {
        let mut disk = disk(0);
        disk.write(0, &[4; SECTOR]);
        disk.write(0, &[5; SECTOR]);
        let left: Vec<_> = (0..50).map(|seed| disk.cut(Survivors::Writes, &mut random(seed)).read(0, 1)[0]).collect();
        for possible in [0, 4, 5] {
            assert!(left.contains(&possible), "{possible}");
        }
    }

    #[test]
    fn a_heir_does_not_see_what_is_written_after_the_cut() {
        let mut disk = disk(1);
        let heir = disk.cut(Survivors::All, &mut random(1));
        disk.write(0, &[9; SECTOR]);
        disk.flush();
        assert_eq!(sectors(&heir, 2), [2, 2]);
    }
}
