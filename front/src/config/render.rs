//! Writes the configuration: the effective one as YAML, and the table of keys for docs/OPERATIONS.md.

use serde_yaml_ng::{Mapping, Value};

use super::key::{Default, Secrecy, Standing};
use super::settings::{Settings, without_indices};
use super::table::KEYS;

/// Begins the generated part of docs/OPERATIONS.md.
pub const OPERATIONS_BEGIN: &str =
    "<!-- begin: configuration keys, generated from front/src/config/table.rs -->";
/// Ends it.
pub const OPERATIONS_END: &str = "<!-- end: configuration keys -->";

/// Every value in force, nested, in the table's order.
pub(super) fn effective(settings: &Settings) -> String {
    let mut root = Value::Mapping(Mapping::new());
    for key in KEYS {
        let given =
            settings.iter().map(|(path, _)| path.as_str()).filter(|path| without_indices(path) == key.path);
        let mut paths: Vec<&str> = given.collect();
        // By index, not by text: [10] comes after [9].
        paths.sort_by_key(|path| (path.len(), *path));
        if paths.is_empty() && matches!(key.default, Default::Value(_)) {
            paths.push(key.path);
        }
        for path in paths {
            let setting = settings.value(path).expect("it is set, or has a default");
            *place(&mut root, path) = setting.write(key);
        }
    }
    serde_yaml_ng::to_string(&root).expect("values of scalars, lists and mappings are YAML")
}

/// The place for this path, made where it is missing.
fn place<'a>(root: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(root, |parent, part| {
        let (name, index) = match part.split_once('[') {
            Some((name, rest)) => (name, rest.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        if !parent.is_mapping() {
            *parent = Value::Mapping(Mapping::new());
        }
        let mapping = parent.as_mapping_mut().expect("made just now where it was none");
        let child = mapping.entry(Value::from(name)).or_insert(Value::Null);
        let Some(index) = index else { return child };
        if !child.is_sequence() {
            *child = Value::Sequence(Vec::new());
        }
        let items = child.as_sequence_mut().expect("made just now where it was none");
        while items.len() <= index {
            items.push(Value::Null);
        }
        &mut items[index]
    })
}

/// The table of every key, as Markdown.
pub fn keys_as_markdown() -> String {
    let mut markdown = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let default = match key.default {
            Default::Value(value) => format!("`{value}`"),
            Default::Said("") => "-".into(),
            Default::Said(words) => words.into(),
        };
        let meaning = match (key.standing, key.meaning) {
            (Standing::Used, meaning) => meaning.into(),
            (Standing::Later, meaning) => format!("{meaning} *(not built yet)*"),
            (Standing::Ignored(why), "") => format!("accepted and ignored: {why}"),
            (Standing::Refused(why), _) => format!("refused: {why}"),
            (Standing::Ignored(why), meaning) => format!("{meaning}; accepted and ignored: {why}"),
        };
        let masked = if key.secrecy == Secrecy::Open { "" } else { "; masked where shown" };
        markdown.push_str(&format!(
            "| `{}` | {} | {default} | {meaning}{masked} |\n",
            key.path,
            key.kind.name()
        ));
    }
    markdown
}
