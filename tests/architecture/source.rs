//! A parsed Rust file as the architecture rules see it: a flat list of tokens, the types it defines, and what of it is
//! test code.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, LineColumn, Spacing, Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A parsed file.
pub(crate) struct Source {
    /// Path relative to the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// Names of the types and traits it defines, with their lines.
    pub(crate) types: Vec<(String, usize)>,
    test_modules: Vec<String>,
    /// First and last line of each item that is test code.
    test_lines: Vec<(usize, usize)>,
    is_test: bool,
}

/// One token. Delimiters are tokens of their own, and so is `::`.
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
    pub(crate) in_test: bool,
    /// How many `mod name { }` of this file it stands in.
    pub(crate) inline_modules: usize,
}

impl Source {
    /// Parses `text` as the file at `path`.
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{path} does not parse: {error}"));
        let mut structure = Structure::default();
        structure.visit_file(&file);
        let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path} has no tokens: {error}"));
        let mut tokens = Vec::new();
        flatten(stream, 0, &structure.test_spans, &mut tokens);
        let folder = children_folder(path);
        let test_modules = structure.test_modules.iter().map(|name| format!("{folder}{name}")).collect();
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            tokens,
            types: structure.types,
            test_modules,
            test_lines: structure.test_spans.iter().map(|(start, end)| (start.line, end.line)).collect(),
            is_test: false,
        }
    }

    /// The module directly below the crate's root that the file belongs to: `store` for `src/queue/store/rows.rs`.
    pub(crate) fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split(['/', '.']).next().unwrap_or(below)
    }

    /// The tokens that are compiled without `cfg(test)`.
    pub(crate) fn shipped(&self) -> Vec<&Token> {
        self.tokens.iter().filter(|token| !token.in_test).collect()
    }

    /// How many modules lie between the crate's root and the file's own module, that included.
    pub(crate) fn depth(&self) -> usize {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path).trim_end_matches(".rs");
        below.split('/').filter(|part| !matches!(*part, "lib" | "main" | "mod")).count()
    }

    /// Lines of the file that are not part of its tests; 0 for a file of tests.
    pub(crate) fn code_lines(&self) -> usize {
        if self.is_test {
            return 0;
        }
        let is_code = |line: &usize| !self.test_lines.iter().any(|(first, last)| (*first..=*last).contains(line));
        (1..=self.text.lines().count()).filter(is_code).count()
    }

    fn declares_as_test(&self, other: &Source) -> bool {
        self.test_modules.iter().any(|module| {
            let rest = other.path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    }
}

/// Every Rust file below `folders` of the repository, those of `#[cfg(test)] mod name;` marked as test code throughout.
pub(crate) fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources: Vec<_> = files(folders, "rs")
        .iter()
        .map(|path| Source::parse(path, &fs::read_to_string(root.join(path)).expect("a listed file can be read")))
        .collect();
    for at in 0..sources.len() {
        if sources.iter().any(|parent| parent.declares_as_test(&sources[at])) {
            sources[at].tokens.iter_mut().for_each(|token| token.in_test = true);
            sources[at].is_test = true;
        }
    }
    sources
}

/// Paths of the files with this ending below `folders`, sorted. A folder that does not exist holds none.
fn files(folders: &[&str], ending: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() && !path.ends_with("target") {
            open.extend(fs::read_dir(&path).expect("a folder can be read").flatten().map(|entry| entry.path()));
        } else if path.is_file() && path.extension().is_some_and(|extension| extension == ending) {
            let relative = path.strip_prefix(root).expect("everything lies below the root");
            found.push(relative.to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// Where the files of this file's child modules lie, with a `/` at the end.
fn children_folder(path: &str) -> String {
    let without = path.trim_end_matches(".rs");
    match without.rsplit_once('/') {
        Some((folder, "mod" | "lib" | "main")) => format!("{folder}/"),
        _ => format!("{without}/"),
    }
}

fn flatten(stream: TokenStream, inline_modules: usize, test_spans: &[(LineColumn, LineColumn)], out: &mut Vec<Token>) {
    let mut pair_open = false;
    for tree in stream {
        let push = |text: String, span: Span, out: &mut Vec<Token>| {
            let at = span.start();
            let in_test = test_spans.iter().any(|(start, end)| *start <= at && at < *end);
            out.push(Token { text, line: at.line, in_test, inline_modules });
        };
        let is_colon = matches!(&tree, TokenTree::Punct(punct) if punct.as_char() == ':');
        let opens_pair = matches!(&tree, TokenTree::Punct(punct) if is_colon && punct.spacing() == Spacing::Joint);
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::None => ("", ""),
                };
                let is_module = open == "{" && out.iter().rev().nth(1).is_some_and(|token| token.text == "mod");
                push(open.to_owned(), group.span_open(), out);
                flatten(group.stream(), inline_modules + usize::from(is_module), test_spans, out);
                push(close.to_owned(), group.span_close(), out);
            }
            TokenTree::Punct(punct) if is_colon && pair_open => {
                if let Some(last) = out.last_mut() {
                    last.text.push(punct.as_char());
                }
            }
            other => push(other.to_string(), other.span(), out),
        }
        pair_open = opens_pair && !pair_open;
    }
}

#[derive(Default)]
struct Structure {
    test_spans: Vec<(LineColumn, LineColumn)>,
    test_modules: Vec<String>,
    types: Vec<(String, usize)>,
}

impl Structure {
    fn note_test(&mut self, attributes: &[syn::Attribute], whole: Span) -> bool {
        let is_test = attributes.iter().any(is_test_only);
        if is_test {
            self.test_spans.push((whole.start(), whole.end()));
        }
        is_test
    }
}

/// `#[test]`, `#[cfg(test)]` and `#[cfg(all(test, ...))]`. `cfg(any(test, ...))` and `cfg(not(test))` are shipped code.
fn is_test_only(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return attribute.path().is_ident("test") };
    let condition = list.tokens.to_string();
    list.path.is_ident("cfg")
        && condition.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "test")
        && !condition.contains("not")
        && !condition.contains("any")
}

impl<'ast> Visit<'ast> for Structure {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, defined): (&[syn::Attribute], Option<&syn::Ident>) = match item {
            syn::Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Type(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Const(item) => (&item.attrs, None),
            syn::Item::Fn(item) => (&item.attrs, None),
            syn::Item::Impl(item) => (&item.attrs, None),
            syn::Item::Macro(item) => (&item.attrs, None),
            syn::Item::Mod(item) => (&item.attrs, None),
            syn::Item::Static(item) => (&item.attrs, None),
            syn::Item::Use(item) => (&item.attrs, None),
            _ => (&[], None),
        };
        let is_test = self.note_test(attributes, item.span());
        self.types.extend(defined.map(|ident| (ident.to_string(), ident.span().start().line)));
        if let (true, syn::Item::Mod(module)) = (is_test, item) {
            self.test_modules.push(module.ident.to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note_test(&item.attrs, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.note_test(&variant.attrs, variant.span());
        visit::visit_variant(self, variant);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.note_test(&field.attrs, field.span());
        visit::visit_field(self, field);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.note_test(&arm.attrs, arm.span());
        visit::visit_arm(self, arm);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        self.note_test(&local.attrs, local.span());
        visit::visit_local(self, local);
    }
}

/// The first segments of the use tree that begins at `at`: one, or one for each branch of a group.
pub(crate) fn heads<'a>(tokens: &[&'a Token], at: usize) -> Vec<&'a Token> {
    let Some(first) = tokens.get(at) else { return Vec::new() };
    if first.text != "{" {
        return vec![first];
    }
    let mut heads = Vec::new();
    let mut depth = 0_usize;
    for pair in tokens[at..].windows(2) {
        match pair[0].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(pair[0].text.as_str(), "{" | ",") && pair[1].text != "}" {
            heads.push(pair[1]);
        }
    }
    heads
}
