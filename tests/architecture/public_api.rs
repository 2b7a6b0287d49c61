//! The public interface as text: what a program can name, with all features, read from the sources.
//!
//! It follows `pub mod` and `pub use` from the crate's root to the definitions, and lists for each name its signature, the
//! public fields or variants, the public methods and the traits that are implemented by hand or derived. It does not know
//! what the compiler infers (`Send`, `Sync`, lifetimes).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, Signature, TraitItem, Type, UseTree, Visibility};

/// The items of each module, by its path below the crate's root.
type Modules = BTreeMap<Vec<String>, Vec<Item>>;
/// A definition: its module and its name.
type Definition = (Vec<String>, String);

/// The whole interface, sorted.
pub(crate) fn public_api(root: &Path) -> String {
    let mut api = Api { modules: modules(root), lines: BTreeSet::new() };
    api.module(&[], "posthog");
    let mut text = String::new();
    for line in &api.lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn modules(root: &Path) -> Modules {
    let mut modules = Modules::new();
    read(&root.join("src/lib.rs"), &root.join("src"), Vec::new(), &mut modules);
    modules
}

/// Reads a file and the files of its modules, which are in `folder`.
fn read(file: &Path, folder: &Path, path: Vec<String>, modules: &mut Modules) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    add(parsed.items, folder, path, modules);
}

/// The items of a file, with those inside of `pin_project!`. What other macros make is not seen.
fn with_pinned(items: Vec<Item>) -> Vec<Item> {
    let expand = |item: Item| match &item {
        Item::Macro(invoked) if invoked.mac.path.segments.last().is_some_and(|last| last.ident == "pin_project") => {
            syn::parse2::<syn::File>(invoked.mac.tokens.clone()).map_or_else(|_| vec![item], |file| file.items)
        }
        _ => vec![item],
    };
    items.into_iter().flat_map(expand).collect()
}

fn add(items: Vec<Item>, folder: &Path, path: Vec<String>, modules: &mut Modules) {
    for item in &items {
        let Item::Mod(module) = item else { continue };
        if is_hidden(&module.attrs) {
            continue;
        }
        let name = module.ident.to_string();
        let below = [path.clone(), vec![name.clone()]].concat();
        if let Some((_, items)) = &module.content {
            add(items.clone(), &folder.join(&name), below, modules);
        } else if folder.join(format!("{name}.rs")).exists() {
            read(&folder.join(format!("{name}.rs")), &folder.join(&name), below, modules);
        } else if folder.join(&name).join("mod.rs").exists() {
            read(&folder.join(&name).join("mod.rs"), &folder.join(&name), below, modules);
        }
    }
    modules.insert(path, with_pinned(items));
}

struct Api {
    modules: Modules,
    lines: BTreeSet<String>,
}

impl Api {
    /// Lists what is public in a module, under the name `public`.
    fn module(&mut self, path: &[String], public: &str) {
        let items = self.modules.get(path).cloned().unwrap_or_default();
        for item in items {
            match &item {
                Item::Mod(module) if is_public(&module.vis) && !is_hidden(&module.attrs) => {
                    let name = module.ident.to_string();
                    let public = format!("{public}::{name}");
                    self.lines.insert(format!("{public} mod{}", features(&module.attrs)));
                    self.module(&[path, &[name]].concat(), &public);
                }
                Item::Use(used) if is_public(&used.vis) && !is_hidden(&used.attrs) => {
                    for (from, name) in leaves(&used.tree, &[]) {
                        let first = from.first().map_or("", String::as_str);
                        let below = [path, &[first.to_owned()]].concat();
                        if !matches!(first, "crate" | "self" | "super") && !self.modules.contains_key(&below) {
                            self.lines.insert(format!("{public}::{name} = {}", from.join("::")));
                            continue;
                        }
                        let definition = self.resolve(path, &from);
                        let (module, defined) = definition
                            .unwrap_or_else(|| panic!("{public}::{name}: no definition of {from:?} was found"));
                        self.definition(&module, &defined, &format!("{public}::{name}"), &features(&used.attrs));
                    }
                }
                item => {
                    if let Some(name) = name_of(item).filter(|_| is_public(visibility(item))) {
                        self.definition(path, &name, &format!("{public}::{name}"), "");
                    }
                }
            }
        }
    }

    /// Follows a path, as it is written in `module`, to a definition.
    fn resolve(&self, module: &[String], path: &[String]) -> Option<Definition> {
        let (name, above) = path.split_last()?;
        let mut at = module.to_vec();
        for (nth, part) in above.iter().enumerate() {
            match part.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()?),
                part => {
                    at.push(part.to_owned());
                    if nth == 0 && !self.modules.contains_key(&at) {
                        return None;
                    }
                }
            }
        }
        let items = self.modules.get(&at)?;
        if items.iter().any(|item| name_of(item).as_ref() == Some(name) && !matches!(item, Item::Mod(_) | Item::Use(_)))
        {
            return Some((at, name.clone()));
        }
        items.iter().find_map(|item| {
            let Item::Use(used) = item else { return None };
            let (from, _) = leaves(&used.tree, &[]).into_iter().find(|(_, found)| found == name)?;
            self.resolve(&at, &from)
        })
    }

    fn definition(&mut self, module: &[String], name: &str, public: &str, gate: &str) {
        let items: Vec<_> =
            self.modules[module].iter().filter(|item| name_of(item).as_deref() == Some(name)).cloned().collect();
        for item in items {
            let own = features(attributes(&item));
            let gate = if own == gate { own } else { format!("{gate}{own}") };
            self.item(&item, public, &gate);
            if matches!(item, Item::Struct(_) | Item::Enum(_)) {
                self.implementations(&(module.to_vec(), name.to_owned()), public);
            }
        }
    }

    fn item(&mut self, item: &Item, public: &str, gate: &str) {
        let mut line = |text: String| {
            self.lines.insert(format!("{public} {text}{gate}"));
        };
        match item {
            Item::Fn(function) => line(signature(&function.sig)),
            Item::Const(item) => line(format!("const: {}", tokens(&item.ty))),
            Item::Type(item) => line(format!("type = {}", tokens(&item.ty))),
            Item::Struct(item) => {
                line(format!("struct{}{}", tokens(&item.generics), openness(&item.attrs)));
                fields(&item.fields, true).into_iter().for_each(|field| line(format!(".{field}")));
                derived(&item.attrs).into_iter().for_each(|name| line(format!("impl {name}")));
            }
            Item::Enum(item) => {
                line(format!("enum{}{}", tokens(&item.generics), openness(&item.attrs)));
                for variant in &item.variants {
                    let of = fields(&variant.fields, false).join(", ");
                    let of = if of.is_empty() { of } else { format!(" {{ {of} }}") };
                    line(format!("::{}{of}", variant.ident));
                }
                derived(&item.attrs).into_iter().for_each(|name| line(format!("impl {name}")));
            }
            Item::Trait(item) => {
                line(format!("trait{}: {}", tokens(&item.generics), tokens(&item.supertraits)));
                for item in &item.items {
                    if let TraitItem::Fn(function) = item {
                        let has_default = if function.default.is_some() { " (has a default)" } else { "" };
                        line(format!(".{}{has_default}", signature(&function.sig)));
                    }
                }
            }
            _ => {}
        }
    }

    fn implementations(&mut self, definition: &Definition, public: &str) {
        let mut lines = Vec::new();
        for (module, items) in &self.modules {
            for item in items {
                let Item::Impl(block) = item else { continue };
                if is_hidden(&block.attrs) || !self.is_of(block, module, definition) {
                    continue;
                }
                let gate = features(&block.attrs);
                if let Some((of, _)) = &block.trait_ {
                    lines.push(format!("{public} impl {}{gate}", tokens(of)));
                    continue;
                }
                for item in &block.items {
                    match item {
                        ImplItem::Fn(function) if is_public(&function.vis) && !is_hidden(&function.attrs) => {
                            let gate = format!("{gate}{}", features(&function.attrs));
                            lines.push(format!("{public} .{}{gate}", signature(&function.sig)));
                        }
                        ImplItem::Const(constant) if is_public(&constant.vis) => {
                            lines.push(format!("{public} .const {}: {}", constant.ident, tokens(&constant.ty)));
                        }
                        _ => {}
                    }
                }
            }
        }
        self.lines.extend(lines);
    }

    fn is_of(&self, block: &ItemImpl, module: &[String], definition: &Definition) -> bool {
        let Type::Path(path) = &*block.self_ty else { return false };
        let segments: Vec<_> = path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        segments.last() == Some(&definition.1) && self.resolve(module, &segments).as_ref() == Some(definition)
    }
}

/// The paths that a `use` names, each with the name that it gets.
fn leaves(tree: &UseTree, above: &[String]) -> Vec<(Vec<String>, String)> {
    let with = |name: String| [above, &[name]].concat();
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &with(path.ident.to_string())),
        UseTree::Name(name) => vec![(with(name.ident.to_string()), name.ident.to_string())],
        UseTree::Rename(name) => vec![(with(name.ident.to_string()), name.rename.to_string())],
        UseTree::Group(group) => group.items.iter().flat_map(|tree| leaves(tree, above)).collect(),
        UseTree::Glob(_) => Vec::new(),
    }
}

fn signature(signature: &Signature) -> String {
    tokens(signature)
}

fn fields(fields: &Fields, only_public: bool) -> Vec<String> {
    let shown = fields.iter().filter(|field| !only_public || is_public(&field.vis));
    let text = |(nth, field): (usize, &syn::Field)| {
        let name = field.ident.as_ref().map_or_else(|| nth.to_string(), ToString::to_string);
        format!("{name}: {}", tokens(&field.ty))
    };
    shown.enumerate().map(text).collect()
}

fn derived(attributes: &[Attribute]) -> Vec<String> {
    let mut names = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
        let listed = attribute.parse_nested_meta(|meta| {
            names.push(tokens(&meta.path));
            Ok(())
        });
        listed.unwrap_or_else(|error| panic!("a derive that is no list of paths: {error}"));
    }
    names
}

fn openness(attributes: &[Attribute]) -> &'static str {
    if attributes.iter().any(|attribute| attribute.path().is_ident("non_exhaustive")) {
        " (non-exhaustive)"
    } else {
        ""
    }
}

/// The conditions of an item, as ` [feature = "x"]`.
fn features(attributes: &[Attribute]) -> String {
    let conditions = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let text = conditions.filter_map(|attribute| attribute.meta.require_list().ok()).map(|list| tokens(&list.tokens));
    text.map(|condition| format!(" [{condition}]")).collect()
}

/// Whether an item is test code, or left out of the documentation.
fn is_hidden(attributes: &[Attribute]) -> bool {
    let text =
        |attribute: &Attribute| attribute.meta.require_list().map(|list| tokens(&list.tokens)).unwrap_or_default();
    attributes.iter().any(|attribute| {
        let (of, text) = (attribute.path(), text(attribute));
        (of.is_ident("cfg") && (text == "test" || text.contains("fuzzing") || text.contains("__crash")))
            || (of.is_ident("doc") && text == "hidden")
    })
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn visibility(item: &Item) -> &Visibility {
    match item {
        Item::Fn(item) => &item.vis,
        Item::Const(item) => &item.vis,
        Item::Type(item) => &item.vis,
        Item::Struct(item) => &item.vis,
        Item::Enum(item) => &item.vis,
        Item::Trait(item) => &item.vis,
        _ => &Visibility::Inherited,
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Fn(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    Some(match item {
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Const(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        _ => return None,
    })
}

/// The tokens as text, with the spaces that Rust code has.
fn tokens(of: &impl quote::ToTokens) -> String {
    let mut text = of.to_token_stream().to_string();
    let changes = [
        (" :: ", "::"),
        (":: ", "::"),
        (" ::", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" : ", ": "),
        ("& ", "&"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        ("- >", "->"),
        (" ;", ";"),
        (" ?", "?"),
        ("? ", "?"),
    ];
    for (from, to) in changes {
        text = text.replace(from, to);
    }
    text.replace("->", " -> ").replace("  ", " ").replace(",)", ")").replace("+?", "+ ?").replace("(mut self", "(self")
}
