//! Faults, and signals that are sent.

use std::arch::asm;
use std::panic::catch_unwind;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::libc::{self, c_int, c_void, siginfo_t};

/// Installs handlers before the client's.
pub(crate) fn prepare(scenario: &str) {
    match scenario {
        "repaired" => set_handler(repair),
        "exits_in_handler" => set_handler(exit),
        "ignored_raised" | "ignored_abort" => ignore(libc::SIGABRT),
        "ignored_trap" => ignore(libc::SIGTRAP),
        _ => {}
    }
}

fn ignore(signal: c_int) {
    // SAFETY: installs no function.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Returns `false` if the scenario is not in this file.
pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        // SAFETY: none of these is sound; this program exists to crash.
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
        "illegal" => unsafe { asm!("ud2") },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "trap" | "ignored_trap" => unsafe { asm!("int3") },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "division" => unsafe {
            asm!("xor edx, edx", "mov eax, 1", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _);
        },
        "bus" => bus(),
        #[cfg(target_arch = "x86_64")]
        "stack_pointer_lost" => {
            // SAFETY: as above.
            unsafe {
                asm!("mov rsp, {lost}", "mov rbp, rsp", "mov rax, [{nowhere}]", lost = in(reg) LOST, nowhere = in(reg) NOWHERE, out("rax") _)
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "frame_pointer_lost" => unsafe {
            asm!("mov rbp, {lost}", "mov rax, [{nowhere}]", lost = in(reg) LOST, nowhere = in(reg) NOWHERE, out("rax") _);
        },
        #[cfg(target_arch = "x86_64")]
        "wide_registers" => wide_registers(),
        "abort" | "ignored_abort" => std::process::abort(),
        "ignored_raised" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGABRT).expect("a signal"),
        // SAFETY: ends the process.
        "c_abort" => unsafe { libc::abort() },
        "raised" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV).expect("a signal"),
        // The standard library's handler takes the first signal for a fault and waits for it to happen again. A second
        // signal is lost if it arrives before the first was handled.
        "killed_by_segv" => killed_by("kill -SEGV $PPID; sleep 0.3; kill -SEGV $PPID"),
        "killed_by_bus" => killed_by("kill -BUS $PPID; sleep 0.3; kill -BUS $PPID"),
        "killed_by_abrt" => killed_by("kill -ABRT $PPID"),
        "forbidden_call" => forbidden_call(),
        "repaired" => use_repaired_pages(),
        "exits_in_handler" => fault(),
        "eight_at_once" => at_once(8),
        "eight_and_panics" => eight_and_panics(),
        _ => return false,
    }
    true
}

/// Unmapped addresses, far from each other.
#[cfg(target_arch = "x86_64")]
const LOST: usize = 0x1234_5678_0000;
#[cfg(target_arch = "x86_64")]
const NOWHERE: usize = 0x10;

pub(crate) fn fault() {
    // SAFETY: not sound; this program exists to crash.
    unsafe { std::hint::black_box(std::ptr::read_volatile(std::hint::black_box(8) as *const u64)) };
}

/// Accesses a page of a mapped file that was truncated.
fn bus() {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4096).expect("a page");
    let length = std::num::NonZeroUsize::new(4096).expect("not zero");
    // SAFETY: a new mapping.
    let page = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.expect("a mapping");
    file.set_len(0).expect("no page");
    // SAFETY: not sound; this program exists to crash.
    unsafe { std::hint::black_box(std::ptr::read_volatile(page.as_ptr().cast::<u8>())) };
}

/// The kernel also saves wide registers on the alternate stack, which leaves little of it.
#[cfg(target_arch = "x86_64")]
fn wide_registers() {
    if !std::is_x86_feature_detected!("avx512f") {
        std::process::exit(crate::UNAVAILABLE);
    }
    // SAFETY: the processor has these registers; otherwise as above.
    unsafe {
        asm!("vpternlogd zmm0, zmm0, zmm0, 255", "vpternlogd zmm31, zmm31, zmm31, 255", "mov rax, [{nowhere}]", nowhere = in(reg) NOWHERE, out("rax") _);
    }
}

fn killed_by(command: &str) {
    let _ = std::process::Command::new("/bin/sh").args(["-c", command]).status();
    // The last signal may not have been delivered yet.
    std::thread::sleep(Duration::from_secs(5));
}

/// A sandbox that answers a system call with a signal.
fn forbidden_call() {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let compare = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(load, 0, 0, 0),
        step(compare, 0, 1, libc::SYS_acct as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_TRAP),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: system calls with numbers, and with a program that outlives them.
    let is_set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if !is_set {
        std::process::exit(crate::UNAVAILABLE);
    }
    // SAFETY: the sandbox prevents its execution.
    unsafe { libc::syscall(libc::SYS_acct, std::ptr::null::<c_void>()) };
}

type Action = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn set_handler(handler: Action) {
    // SAFETY: zero is a valid action, and the handler is never unloaded.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
    }
}

static PAGE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn repair(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let page = PAGE.load(Ordering::SeqCst) as *mut c_void;
    // SAFETY: a page that is never unmapped.
    unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) };
}

extern "C" fn exit(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: this program holds no lock that `exit` needs.
    unsafe { libc::exit(3) };
}

/// Memory that is allocated on first access, as managed runtimes do.
fn use_repaired_pages() {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    let length = std::num::NonZeroUsize::new(4096).expect("not zero");
    for _ in 0..10 {
        // SAFETY: a new mapping, never unmapped.
        let page =
            unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }.expect("a page");
        PAGE.store(page.as_ptr().addr(), Ordering::SeqCst);
        // SAFETY: the handler makes it writable.
        unsafe { std::ptr::write_volatile(page.as_ptr().cast::<u8>(), 1) };
    }
    std::thread::sleep(Duration::from_millis(2_500));
}

fn at_once(threads: usize) {
    let together = Barrier::new(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                together.wait();
                fault();
            });
        }
    });
}

fn eight_and_panics() {
    if cfg!(panic = "abort") {
        // It could die of either.
        std::process::exit(crate::UNAVAILABLE);
    }
    std::thread::spawn(|| {
        loop {
            drop(catch_unwind(|| panic!("meanwhile")));
        }
    });
    at_once(8);
}
