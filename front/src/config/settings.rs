//! What is set: values by their full path, from the file, then the environment, then what the machine decides.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::ByteCount;
use serde_yaml_ng::Value;

use super::key::Default;
use super::setting::Setting;
use super::table;

/// Every value that is set, by path with indices (`storage.gpu.devices[0].device_id`).
#[derive(Clone, Default, Debug)]
pub(super) struct Settings {
    values: BTreeMap<String, Setting>,
    sections: BTreeSet<String>,
}

impl Settings {
    /// Sets a value; a later one wins.
    pub fn set(&mut self, path: &str, setting: Setting) {
        assert!(table::find(&without_indices(path)).is_some(), "{path} is in the table");
        self.values.insert(path.to_owned(), setting);
    }

    /// Goes back to the default.
    pub fn unset(&mut self, path: &str) {
        self.values.remove(path);
    }

    /// Notes that a section is there, even if nothing is in it.
    pub fn note_section(&mut self, path: &str) {
        self.sections.insert(path.to_owned());
    }

    /// True when the section is there.
    pub fn has_section(&self, path: &str) -> bool {
        self.sections.contains(path)
    }

    /// What was set, without defaults.
    pub fn given(&self, path: &str) -> Option<&Setting> {
        self.values.get(path)
    }

    /// All that was set.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Setting)> {
        self.values.iter()
    }

    /// The value in force: what was set, else the table's default.
    pub fn value(&self, path: &str) -> Option<Setting> {
        self.given(path).cloned().or_else(|| default(path))
    }

    /// A flag; false where neither it nor a default is set.
    pub fn flag(&self, path: &str) -> bool {
        match self.value(path) {
            Some(Setting::Flag(flag)) => flag,
            None => false,
            Some(other) => unreachable!("{path} is a flag in the table, not {other:?}"),
        }
    }

    /// A count or a size.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.value(path).map(|setting| match setting {
            Setting::Number(number) => number,
            other => unreachable!("{path} is a number in the table, not {other:?}"),
        })
    }

    /// A size.
    pub fn size(&self, path: &str) -> Option<ByteCount> {
        self.number(path).map(ByteCount)
    }

    /// A duration, which has a default in the table.
    pub fn millis(&self, path: &str) -> u64 {
        match self.value(path) {
            Some(Setting::Millis(milliseconds)) => milliseconds,
            other => unreachable!("{path} is a duration with a default in the table, not {other:?}"),
        }
    }

    /// A text, a word, a path, an address.
    pub fn text(&self, path: &str) -> Option<String> {
        self.value(path).map(|setting| match setting {
            Setting::Text(text) => text,
            other => unreachable!("{path} is text in the table, not {other:?}"),
        })
    }

    /// A list of cores.
    pub fn cores(&self, path: &str) -> Option<Vec<usize>> {
        self.value(path).map(|setting| match setting {
            Setting::Cores(cores) => cores,
            other => unreachable!("{path} is a list of cores in the table, not {other:?}"),
        })
    }

    /// A list of users or groups; empty when it is not set.
    pub fn ids(&self, path: &str) -> Vec<u32> {
        match self.value(path) {
            Some(Setting::Ids(ids)) => ids,
            None => Vec::new(),
            Some(other) => unreachable!("{path} is a list of ids in the table, not {other:?}"),
        }
    }
}

/// The table's default, read by the key's kind.
fn default(path: &str) -> Option<Setting> {
    let key = table::find(&without_indices(path)).unwrap_or_else(|| panic!("{path} is in the table"));
    let Default::Value(text) = key.default else { return None };
    let value = if key.kind.is_textual() {
        Value::from(text)
    } else {
        serde_yaml_ng::from_str(text).expect("the table's defaults are YAML, as a test shows")
    };
    Setting::read(&key.kind, &value).expect("the table's defaults are valid, as a test shows")
}

/// The path with `[]` for each index, as the table has it.
pub(super) fn without_indices(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for symbol in path.chars() {
        inside = symbol != ']' && (inside || symbol == '[');
        if !inside || symbol == '[' {
            plain.push(symbol);
        }
    }
    plain
}
