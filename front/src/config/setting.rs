//! One value: read from YAML as its key's kind demands, and written back.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use payload_types::{ByteCount, time};
use serde_yaml_ng::Value;

use super::key::{Key, Kind, Secrecy, Words};
use super::tree::BindAddress;

/// What a secret is shown as.
pub(super) const MASK: &str = "********";
/// Cores that a list may name: the most a Linux kernel is built for.
const CORES_MAX: u64 = 8192;
/// Users or groups of one list.
const IDS_MAX: usize = 1024;
/// The longest name: with a UUID and a slash it stays far below NAME_MAX (255).
const NAME_LEN_MAX: usize = 63;

/// A valid value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Setting {
    Flag(bool),
    Number(u64),
    Millis(u64),
    Text(String),
    Cores(Vec<usize>),
    Ids(Vec<u32>),
    Map(BTreeMap<String, String>),
    Present,
}

/// Why a value is not valid.
#[derive(Debug)]
pub(super) enum Invalid {
    /// It is of another kind, or out of range.
    Kind,
    /// It is understood and refused for this reason.
    Refused(&'static str),
}

impl Setting {
    /// Reads `value` as `kind` demands; `None`: it means the default.
    pub fn read(kind: &Kind, value: &Value) -> Result<Option<Self>, Invalid> {
        let text = || value.as_str().ok_or(Invalid::Kind);
        let text_that = |fits: fn(&str) -> bool| match text()? {
            text if fits(text) => Ok(Self::Text(text.to_owned())),
            _ => Err(Invalid::Kind),
        };
        let setting = match kind {
            Kind::Flag => Self::Flag(value.as_bool().ok_or(Invalid::Kind)?),
            Kind::Count(min, max) => Self::Number(
                value.as_u64().filter(|number| (min..=max).contains(&number)).ok_or(Invalid::Kind)?,
            ),
            Kind::Size => Self::Number(match value.as_u64() {
                Some(bytes) => bytes,
                None => text()?.parse::<ByteCount>().map_err(|_| Invalid::Kind)?.0,
            }),
            Kind::Duration => Self::Millis(time::parse_millis(text()?).map_err(|_| Invalid::Kind)?),
            Kind::Seconds => Self::Millis(seconds(value).ok_or(Invalid::Kind)?),
            Kind::Text => Self::Text(scalar(value).filter(|text| !text.is_empty()).ok_or(Invalid::Kind)?),
            Kind::Name => text_that(is_name)?,
            Kind::Path => text_that(is_path)?,
            Kind::Address => {
                let address = address(text()?).ok_or(Invalid::Kind)?;
                Self::Text(address.to_string())
            }
            Kind::ObjectRoot => text_that(is_object_root)?,
            Kind::Word(words) => match word(words, text()?)? {
                Some(word) => Self::Text(word.to_owned()),
                None => return Ok(None),
            },
            Kind::Cores => Self::Cores(cores(value).ok_or(Invalid::Kind)?),
            Kind::Ids => Self::Ids(ids(value).ok_or(Invalid::Kind)?),
            Kind::Mode => text_that(|text| mode(text).is_some())?,
            Kind::Presence => match value {
                Value::Mapping(mapping) if mapping.is_empty() => Self::Present,
                _ => return Err(Invalid::Kind),
            },
            Kind::Map => Self::Map(map(value).ok_or(Invalid::Kind)?),
        };
        Ok(Some(setting))
    }

    /// As YAML, such that [`Setting::read`] gives the same again; secrets are masked.
    pub fn write(&self, key: &Key) -> Value {
        let shown = |text: &str| match key.secrecy {
            Secrecy::Open => text.to_owned(),
            Secrecy::Secret => MASK.to_owned(),
            Secrecy::PasswordInside => mask_password(text),
        };
        match self {
            Self::Flag(flag) => Value::from(*flag),
            Self::Number(number) => Value::from(*number),
            Self::Millis(milliseconds) => Value::from(time::format_millis(*milliseconds)),
            Self::Text(text) => Value::from(shown(text)),
            Self::Cores(cores) => Value::from(cores.iter().map(|core| *core as u64).collect::<Vec<_>>()),
            Self::Ids(ids) => Value::from(ids.iter().map(|id| u64::from(*id)).collect::<Vec<_>>()),
            Self::Map(map) => {
                let hidden = |name: &str| match key.secrecy {
                    Secrecy::Open => false,
                    Secrecy::Secret => true,
                    Secrecy::PasswordInside => name.to_ascii_lowercase().contains("password"),
                };
                let text =
                    |name: &str, text: &str| if hidden(name) { MASK.to_owned() } else { text.to_owned() };
                Value::Mapping(
                    map.iter()
                        .map(|(name, value)| (Value::from(name.clone()), text(name, value).into()))
                        .collect(),
                )
            }
            Self::Present => Value::Mapping(serde_yaml_ng::Mapping::new()),
        }
    }
}

/// A scalar as text; existing files write keys and numbers without quotes.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn map(value: &Value) -> Option<BTreeMap<String, String>> {
    value.as_mapping()?.iter().map(|(name, value)| Some((scalar(name)?, scalar(value)?))).collect()
}

fn seconds(value: &Value) -> Option<u64> {
    match value {
        // As text, so that 0.5 is read exactly.
        Value::Number(number) => time::parse_millis(&format!("{number}s")).ok(),
        _ => time::parse_millis(value.as_str()?).ok(),
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |symbol: char| symbol.is_ascii_alphanumeric() || "_-.".contains(symbol);
    (1..=NAME_LEN_MAX).contains(&text.len()) && !text.starts_with('.') && text.chars().all(allowed)
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn is_object_root(text: &str) -> bool {
    match text.split_once("://") {
        Some(("s3" | "gs" | "az" | "abfs" | "abfss", place)) => !place.trim_matches('/').is_empty(),
        Some(("file", place)) => place.starts_with('/'),
        Some(_) => false,
        None => is_path(text),
    }
}

/// Reads `host:port`.
pub(super) fn address(text: &str) -> Option<BindAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => host,
    };
    let allowed = |symbol: char| symbol.is_ascii_alphanumeric() || "_-.:".contains(symbol);
    let is_host =
        !host.is_empty() && host.chars().all(allowed) && (text.starts_with('[') || !host.contains(':'));
    is_host.then(|| BindAddress { host: host.to_owned(), port })
}

/// Reads permission bits: the owner must be able to read, and nobody may execute.
pub(super) fn mode(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    if !(3..=4).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    u32::from_str_radix(digits, 8).ok().filter(|mode| mode & !0o666 == 0 && mode & 0o400 != 0)
}

/// Finds the word, whatever its case; `None`: it means the default.
fn word(words: &Words, text: &str) -> Result<Option<&'static str>, Invalid> {
    let same = |word: &str| word.eq_ignore_ascii_case(text);
    if let Some(word) = words.taken.iter().find(|word| same(word)) {
        return Ok(Some(word));
    }
    if let Some((_, meaning)) = words.aliases.iter().find(|(alias, _)| same(alias)) {
        return Ok(Some(*meaning).filter(|meaning| !meaning.is_empty()));
    }
    match words.refused.iter().find(|(word, _)| same(word)) {
        Some((_, reason)) => Err(Invalid::Refused(reason)),
        None => Err(Invalid::Kind),
    }
}

/// Reads `[0, 1]`, `0-3,8` or `2`; no core twice, at least one.
fn cores(value: &Value) -> Option<Vec<usize>> {
    let numbers: Vec<u64> = match value {
        Value::Sequence(items) => items.iter().map(Value::as_u64).collect::<Option<_>>()?,
        Value::Number(number) => vec![number.as_u64()?],
        _ => {
            let text = value.as_str()?.trim().trim_start_matches('[').trim_end_matches(']');
            let mut numbers = Vec::new();
            for part in text.split(',') {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                if last >= CORES_MAX {
                    return None;
                }
                numbers.extend(first..=last);
            }
            numbers
        }
    };
    let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
    let valid = !numbers.is_empty()
        && distinct.len() == numbers.len()
        && distinct.iter().all(|core| *core < CORES_MAX);
    valid.then(|| numbers.into_iter().map(|core| core as usize).collect())
}

/// Reads `[0, 1000]`, `0,1000` or `0`: at least one.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    let ids: Vec<u32> = match value {
        Value::Sequence(items) => items.iter().map(id).collect::<Option<_>>()?,
        Value::Number(_) => vec![id(value)?],
        _ => {
            let text = value.as_str()?.trim().trim_start_matches('[').trim_end_matches(']');
            text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?
        }
    };
    (1..=IDS_MAX).contains(&ids.len()).then_some(ids)
}

/// Hides the password of a URI (`scheme://user:password@host`) or of `password=...`, where there is one.
pub(super) fn mask_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        // `host=... password=...`: quoting makes it hard to tell where the password ends, so all of it is hidden.
        return if text.to_ascii_lowercase().contains("password") {
            MASK.to_owned()
        } else {
            text.to_owned()
        };
    };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    // A password may hold a raw `/` or `@` by mistake; the last `@` ends it all the same.
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:{MASK}@{host}"),
            None => format!("{user}@{host}"),
        },
        None => rest.to_owned(),
    };
    let Some(query) = query else { return format!("{scheme}://{rest}") };
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}={MASK}"),
        _ => parameter.to_owned(),
    });
    format!("{scheme}://{rest}?{}", parameters.collect::<Vec<_>>().join("&"))
}
