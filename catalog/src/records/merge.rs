//! What a MERGE makes of metadata: RFC 7396 for two JSON objects, the newer bytes otherwise.
//!
//! Numbers keep their digits and objects the order of their keys (serde_json's `arbitrary_precision` and
//! `preserve_order`). JSON nested deeper than 128 is not taken for JSON.

use std::collections::HashSet;

use payload_types::record::Metadata;
use serde_json::{Map, Value};

/// The metadata that results.
pub(super) fn merged(old: &Metadata, new: &Metadata) -> Metadata {
    let schema = if new.schema.is_empty() { &old.schema } else { &new.schema };
    Metadata { data: data(&old.data, &new.data), schema: schema.clone() }
}

fn data(old: &[u8], new: &[u8]) -> Vec<u8> {
    if new.is_empty() {
        return old.to_vec();
    }
    let (Some(mut target), Some(patch)) = (object(old), object(new)) else { return new.to_vec() };
    patch_in(&mut target, patch);
    serde_json::to_vec(&target).expect("an object of strings, numbers and such can be written")
}

/// The JSON object that these bytes are.
pub(super) fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    // A look at the first character saves parsing what cannot be one.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

/// RFC 7396 §2, for two objects. Removes all at once: one by one would move the rest each time.
fn patch_in(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    let mut removed = HashSet::new();
    for (key, value) in patch {
        match value {
            Value::Null => {
                removed.insert(key);
            }
            Value::Object(inner) => {
                let slot = target.entry(key).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(found) = slot {
                    patch_in(found, inner);
                }
            }
            other => {
                target.insert(key, other);
            }
        }
    }
    if !removed.is_empty() {
        target.retain(|key, _| !removed.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(old: &str, new: &str) -> String {
        String::from_utf8(data(old.as_bytes(), new.as_bytes())).expect("text")
    }

    #[test]
    fn given_the_examples_of_rfc_7396_when_both_are_objects_then_its_results() {
        // Appendix A, where both are objects, and its section 3.
        for (old, new, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
            (
                r#"{"title":"Goodbye!","author":{"givenName":"John","familyName":"Doe"},"tags":["example","sample"],"content":"This will be unchanged"}"#,
                r#"{"title":"Hello!","phoneNumber":"+01-123-456-7890","author":{"familyName":null},"tags":["example"]}"#,
                r#"{"title":"Hello!","author":{"givenName":"John"},"tags":["example"],"content":"This will be unchanged","phoneNumber":"+01-123-456-7890"}"#,
            ),
        ] {
            assert_eq!(merge(old, new), result, "{old} + {new}");
        }
    }

    #[test]
    fn given_numbers_and_keys_when_merged_then_digits_and_order_stay() {
        assert_eq!(
            merge(r#"{"z":1.10,"a":18446744073709551617,"m":1e400,"n":-0.0}"#, r#" {"b":0.1000}"#),
            r#"{"z":1.10,"a":18446744073709551617,"m":1e+400,"n":-0.0,"b":0.1000}"#
        );
    }

    #[test]
    fn given_what_are_not_two_objects_when_merged_then_the_newer_bytes_or_the_old_where_there_are_none() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        for (old, new, result) in [
            ("", "{\"a\":null}", "{\"a\":null}"),
            ("[1]", "{ }", "{ }"),
            ("{}", "[1]", "[1]"),
            ("{}", "{", "{"),
            ("{\"a\":1}", "", "{\"a\":1}"),
            ("{}", "\0", "\0"),
            (deep.as_str(), "{}", "{}"),
        ] {
            assert_eq!(merge(old, new), result);
        }
    }

    #[test]
    fn given_a_patch_that_removes_very_many_keys_when_merged_then_it_takes_linear_time() {
        let keys = |value: &str| {
            let members: Vec<String> = (0..60_000).map(|key| format!("\"{key}\":{value}")).collect();
            format!("{{{}}}", members.join(","))
        };
        // One by one this would move 60,000^2 / 2 members.
        assert_eq!(merge(&keys("1"), &keys("null")), "{}");
    }

    #[test]
    fn given_an_empty_schema_when_merged_then_the_old_one_stays() {
        let of = |data: &str, schema: &str| Metadata { data: data.into(), schema: schema.to_owned() };
        assert_eq!(merged(&of("a", "s"), &of("b", "")), of("b", "s"));
        assert_eq!(merged(&of("a", "s"), &of("", "t")), of("a", "t"));
    }
}
