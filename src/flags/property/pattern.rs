//! Regular expressions. The flags service matches with the crate `fancy-regex`, which hands what is not fancy to the crate `regex`:
//! patterns that both read alike are matched here, and of all others PostHog is asked. It knows look-around, back references and
//! possessive quantifiers, and can be made to run for long by them; what is matched here takes linear time.

use regex::{Regex, RegexBuilder};

/// Bytes that a compiled pattern may take, and as much again for each thread that matches it.
const SIZE_LIMIT: usize = 1 << 20;

/// Patterns that the service reads as the crate does.
pub(super) fn compile(pattern: &str) -> Option<Regex> {
    if !is_read_alike(pattern) {
        return None;
    }
    RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build().ok()
}

/// What stands before a place in a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// Nothing that can be repeated: the start, an anchor, `(` or `|`. The service refuses to repeat an anchor.
    Nothing,
    Something,
    /// What can be made lazy. What else follows makes it possessive there, and repeats it here.
    Quantifier,
    LazyQuantifier,
}

/// Goes by what is known to be the same, so that what is new in either crate is not. Whatever `regex` refuses may pass.
fn is_read_alike(pattern: &str) -> bool {
    let mut rest = pattern;
    let mut before = Before::Nothing;
    // For each open group, whether something in it can be repeated.
    let mut groups = vec![false];
    while let Some(next) = rest.chars().next() {
        let len = match next {
            '\\' => escape(rest, false),
            '[' => class(rest),
            '(' => group(rest),
            '{' => repetition(rest),
            '}' | ']' => None,
            _ => Some(next.len_utf8()),
        };
        let Some(token) = len.and_then(|len| rest.get(..len)) else { return false };
        rest = rest.get(token.len()..).unwrap_or_default();
        before = match next {
            '(' if token.ends_with(')') => Before::Nothing,
            '(' => {
                groups.push(false);
                Before::Nothing
            }
            ')' => match groups.pop() {
                Some(true) => Before::Something,
                _ => Before::Nothing,
            },
            '^' | '$' | '|' => Before::Nothing,
            '\\' if matches!(token, "\\A" | "\\z") => Before::Nothing,
            '?' if before == Before::Quantifier => Before::LazyQuantifier,
            '*' | '+' | '?' | '{' if before == Before::Something => Before::Quantifier,
            '*' | '+' | '?' | '{' => return false,
            _ => Before::Something,
        };
        if before == Before::Something
            && let Some(has_something) = groups.last_mut()
        {
            *has_something = true;
        }
    }
    true
}

/// The length of an escape: of a class of characters, or of a sign that would mean something else.
fn escape(rest: &str, is_in_class: bool) -> Option<usize> {
    match rest.chars().nth(1)? {
        'd' | 'D' | 'w' | 'W' | 's' | 'S' | 'n' | 'r' | 't' => Some(2),
        'A' | 'z' if !is_in_class => Some(2),
        'p' | 'P' if rest.get(2..)?.starts_with('{') => Some(rest.find('}')? + 1),
        'p' | 'P' => Some(3),
        '<' | '>' => None,
        sign => sign.is_ascii_punctuation().then_some(2),
    }
}

/// The length of a class in brackets, in which there may be others.
fn class(rest: &str) -> Option<usize> {
    let mut at = 0;
    let mut depth = 0_usize;
    loop {
        let here = rest.get(at..)?;
        match here.chars().next()? {
            '\\' => at += escape(here, true)?,
            '[' => {
                depth += 1;
                at += if here.starts_with("[^") { 2 } else { 1 };
                // Right at the beginning it closes nothing.
                at += usize::from(rest.get(at..)?.starts_with(']'));
            }
            ']' => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            other => at += other.len_utf8(),
        }
    }
}

/// The length of what opens a group: a group without a name, or one with some of the flags that both know.
fn group(rest: &str) -> Option<usize> {
    let Some(flags) = rest.strip_prefix("(?") else {
        return Some(1);
    };
    let len = flags.find([':', ')'])?;
    let flags = flags.get(..len)?;
    let is_alike = flags.char_indices().all(|(at, flag)| "ims".contains(flag) && flags.find(flag) == Some(at));
    is_alike.then_some("(?".len() + len + 1)
}

/// The length of `{2}`, `{2,}` or `{2,3}`. What looks like one and is none, the service takes literally.
fn repetition(rest: &str) -> Option<usize> {
    let len = rest.find('}')?;
    let counts = rest.get(1..len)?;
    let (least, most) = counts.split_once(',').unwrap_or((counts, ""));
    let is_count = |count: &str| count.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && is_count(least) && is_count(most)).then_some(len + 1)
}
