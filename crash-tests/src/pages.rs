//! Reads the status pages of a queue directory, as any other process may do at any time.

use std::fs;
use std::io;
use std::path::Path;

use crate::Ledger;

const MAGIC: [u8; 8] = *b"\x89PHS\r\n\x1a\n";
/// Indexes of words of the page.
const ACCEPTED: usize = 11;
const DELIVERED: usize = 12;
const CHECKPOINTED: usize = 19;

/// The ledger of each shard below `queue_dir`, sorted by path. A shard that is being created has none yet.
pub(crate) fn ledgers(queue_dir: &Path) -> io::Result<Vec<Ledger>> {
    let mut shards = Vec::new();
    for project in fs::read_dir(queue_dir)? {
        let project = project?.path();
        for shard in fs::read_dir(&project)?.chain(fs::read_dir(project.join("ai")).into_iter().flatten()) {
            shards.push(shard?.path());
        }
    }
    shards.sort();
    let pages = shards.iter().filter_map(|shard| fs::read(shard.join("status")).ok());
    Ok(pages.filter_map(|page| ledger(&page)).collect())
}

fn ledger(page: &[u8]) -> Option<Ledger> {
    let word = |index: usize| page.get(index * 8..)?.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    if page.get(..8)? != MAGIC {
        return None;
    }
    let [delivered, dead_lettered, evicted, damaged, lost_unsynced, in_store] =
        [0, 1, 2, 3, 4, 5].map(|offset| word(DELIVERED + offset).unwrap_or(0));
    let checkpointed = word(CHECKPOINTED)?;
    let accepted = word(ACCEPTED)?.max(checkpointed);
    Some(Ledger {
        accepted,
        delivered,
        queued: in_store + (accepted - checkpointed),
        dead_lettered,
        evicted,
        damaged,
        lost_unsynced,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_its_ledger_and_anything_else_none() {
        let mut page = vec![0; 4096];
        page[..8].copy_from_slice(&MAGIC);
        for (index, value) in [(11, 9_u64), (12, 4), (13, 1), (17, 2), (19, 7)] {
            page[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        let expected = Ledger { accepted: 9, delivered: 4, queued: 4, dead_lettered: 1, ..Ledger::default() };
        assert_eq!(ledger(&page), Some(expected));
        assert!(expected.balances());
        page[1] = 0;
        assert_eq!(ledger(&page), None);
        assert_eq!(ledger(b"short"), None);
    }
}
