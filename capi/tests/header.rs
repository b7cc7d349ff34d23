//! `include/codewarden.h` agrees with the sources, and compiles as C and as C++.
//!
//! It is made section by section: a module's head is the section's text, cbindgen makes
//! the declarations. To generate it anew:
//!
//! ```sh
//! CODEWARDEN_UPDATE_HEADER=1 cargo test -p codewarden-capi --test header
//! ```

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use cbindgen::{Config, DocumentationStyle, Language, SortKey, Style};
use support::{compiler, package, run};

/// The modules in the order of their sections.
const SECTIONS: [&str; 17] = [
    "status",
    "mode",
    "policy",
    "cache",
    "told",
    "tracker",
    "claim",
    "region",
    "mapping",
    "code_buffer",
    "link",
    "ticket",
    "vcpu",
    "writes",
    "signals",
    "fork",
    "stats",
];

/// The types that a module makes, whether or not a function of the same one takes them.
fn types(source: &str) -> Vec<String> {
    let named = |line: &str| {
        let rest = line.strip_prefix("pub enum ").or(line.strip_prefix("pub struct "))?;
        Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
    };
    source.lines().filter_map(named).collect()
}

fn config(source: &str) -> Config {
    let mut config = Config {
        language: Language::C,
        style: Style::Both,
        documentation_style: DocumentationStyle::Cxx,
        no_includes: true,
        line_length: 100,
        tab_width: 4,
        ..Config::default()
    };
    config.export.include = types(source);
    config.function.sort_by = Some(SortKey::None);
    config.constant.sort_by = Some(SortKey::None);
    config
}

/// A module's head without its last part, which is for readers of the source. Code is
/// indented.
fn head(source: &str) -> Vec<String> {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).take_while(|line| *line != "# Safety");
    let (mut head, mut is_code) = (Vec::new(), false);
    for line in lines {
        if line.starts_with("```") {
            is_code = !is_code;
        } else {
            head.push(if is_code { format!("    {line}") } else { line.to_owned() });
        }
    }
    while head.last().is_some_and(|line| line.is_empty()) {
        head.pop();
    }
    head
}

fn source(module: &str) -> String {
    fs::read_to_string(package().join(format!("src/{module}.rs"))).expect("a module of this package")
}

fn section(module: &str) -> String {
    let source = source(module);
    let path = package().join(format!("src/{module}.rs"));
    let config = config(&source);
    let bindings = cbindgen::Builder::new().with_config(config).with_src(path).generate().expect("declarations");
    let mut declarations = Vec::new();
    bindings.write(&mut declarations);
    let declarations = String::from_utf8(declarations).expect("C in UTF-8");
    let head = head(&source);
    let (heading, text) = head.split_first().expect("a module has a head");
    let heading = heading.trim_end_matches('.');
    let mut comment = format!("/* ---- {heading} {:-<1$}\n", "", 78_usize.saturating_sub(heading.len()));
    for line in text {
        writeln!(comment, "{}", format!(" * {line}").trim_end()).expect("a string takes all");
    }
    // Types are used by one name everywhere, whichever section they are of.
    let used = |line: &str| match line.starts_with("typedef ") {
        true => line.to_owned(),
        false => line.replace("struct cw_", "cw_").replace("enum cw_", "cw_"),
    };
    let declarations = declarations.trim().lines().map(used).collect::<Vec<_>>().join("\n");
    format!("{comment} */\n\n{declarations}\n")
}

/// The header, made from the sources.
fn generated() -> String {
    let part = |name: &str| fs::read_to_string(package().join("header").join(name)).expect("a part of the header");
    let mut header = part("head.h");
    for (mark, value) in [
        ("@MAJOR@", env!("CARGO_PKG_VERSION_MAJOR")),
        ("@MINOR@", env!("CARGO_PKG_VERSION_MINOR")),
        ("@PATCH@", env!("CARGO_PKG_VERSION_PATCH")),
        ("@VERSION@", env!("CARGO_PKG_VERSION")),
    ] {
        header = header.replace(mark, value);
    }
    for module in SECTIONS {
        write!(header, "\n{}\n", section(module)).expect("a string takes all");
    }
    header + &part("tail.h")
}

#[test]
fn the_header_is_what_the_sources_say() {
    let path = package().join("include/codewarden.h");
    let generated = generated();
    if std::env::var_os("CODEWARDEN_UPDATE_HEADER").is_some() {
        fs::write(&path, &generated).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
    assert!(
        committed == generated,
        "include/codewarden.h is not what the sources say, from line {} on; write it anew with\n\
         CODEWARDEN_UPDATE_HEADER=1 cargo test -p codewarden-capi --test header",
        differs.map_or(committed.lines().count().min(generated.lines().count()), |line| line) + 1
    );
}

/// Otherwise it would be linked but not declared.
#[test]
fn every_function_has_its_section() {
    let header = generated();
    let mut exported = BTreeSet::new();
    for entry in fs::read_dir(package().join("src")).expect("the sources") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a source file");
        let mut lines = text.lines();
        while lines.by_ref().any(|line| line.trim() == "#[unsafe(no_mangle)]") {
            let line = lines.next().unwrap_or_default();
            let (_, name) = line.split_once("extern \"C\" fn ").unwrap_or_else(|| panic!("no function: {line}"));
            exported.insert(name.split('(').next().unwrap_or_default().to_owned());
        }
    }
    assert!(exported.len() > 50, "{exported:?}");
    let missing: Vec<_> = exported.iter().filter(|name| !header.contains(&format!("{name}("))).collect();
    assert!(missing.is_empty(), "in no section: {missing:?}");
}

/// Compiles each C file that includes it: no warning, by itself.
#[test]
fn the_header_compiles_as_c_and_as_cpp() {
    let use_it = "#include <codewarden.h>\nint main(void) { return CW_FRONT_INDEX(2) == 1 ? 0 : 1; }\n";
    let dir = support::scratch("header");
    for (name, file, standards) in
        [("gcc", "only.c", &["-std=c11", "-std=gnu17"][..]), ("g++", "only.cpp", &["-std=c++17", "-std=c++20"][..])]
    {
        let Some(mut probe) = compiler(name) else { continue };
        run(probe.arg("--version"));
        fs::write(dir.join(file), use_it).expect("a scratch file");
        for standard in standards {
            let mut command = compiler(name).expect("it was there");
            run(command.arg(standard).arg("-fsyntax-only").arg(dir.join(file)));
        }
    }
}
