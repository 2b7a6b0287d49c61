//! Frames: how a record is stored. A head of 24 bytes, the body, and padding to 8 bytes.
//!
//! A frame has the same bytes in an arena of the journal and in a chunk of the store. `docs/format.md` describes them.
//! The check word is mixed with a *salt* that is drawn for each round of an arena, so a frame that is left over from an
//! earlier round is never taken for one of this round, whatever pages a power cut brings back.

use xxhash_rust::xxh3::xxh3_64;

/// Length of the head in bytes.
pub(crate) const FRAME_HEAD: usize = 24;
/// The class of an ordinary record. Records of any other class have priority: they are evicted last.
pub(crate) const ORDINARY: u8 = 0;
/// Frames begin at multiples of this, so that the length word can be published with one atomic store.
pub(crate) const FRAME_ALIGN: usize = 8;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Length of the body in bytes; never 0.
    pub(crate) body_len: u32,
    /// The class of the record: [`ORDINARY`], or a priority class.
    pub(crate) class: u8,
    /// The sequence number. There are no gaps within a shard.
    pub(crate) seq: u64,
    /// Checksum of body and head, mixed with the salt of the round.
    pub(crate) check: u64,
}

/// Bytes that a body of `body_len` occupies with head and padding; `None` if that overflows.
#[inline]
pub(crate) fn framed_len(body_len: usize) -> Option<usize> {
    body_len.checked_add(FRAME_HEAD)?.checked_next_multiple_of(FRAME_ALIGN)
}

/// The expensive part of the checksum, computed before the lock is taken.
pub(crate) fn hash_body(body: &[u8]) -> u64 {
    xxh3_64(body)
}

/// The check word: the hash of the body, mixed with what is known only under the lock.
#[inline]
pub(crate) fn seal(body_hash: u64, salt: u64, seq: u64, body_len: u32, class: u8) -> u64 {
    // Each step is a bijection of the running value (odd multiplier, xor-shift), so two frames that differ in one field
    // only never share a check word.
    let mut mixed = body_hash ^ salt;
    for part in [seq, u64::from(body_len) << 8 | u64::from(class)] {
        mixed = (mixed ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^= mixed >> 32;
    }
    mixed
}

/// The head as three words: body length u32, class u8, three zero bytes; sequence; check.
#[inline]
pub(crate) fn head_words(head: &FrameHead) -> [u64; 3] {
    [u64::from(head.class) << 32 | u64::from(head.body_len), head.seq, head.check]
}

/// The head's bytes: its words, little-endian.
pub(crate) fn encode_head(head: &FrameHead) -> [u8; FRAME_HEAD] {
    let mut bytes = [0; FRAME_HEAD];
    for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(head_words(head)) {
        *place = word.to_le_bytes();
    }
    bytes
}

fn decode_head(bytes: &[u8; FRAME_HEAD]) -> FrameHead {
    let [l0, l1, l2, l3, class, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, c4, c5, c6, c7] = *bytes;
    FrameHead {
        body_len: u32::from_le_bytes([l0, l1, l2, l3]),
        class,
        seq: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        check: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
    }
}

/// Reads the frame at `at` and verifies its check word with `salt`. Returns head, body and where the next frame begins;
/// `None` at the end of what was written, and for a frame that is torn, damaged or of another round.
pub(crate) fn parse(bytes: &[u8], at: usize, salt: u64) -> Option<(FrameHead, &[u8], usize)> {
    let rest = bytes.get(at..)?;
    // A zero length word ends what was written.
    let head = rest.first_chunk::<FRAME_HEAD>().map(decode_head).filter(|head| head.body_len != 0)?;
    let body_len = head.body_len as usize;
    let body = rest.get(FRAME_HEAD..)?.get(..body_len)?;
    let is_valid = head.check == seal(hash_body(body), salt, head.seq, head.body_len, head.class);
    is_valid.then_some((head, body, at + framed_len(body_len)?))
}

/// The valid frames at the start of `bytes`, up to the first invalid one.
pub(crate) fn frames(bytes: &[u8], salt: u64) -> impl Iterator<Item = (FrameHead, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (head, body, next) = parse(bytes, at, salt)?;
        at = next;
        Some((head, body))
    })
}

/// Appends one frame to `out`, for tests that build frames in memory. The journal writes its frames in place.
#[cfg(any(fuzzing, test))]
pub(crate) fn append(out: &mut Vec<u8>, body: &[u8], class: u8, seq: u64, salt: u64) {
    let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let check = seal(hash_body(body), salt, seq, body_len, class);
    out.extend_from_slice(&encode_head(&FrameHead { body_len, class, seq, check }));
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(FRAME_ALIGN), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_frames(salt: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (seq, body) in [&b"a"[..], b"eight by", b"the third"].into_iter().enumerate() {
            append(&mut bytes, body, 0, seq as u64 + 7, salt);
        }
        bytes
    }

    #[test]
    fn frames_come_back_in_order_with_their_sequence_numbers() {
        let bytes = three_frames(5);
        let seen: Vec<_> = frames(&bytes, 5).map(|(head, body)| (head.seq, body)).collect();
        assert_eq!(seen, [(7, &b"a"[..]), (8, b"eight by"), (9, b"the third")]);
    }

    #[test]
    fn a_frame_of_another_round_is_invalid() {
        assert_eq!(parse(&three_frames(5), 0, 6), None);
    }

    #[test]
    fn every_flipped_bit_of_head_and_body_is_noticed() {
        let mut bytes = Vec::new();
        append(&mut bytes, b"payload!", 1, 42, 99);
        for bit in 0..bytes.len() * 8 {
            // The three reserved bytes of the head are not checked.
            if (40..64).contains(&bit) {
                continue;
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bytes, 0, 99).is_none(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn bytes_cut_anywhere_give_the_whole_frames_before_the_cut() {
        let bytes = three_frames(5);
        for cut in 0..bytes.len() {
            let whole = frames(&bytes[..cut], 5).count();
            assert!(whole <= 3 && (cut >= 25 || whole == 0), "cut {cut} gave {whole}");
        }
    }
}
