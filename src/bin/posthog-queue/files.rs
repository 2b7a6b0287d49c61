//! Files of events: compressed by their suffix, written as a whole or not at all.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::Failure;

/// `-` stands for standard input or output.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file that appears under its name when it is complete.
pub(crate) struct OutFile {
    to: Compressed,
    /// The unfinished file and its name when it is complete; `None` for standard output.
    file: Option<(File, PathBuf, PathBuf)>,
    is_done: bool,
}

enum Compressed {
    Plain(BufWriter<Box<dyn Write>>),
    Gzip(flate2::write::GzEncoder<BufWriter<Box<dyn Write>>>),
    Zstd(zstd::stream::write::Encoder<'static, BufWriter<Box<dyn Write>>>),
}

impl OutFile {
    /// Begins a file, as `<path>.part`. Only its owner may read it: events contain personal data.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let at = |path: &Path, error: io::Error| -> Failure { format!("{}: {error}", path.display()).into() };
        let (out, file): (Box<dyn Write>, _) = if is_standard(path) {
            (Box::new(io::stdout()), None)
        } else {
            let mut part = path.as_os_str().to_owned();
            part.push(".part");
            let part = PathBuf::from(part);
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
            let file = file.map_err(|error| at(&part, error))?;
            let clone = file.try_clone().map_err(|error| at(&part, error))?;
            (Box::new(clone), Some((file, part, path.to_path_buf())))
        };
        let out = BufWriter::with_capacity(64 * 1024, out);
        let to = match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("gz") => Compressed::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::default())),
            Some("zst") => Compressed::Zstd(zstd::stream::write::Encoder::new(out, 3)?),
            _ => Compressed::Plain(out),
        };
        Ok(Self { to, file, is_done: false })
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        let out: &mut dyn Write = match &mut self.to {
            Compressed::Plain(out) => out,
            Compressed::Gzip(out) => out,
            Compressed::Zstd(out) => out,
        };
        out.write_all(line.as_bytes())?;
        Ok(out.write_all(b"\n")?)
    }

    /// Makes the file durable and gives it its name. Returns its bytes.
    pub(crate) fn finish(mut self) -> Result<u64, Failure> {
        match &mut self.to {
            Compressed::Plain(out) => out.flush()?,
            Compressed::Gzip(out) => {
                out.try_finish()?;
                out.get_mut().flush()?;
            }
            Compressed::Zstd(out) => {
                out.do_finish()?;
                out.flush()?;
            }
        }
        let Some((file, part, path)) = &self.file else { return Ok(0) };
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        fs::rename(part, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
        self.is_done = true;
        Ok(bytes)
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if let Some((_, part, _)) = self.file.as_ref().filter(|_| !self.is_done) {
            // What is not complete must not be taken for an export.
            let _ = fs::remove_file(part);
        }
    }
}

/// A file that is read.
pub(crate) struct InFile {
    /// What is in it, decompressed.
    pub(crate) input: Box<dyn BufRead>,
    /// Its bytes on the disk; 0 if they are not known.
    pub(crate) bytes: u64,
    /// How many of them were read.
    pub(crate) position: Rc<Cell<u64>>,
}

struct Counted<R>(R, Rc<Cell<u64>>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(out)?;
        self.1.set(self.1.get() + read as u64);
        Ok(read)
    }
}

/// Opens a file for reading. How it is compressed is recognized by its first bytes.
pub(crate) fn open(path: &Path) -> Result<InFile, Failure> {
    let (input, bytes): (Box<dyn Read>, u64) = if is_standard(path) {
        (Box::new(io::stdin()), 0)
    } else {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(format!("{} is a directory; name a file of events", path.display()).into());
        }
        (Box::new(file), metadata.len())
    };
    let position = Rc::new(Cell::new(0));
    let mut input = BufReader::with_capacity(64 * 1024, Counted(input, Rc::clone(&position)));
    let head = input.fill_buf()?;
    let input: Box<dyn BufRead> = if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(input)))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(input)?))
    } else {
        Box::new(input)
    };
    Ok(InFile { input, bytes, position })
}
