//! Stack overflows and exhausted memory.

use std::alloc::{Layout, handle_alloc_error};

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};

/// Returns `false` if the scenario is not in this file.
pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        "overflow" => drop(std::hint::black_box(recurse(1))),
        "overflow_thread" => {
            let thread = std::thread::Builder::new().name("deep".to_owned()).stack_size(64 * 1024);
            let _ = thread.spawn(|| std::hint::black_box(recurse(1))).expect("a thread").join();
        }
        "overflow_foreign" | "overflow_registered" => overflow_foreign(scenario == "overflow_registered"),
        "out_of_memory" => out_of_memory(),
        "refused_layout" => handle_alloc_error(Layout::new::<[u64; 1000]>()),
        "literal_without_memory" => {
            use_everything_up();
            panic!("a literal needs no memory");
        }
        "formatted_without_memory" => {
            let number = std::env::args().count();
            use_everything_up();
            panic!("a text that has to be made, of {number} arguments");
        }
        _ => return false,
    }
    true
}

#[allow(unconditional_recursion, reason = "until the stack ends")]
fn recurse(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    recurse(here[0] + 1) + std::hint::black_box(here)[1]
}

fn overflow_foreign(registered: bool) {
    extern "C" fn run(registered: *mut libc::c_void) -> *mut libc::c_void {
        if !registered.is_null() {
            let _ = posthog::crashes::register_thread();
        }
        std::hint::black_box(recurse(1));
        std::ptr::null_mut()
    }
    let argument = if registered { std::ptr::dangling_mut::<libc::c_void>() } else { std::ptr::null_mut() };
    let mut thread = std::mem::MaybeUninit::<libc::pthread_t>::zeroed();
    // SAFETY: a thread of the C library, whose argument is a number.
    unsafe {
        libc::pthread_create(thread.as_mut_ptr(), std::ptr::null(), run, argument);
        libc::pthread_join(thread.assume_init(), std::ptr::null_mut());
    }
}

fn out_of_memory() {
    let most = 256 * 1024 * 1024;
    setrlimit(Resource::RLIMIT_AS, most, most).expect("a limit");
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(std::hint::black_box(vec![1; 1024 * 1024]));
    }
}

/// Allocates everything, so that no allocation of any size succeeds.
fn use_everything_up() {
    // The client's threads must be idle: otherwise one of them could be the first that needs memory.
    std::thread::sleep(std::time::Duration::from_millis(500));
    setrlimit(Resource::RLIMIT_AS, 0, 0).expect("a limit");
    for size in (0..20).rev().map(|power| 1usize << power).chain((1..=256).rev().map(|sixteens| sixteens * 16)) {
        loop {
            let mut some: Vec<u8> = Vec::new();
            if some.try_reserve_exact(size).is_err() {
                break;
            }
            std::mem::forget(std::hint::black_box(some));
        }
    }
}
