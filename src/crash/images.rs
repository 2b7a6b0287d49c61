//! Libraries that are loaded while the process lives. The context in the file says which images there are, and the handler of signals
//! knows where their tables lie: both were written down when the process was armed, and have to be again.

use super::code::Modules;
use super::{ARMED, file, wake_reader};

/// Looks whether something was loaded, and if so begins a new file, with a context that has it. For somebody who is awake anyway: nearly
/// always it costs a question to the loader, and nothing in a process that is not armed.
pub(crate) fn notice_images() {
    if !file::is_armed() {
        return;
    }
    // Whoever holds it arms, or begins a new file: that has what is loaded then.
    let Ok(mut armed) = ARMED.try_lock() else { return };
    let Some(armed) = armed.as_mut().filter(|armed| armed.pid == std::process::id()) else { return };
    let loaded = Modules::times_loaded();
    if armed.times_loaded == loaded {
        return;
    }
    #[cfg(all(feature = "crash-signals", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    super::signal::prepare_again();
    // Words in it belong to the images that it names; when they are read, in a moment, a new file is begun anyway.
    if file::holds_words() {
        return;
    }
    if let Ok(Some(written)) = armed.next_file() {
        // A crash came in between.
        armed.unread.push(written);
        wake_reader();
    }
}
