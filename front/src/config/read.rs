//! Reads the file and the environment into settings, and refuses what the table does not have.

use std::fs;
use std::path::Path;

use serde_yaml_ng::{Mapping, Value};

use super::ENV_PREFIX;
use super::error::ConfigError;
use super::key::{Kind, Secrecy};
use super::setting::{Invalid, Setting};
use super::settings::{Settings, without_indices};
use super::table::{self, KEYS};

/// A configuration file is a few kilobytes; more than this is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a YAML file. An empty one sets nothing.
pub(super) fn file(settings: &mut Settings, file: &Path) -> Result<(), ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable { file: file.to_owned(), reason };
    let metadata = fs::metadata(file).map_err(|error| unreadable(error.to_string()))?;
    if metadata.is_file() && metadata.len() > FILE_BYTES_MAX {
        return Err(unreadable(format!("it has {} bytes, more than any configuration", metadata.len())));
    }
    let text = fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
    let place = file.display().to_string();
    let syntax = |reason: String| ConfigError::Syntax { place: place.clone(), reason };
    match serde_yaml_ng::from_str(&text).map_err(|error| syntax(error.to_string()))? {
        Value::Null => Ok(()),
        root @ Value::Mapping(_) => Walk { settings, place: &place }.section("", &root),
        _ => Err(syntax("the file is not a mapping; it holds sections like `server:` and `storage:`".into())),
    }
}

/// Takes each variable that begins with [`ENV_PREFIX`]; an empty one is as good as none.
pub(super) fn environment(
    settings: &mut Settings,
    env: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    let mut variables: Vec<_> =
        env.filter(|(name, text)| name.starts_with(ENV_PREFIX) && !text.is_empty()).collect();
    variables.sort();
    for (name, text) in variables {
        let place = format!("environment variable {name}");
        let path = path_of_variable(&name[ENV_PREFIX.len()..]);
        let as_it_is = table::find(&without_indices(&path)).is_some_and(|key| key.kind.is_textual());
        let value = if as_it_is {
            Value::from(text)
        } else {
            serde_yaml_ng::from_str(&text)
                .map_err(|error| ConfigError::Syntax { place: place.clone(), reason: error.to_string() })?
        };
        Walk { settings, place: &place }.value(&path, &value)?;
    }
    Ok(())
}

/// `STORAGE__GPU__DEVICES__0__DEVICE_ID` names `storage.gpu.devices[0].device_id`.
fn path_of_variable(name: &str) -> String {
    let mut path = String::new();
    for part in name.split("__").map(str::to_ascii_lowercase) {
        if part.parse::<u32>().is_ok() && table::has_below(&without_indices(&path), "[]") {
            path.push_str(&format!("[{part}]"));
        } else {
            path = join(&path, &part);
        }
    }
    path
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// One descent through YAML.
struct Walk<'a> {
    settings: &'a mut Settings,
    place: &'a str,
}

impl Walk<'_> {
    /// A key, a section, a list, or nothing that the table knows.
    fn value(&mut self, path: &str, value: &Value) -> Result<(), ConfigError> {
        let plain = without_indices(path);
        if table::find(&plain).is_some() {
            self.key(path, value)
        } else if table::has_below(&plain, ".") {
            self.section(path, value)
        } else if table::has_below(&plain, "[]") {
            self.list(path, value)
        } else if let Some((parent, name)) = self.map_entry(path) {
            self.entry(&parent, &name, value)
        } else {
            let nearest = nearest(&plain).to_owned();
            Err(ConfigError::UnknownKey { place: self.place.to_owned(), path: path.to_owned(), nearest })
        }
    }

    fn key(&mut self, path: &str, value: &Value) -> Result<(), ConfigError> {
        let key = table::find(&without_indices(path)).expect("the caller found it");
        // `key:` without a value is how people blank one out; only `{}` needs to be said.
        if value.is_null() && !matches!(key.kind, Kind::Presence) {
            self.settings.unset(path);
            return Ok(());
        }
        match Setting::read(&key.kind, value) {
            Ok(Some(setting)) => self.settings.set(path, setting),
            Ok(None) => self.settings.unset(path),
            Err(Invalid::Refused(reason)) => return Err(ConfigError::refused(path, reason)),
            Err(Invalid::Kind) => {
                let shown = key.secrecy == Secrecy::Open;
                let found = if shown { describe(value) } else { "a value that does not fit".into() };
                return Err(self.wrong(path, found, key.kind.expected()));
            }
        }
        Ok(())
    }

    fn section(&mut self, path: &str, value: &Value) -> Result<(), ConfigError> {
        if value.is_null() {
            return Ok(());
        }
        let Some(mapping) = value.as_mapping() else {
            return Err(self.wrong(path, describe(value), "a section with keys of its own".into()));
        };
        self.settings.note_section(path);
        for (name, child) in mapping {
            let name = name.as_str().map_or_else(|| describe(name), str::to_owned);
            if name.contains('.') {
                let reason = format!("`{name}` is written with dots; write one section inside the other");
                return Err(ConfigError::Syntax { place: self.place.to_owned(), reason });
            }
            self.value(&join(path, &name), child)?;
        }
        Ok(())
    }

    fn list(&mut self, path: &str, value: &Value) -> Result<(), ConfigError> {
        if value.is_null() {
            return Ok(());
        }
        let Some(items) = value.as_sequence() else {
            return Err(self.wrong(path, describe(value), "a list".into()));
        };
        self.settings.note_section(path);
        items.iter().enumerate().try_for_each(|(index, item)| self.value(&format!("{path}[{index}]"), item))
    }

    /// The map that `path` is an entry of; the environment sets entries one by one.
    fn map_entry(&self, path: &str) -> Option<(String, String)> {
        let (parent, name) = path.rsplit_once('.')?;
        let key = table::find(&without_indices(parent))?;
        matches!(key.kind, Kind::Map).then(|| (parent.to_owned(), name.to_owned()))
    }

    fn entry(&mut self, parent: &str, name: &str, value: &Value) -> Result<(), ConfigError> {
        let mut entries = match self.settings.given(parent) {
            Some(Setting::Map(entries)) => entries.clone(),
            _ => Default::default(),
        };
        let one = Mapping::from_iter([(Value::from(name), value.clone())]);
        if let Ok(Some(Setting::Map(more))) = Setting::read(&Kind::Map, &Value::Mapping(one)) {
            entries.extend(more);
            self.settings.set(parent, Setting::Map(entries));
            return Ok(());
        }
        Err(self.wrong(&join(parent, name), "not a scalar".into(), "text".into()))
    }

    fn wrong(&self, path: &str, found: String, expected: String) -> ConfigError {
        ConfigError::WrongValue { place: self.place.to_owned(), path: path.to_owned(), found, expected }
    }
}

/// A value as an error shows it.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("`{text}`"),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "a mapping".into(),
        Value::Tagged(tagged) => format!("tagged {}", tagged.tag),
    }
}

/// The known key or section that looks most like `path`: half by the whole path, half by its last part, because
/// people forget sections as often as they mistype names.
fn nearest(path: &str) -> &'static str {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let likeness = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(path, candidate);
        whole + strsim::normalized_damerau_levenshtein(&last(path), &last(candidate))
    };
    let sections = KEYS.iter().flat_map(|key| key.path.match_indices('.').map(|(end, _)| &key.path[..end]));
    let candidates = KEYS.iter().map(|key| key.path).chain(sections);
    // Of equals the first counts, so that the answer does not depend on the order of sections.
    let best = candidates.fold(("", -1.0), |best, candidate| {
        let score = likeness(candidate);
        if score > best.1 { (candidate, score) } else { best }
    });
    best.0
}
