//! The imports of a crate's files.
//!
//! An import is a path in code: a `use`, or a path that starts with `crate`, `super`, `self` or a
//! child module. It leads to the file that the path names: `super::Thing` is an import of the
//! parent's `mod.rs`, even if that only re-exports `Thing`. Items under `#[cfg(test)]` or
//! `#[cfg(loom)]` do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

use crate::files_under;

/// A module, by its path from the crate's root.
pub type Module = Vec<String>;

/// The files of a crate, each with its imports.
#[derive(Debug)]
pub struct Imports {
    /// For each module, the modules that it imports, with the paths.
    pub of: BTreeMap<Module, BTreeMap<Module, BTreeSet<String>>>,
    /// For each module, the paths that lead out of the crate.
    pub outside: BTreeMap<Module, BTreeSet<String>>,
}

impl Imports {
    /// Reads every file below `src`.
    ///
    /// # Panics
    ///
    /// If a file cannot be read or is no Rust.
    pub fn of(src: &Path) -> Self {
        let mut files = Vec::new();
        files_under(src, &mut files);
        let mut modules = BTreeMap::new();
        for file in files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
            let code = fs::read_to_string(&file).expect("a source file");
            let parsed = syn::parse_file(&code).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            modules.insert(module_of(file.strip_prefix(src).expect("a file of the folder")), parsed);
        }
        let tests = test_modules(&modules);
        modules.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        let names: BTreeSet<Module> = modules.keys().cloned().collect();
        let (mut of, mut outside) = (BTreeMap::new(), BTreeMap::new());
        for (module, parsed) in &modules {
            let mut paths = Paths::default();
            paths.visit_file(parsed);
            let mut imports: BTreeMap<Module, BTreeSet<String>> = BTreeMap::new();
            let mut foreign = BTreeSet::new();
            for path in paths.0 {
                match resolve(&names, module, &path) {
                    Some(found) if found == *module => {}
                    Some(found) => {
                        imports.entry(found).or_default().insert(path.join("::"));
                    }
                    None => {
                        foreign.insert(path.join("::"));
                    }
                }
            }
            of.insert(module.clone(), imports);
            outside.insert(module.clone(), foreign);
        }
        Self { of, outside }
    }

    /// Every circle of imports: the modules that reach each other, and the paths between them.
    pub fn circles(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen: BTreeSet<&Module> = BTreeSet::new();
        for module in self.of.keys() {
            if seen.contains(module) {
                continue;
            }
            let circle: BTreeSet<&Module> = self
                .reached_from(module)
                .into_iter()
                .filter(|other| self.reached_from(other).contains(module))
                .collect();
            if circle.is_empty() {
                continue;
            }
            seen.extend(&circle);
            for from in &circle {
                for (to, paths) in self.of[*from].iter().filter(|(to, _)| circle.contains(to)) {
                    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                    found.push(format!("{} imports {}: {}", from.join("/"), to.join("/"), paths.join(", ")));
                }
            }
        }
        found
    }

    /// The modules that `from` imports, and those that they import, and so on.
    fn reached_from(&self, from: &Module) -> BTreeSet<&Module> {
        let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(module) = left.pop() {
            for next in self.of.get(module).into_iter().flat_map(BTreeMap::keys) {
                if let Some((next, _)) = self.of.get_key_value(next)
                    && reached.insert(next)
                {
                    left.push(next);
                }
            }
        }
        reached
    }
}

fn module_of(file: &Path) -> Module {
    let mut parts: Module =
        file.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Whether the item is in no build that ships.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        attribute.meta.require_list().is_ok_and(|list| {
            let text = list.tokens.to_string().replace(' ', "");
            !text.contains("not(test)") && !text.contains("any(") && (text == "test" || text.contains("test,"))
        })
    })
}

/// The modules in files of their own that are declared for tests alone.
fn test_modules(modules: &BTreeMap<Module, syn::File>) -> Vec<Module> {
    let declared = |(module, file): (&Module, &syn::File)| {
        let for_tests = file.items.iter().filter_map(|item| match item {
            Item::Mod(item) if item.content.is_none() && is_for_tests(&item.attrs) => Some(item.ident.to_string()),
            _ => None,
        });
        for_tests.map(|name| [module.as_slice(), &[name]].concat()).collect::<Vec<_>>()
    };
    modules.iter().flat_map(declared).collect()
}

/// The file that `path` leads to, from `module`; `None` outside the crate.
fn resolve(names: &BTreeSet<Module>, module: &Module, path: &[String]) -> Option<Module> {
    let mut path = path.iter().peekable();
    let mut at = match path.peek()?.as_str() {
        "crate" => {
            path.next();
            Vec::new()
        }
        "self" | "super" => module.clone(),
        child if names.contains(&[module.as_slice(), &[child.to_owned()]].concat()) => module.clone(),
        _ => return None,
    };
    while let Some(up) = path.next_if(|part| *part == "super" || *part == "self") {
        if up == "super" {
            at.pop()?;
        }
    }
    for part in path {
        let child = [at.as_slice(), std::slice::from_ref(part)].concat();
        if !names.contains(&child) {
            break;
        }
        at = child;
    }
    Some(at)
}

/// The paths of a file.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn add_use(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &with(&path.ident)),
            UseTree::Name(name) => self.0.push(with(&name.ident)),
            UseTree::Rename(name) => self.0.push(with(&name.ident)),
            UseTree::Glob(_) => self.0.push(before.to_vec()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, before)),
        }
    }

    /// The paths in the tokens of a macro.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    colons = 0;
                    self.add_tokens(group.stream());
                }
                _ => {
                    self.end(&mut path);
                    colons = 0;
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.0.push(path);
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.0.push(parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.add_tokens(item.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(code: &str) -> Vec<String> {
        let mut paths = Paths::default();
        paths.visit_file(&syn::parse_file(code).unwrap());
        paths.0.into_iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn paths_are_found_and_tests_are_not() {
        let code = "use crate::a::{b, c as d, e::*};\n// crate::f\n#[cfg(test)]\nmod tests { use crate::g; }\n\
            #[cfg(all(test, not(loom)))]\nfn t() { crate::t() }\n#[cfg(not(loom))]\nfn u() { crate::u() }\n\
            fn h() -> super::i::J { vec![crate::k::l(m, n)] }";
        let found = paths(code);
        assert_eq!(found, ["crate::a::b", "crate::a::c", "crate::a::e", "crate::u", "super::i::J", "crate::k::l"]);
    }

    #[test]
    fn a_path_leads_to_the_file_that_it_names() {
        let names: BTreeSet<Module> = [vec![], vec!["a"], vec!["a", "b"], vec!["c"]]
            .map(|path| path.into_iter().map(str::to_owned).collect())
            .into();
        let resolve = |module: &[&str], path: &str| {
            let module = module.iter().map(|&part| part.to_owned()).collect();
            let path: Vec<String> = path.split("::").map(str::to_owned).collect();
            resolve(&names, &module, &path).map(|found| found.join("/"))
        };
        assert_eq!(resolve(&["a", "b"], "super::Thing").as_deref(), Some("a"));
        assert_eq!(resolve(&["c"], "crate::a::b::Thing").as_deref(), Some("a/b"));
        assert_eq!(resolve(&["a"], "b::Thing").as_deref(), Some("a/b"));
        assert_eq!(resolve(&["c"], "std::fs"), None);
    }
}
