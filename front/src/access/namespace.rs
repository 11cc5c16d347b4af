//! The namespace that a call is in.
//!
//! There is one, `default`. What is kept of payloads carries a namespace already (the catalog's keys, the direct index),
//! but shards, slabs and segment files are not divided yet: until they are, every other name is refused rather than served
//! without the walls that it promises (docs/decisions/2026-11-23-namespaces.md).

use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// The header that names it.
pub(super) const HEADER: &str = "x-payload-namespace";

/// What calls without the header are in.
pub(super) const DEFAULT: &str = "default";

/// The longest name.
const NAME_LEN_MAX: usize = 63;

/// True for 1 to 63 lower-case letters, digits, `_`, `-` and `.`, beginning with a letter or digit.
pub(super) fn is_name(text: &str) -> bool {
    let allowed =
        |symbol: u8| symbol.is_ascii_lowercase() || symbol.is_ascii_digit() || b"_-.".contains(&symbol);
    (1..=NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// The namespace that these headers name.
///
/// # Errors
/// INVALID_ARGUMENT when it is no name.
pub(super) fn named(headers: &HeaderMap) -> Result<Option<&str>, Status> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    match value.to_str() {
        Ok(name) if is_name(name) => Ok(Some(name)),
        _ => Err(Status::invalid_argument(format!(
            "{HEADER} is no name of a namespace; it has 1 to {NAME_LEN_MAX} lower-case letters, digits, `_`, `-` or `.`"
        ))),
    }
}

/// Refuses what does not exist.
///
/// # Errors
/// NOT_FOUND.
pub(super) fn exists(wanted: Option<&str>) -> Result<(), Status> {
    match wanted {
        None | Some(DEFAULT) => Ok(()),
        Some(name) => Err(Status::not_found(format!(
            "the namespace `{name}` does not exist on this server; leave {HEADER} out, or name `{DEFAULT}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn headers(value: &'static str) -> HeaderMap {
        [(HEADER.parse().expect("a header"), value.parse().expect("a value"))].into_iter().collect()
    }

    #[test]
    fn given_headers_when_read_then_the_namespace_is_named_or_refused() {
        assert_eq!(named(&HeaderMap::new()).expect("none"), None);
        assert_eq!(named(&headers("team-7")).expect("a name"), Some("team-7"));
        for wrong in ["", "Team", "a b", "-a", "a/b", "../a"] {
            assert_eq!(named(&headers(wrong)).expect_err(wrong).code(), Code::InvalidArgument, "{wrong}");
        }
    }

    #[test]
    fn given_namespaces_when_asked_for_then_only_the_default_exists() {
        assert!(exists(None).is_ok() && exists(Some("default")).is_ok());
        let refused = exists(Some("team")).expect_err("unknown");
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("`team`"), "{refused}");
    }
}
