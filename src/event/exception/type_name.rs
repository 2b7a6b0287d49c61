//! What the type of an error is called.

use std::fmt::Debug;

use super::chain::print;
use crate::sys::limits::{NAME_KEPT, beginning};

/// The type of what says nothing of its type.
pub(super) const NAMELESS: &str = "Error";
/// Of a Debug text, as much as a type's name may take and what must follow it.
pub(super) const DEBUG_READ: usize = 128;

/// Types that only hold another, which is the one that counts.
const HOLDERS: [&str; 3] = ["alloc::boxed::Box<", "alloc::sync::Arc<", "alloc::rc::Rc<"];

/// The short form of what the compiler calls a type, and the module that it is in. `None` behind `dyn`.
///
/// One that is called `Error` gets the name before it as well, for that says more: `serde_json::Error`, `io::Error`.
pub(super) fn short(full: &str) -> Option<(String, Option<String>)> {
    let mut path = full.trim_start_matches(['&', ' ']);
    path = path.strip_prefix("mut ").unwrap_or(path);
    while let Some(held) = HOLDERS.iter().find_map(|holder| path.strip_prefix(holder)) {
        path = held.strip_suffix('>').unwrap_or(held);
    }
    if path.starts_with("dyn ") {
        return None;
    }
    let path = path.split(['<', ',']).next().unwrap_or_default();
    let (module, name) = path.rsplit_once("::").map_or((None, path), |(module, name)| (Some(module), name));
    if !is_name(name) {
        return None;
    }
    let above = module.iter().flat_map(|module| module.rsplit("::")).find(|part| !matches!(*part, "error" | "errors"));
    let named = match above {
        Some(above) if name == NAMELESS => format!("{above}::{name}"),
        _ => name.to_owned(),
    };
    Some((beginning(&named, NAME_KEPT).to_owned(), module.map(|module| beginning(module, NAME_KEPT).to_owned())))
}

/// The name that a Debug text begins with, if it looks like that of a type: `Missing { key: .. }`, `Io(..)`, or `Closed` alone, but not
/// a message in words.
pub(super) fn in_debug(value: &dyn Debug, message: &str, note: &mut impl FnMut(&'static str, bool)) -> Option<String> {
    let (text, is_broken) = print(DEBUG_READ, format_args!("{value:?}"));
    note("Debug", is_broken);
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end)?;
    let is_whole = rest.is_empty() && text != message && text.len() < DEBUG_READ;
    let looks_like_one = is_whole || rest.starts_with('(') || rest.starts_with(" {");
    (looks_like_one && is_name(name) && name.starts_with(|c: char| c.is_ascii_uppercase())).then(|| name.to_owned())
}

/// Whether it could be the name of a type.
pub(super) fn is_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}
