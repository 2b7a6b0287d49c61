//! Whose queue a file is, for somebody who is not its owner.

use std::path::Path;

use redb::Database;

use super::backend::{Condemned, StoreFile};
use super::guard::guarded;
use super::{Identity, place, tables};
use crate::sys::disk::{Disk, Open};

/// Memory for the few pages that are looked at.
const CACHE_BYTES: usize = 64 * 1024;

/// Whose queue the store in `dir` is, if it says so. Not a byte of it is changed: what the database would write stays in memory. Its
/// owner must not have it open meanwhile, or the answer may be none.
pub(crate) fn identify(disk: &Disk, dir: &Path) -> Option<Identity> {
    let file = disk.open(&dir.join(place::QUEUE), Open::Existing).ok()?;
    if file.len().ok()? == 0 {
        return None;
    }
    let backend = StoreFile::held(file, Condemned::default()).ok()?;
    let identity = guarded(|| {
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        Ok(tables::read_meta(&db)?.identity)
    });
    identity.ok()?
}
