//! What fuzz targets reach of the reader.

use xxhash_rust::xxh3::xxh3_64;

use super::format::{Kind, MAGIC, Record, scan};
use super::incident::incidents;
use super::{Context, End, Incident};

/// What is told of a file with these bytes, whatever the end of its process: of the bytes as they are, and once more with right
/// checksums, for no fuzzer ever guesses one.
pub(crate) fn told_of(bytes: &[u8], mut tell: impl FnMut(&Incident, Option<&Context>)) {
    let mut repaired = bytes.to_vec();
    repair(&mut repaired);
    for bytes in [bytes, &repaired] {
        let scanned = scan(bytes);
        assert!(scanned.passed_over <= bytes.len());
        let is_context = |record: &&Record| record.kind == Kind::Context;
        let context = scanned.records.iter().rfind(is_context).map(Context::decode);
        for end in [End::Alive, End::Gone, End::Exited(Some(101)), End::Exited(None)] {
            incidents(&scanned.records, end).iter().for_each(|incident| tell(incident, context.as_ref()));
        }
    }
}

fn repair(bytes: &mut [u8]) {
    for start in 0..bytes.len() {
        let Some(record) = bytes.get_mut(start..).filter(|rest| rest.starts_with(&MAGIC)) else { continue };
        let Some(body) = record.get(12..16).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes) else {
            return;
        };
        let Some(record) = record.get_mut(..(body as usize).saturating_add(super::format::HEADER)) else { continue };
        record[16..20].fill(0);
        let sum = xxh3_64(record) as u32;
        record[16..20].copy_from_slice(&sum.to_le_bytes());
    }
}
