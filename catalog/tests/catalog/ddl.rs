//! The numbered migrations are the only DDL there is.

use std::fs;
use std::path::{Path, PathBuf};

const WORDS: [&str; 6] =
    ["create table", "create index", "create unique index", "alter table", "drop table", "drop index"];

fn has_ddl(text: &str) -> bool {
    let text = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    WORDS.iter().any(|word| text.contains(word))
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn given_the_sources_when_searched_then_only_migrations_have_ddl_and_they_are_numbered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    files(&root.join("src"), &mut sources);
    assert!(sources.len() > 10, "the sources were found");
    for path in sources {
        let text = fs::read_to_string(&path).expect("text");
        assert!(!has_ddl(&text), "{} has DDL; write a migration", path.display());
    }

    for backend in ["sqlite", "postgres"] {
        numbered(&root.join("migrations").join(backend));
    }
}

fn numbered(directory: &Path) {
    let mut migrations = Vec::new();
    files(directory, &mut migrations);
    migrations.sort();
    for (number, path) in (1..).zip(&migrations) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(
            name.starts_with(&format!("{number:04}_")) && name.ends_with(".sql"),
            "{name} is not number {number}"
        );
        // The canary: the search finds DDL where there is some.
        assert!(has_ddl(&fs::read_to_string(path).expect("text")), "{name} has no DDL");
    }
}
