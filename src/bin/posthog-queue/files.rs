//! Files of events: compressed by their suffix, written as a whole or not at all. And the one way in which a command puts
//! a file in the place of another.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, Cursor, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use posthog::inspect;
use signal_hook::consts::{SIGINT, SIGTERM};
use uuid::Uuid;

use crate::Failure;
use crate::output::{Unwritten, shown, visible};

/// `-` stands for standard input or output.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    format!("{}: {error}; it was not changed", shown(path)).into()
}

/// Fails unless a file at this path may be replaced or created: it is a regular file, or there is none, and it is in no
/// queue. What else has a name (a device, a FIFO, a link) would be gone, and a queue's files are the library's.
pub(crate) fn check_target(path: &Path) -> Result<(), Failure> {
    let shown_path = shown(path);
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Ok(found) => {
            let what = kind_of(found.file_type());
            return Err(format!(
                "{shown_path} is {what} and was not changed; name a regular file or a new one, or write to standard output and \
                 redirect it"
            )
            .into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(path, &error)),
    }
    let dir = dir_of(path).canonicalize().map_err(|error| failed(path, &error))?;
    match dir.ancestors().find(|dir| is_of_queues(dir)) {
        Some(queues) => Err(format!(
            "{shown_path} is inside the queue directory {} and was not written; name a file somewhere else",
            shown(queues)
        )
        .into()),
        None => Ok(()),
    }
}

fn kind_of(found: fs::FileType) -> &'static str {
    match found {
        found if found.is_dir() => "a directory",
        found if found.is_symlink() => "a link",
        found if found.is_fifo() => "a FIFO",
        found if found.is_socket() => "a socket",
        _ => "a device",
    }
}

/// Whether the directory is a queue, also one that is being filled, or contains some.
fn is_of_queues(dir: &Path) -> bool {
    let has_queue = |queues: Vec<inspect::QueueDir>| queues.iter().any(|queue| queue.path().join("lock").exists());
    dir.join("queue.redb").exists() || inspect::queues_and_imports(dir).is_ok_and(has_queue)
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file atomically: a reader finds the old content or the new content, also after a kill or a power cut. The
/// new content is written to a temporary file in the same directory, under a unique name that ends in `.part`. That file is
/// removed if the replacement is not completed, also at SIGINT and SIGTERM.
pub(crate) struct Replacement {
    file: File,
    unfinished: PathBuf,
    path: PathBuf,
    /// Opened before anything is written, so that it cannot fail afterwards.
    dir: File,
    /// Set by a signal that asks the process to end.
    stop: Arc<AtomicBool>,
    is_done: bool,
}

impl Replacement {
    /// Begins a file of this mode, whatever the umask is.
    pub(crate) fn begin(path: &Path, mode: u32) -> Result<Self, Failure> {
        check_target(path)?;
        let at = |error: io::Error| failed(path, &error);
        let mut name = path.file_name().ok_or_else(|| at(io::ErrorKind::InvalidFilename.into()))?.to_os_string();
        name.push(format!(".{}.part", Uuid::now_v7().simple()));
        let unfinished = path.with_file_name(name);
        let dir = File::open(dir_of(path)).map_err(at)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The second one ends the process at once.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop)).map_err(at)?;
            signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(at)?;
        }
        // What has that name already, a link for example, is not opened.
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished).map_err(at)?;
        let begun = Self { file, unfinished, path: path.into(), dir, stop, is_done: false };
        begun.file.set_permissions(Permissions::from_mode(mode)).map_err(at)?;
        Ok(begun)
    }

    fn at(&self, error: &io::Error) -> Failure {
        failed(&self.path, error)
    }

    /// Fails once a signal has asked the process to end.
    fn check_stop(&self) -> Result<(), Failure> {
        if !self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(format!("stopped by a signal; {} was not changed", shown(&self.path)).into())
    }

    pub(crate) fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.file.write_all(text.as_bytes()).map_err(|error| self.at(&error))
    }

    /// Makes the file durable and gives it its name. Returns its bytes.
    pub(crate) fn complete(mut self) -> Result<u64, Failure> {
        let synced = self.file.sync_all().and_then(|()| self.file.metadata());
        let bytes = synced.map_err(|error| self.at(&error))?.len();
        self.check_stop()?;
        check_target(&self.path)?;
        fs::rename(&self.unfinished, &self.path).map_err(|error| self.at(&error))?;
        self.is_done = true;
        self.dir.sync_all().map_err(|error| -> Failure {
            format!("{} was replaced, but may be the old one after a power cut: {error}", shown(&self.path)).into()
        })?;
        Ok(bytes)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_done {
            // What is not complete must not be taken for the file.
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}

/// A file of events, or standard output.
pub(crate) struct OutFile {
    to: Compressed,
    /// `None` for standard output.
    file: Option<Replacement>,
}

type Out = BufWriter<Box<dyn Write>>;

enum Compressed {
    Plain(Out),
    Gzip(flate2::write::GzEncoder<Out>),
    Zstd(zstd::stream::write::Encoder<'static, Out>),
}

impl Compressed {
    fn line(&mut self, line: &str) -> io::Result<()> {
        let out: &mut dyn Write = match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out,
            Self::Zstd(out) => out,
        };
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(out) => {
                out.try_finish()?;
                out.get_mut().flush()
            }
            Self::Zstd(out) => {
                out.do_finish()?;
                out.flush()
            }
        }
    }
}

impl OutFile {
    /// Begins a file. Only its owner may read it: events contain personal data.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let (out, file): (Box<dyn Write>, _) = if is_standard(path) {
            (Box::new(io::stdout()), None)
        } else {
            let file = Replacement::begin(path, 0o600)?;
            let clone = file.file.try_clone().map_err(|error| file.at(&error))?;
            (Box::new(clone), Some(file))
        };
        let out = BufWriter::with_capacity(64 * 1024, out);
        let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default().to_ascii_lowercase();
        let to = match suffix.as_str() {
            "gz" => Compressed::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::default())),
            "zst" => Compressed::Zstd(zstd::stream::write::Encoder::new(out, 3)?),
            _ => Compressed::Plain(out),
        };
        Ok(Self { to, file })
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        // Standard output may lead to a terminal through other programs. JSON says the same with such characters escaped.
        let line = match &self.file {
            Some(file) => file.check_stop().map(|()| line.into())?,
            None => visible(line),
        };
        self.to.line(&line).map_err(|error| self.unwritten(error))
    }

    fn unwritten(&self, error: io::Error) -> Failure {
        match &self.file {
            Some(file) => file.at(&error),
            None => Unwritten(error).into(),
        }
    }

    /// Makes the file durable and gives it its name. Returns its bytes.
    pub(crate) fn finish(mut self) -> Result<u64, Failure> {
        self.to.finish().map_err(|error| self.unwritten(error))?;
        self.file.take().map_or(Ok(0), Replacement::complete)
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

/// The bytes by which a compressed file is recognized, at most.
const MAGIC_BYTES: u64 = 4;

/// Opens a file for reading. How it is compressed is recognized by its first bytes.
pub(crate) fn open(path: &Path) -> Result<InFile, Failure> {
    let failed = |error: io::Error| format!("{}: {error}", shown(path));
    let (input, bytes): (Box<dyn Read>, u64) = if is_standard(path) {
        (Box::new(io::stdin()), 0)
    } else {
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(format!("{} is a directory; name a file of events", shown(path)).into());
        }
        (Box::new(file), metadata.len())
    };
    let position = Rc::new(Cell::new(0));
    let mut input = BufReader::with_capacity(64 * 1024, Counted(input, Rc::clone(&position)));
    // One read of a pipe may return less than that.
    let mut head = Vec::new();
    input.by_ref().take(MAGIC_BYTES).read_to_end(&mut head).map_err(failed)?;
    let (is_gzip, is_zstd) = (head.starts_with(&[0x1f, 0x8b]), head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let input = Cursor::new(head).chain(input);
    let input: Box<dyn BufRead> = if is_gzip {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(input)))
    } else if is_zstd {
        Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(input)?))
    } else {
        Box::new(input)
    };
    Ok(InFile { input, bytes, position })
}
