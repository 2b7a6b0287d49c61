//! Ends in a way that is named by its first argument, with the client (second and third argument: queue directory and host) or without.
//! Whatever the way, the status must be the same. `read` ends in no way: it is the start after one.

#![allow(unsafe_code, reason = "fork")]

#[path = "dying/told.rs"]
mod told;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::Barrier;
use std::time::Duration;

use posthog::Config;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let scenario = arguments.get(1).map_or("", String::as_str);
    if scenario == "previous_hook_panics" {
        std::panic::set_hook(Box::new(|_| panic!("in the previous hook")));
    } else {
        // The default hook looks for symbols, for a tenth of a second each time.
        std::panic::set_hook(Box::new(|_| {}));
    }
    if let (Some(queue_dir), Some(host)) = (arguments.get(2), arguments.get(3)) {
        let config = Config::new("phc_dying").queue_dir(queue_dir).host(host).flush_interval(Duration::from_millis(50));
        let client = posthog::init(told::configured(scenario, config)).expect("a queue");
        if scenario.starts_with("read") {
            return read(&client);
        }
        posthog::install_panic_hook();
        posthog::install_crash_handler();
    }
    play(scenario);
}

/// The next start: tells until its standard input ends, and then what was amiss. Each byte that comes has it capture something.
fn read(client: &posthog::Client) {
    for _ in std::io::Read::bytes(std::io::stdin()) {
        client.capture(posthog::Event::new("nudged", "user_1"));
    }
    #[allow(clippy::print_stdout, reason = "this is how it answers")]
    for diagnostic in client.diagnostics() {
        println!("{diagnostic}");
    }
    let _ = client.shutdown(Duration::ZERO).wait(Duration::from_secs(10));
}

fn play(scenario: &str) {
    match scenario {
        "literal" | "previous_hook_panics" => panic!("a literal"),
        "formatted" => panic!("formatted {}", std::env::args().count() > 1),
        "index" => {
            let empty: Vec<u8> = Vec::new();
            let at = std::env::args().count();
            std::hint::black_box(empty[at]);
        }
        "unwrap" => {
            let nothing: Result<(), String> = std::hint::black_box(Err("an error".to_owned()));
            nothing.expect("what must not fail");
        }
        "any" => panic_any(5u32),
        "long" => panic!("{}", "\u{e9}".repeat(20_000)),
        "thread" => drop(
            std::thread::Builder::new()
                .name("worker-7".to_owned())
                .spawn(|| panic!("in a thread"))
                .map(std::thread::JoinHandle::join),
        ),
        "caught" => drop(catch_unwind(|| panic!("caught"))),
        "survived" => {
            drop(catch_unwind(|| panic!("survived")));
            std::thread::sleep(Duration::from_millis(3_000));
        }
        "rethrown" => drop(catch_unwind(|| resume_unwind(Box::new("nobody's hook hears of this")))),
        "sixteen" => sixteen(),
        "storm" => (0..10_000).for_each(|_| drop(catch_unwind(|| panic!("again")))),
        "drop" => {
            let _guard = PanicsWhenDropped;
            panic!("first");
        }
        "extern_c" => in_c(),
        "display" => panic!("{}", PanicsWhenShown),
        "reinstalled" => {
            posthog::install_panic_hook();
            posthog::install_panic_hook();
            panic!("once");
        }
        "displaced" => {
            std::panic::set_hook(Box::new(|_| {}));
            posthog::install_panic_hook();
            panic!("after somebody else");
        }
        "closed_descriptors" => {
            close_everything();
            panic!("without descriptors");
        }
        "forked" => in_a_fork(|| panic!("in a forked child")),
        "small_files" => {
            use nix::sys::resource::{Resource, setrlimit};
            setrlimit(Resource::RLIMIT_FSIZE, 16, 16).expect("a limit");
            panic!("no file may grow");
        }
        "quiet" => {}
        other => told::play(other),
    }
}

fn play_signal(scenario: &str) {
    match scenario {
        // SAFETY: none of these is sound; to die of them is what this program is for.
        "null_read" => unsafe {
            std::hint::black_box(std::ptr::read_volatile(std::hint::black_box(8) as *const u64));
        },
        // SAFETY: as above.
        "null_write" => unsafe { std::ptr::write_volatile(std::hint::black_box(16) as *mut u64, 1) },
        // SAFETY: as above.
        "null_call" => unsafe {
            let nothing: extern "C" fn() = std::mem::transmute(std::hint::black_box(8usize));
            nothing();
        },
        // SAFETY: as above.
        "wild_call" => unsafe {
            let wild: extern "C" fn() = std::mem::transmute(std::hint::black_box(0x1234_5678_9abcusize));
            wild();
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "illegal" => unsafe { std::arch::asm!("ud2") },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "trap" => unsafe { std::arch::asm!("int3") },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "division" => unsafe {
            std::arch::asm!("xor edx, edx", "mov eax, 1", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _);
        },
        "bus" => bus(),
        "overflow" => drop(std::hint::black_box(recurse(1))),
        "overflow_thread" => {
            let thread = std::thread::Builder::new().name("deep".to_owned()).stack_size(64 * 1024);
            let _ = thread.spawn(|| std::hint::black_box(recurse(1))).expect("a thread").join();
        }
        "overflow_foreign" | "overflow_registered" => overflow_foreign(scenario == "overflow_registered"),
        "abort" => std::process::abort(),
        "c_abort" => {
            // SAFETY: ends the process.
            unsafe { nix::libc::abort() }
        }
        "out_of_memory" => out_of_memory(),
        "raised" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV).expect("a signal"),
        "catch_then_abort" => {
            drop(catch_unwind(|| panic!("caught long ago")));
            std::process::abort();
        }
        "repaired" => repaired(),
        "eight_at_once" => eight_at_once(),
        "sigkill_free" => {}
        other => panic!("there is no scenario {other:?}"),
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("second");
    }
}

struct PanicsWhenShown;

impl std::fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("while shown")
    }
}

extern "C" fn in_c() {
    panic!("in a callback of C");
}

fn sixteen() {
    let together = Barrier::new(16);
    std::thread::scope(|scope| {
        for number in 0..16 {
            let together = &together;
            scope.spawn(move || {
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    together.wait();
                    panic!("thread {number}");
                }));
            });
        }
    });
}

/// As daemons do it.
fn close_everything() {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .expect("a list of descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        let _ = nix::unistd::close(descriptor);
    }
    // What takes their place must not get our bytes.
    for _ in 0..200 {
        std::mem::forget(std::fs::OpenOptions::new().append(true).create(true).open(stranger()));
    }
}

fn stranger() -> std::path::PathBuf {
    std::env::current_dir().unwrap_or_default().join("stranger")
}

fn in_a_fork(play: impl FnOnce()) {
    // SAFETY: the other threads of this process are the library's; what it does in such a child is what is tested.
    match unsafe { nix::unistd::fork() }.expect("a child") {
        nix::unistd::ForkResult::Child => play(),
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("it ends");
        }
    }
}

#[allow(unconditional_recursion, reason = "until the stack ends")]
fn recurse(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    recurse(here[0] + 1) + std::hint::black_box(here)[1]
}

/// A page of a file that was cut short behind its mapping.
fn bus() {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4096).expect("a page");
    let length = std::num::NonZeroUsize::new(4096).expect("not zero");
    // SAFETY: a new mapping.
    let page = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.expect("a mapping");
    file.set_len(0).expect("no page");
    // SAFETY: not sound; to die of it is what this program is for.
    unsafe { std::hint::black_box(std::ptr::read_volatile(page.as_ptr().cast::<u8>())) };
}

fn overflow_foreign(registered: bool) {
    use nix::libc;
    extern "C" fn run(registered: *mut libc::c_void) -> *mut libc::c_void {
        if !registered.is_null() {
            let _ = posthog::register_thread();
        }
        std::hint::black_box(recurse(1));
        std::ptr::null_mut()
    }
    let argument = if registered { std::ptr::dangling_mut::<libc::c_void>() } else { std::ptr::null_mut() };
    let mut thread: libc::pthread_t = 0;
    // SAFETY: a thread of the C library's, whose argument is a number.
    unsafe {
        libc::pthread_create(&mut thread, std::ptr::null(), run, argument);
        libc::pthread_join(thread, std::ptr::null_mut());
    }
}

fn out_of_memory() {
    use nix::sys::resource::{Resource, setrlimit};
    let most = 256 * 1024 * 1024;
    setrlimit(Resource::RLIMIT_AS, most, most).expect("a limit");
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(std::hint::black_box(vec![1; 1024 * 1024]));
    }
}

/// A handler that was there before ours, and that makes the page readable.
fn repaired() {
    use nix::libc;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    static PAGE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    extern "C" fn repair(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let page = PAGE.load(std::sync::atomic::Ordering::SeqCst) as *mut libc::c_void;
        // SAFETY: a page that is mapped for ever.
        unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) };
    }
    // Set behind the client's back: it calls whoever was there before it, which was the standard library. So it is installed first, by
    // taking the place, and the client takes it again.
    // SAFETY: a handler that only makes a system call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = repair as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
    }
    posthog::install_crash_handler();
    let length = std::num::NonZeroUsize::new(4096).expect("not zero");
    for _ in 0..10 {
        // SAFETY: a new mapping, kept for ever.
        let page =
            unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }.expect("a page");
        PAGE.store(page.as_ptr().addr(), std::sync::atomic::Ordering::SeqCst);
        // SAFETY: the handler makes it writable.
        unsafe { std::ptr::write_volatile(page.as_ptr().cast::<u8>(), 1) };
    }
    std::thread::sleep(Duration::from_millis(2_500));
}

fn eight_at_once() {
    let together = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                together.wait();
                play_signal("null_read");
            });
        }
    });
}
