//! Stack traces as they are captured: return addresses and the images that contain them, without names. `json.rs` turns
//! them into what PostHog receives when a request body is built.
//!
//! In a record, stack traces and debug images are extension values whose content is MessagePack: a stack trace is
//! `[images, frames]`, debug images are `images`. An image is `[address, size, vmaddr, main, build id, path]`. Frames
//! are pairs in one array: the index of the image and the offset in it, or nil and the address.

use uuid::Uuid;

use super::msgpack::{
    Reader, Token, append_array_header, append_bin, append_bool, append_nil, append_str, append_uint, begin_ext,
    end_ext, text,
};

pub(super) const STACK_EXT: i8 = 1;
pub(super) const IMAGES_EXT: i8 = 2;
/// Frames that are kept from the innermost end of a deep stack.
pub(crate) const NEAREST_FRAMES: usize = 96;
/// Frames that are kept from the outermost end of a deep stack.
pub(crate) const OUTERMOST_FRAMES: usize = 32;

const MOST_FRAMES: usize = NEAREST_FRAMES + OUTERMOST_FRAMES;
/// No stack of [`MOST_FRAMES`] frames refers to more.
const MOST_IMAGES: usize = MOST_FRAMES;
const IMAGE_FIELDS: u32 = 6;

/// A file whose code was mapped into the process: the executable or a shared library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Image<'a> {
    /// Address of its first byte in memory.
    pub(crate) address: u64,
    /// Bytes of memory from there to its end.
    pub(crate) size: u64,
    /// The address in its headers; 0 if it can be loaded anywhere.
    pub(crate) vmaddr: u64,
    pub(crate) is_main: bool,
    /// GNU build id; empty if it has none.
    pub(crate) build_id: &'a [u8],
    pub(crate) path: &'a str,
}

impl Image<'_> {
    pub(crate) fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.size)
    }

    /// The last component of its path.
    pub(crate) fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The id under which PostHog stores its symbols: the first 16 bytes of the build id read as a GUID, whose first
    /// three fields are little-endian. `None` without a build id.
    pub(crate) fn debug_id(&self) -> Option<Uuid> {
        let mut bytes = [0; 16];
        let known = self.build_id.len().min(bytes.len());
        bytes.get_mut(..known)?.copy_from_slice(self.build_id.get(..known)?);
        (known > 0).then(|| Uuid::from_bytes_le(bytes))
    }
}

/// One return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) address: u64,
    /// Index of its image among those of the stack trace.
    pub(crate) image: Option<usize>,
}

/// Return addresses, innermost call first, and the images that contain them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stack<'a> {
    images: Vec<Image<'a>>,
    frames: Vec<Frame>,
}

impl<'a> Stack<'a> {
    /// Finds the image of each return address. Of a deep stack it keeps the first [`NEAREST_FRAMES`] and the last
    /// [`OUTERMOST_FRAMES`].
    pub(crate) fn locate(addresses: &[u64], loaded: &[Image<'a>]) -> Self {
        let mut stack = Self::default();
        let cut = addresses.len().saturating_sub(MOST_FRAMES);
        let (nearest, rest) = addresses.split_at(addresses.len().min(NEAREST_FRAMES));
        for &address in nearest.iter().chain(rest.get(cut..).unwrap_or_default()) {
            // The call is one instruction earlier, and a call that never returns may be the last instruction of its
            // image.
            let holder = loaded.iter().find(|image| image.contains(address.wrapping_sub(1)));
            let image = holder.map(|image| stack.place_of(image));
            stack.frames.push(Frame { address, image });
        }
        stack
    }

    /// Each return address with its image, innermost call first.
    pub(crate) fn frames(&self) -> impl DoubleEndedIterator<Item = (u64, Option<&Image<'a>>)> {
        self.frames.iter().map(|frame| (frame.address, frame.image.and_then(|place| self.images.get(place))))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Appends the extension value that becomes a `stacktrace`.
    pub(crate) fn append(&self, out: &mut Vec<u8>) {
        let at = begin_ext(out, STACK_EXT);
        append_array_header(out, 2);
        append_images(&self.images, out);
        append_array_header(out, (self.frames.len() * 2) as u32);
        for (frame, (address, image)) in self.frames.iter().zip(self.frames()) {
            match frame.image.zip(image) {
                Some((place, image)) => {
                    append_uint(out, place as u64);
                    append_uint(out, address.wrapping_sub(image.address));
                }
                None => {
                    append_nil(out);
                    append_uint(out, address);
                }
            }
        }
        end_ext(out, at);
    }

    /// Reads the content of an extension value that [`append`](Self::append) wrote, from untrusted bytes.
    pub(super) fn decode(content: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(content);
        (reader.token().ok()? == Token::Array(2)).then_some(())?;
        let images = read_images(&mut reader)?;
        let Ok(Token::Array(len)) = reader.token() else { return None };
        let count = usize::try_from(len / 2).ok().filter(|count| len % 2 == 0 && *count <= MOST_FRAMES)?;
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            frames.push(read_frame(&mut reader, &images)?);
        }
        reader.rest().is_empty().then_some(Self { images, frames })
    }

    fn place_of(&mut self, image: &Image<'a>) -> usize {
        match self.images.iter().position(|known| known == image) {
            Some(place) => place,
            None => {
                self.images.push(*image);
                self.images.len() - 1
            }
        }
    }
}

/// The images of stack traces for which PostHog may have symbols, because they have a build id; each once.
pub(crate) fn debug_images<'s, 'a: 's>(stacks: impl Iterator<Item = &'s Stack<'a>>) -> Vec<Image<'a>> {
    let mut images = Vec::new();
    for image in stacks.flat_map(|stack| &stack.images).filter(|image| image.debug_id().is_some()) {
        if images.len() < MOST_IMAGES && !images.contains(image) {
            images.push(*image);
        }
    }
    images
}

/// Appends the extension value that becomes `$debug_images`.
pub(crate) fn append_debug_images(images: &[Image<'_>], out: &mut Vec<u8>) {
    let at = begin_ext(out, IMAGES_EXT);
    append_images(images, out);
    end_ext(out, at);
}

/// Encodes the images of a process without a stack trace; at most as many as [`decode_images`] accepts.
pub(crate) fn encode_images(images: &[Image<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    append_images(images.get(..images.len().min(MOST_IMAGES)).unwrap_or_default(), &mut out);
    out
}

/// Reads what [`encode_images`] wrote, or the content of what [`append_debug_images`] wrote, from untrusted bytes.
pub(crate) fn decode_images(content: &[u8]) -> Option<Vec<Image<'_>>> {
    let mut reader = Reader::new(content);
    let images = read_images(&mut reader)?;
    reader.rest().is_empty().then_some(images)
}

fn append_images(images: &[Image<'_>], out: &mut Vec<u8>) {
    append_array_header(out, images.len() as u32);
    for image in images {
        append_array_header(out, IMAGE_FIELDS);
        append_uint(out, image.address);
        append_uint(out, image.size);
        append_uint(out, image.vmaddr);
        append_bool(out, image.is_main);
        append_bin(out, image.build_id);
        append_str(out, image.path);
    }
}

fn read_images<'a>(reader: &mut Reader<'a>) -> Option<Vec<Image<'a>>> {
    let Ok(Token::Array(len)) = reader.token() else { return None };
    let count = usize::try_from(len).ok().filter(|count| *count <= MOST_IMAGES)?;
    let mut images = Vec::with_capacity(count);
    for _ in 0..count {
        images.push(read_image(reader)?);
    }
    Some(images)
}

fn read_image<'a>(reader: &mut Reader<'a>) -> Option<Image<'a>> {
    (reader.token().ok()? == Token::Array(IMAGE_FIELDS)).then_some(())?;
    let (address, size, vmaddr) = (read_uint(reader)?, read_uint(reader)?, read_uint(reader)?);
    let Ok(Token::Bool(is_main)) = reader.token() else { return None };
    let Ok(Token::Bin(build_id)) = reader.token() else { return None };
    let Ok(Token::Str(path)) = reader.token() else { return None };
    Some(Image { address, size, vmaddr, is_main, build_id, path: text(path).ok()? })
}

fn read_frame(reader: &mut Reader<'_>, images: &[Image<'_>]) -> Option<Frame> {
    match reader.token().ok()? {
        Token::Nil => Some(Frame { address: read_uint(reader)?, image: None }),
        Token::Unsigned(place) => {
            let place = usize::try_from(place).ok()?;
            let address = images.get(place)?.address.checked_add(read_uint(reader)?)?;
            Some(Frame { address, image: Some(place) })
        }
        _ => None,
    }
}

fn read_uint(reader: &mut Reader<'_>) -> Option<u64> {
    match reader.token().ok()? {
        Token::Unsigned(value) => Some(value),
        _ => None,
    }
}
