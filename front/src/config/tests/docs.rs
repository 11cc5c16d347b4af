//! docs/OPERATIONS.md holds the generated table of keys.

use std::fs;
use std::path::Path;

use super::super::*;

/// Set to write the table into the document instead of comparing.
const WRITE: &str = "PAYLOAD_MANAGER_WRITE_DOCS";

#[test]
fn given_the_operations_manual_when_read_then_its_table_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATIONS.md");
    let manual = fs::read_to_string(&path).expect("docs/OPERATIONS.md exists");
    let (before, rest) = manual.split_once(OPERATIONS_BEGIN).expect("the begin marker is there, once");
    let (table, after) = rest.split_once(OPERATIONS_END).expect("the end marker is there, after it");
    let generated = format!("\n{}", keys_as_markdown());
    if std::env::var_os(WRITE).is_some() {
        let manual = format!("{before}{OPERATIONS_BEGIN}{generated}{OPERATIONS_END}{after}");
        fs::write(&path, manual).expect("docs/OPERATIONS.md is writable");
        return;
    }
    assert_eq!(table, generated, "run this test with {WRITE}=1 and commit docs/OPERATIONS.md");
}

#[test]
fn given_the_generated_table_when_read_then_each_key_has_one_row_of_four_cells() {
    let markdown = keys_as_markdown();
    let rows: Vec<&str> = markdown.lines().skip(2).collect();
    assert_eq!(rows.len(), super::super::table::KEYS.len());
    for row in rows {
        assert_eq!(row.matches(" | ").count(), 3, "{row}");
        assert!(row.starts_with("| `") && row.ends_with(" |"), "{row}");
    }
}
