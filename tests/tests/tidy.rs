//! The rules of the house, held by reading `cargo metadata` and the tree itself (DESIGN §2, STYLE 1 and 10). Every
//! rule has a canary: a planted offence that it must find.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Which of our crates each may use (DESIGN §2). Tests and the bench may use all.
const IMPORTS: &[(&str, &[&str])] = &[
    ("payload-types", &[]),
    ("payload-ledger", &["payload-types"]),
    ("payload-shards", &["payload-types", "payload-ledger"]),
    ("payload-wire", &["payload-types"]),
    ("payload-local", &["payload-types"]),
    ("payload-catalog", &["payload-types"]),
    ("payload-drivers", &["payload-types", "payload-ledger", "payload-local"]),
    ("payload-reactor", &["payload-types", "payload-shards", "payload-drivers", "payload-local"]),
    ("payload-client", &["payload-wire", "payload-types", "payload-local"]),
    ("payload-python", &["payload-client", "payload-types"]),
];

/// Crates that do as the system does: only these may use them.
const SYSTEM_CRATES: &[(&[&str], &[&str])] = &[
    (&["cudarc"], &["payload-drivers", "payload-client"]),
    (&["glommio", "io-uring"], &["payload-reactor", "payload-drivers", "payload-bench"]),
    (
        &["libc", "memmap2"],
        &["payload-reactor", "payload-drivers", "payload-client", "payload-bench", "payload-tests"],
    ),
    (
        &["tonic", "tokio-stream", "tonic-health", "tonic-reflection"],
        &["payload-wire", "payload-front", "payload-client", "payload-bench", "payload-tests"],
    ),
    (&["pyo3"], &["payload-python"]),
    (
        // Behind a synchronous interface, on a runtime of their own: the catalog's PostgreSQL store, and the drivers' object
        // store (`ASYNC_PLACES` says where in them).
        &["tokio", "tokio-postgres"],
        &[
            "payload-wire",
            "payload-front",
            "payload-client",
            "payload-bench",
            "payload-tests",
            "payload-catalog",
            "payload-drivers",
            "payload-python",
        ],
    ),
    // The one crate that speaks to object stores; the bench measures it alone, as our floor.
    (&["object_store"], &["payload-drivers", "payload-bench"]),
    // The client puts and fetches objects by signed URLs, past the server; the server tells its figures over OTLP.
    (&["reqwest"], &["payload-drivers", "payload-client", "payload-bench", "payload-front"]),
];

/// Of a crate that is not asynchronous, the folder that may be: nothing else in it may wait on a runtime's thread.
const ASYNC_PLACES: &[(&str, &str)] = &[("tiers/drivers/src/", "tiers/drivers/src/object/")];

/// Where `unsafe` may stand.
const UNSAFE_PLACES: &[&str] = &[
    "reactor/src/",
    "tiers/drivers/",
    "client/src/mapping/",
    "client/python/src/",
    "bench/src/floors/",
    "tests/src/sys.rs",
];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
/// How a long function says why, in the lines before it or its first lines.
const LONG_REASON: &str = "Long because";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}

/// Every source file of ours, by its path from the root.
fn sources(extension: &str) -> Vec<(String, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("named").to_string_lossy().into_owned();
            if path.is_dir()
                && !name.starts_with('.')
                && !matches!(name.as_str(), "target" | "vendor" | "payload-data")
            {
                walk(&path, found);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    let mut files: Vec<(String, String)> = found
        .into_iter()
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
            (path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned(), text)
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} files were found");
    files
}

/// Dependencies by package: normal ones, and those of tests and builds apart.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let metadata =
        MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().expect("metadata");
    let normal = |package: &cargo_metadata::Package| {
        let kinds =
            package.dependencies.iter().filter(|other| other.kind == cargo_metadata::DependencyKind::Normal);
        kinds.map(|other| other.name.clone()).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), normal(package))).collect()
}

fn wrong_imports(packages: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (package, uses) in packages {
        if let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| name == package) {
            let ours = uses.iter().filter(|name| name.starts_with("payload-"));
            wrong.extend(
                ours.filter(|name| !allowed.contains(&name.as_str()))
                    .map(|name| format!("{package} -> {name}")),
            );
        }
        for (crates, users) in SYSTEM_CRATES {
            let found = uses.iter().filter(|name| crates.contains(&name.as_str()));
            wrong.extend(
                found
                    .filter(|_| !users.contains(&package.as_str()))
                    .map(|name| format!("{package} -> {name}")),
            );
        }
    }
    wrong
}

#[test]
fn given_the_workspace_when_its_metadata_is_read_then_imports_point_inwards() {
    let packages = dependencies();
    assert!(IMPORTS.iter().all(|(name, _)| packages.contains_key(*name)), "every crate of the table exists");
    assert_eq!(wrong_imports(&packages), Vec::<String>::new());

    let mut planted = packages.clone();
    planted.get_mut("payload-shards").expect("exists").push("payload-drivers".to_owned());
    planted.get_mut("payload-catalog").expect("exists").push("tonic".to_owned());
    assert_eq!(wrong_imports(&planted), ["payload-catalog -> tonic", "payload-shards -> payload-drivers"]);
}

/// What one file does against the rules that its syntax shows.
#[derive(Default)]
struct Reading {
    functions: usize,
    long: Vec<(usize, usize)>,
    unsafe_lines: Vec<usize>,
}

impl Reading {
    fn function(&mut self, start: usize, end: usize) {
        self.functions += 1;
        if end + 1 - start > FUNCTION_LINES_MAX {
            self.long.push((start, end));
        }
    }
}

impl<'ast> Visit<'ast> for Reading {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if item.sig.unsafety.is_some() {
            self.unsafe_lines.push(item.sig.span().start().line);
        }
        self.function(item.sig.span().start().line, item.block.span().end().line);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if item.sig.unsafety.is_some() {
            self.unsafe_lines.push(item.sig.span().start().line);
        }
        self.function(item.sig.span().start().line, item.block.span().end().line);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            self.unsafe_lines.push(item.span().start().line);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafe_lines.push(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }
}

fn offences(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    if lines.len() > FILE_LINES_MAX {
        found.push(format!("{path}: {} lines, {FILE_LINES_MAX} at most", lines.len()));
    }
    if !lines
        .iter()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!"))
        .is_some_and(|line| line.starts_with("//!"))
    {
        found.push(format!("{path}: does not open by saying what it owns"));
    }
    for marker in [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["FIX", "ME"].concat(),
        ["#[ig", "nore"].concat(),
    ] {
        if let Some(line) = lines.iter().position(|line| line.contains(&marker)) {
            found.push(format!("{path}:{}: {marker}", line + 1));
        }
    }
    for (crate_folder, place) in ASYNC_PLACES {
        let is_outside = path.starts_with(crate_folder) && !path.starts_with(place);
        if let Some(line) =
            lines.iter().position(|line| is_outside && line.contains(&["tok", "io::"].concat()))
        {
            found.push(format!("{path}:{}: a runtime outside {place}", line + 1));
        }
    }
    let mut reading = Reading::default();
    reading.visit_file(&syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}")));
    for (start, end) in reading.long {
        let around = &lines[start.saturating_sub(6)..(start + 3).min(lines.len())];
        if !around.iter().any(|line| line.contains(LONG_REASON)) {
            found.push(format!("{path}:{start}: a function of {} lines says no reason", end + 1 - start));
        }
    }
    for line in reading.unsafe_lines {
        if !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
            found.push(format!("{path}:{line}: unsafe outside its place"));
        }
        let before = &lines[line.saturating_sub(5)..line];
        if !before.iter().any(|line| line.contains("SAFETY") || line.contains("# Safety")) {
            found.push(format!("{path}:{line}: unsafe without a SAFETY comment within four lines above"));
        }
    }
    found
}

#[test]
fn given_the_tree_when_every_source_is_read_then_it_keeps_the_rules() {
    let found: Vec<String> = sources("rs").iter().flat_map(|(path, text)| offences(path, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn given_all_functions_when_measured_then_at_most_one_in_a_hundred_is_long() {
    let (mut all, mut long) = (0, 0);
    for (path, text) in sources("rs") {
        let mut reading = Reading::default();
        reading.visit_file(&syn::parse_file(&text).unwrap_or_else(|error| panic!("{path}: {error}")));
        all += reading.functions;
        long += reading.long.len();
    }
    assert!(long * 100 <= all, "{long} of {all} functions have over {FUNCTION_LINES_MAX} lines");
}

#[test]
fn given_planted_offences_when_read_then_each_is_found() {
    let unsafe_block = "//! Here.\nfn f() {\n    unsafe { g() }\n}\n";
    assert_eq!(offences("shards/src/x.rs", unsafe_block).len(), 2, "outside its place, and no SAFETY");
    assert_eq!(offences("reactor/src/x.rs", unsafe_block).len(), 1, "no SAFETY");
    let explained = unsafe_block.replace("    unsafe", "    // SAFETY: g has no requirement.\n    unsafe");
    assert!(offences("reactor/src/x.rs", &explained).is_empty());
    let long = format!("//! Here.\nfn f() {{\n{}}}\n", "    g();\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(offences("a.rs", &long).len(), 1);
    assert!(offences("a.rs", &long.replace("fn f()", "// Long because: it is planted.\nfn f()")).is_empty());
    assert_eq!(offences("a.rs", &format!("//! Here.\n{}", "\n".repeat(FILE_LINES_MAX))).len(), 1);
    assert_eq!(offences("a.rs", &format!("//! Here.\nfn f() {{ {}) }}\n", ["to", "do!("].concat())).len(), 1);
    assert_eq!(offences("a.rs", "fn f() {}\n").len(), 1, "no opening");
    let sleepy = ["//! Here.\nuse tok", "io::time::sleep;\n"].concat();
    assert_eq!(offences("tiers/drivers/src/x.rs", &sleepy).len(), 1, "a runtime outside its place");
    assert!(offences("tiers/drivers/src/object/x.rs", &sleepy).is_empty());
}
