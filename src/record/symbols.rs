//! Symbols: the trait that resolves return addresses to functions and source lines, and the rules that tell the
//! program's own frames from those of libraries.

use std::fmt::Debug;

use super::stack::Image;

/// Source lines sent before and after the line of a frame.
pub(crate) const CONTEXT_LINES: usize = 5;

/// A function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// Its name without the hash; empty if unknown.
    pub(crate) function: String,
    pub(crate) file: Option<String>,
    /// The line in that file, counted from 1.
    pub(crate) line: Option<u32>,
}

/// A source line and its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceLines {
    /// Up to [`CONTEXT_LINES`] lines, in the order of the file.
    pub(crate) before: Vec<String>,
    pub(crate) line: String,
    /// Up to [`CONTEXT_LINES`] lines, in the order of the file.
    pub(crate) after: Vec<String>,
}

/// Resolves addresses. Called on the delivery thread while a request body is built; may read files and must not panic.
pub(crate) trait Symbols: Debug + Send + Sync {
    /// The functions that contain a return address of `image`: the physical function first, then the functions inlined
    /// there, each inside the one before it. Empty if nothing is known.
    fn resolve(&self, image: &Image<'_>, address: u64) -> Vec<Symbol>;

    /// The source around a line, if it is configured to be sent and available.
    fn source(&self, file: &str, line: u32) -> Option<SourceLines>;

    /// Whether a frame is the program's own; see [`InAppRules`].
    fn is_in_app(&self, function: &str, file: Option<&str>, in_executable: bool) -> bool {
        is_in_app(function, file, in_executable)
    }

    /// Called after each request body; frees what is needed only between look-ups of one body.
    fn rest(&self) {}
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoSymbols;

impl Symbols for NoSymbols {
    fn resolve(&self, _image: &Image<'_>, _address: u64) -> Vec<Symbol> {
        Vec::new()
    }

    fn source(&self, _file: &str, _line: u32) -> Option<SourceLines> {
        None
    }
}

/// Whether a function belongs to the standard library's code between a panic and its hook. Those frames are removed
/// from a stack trace that a panic hook captured. `panic_fmt`, which the program calls, does not belong to it.
pub(super) fn is_panic_machinery(function: &str) -> bool {
    ["rust_begin_unwind", "__rust_end_short_backtrace", "panic_with_hook"].iter().any(|name| function.contains(name))
}

/// Whether a function converts one type into another: `<app::Error as core::convert::From<E>>::from`, or `from` where
/// only the bare name is known. `?` calls it, so at the innermost end of a stack it is where an error was converted, and
/// its caller is where the error occurred.
fn is_conversion(function: &str) -> bool {
    let is_impl = |of: &str, name: &str| function.contains(of) && function.ends_with(name);
    let is_bare = |name: &str| function.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('<'));
    is_impl(" as core::convert::From<", ">::from")
        || is_impl(" as core::convert::Into<", ">::into")
        || is_bare("from")
        || is_bare("into")
}

/// The number of frames, from the innermost, up to the last conversion before the first other frame of the program.
/// `frames` are function and `in_app`, innermost first.
pub(crate) fn converting_frames<'f>(frames: impl Iterator<Item = (&'f str, bool)>) -> usize {
    let before = frames.take_while(|(function, in_app)| !in_app || is_conversion(function)).enumerate();
    before.filter(|(_, (function, _))| is_conversion(function)).last().map_or(0, |(at, _)| at + 1)
}

/// Parts of paths that are not the program's own source: the standard library, the toolchain, dependencies, generated
/// code.
const FOREIGN_PATHS: [&str; 14] = [
    "/.cargo/registry/",
    "/.cargo/git/",
    "/cargo/registry/",
    "/rustc/",
    "/rustc-",
    "/sysdeps/",
    "/library/alloc/src/",
    "/library/core/src/",
    "/library/proc_macro/src/",
    "/library/std/src/",
    "/library/test/src/",
    "/toolchains/",
    "/target/",
    "/vendor/",
];

/// Crates that are libraries, never a program. Sorted.
const FOREIGN_CRATES: [&str; 19] = [
    "alloc",
    "anyhow",
    "backtrace",
    "color_eyre",
    "core",
    "eyre",
    "futures_core",
    "futures_util",
    "log",
    "posthog",
    "proc_macro",
    "reqwest",
    "stable_eyre",
    "std",
    "test",
    "tokio",
    "tracing",
    "tracing_core",
    "tracing_subscriber",
];

/// Functions that run before and around `main`, for which no file is known. Sorted.
const FOREIGN_FUNCTIONS: [&str; 8] =
    ["__clone", "__libc_start_call_main", "__libc_start_main", "_start", "clone", "clone3", "main", "start_thread"];

/// Whether a frame is the program's own, by its source file and function as far as they are known. If they do not
/// decide, a frame of the executable counts as the program's own: PostHog corrects that if it has symbols, but not the
/// opposite.
pub(crate) fn is_in_app(function: &str, file: Option<&str>, in_executable: bool) -> bool {
    if let Some(file) = file
        && (FOREIGN_PATHS.iter().any(|part| file.contains(part)) || is_checkout(file))
    {
        return false;
    }
    if function.starts_with("__rust") || function == "rust_begin_unwind" || function == "_main" {
        return false;
    }
    if FOREIGN_CRATES.binary_search(&crate_of(function)).is_ok() {
        return false;
    }
    // Where the C library has debug information, or is part of the executable, its functions have a file. So may the
    // `main` of a program whose debug information has bare names only.
    let is_runtime = FOREIGN_FUNCTIONS.binary_search(&function.split('@').next().unwrap_or("")).is_ok();
    if is_runtime && (function != "main" || file.is_none()) {
        return false;
    }
    match file {
        // The C library and similar, if the system has their symbols. cargo never writes a path like this.
        Some(file) if !in_executable => {
            !file.starts_with("./") && !file.starts_with("../") && !function.starts_with("__")
        }
        Some(_) => true,
        None => in_executable,
    }
}

/// The program's rules about its own frames, which take precedence over those of the library.
#[derive(Clone, Debug, Default)]
pub(crate) struct InAppRules {
    /// Beginnings of source paths or function paths that are the program's own.
    pub(crate) included: Vec<String>,
    /// Beginnings of those that are not, whatever `included` says.
    pub(crate) excluded: Vec<String>,
}

impl InAppRules {
    /// As the function [`is_in_app`], if no rule matches.
    pub(crate) fn is_in_app(&self, function: &str, file: Option<&str>, in_executable: bool) -> bool {
        let path = path_of(function);
        let matches = |prefix: &String| {
            // An empty prefix would match everything; nobody means that.
            !prefix.is_empty() && (path.starts_with(&**prefix) || file.is_some_and(|file| file.starts_with(&**prefix)))
        };
        if self.excluded.iter().any(matches) {
            return false;
        }
        self.included.iter().any(matches) || is_in_app(function, file, in_executable)
    }
}

/// The module of a function, as far as its name shows it: the path before the function or its type. `None` for a name
/// without a path, such as that of a C function.
///
/// `checkout::cart` of `checkout::cart::Cart<T>::total`, of `<checkout::cart::Cart as core::fmt::Debug>::fmt`, and of
/// `checkout::cart::total::{{closure}}`.
pub(crate) fn module_of(function: &str) -> Option<&str> {
    let path = path_of(function);
    // Arguments and closures have paths of their own.
    let end = path.find(['<', '>', '{', '(', ' ', ',', ';', '&', '*', '[', ']']).unwrap_or(path.len());
    let path = path.get(..end)?.trim_end_matches(':');
    let (parents, last) = path.rsplit_once("::")?;
    // In `<Type as Trait>::function` the last segment is the type; either way it does not belong to the module. Neither
    // do segments before it that begin with a capital letter: a type or a variant.
    let is_type = |segment: &str| segment.starts_with(|first: char| first.is_ascii_uppercase());
    let first_type = parents.split("::").position(is_type);
    match first_type {
        _ if last.is_empty() => None,
        Some(0) => None,
        Some(count) => {
            let len = parents.split("::").take(count).map(|segment| segment.len() + 2).sum::<usize>();
            parents.get(..len.checked_sub(2)?)
        }
        None => Some(parents),
    }
}

/// The crate that a function's path begins with: `my_app` of `<my_app::Cart as core::fmt::Debug>::fmt`.
pub(crate) fn crate_of(function: &str) -> &str {
    // A name without a path, such as that of a C function, has no crate.
    path_of(function).split_once("::").map_or("", |(name, _)| name)
}

/// A function's name from the beginning of its path: `my_app::Cart as core::fmt::Debug>::fmt` of the above.
fn path_of(function: &str) -> &str {
    let path = function.trim_start_matches(['<', '&', '*', '(', '[', '_', ' ']);
    path.trim_start_matches("mut ").trim_start_matches("const ").trim_start_matches("dyn ")
}

/// Whether a file is in one of cargo's directories, wherever they are: `registry/src/<index>-<16 hex>/`,
/// `git/checkouts/<repository>-<16 hex>/`.
fn is_checkout(file: &str) -> bool {
    ["registry/src/", "git/checkouts/"].iter().any(|folder| {
        let Some((_, rest)) = file.split_once(folder) else { return false };
        let hash = rest.split('/').next().and_then(|name| name.rsplit_once('-')).map_or("", |(_, hash)| hash);
        hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_for_the_search_in_them() {
        assert!(FOREIGN_CRATES.is_sorted() && FOREIGN_FUNCTIONS.is_sorted());
    }

    #[test]
    fn frames_of_the_program_differ_from_those_of_libraries() {
        for (function, file) in [
            ("checkout::run", Some("/app/src/main.rs")),
            ("checkout::main", Some("src/main.rs")),
            ("<checkout::Cart as core::fmt::Debug>::fmt", Some("/app/src/cart.rs")),
            ("<&mut checkout::Cart as core::iter::Iterator>::next", None),
            ("checkout::total", None),
            ("", Some("/app/src/lib.rs")),
        ] {
            assert!(is_in_app(function, file, true), "{function} {file:?}");
        }
        for (function, file) in [
            ("core::ops::function::FnOnce::call_once", Some("/rustc/abc/library/core/src/ops/function.rs")),
            (
                "serde_json::from_str",
                Some("/home/me/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/serde_json/src/de.rs"),
            ),
            ("thing::new", Some("/opt/registry/src/mirror-0123456789abcdef/thing/src/lib.rs")),
            ("thing::new", Some("/opt/git/checkouts/thing-0123456789abcdef/abc/src/lib.rs")),
            ("checkout::made", Some("/app/target/debug/build/checkout-1/out/made.rs")),
            ("<alloc::boxed::Box<F,A> as core::ops::function::FnOnce<Args>>::call_once", None),
            ("std::rt::lang_start::{{closure}}", None),
            ("posthog::client::exception::capture", None),
            ("__rust_begin_short_backtrace", Some("/app/src/odd.rs")),
            ("main", None),
            ("_start", None),
            ("__libc_start_main@@GLIBC_2.34", None),
        ] {
            assert!(!is_in_app(function, file, true), "{function} {file:?}");
        }
    }

    #[test]
    fn rules_of_the_program_come_before_those_of_the_library() {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let rules = InAppRules {
            included: texts(&["tokio::", "/rustc/", "mine::", ""]),
            excluded: texts(&["checkout::generated", "/app/src/vendored/", "mine::not"]),
        };
        for (function, file, expected) in [
            ("tokio::runtime::run", Some("/app/tokio/src/run.rs"), true),
            ("<&mut tokio::Task as core::future::Future>::poll", None, true),
            ("core::fmt::write", Some("/rustc/abc/library/core/src/fmt.rs"), true),
            ("std::rt::lang_start", None, false),
            ("checkout::generated::parse", Some("/app/src/generated.rs"), false),
            ("<checkout::generated::Ast as core::fmt::Debug>::fmt", None, false),
            ("checkout::run", Some("/app/src/vendored/run.rs"), false),
            ("checkout::run", Some("/app/src/run.rs"), true),
            ("mine::not::this", None, false),
        ] {
            assert_eq!(rules.is_in_app(function, file, true), expected, "{function} {file:?}");
        }
    }

    #[test]
    fn a_module_is_the_path_before_the_function_or_its_type() {
        for (function, expected) in [
            ("checkout::run", Some("checkout")),
            ("checkout::cart::total", Some("checkout::cart")),
            ("checkout::cart::Cart::total", Some("checkout::cart")),
            ("checkout::cart::Cart<alloc::vec::Vec<u8>>::total", Some("checkout::cart")),
            ("<checkout::cart::Cart as core::fmt::Debug>::fmt", Some("checkout::cart")),
            ("<&mut checkout::cart::Cart<T> as core::iter::Iterator>::next", Some("checkout::cart")),
            ("core::ptr::drop_in_place<checkout::Cart>", Some("core::ptr")),
            ("<dyn checkout::Shape>::area", Some("checkout")),
            ("main", None),
            ("total", None),
            ("Cart::total", None),
            ("", None),
            ("<T as core::Into<U>>::into", None),
            ("::", None),
            ("__rust_begin_short_backtrace", None),
        ] {
            assert_eq!(module_of(function), expected, "{function}");
        }
        assert_eq!(module_of("checkout::cart::total::{{closure}}"), Some("checkout::cart"));
    }

    #[test]
    fn without_a_name_only_frames_of_the_executable_are_in_app() {
        assert!(is_in_app("", None, true) && !is_in_app("", None, false));
        assert!(is_in_app("my_plugin::run", Some("/src/plugin/lib.rs"), false));
        assert!(!is_in_app("qsort", None, false));
        assert!(!is_in_app("raise", Some("./signal/../sysdeps/posix/raise.c"), false));
        assert!(!is_in_app("__libc_start_call_main", Some("/build/glibc/csu/libc-start.c"), false));
    }

    #[test]
    fn frames_that_start_a_thread_are_never_in_app() {
        for in_executable in [false, true] {
            assert!(!is_in_app("start_thread", Some("/usr/src/debug/glibc/nptl/pthread_create.c"), in_executable));
            assert!(!is_in_app("clone3", Some("../sysdeps/unix/sysv/linux/x86_64/clone3.S"), in_executable));
            assert!(!is_in_app("clone3@@GLIBC_2.34", None, in_executable));
        }
        assert!(!is_in_app("helper", Some("../sysdeps/helper.c"), false));
        assert!(is_in_app("main", Some("/app/src/main.rs"), true), "the bare name of the program's own");
    }

    #[test]
    fn conversions_at_the_innermost_end_are_counted() {
        let of = |frames: &[(&str, bool)]| converting_frames(frames.iter().copied());
        let from = "<app::Error as core::convert::From<std::io::Error>>::from";
        let (residual, handler) =
            ("<core::result::Result<T,F> as core::ops::FromResidual<R>>::from_residual", "app::get");
        assert_eq!(of(&[(from, true), (residual, false), (handler, true), (from, true)]), 1);
        assert_eq!(of(&[("app::Error as core::convert::Into<T>>::into", true), ("from<E>", true), (handler, true)]), 2);
        assert_eq!(of(&[(residual, false), (handler, true), (from, true)]), 0);
        assert_eq!(of(&[("from_row", true), ("app::from", true)]), 0, "functions of the program");
        assert_eq!(of(&[]), 0);
    }
}
