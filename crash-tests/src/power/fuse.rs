//! Serves a [`Disk`] to the kernel as one file, over which a loop device can be set up: the kernel's FUSE protocol, as
//! far as a file needs it that is the root of its file system.
//!
//! The requests and their layouts are those of `linux/fuse.h`, in the order of bytes of a little-endian
//! machine. A loop device passes a flush on as a sync of its file, so the disk learns of each.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::libc;
use nix::mount::{MsFlags, mount};

use super::disk::Disk;

/// The version of the protocol that is spoken. Kernels speak every older one.
const VERSION: [u32; 2] = [7, 31];
const REQUEST_HEADER: usize = 40;
/// The fixed part of a read or a write.
const TRANSFER_HEADER: usize = 40;
/// Pages of the largest write, and its bytes.
const MAX_PAGES: u16 = 256;
const MAX_WRITE: u32 = MAX_PAGES as u32 * 4096;
/// Settings of the answer to `INIT`: reads in parallel, writes above 4 KiB, `MAX_PAGES` is set.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 22;
/// The kernel need not ask for the attributes again.
const VALID_SECONDS: u64 = 86_400;
const REGULAR_FILE: u32 = 0o100_600;

/// Requests.
mod op {
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// Mounts `disk` at `file`, an existing file, as a file of `size` bytes. A thread serves it until it is unmounted and
/// nothing uses it any more.
pub(super) fn serve(disk: Arc<Mutex<Disk>>, size: u64, file: &Path) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode={REGULAR_FILE:o},user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("powercut"), file, Some("fuse"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    thread::Builder::new().name("disk".to_owned()).spawn(move || answer_all(&disk, size, &device))?;
    Ok(())
}

/// Ends when the kernel has no more requests: the file is unmounted.
fn answer_all(disk: &Mutex<Disk>, size: u64, mut device: &File) {
    let mut request = vec![0; REQUEST_HEADER + TRANSFER_HEADER + MAX_WRITE as usize];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // A request was interrupted before it was read.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => continue,
            Err(_) => return,
        };
        let Some(answer) = answer(&mut disk.lock().unwrap_or_else(PoisonError::into_inner), size, &request[..length])
        else {
            continue;
        };
        // An error means that nobody waits for this answer any more.
        let _ = device.write(&answer);
    }
}

/// The whole answer; `None` for a request that has none.
fn answer(disk: &mut Disk, size: u64, request: &[u8]) -> Option<Vec<u8>> {
    let opcode = u32_at(request, 4)?;
    let unique = u64_at(request, 8)?;
    let body = request.get(REQUEST_HEADER..)?;
    let result = match opcode {
        op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return None,
        op::INIT => Ok(greeting()),
        op::GETATTR | op::SETATTR => Ok(attributes(size)),
        op::OPEN => Ok(vec![0; 16]),
        op::READ => transfer(body).map(|(offset, length)| {
            let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            disk.read(offset, length.min(left))
        }),
        op::WRITE => transfer(body).and_then(|(offset, length)| {
            disk.write(offset, body.get(TRANSFER_HEADER..TRANSFER_HEADER + length).ok_or(libc::EINVAL)?);
            Ok([u32::try_from(length).unwrap_or(0).to_le_bytes(), [0; 4]].concat())
        }),
        op::FSYNC => {
            disk.flush();
            Ok(Vec::new())
        }
        op::FLUSH | op::RELEASE => Ok(Vec::new()),
        // The kernel does without them, and does not ask again for most.
        _ => Err(libc::ENOSYS),
    };
    let (error, payload) = match result {
        Ok(payload) => (0, payload),
        Err(error) => (-error, Vec::new()),
    };
    let length = u32::try_from(16 + payload.len()).unwrap_or(u32::MAX);
    Some([&length.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes(), &payload].concat())
}

/// Offset and length of a read or a write.
fn transfer(body: &[u8]) -> Result<(u64, usize), i32> {
    let offset = u64_at(body, 8).ok_or(libc::EINVAL)?;
    let length = u32_at(body, 16).ok_or(libc::EINVAL)?;
    Ok((offset, length as usize))
}

/// `fuse_init_out`.
fn greeting() -> Vec<u8> {
    let [major, minor] = VERSION;
    let background = 0_u32; // The kernel's own limits.
    let nanoseconds = 1_u32;
    let words = [major, minor, MAX_WRITE, FLAGS, background, MAX_WRITE, nanoseconds, u32::from(MAX_PAGES)];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(64, 0);
    bytes
}

/// `fuse_attr_out`.
fn attributes(size: u64) -> Vec<u8> {
    let (inode, links, block) = (1_u64, 1_u32, 4096_u32);
    let mut bytes = Vec::with_capacity(104);
    for long in [VALID_SECONDS, 0, inode, size, size / 512, 0, 0, 0] {
        bytes.extend(long.to_le_bytes());
    }
    for word in [0, 0, 0, REGULAR_FILE, links, 0, 0, 0, block, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Content, Survivors};
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; REQUEST_HEADER];
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[8..16].copy_from_slice(&77_u64.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn transfer_of(offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; TRANSFER_HEADER];
        bytes[8..16].copy_from_slice(&offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&length.to_le_bytes());
        bytes.extend(data);
        bytes
    }

    /// The error and the payload of the answer.
    fn asked(disk: &mut Disk, opcode: u32, body: &[u8]) -> (i32, Vec<u8>) {
        let answer = answer(disk, 8192, &request(opcode, body)).expect("an answer");
        assert_eq!(u32_at(&answer, 0), u32::try_from(answer.len()).ok());
        assert_eq!(u64_at(&answer, 8), Some(77));
        (u32_at(&answer, 4).expect("a word").cast_signed(), answer[16..].to_vec())
    }

    #[test]
    fn a_sync_of_the_file_flushes_the_disk() {
        let mut disk = Disk::new(Content::default());
        let left = |disk: &Disk| disk.cut(Survivors::None, &mut StdRng::seed_from_u64(1)).read(4096, 3);
        assert_eq!(asked(&mut disk, op::WRITE, &transfer_of(4096, 3, b"abc")), (0, vec![3, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(asked(&mut disk, op::READ, &transfer_of(4096, 3, b"")), (0, b"abc".to_vec()));
        assert_eq!(asked(&mut disk, op::FLUSH, &[0; 24]), (0, Vec::new()), "the close of a descriptor flushes nothing");
        assert_eq!(left(&disk), [0; 3]);
        assert_eq!(asked(&mut disk, op::FSYNC, &[0; 16]), (0, Vec::new()));
        assert_eq!(left(&disk), b"abc");
    }

    #[test]
    fn a_read_ends_at_the_end_of_the_file() {
        let mut disk = Disk::new(Content::default());
        assert_eq!(asked(&mut disk, op::READ, &transfer_of(8190, 100, b"")).1, [0; 2]);
        assert_eq!(asked(&mut disk, op::READ, &transfer_of(9000, 100, b"")).1, Vec::<u8>::new());
    }

    #[test]
    fn other_requests_are_refused_and_short_ones_harmless() {
        let mut disk = Disk::new(Content::default());
        assert_eq!(asked(&mut disk, 43, &[]), (-libc::ENOSYS, Vec::new()));
        assert_eq!(asked(&mut disk, op::WRITE, &transfer_of(0, 9, b"abc")).0, -libc::EINVAL);
        assert_eq!(asked(&mut disk, op::READ, b"short").0, -libc::EINVAL);
        assert_eq!(answer(&mut disk, 8192, &request(op::FORGET, &[0; 8])), None);
        assert_eq!(answer(&mut disk, 8192, b"too short"), None);
        assert_eq!(
            (asked(&mut disk, op::INIT, &[0; 16]).1.len(), asked(&mut disk, op::GETATTR, &[0; 16]).1.len()),
            (64, 104)
        );
    }
}
