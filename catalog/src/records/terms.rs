//! What of metadata can be looked for: *terms*, each a hash of a kind, a name and a value, and the judgement itself.
//!
//! ```text
//! {"tags": {"set": "train"}, "model": {"depth": 18}}  schema "png"
//!   -> schema(png)  field(tags, set = "train")  tag(set, train)  field(model, depth = 18)
//! ```
//! Terms are an index and no more: whoever finds a payload by them judges its metadata by [`is_as_asked`]. So two values
//! with one hash do no harm, and a document with more than [`TERMS_MAX`] values has one term instead of all of them,
//! [`OVERFLOW`], by which it is looked at for every question about a field or a tag.
//!
//! **Stored**: terms stand in databases. A change of what they are hashed from needs a migration that makes them anew.

use payload_types::find::{FieldEquals, MetadataFilter, Scalar};
use payload_types::record::Metadata;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::merge::object;

/// Values of one document that have terms of their own. A term is a row of about 40 bytes at a random place of an index: 64
/// cost an update about as much as the rest of it.
const TERMS_MAX: usize = 64;

/// What a hash begins with, so that a field never is a schema.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Schema = 1,
    Field = 2,
    Tag = 3,
}

/// The term of a document with too many values. No hash of anything: an unlikely one that is, is judged like any other.
pub(super) const OVERFLOW: u64 = u64::MAX;

/// The member of a document that holds its tags.
const TAGS: &str = "tags";

/// The terms of `metadata`, each once, in order.
pub(crate) fn of(metadata: &Metadata) -> Vec<u64> {
    let mut terms = Vec::new();
    if let Some(members) = object(&metadata.data) {
        tags(&members, &mut terms);
        fields(&members, &mut vec![Kind::Field as u8], &mut terms);
        if terms.len() > TERMS_MAX {
            terms = vec![OVERFLOW];
        }
    }
    if !metadata.schema.is_empty() {
        terms.push(of_schema(&metadata.schema));
    }
    terms.sort_unstable();
    terms.dedup();
    terms
}

/// The term of a schema.
pub(super) fn of_schema(schema: &str) -> u64 {
    let mut hashed = vec![Kind::Schema as u8];
    name(schema, &mut hashed);
    xxh3_64(&hashed)
}

/// The term of a field.
pub(super) fn of_field(field: &FieldEquals) -> u64 {
    let mut hashed = vec![Kind::Field as u8];
    field.path.iter().for_each(|member| name(member, &mut hashed));
    value(&field.value, &mut hashed);
    xxh3_64(&hashed)
}

/// The term of a tag.
pub(super) fn of_tag(key: &str, content: &str) -> u64 {
    let mut hashed = vec![Kind::Tag as u8];
    name(key, &mut hashed);
    name(content, &mut hashed);
    xxh3_64(&hashed)
}

/// True when all holds that is asked for.
pub(super) fn is_as_asked(metadata: &Metadata, filter: &MetadataFilter) -> bool {
    if filter.schema.as_ref().is_some_and(|schema| *schema != metadata.schema) {
        return false;
    }
    if filter.fields.is_empty() && filter.tags.is_empty() {
        return true;
    }
    let Some(members) = object(&metadata.data) else { return false };
    filter.fields.iter().all(|field| has_field(&members, field))
        && filter.tags.iter().all(|(key, content)| has_tag(&members, key, content))
}

fn has_field(members: &Map<String, Value>, field: &FieldEquals) -> bool {
    let mut path = field.path.iter();
    let mut found = path.next().and_then(|member| members.get(member));
    for member in path {
        found = found.and_then(Value::as_object).and_then(|members| members.get(member));
    }
    found.and_then(scalar).is_some_and(|value| value == field.value)
}

fn has_tag(members: &Map<String, Value>, key: &str, content: &str) -> bool {
    match members.get(TAGS) {
        Some(Value::Object(tags)) => tags.get(key).and_then(Value::as_str) == Some(content),
        Some(Value::Array(keys)) => {
            content.is_empty() && keys.iter().any(|found| found.as_str() == Some(key))
        }
        _ => false,
    }
}

/// The value, unless it is an object or an array.
fn scalar(value: &Value) -> Option<Scalar> {
    match value {
        Value::Null => Some(Scalar::Null),
        Value::Bool(is) => Some(Scalar::Bool(*is)),
        Value::Number(number) => Some(Scalar::number(number.as_str())),
        Value::String(text) => Some(Scalar::Text(text.clone())),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn tags(members: &Map<String, Value>, terms: &mut Vec<u64>) {
    match members.get(TAGS) {
        Some(Value::Object(tags)) => {
            let texts = tags.iter().filter_map(|(key, content)| Some((key, content.as_str()?)));
            terms.extend(texts.take(TERMS_MAX + 1).map(|(key, content)| of_tag(key, content)));
        }
        Some(Value::Array(keys)) => {
            terms
                .extend(keys.iter().filter_map(Value::as_str).take(TERMS_MAX + 1).map(|key| of_tag(key, "")));
        }
        _ => {}
    }
}

/// Adds the term of each scalar below `members`, whose path is hashed from `path`; some more than [`TERMS_MAX`] end it.
/// As deep as the JSON, which is 128 at most.
fn fields(members: &Map<String, Value>, path: &mut Vec<u8>, terms: &mut Vec<u64>) {
    for (member, found) in members {
        if terms.len() > TERMS_MAX {
            return;
        }
        let length = path.len();
        name(member, path);
        if let Value::Object(inner) = found {
            fields(inner, path, terms);
        } else if let Some(scalar) = scalar(found) {
            value(&scalar, path);
            terms.push(xxh3_64(path));
        }
        path.truncate(length);
    }
}

/// Adds a text to what is hashed, so that no two lists of texts are hashed alike.
fn name(text: &str, hashed: &mut Vec<u8>) {
    hashed.extend((text.len() as u64).to_le_bytes());
    hashed.extend(text.as_bytes());
}

/// Adds a value to what is hashed.
fn value(scalar: &Scalar, hashed: &mut Vec<u8>) {
    let (kind, text) = match scalar {
        Scalar::Null => (0, ""),
        Scalar::Bool(false) => (1, ""),
        Scalar::Bool(true) => (2, ""),
        Scalar::Number(digits) => (3, digits.as_str()),
        Scalar::Text(text) => (4, text.as_str()),
    };
    hashed.push(kind);
    hashed.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(data: &str, schema: &str) -> Metadata {
        Metadata { data: data.into(), schema: schema.to_owned() }
    }

    fn field(path: &[&str], value: Scalar) -> FieldEquals {
        FieldEquals { path: path.iter().map(|member| (*member).to_owned()).collect(), value }
    }

    fn filter(fields: &[FieldEquals], tags: &[(&str, &str)]) -> MetadataFilter {
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        MetadataFilter { schema: None, fields: fields.to_vec(), tags }
    }

    #[test]
    fn given_terms_that_stand_in_databases_when_derived_again_then_they_are_the_same() {
        // Written down once: whoever changes what is hashed writes a migration, and this.
        let derived = of(&metadata(r#"{"a":{"b":1.0,"c":"x"},"d":null,"tags":["t"],"n":[1]}"#, "s"));
        let expected = [
            of_field(&field(&["a", "b"], Scalar::number("1"))),
            of_field(&field(&["a", "c"], Scalar::Text("x".to_owned()))),
            of_field(&field(&["d"], Scalar::Null)),
            of_tag("t", ""),
            of_schema("s"),
        ];
        assert_eq!(derived.len(), expected.len(), "arrays have no terms but for tags");
        assert!(expected.iter().all(|term| derived.contains(term)));
        assert_eq!(of_schema("s"), 0xD9E2_C634_160D_B04E);
        assert_eq!(of_tag("k", "v"), 0xE1D2_855D_1736_5A4A);
        assert_eq!(expected[0], 0x19CA_57DF_CFE1_2522);
    }

    #[test]
    fn given_what_is_no_json_object_when_derived_then_there_is_only_the_schema() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        for data in ["", "[1]", "\"a\"", "{", "\0", deep.as_str()] {
            assert!(of(&metadata(data, "")).is_empty());
            assert_eq!(of(&metadata(data, "s")), [of_schema("s")]);
        }
    }

    #[test]
    fn given_more_values_than_have_terms_when_derived_then_one_stands_for_all_of_them() {
        let members = |count: usize| {
            let members: Vec<String> = (0..count).map(|number| format!("\"{number}\":{number}")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(of(&metadata(&members(TERMS_MAX), "")).len(), TERMS_MAX);
        let mut expected = vec![OVERFLOW, of_schema("s")];
        expected.sort_unstable();
        assert_eq!(of(&metadata(&members(TERMS_MAX + 1), "s")), expected);
        let tags: Vec<String> = (0..=TERMS_MAX).map(|number| format!("\"{number}\"")).collect();
        assert_eq!(of(&metadata(&format!(r#"{{"tags":[{}]}}"#, tags.join(",")), "")), [OVERFLOW]);
    }

    #[test]
    fn given_documents_when_judged_then_every_word_counts() {
        let text = |text: &str| Scalar::Text(text.to_owned());
        let document = metadata(
            r#"{"a":{"b":10e-1,"":"e"},"t":true,"n":null,"o":{},"l":[1],"tags":{"k":"v","n":1}}"#,
            "s",
        );
        let yes = [
            filter(&[field(&["a", "b"], Scalar::number("1"))], &[]),
            filter(&[field(&["a", ""], text("e"))], &[]),
            filter(&[field(&["t"], Scalar::Bool(true)), field(&["n"], Scalar::Null)], &[("k", "v")]),
            filter(&[field(&["tags", "k"], text("v"))], &[]),
        ];
        for filter in &yes {
            assert!(is_as_asked(&document, filter), "{filter:?}");
            let asked = MetadataFilter { schema: Some("s".to_owned()), ..filter.clone() };
            assert!(is_as_asked(&document, &asked));
            assert!(!is_as_asked(&document, &MetadataFilter { schema: Some("S".to_owned()), ..asked }));
        }
        let no = [
            filter(&[field(&["a", "b"], text("1"))], &[]),
            filter(&[field(&["a"], Scalar::Null)], &[]),
            filter(&[field(&["o"], Scalar::Null)], &[]),
            filter(&[field(&["l"], Scalar::number("1"))], &[]),
            filter(&[field(&["l", "0"], Scalar::number("1"))], &[]),
            filter(&[field(&["absent"], Scalar::Null)], &[]),
            filter(&[field(&["t"], Scalar::Bool(true)), field(&["t"], Scalar::Bool(false))], &[]),
            filter(&[], &[("n", "1")]),
            filter(&[], &[("k", "")]),
        ];
        for filter in &no {
            assert!(!is_as_asked(&document, filter), "{filter:?}");
        }
        let listed = metadata(r#"{"tags":["k","l",1]}"#, "");
        assert!(is_as_asked(&listed, &filter(&[], &[("k", ""), ("l", "")])));
        assert!(!is_as_asked(&listed, &filter(&[], &[("k", "v")])));
        assert!(!is_as_asked(&metadata("[1]", "s"), &yes[0]));
    }
}
