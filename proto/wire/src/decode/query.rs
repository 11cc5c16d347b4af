//! FindPayloads: what is asked of payloads and of their metadata, checked and put in one form.

use payload_types::find::{
    FIND_CONDITIONS_MAX, FieldEquals, FindOrder, IdSpan, MetadataFilter, PayloadFilter, Scalar,
};
use payload_types::{NamespaceId, PayloadError, WallMs, limits};
use prost::Message as _;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{page_size, storable, text};
use crate::pb::operations::v1 as pb;
use crate::{enums, page_token};

/// What is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FindParts {
    /// The ids that are left to look at.
    pub span: IdSpan,
    /// Which of them come first.
    pub order: FindOrder,
    /// What payloads must be.
    pub filter: PayloadFilter,
    /// What their metadata must be.
    pub metadata: MetadataFilter,
    /// Rows of a page, 1 to `limits::LIST_PAGE_MAX`.
    pub page_size: usize,
    /// A hash of the question, for the tokens of its pages.
    pub asked: u64,
}

/// Decodes FindPayloads.
///
/// # Errors
/// `INVALID_ARGUMENT`: a tier, state or order outside the contract, or TIER_VOID; a range that nothing can be in, or beyond
/// 2^63-1; a path or value that cannot be read; an empty tag; too many conditions, or too long ones; a bad page token.
pub fn find(namespace: NamespaceId, mut request: pb::FindPayloadsRequest) -> Result<FindParts, PayloadError> {
    let order = match pb::FindOrder::try_from(request.order) {
        Ok(pb::FindOrder::Unspecified | pb::FindOrder::NewestFirst) => FindOrder::NewestFirst,
        Ok(pb::FindOrder::OldestFirst) => FindOrder::OldestFirst,
        Err(_) => {
            return Err(PayloadError::invalid(format!(
                "order is {}, which is no value of FindOrder; send one that query.proto lists",
                request.order
            )));
        }
    };
    // One question has one hash: an order that is not said is the first one, and pages may differ in size.
    let rows =
        page_size(std::mem::take(&mut request.page_size), limits::LIST_PAGE_DEFAULT, limits::LIST_PAGE_MAX);
    let token = std::mem::take(&mut request.page_token);
    if request.order == pb::FindOrder::Unspecified as i32 {
        request.order = pb::FindOrder::NewestFirst.into();
    }
    let asked = xxh3_64_with_seed(&request.encode_to_vec(), u64::from(namespace.0));

    let filter = PayloadFilter {
        tier: enums::tier_optional("tier", request.tier)?,
        state: enums::state_optional("state", request.state)?,
        size_min: storable("size_bytes_min", request.size_bytes_min.unwrap_or(0))?,
        size_max: storable("size_bytes_max", request.size_bytes_max.unwrap_or(limits::STORED_INTEGER_MAX))?,
    };
    if filter.size_min > filter.size_max {
        return Err(nothing_between("size_bytes_min", filter.size_min, "size_bytes_max", filter.size_max));
    }
    let span = created(request.created_from_ms, request.created_before_ms)?;
    let span = match page_token::find_decode(asked, &token)? {
        Some(last) => span.behind(order, last),
        None => span,
    };
    let metadata = metadata(request.schema, request.fields, request.tags)?;
    Ok(FindParts { span, order, filter, metadata, page_size: rows, asked })
}

fn created(from: Option<u64>, before: Option<u64>) -> Result<IdSpan, PayloadError> {
    let from = from.map(|from| storable("created_from_ms", from)).transpose()?;
    let before = before.map(|before| storable("created_before_ms", before)).transpose()?;
    match (from, before) {
        (Some(from), Some(before)) if from >= before => {
            Err(nothing_between("created_from_ms", from, "created_before_ms", before))
        }
        _ => Ok(IdSpan::created(from.map(WallMs::from_millis), before.map(WallMs::from_millis))),
    }
}

fn nothing_between(low: &str, from: u64, high: &str, to: u64) -> PayloadError {
    PayloadError::invalid(format!(
        "{low} is {from} and {high} is {to}, so no payload can be found; send the lesser one as {low}"
    ))
}

fn metadata(
    schema: String,
    fields: Vec<pb::FieldEquals>,
    tags: Vec<pb::FieldTag>,
) -> Result<MetadataFilter, PayloadError> {
    let conditions = fields.len() + tags.len();
    if conditions > FIND_CONDITIONS_MAX {
        return Err(PayloadError::invalid(format!(
            "there are {conditions} fields and tags; at most {FIND_CONDITIONS_MAX} are looked for at a time"
        )));
    }
    let tag = |tag: pb::FieldTag| {
        if tag.key.is_empty() {
            return Err(PayloadError::invalid("the key of a tag is empty; say which tag is looked for"));
        }
        Ok((text("the key of a tag", tag.key)?, text("the value of a tag", tag.value)?))
    };
    let schema = text("schema", schema)?;
    Ok(MetadataFilter {
        schema: (!schema.is_empty()).then_some(schema),
        fields: fields.into_iter().map(field).collect::<Result<_, _>>()?,
        tags: tags.into_iter().map(tag).collect::<Result<_, _>>()?,
    })
}

fn field(field: pb::FieldEquals) -> Result<FieldEquals, PayloadError> {
    let pb::FieldEquals { path, value_json } = field;
    let (path, value_json) = (text("the path of a field", path)?, text("the value of a field", value_json)?);
    let value = scalar(&path, &value_json)?;
    Ok(FieldEquals { path: members(&path)?, value })
}

/// The names of a path: a JSON pointer where it begins with a slash, else with dots between them.
fn members(path: &str) -> Result<Vec<String>, PayloadError> {
    let Some(pointer) = path.strip_prefix('/') else {
        let members: Vec<String> = path.split('.').map(str::to_owned).collect();
        if members.iter().any(String::is_empty) {
            return Err(PayloadError::invalid(format!(
                "the path `{path}` has an empty name in it; write `model.name`, or a JSON pointer like `/model/name` for a name that is empty or has a dot"
            )));
        }
        return Ok(members);
    };
    let member = |escaped: &str| {
        // RFC 6901, section 3: a tilde is followed by 0 or 1.
        let is_bad = escaped.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1']));
        (!is_bad).then(|| escaped.replace("~1", "/").replace("~0", "~"))
    };
    pointer.split('/').map(member).collect::<Option<_>>().ok_or_else(|| {
        PayloadError::invalid(format!(
            "the path `{path}` is no JSON pointer: write a tilde in a name as `~0` and a slash as `~1`"
        ))
    })
}

fn scalar(path: &str, json: &str) -> Result<Scalar, PayloadError> {
    match serde_json::from_str(json) {
        Ok(Value::Null) => Ok(Scalar::Null),
        Ok(Value::Bool(is)) => Ok(Scalar::Bool(is)),
        Ok(Value::Number(number)) => Ok(Scalar::number(number.as_str())),
        Ok(Value::String(text)) => Ok(Scalar::Text(text)),
        Ok(Value::Array(_) | Value::Object(_)) => Err(PayloadError::invalid(format!(
            "the value of field `{path}` is an array or an object; only strings, numbers, true, false and null are compared"
        ))),
        Err(error) => Err(PayloadError::invalid(format!(
            "the value of field `{path}` is no JSON ({error}); a string is written in quotes, like \"a\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::InvalidArgument;
    use payload_types::{PayloadId, PayloadState, Tier};

    use super::*;
    use crate::decode::testing::{NAMESPACE, TOO_LARGE, refused};

    fn one_field(path: &str, value_json: &str) -> pb::FindPayloadsRequest {
        let field = pb::FieldEquals { path: path.to_owned(), value_json: value_json.to_owned() };
        pb::FindPayloadsRequest { fields: vec![field], ..Default::default() }
    }

    fn tag(key: &str) -> pb::FieldTag {
        pb::FieldTag { key: key.to_owned(), value: String::new() }
    }

    #[test]
    fn given_nothing_when_decoded_then_everything_newest_first() {
        let parts = find(NAMESPACE, pb::FindPayloadsRequest::default()).expect("valid");
        assert_eq!((parts.span, parts.order, parts.page_size), (IdSpan::ALL, FindOrder::NewestFirst, 50));
        assert!(parts.metadata.is_empty());
        assert_eq!((parts.filter.tier, parts.filter.state, parts.filter.size_min), (None, None, 0));
    }

    #[test]
    fn given_every_word_when_decoded_then_all_is_understood() {
        let request = pb::FindPayloadsRequest {
            tier: 3,
            state: 4,
            created_from_ms: Some(1),
            created_before_ms: Some(2),
            size_bytes_min: Some(5),
            size_bytes_max: Some(5),
            schema: "s".to_owned(),
            tags: vec![tag("k")],
            order: pb::FindOrder::OldestFirst.into(),
            page_size: 7,
            ..one_field("a.b", "1.50")
        };
        let parts = find(NAMESPACE, request).expect("valid");
        assert_eq!((parts.filter.tier, parts.filter.state), (Some(Tier::Disk), Some(PayloadState::Durable)));
        assert_eq!((parts.filter.size_min, parts.filter.size_max, parts.page_size), (5, 5, 7));
        assert!(
            parts.span.contains(PayloadId::mint(1 << 12, 0))
                && !parts.span.contains(PayloadId::mint(2 << 12, 0))
        );
        assert_eq!(parts.order, FindOrder::OldestFirst);
        let field = FieldEquals { path: vec!["a".to_owned(), "b".to_owned()], value: Scalar::number("1.5") };
        assert_eq!(parts.metadata.fields, [field]);
        assert_eq!(parts.metadata.tags, [("k".to_owned(), String::new())]);
    }

    #[test]
    fn given_paths_when_decoded_then_dots_or_a_pointer() {
        for (path, members) in [
            ("a", &["a"][..]),
            ("a.b/c", &["a", "b/c"]),
            ("/a.b", &["a.b"]),
            ("/", &[""]),
            ("/a//b", &["a", "", "b"]),
            ("/a~1b/~0~01", &["a/b", "~~1"]),
            ("a b", &["a b"]),
        ] {
            let parts = find(NAMESPACE, one_field(path, "null")).expect(path);
            assert_eq!(parts.metadata.fields[0].path, members, "{path}");
        }
        for path in ["", ".", "a.", ".a", "a..b"] {
            refused(find(NAMESPACE, one_field(path, "1")), InvalidArgument, "empty name");
        }
        for path in ["/~", "/a~2", "/a~"] {
            refused(find(NAMESPACE, one_field(path, "1")), InvalidArgument, "pointer");
        }
        refused(find(NAMESPACE, one_field(&"x".repeat(65_537), "1")), InvalidArgument, "65537");
    }

    #[test]
    fn given_values_when_decoded_then_scalars_and_nothing_else() {
        for (json, value) in [
            ("null", Scalar::Null),
            (" true ", Scalar::Bool(true)),
            ("\"\\u0000a\"", Scalar::Text("\0a".to_owned())),
            ("1e0", Scalar::number("1")),
        ] {
            let parts = find(NAMESPACE, one_field("a", json)).expect(json);
            assert_eq!(parts.metadata.fields[0].value, value);
        }
        for json in ["", "abc", "'a'", "1 2", "NaN", "{", "\"a", "01"] {
            refused(find(NAMESPACE, one_field("a.b", json)), InvalidArgument, "`a.b` is no JSON");
        }
        for json in ["[1]", "{}", "[]"] {
            refused(find(NAMESPACE, one_field("a", json)), InvalidArgument, "array or an object");
        }
    }

    #[test]
    fn given_what_nothing_can_be_when_decoded_then_invalid_argument() {
        let request = pb::FindPayloadsRequest::default;
        for (wrong, word) in [
            (pb::FindPayloadsRequest { tier: 5, ..request() }, "TIER_VOID"),
            (pb::FindPayloadsRequest { tier: 77, ..request() }, "77"),
            (pb::FindPayloadsRequest { state: 9, ..request() }, "PayloadState"),
            (pb::FindPayloadsRequest { order: 3, ..request() }, "FindOrder"),
            (
                pb::FindPayloadsRequest { size_bytes_min: Some(2), size_bytes_max: Some(1), ..request() },
                "size_bytes_max",
            ),
            (
                pb::FindPayloadsRequest { created_from_ms: Some(2), created_before_ms: Some(2), ..request() },
                "created_before_ms",
            ),
            (pb::FindPayloadsRequest { created_from_ms: Some(TOO_LARGE), ..request() }, "created_from_ms"),
            (
                pb::FindPayloadsRequest { created_before_ms: Some(TOO_LARGE), ..request() },
                "created_before_ms",
            ),
            (pb::FindPayloadsRequest { size_bytes_min: Some(TOO_LARGE), ..request() }, "size_bytes_min"),
            (pb::FindPayloadsRequest { size_bytes_max: Some(TOO_LARGE), ..request() }, "size_bytes_max"),
            (pb::FindPayloadsRequest { schema: "s".repeat(65_537), ..request() }, "schema"),
            (pb::FindPayloadsRequest { tags: vec![tag("")], ..request() }, "key of a tag is empty"),
            (pb::FindPayloadsRequest { tags: vec![tag("k"); 17], ..request() }, "17"),
            (pb::FindPayloadsRequest { page_token: "x".to_owned(), ..request() }, "page_token"),
        ] {
            refused(find(NAMESPACE, wrong), InvalidArgument, word);
        }
    }

    #[test]
    fn given_a_page_token_when_used_then_the_rest_of_the_same_question_and_of_no_other() {
        let asked = || one_field("a", "1");
        let first = find(NAMESPACE, asked()).expect("valid");
        let last = PayloadId::mint(9 << 12, 3);
        let page_token = page_token::find_encode(first.asked, last);
        let next = pb::FindPayloadsRequest { page_token, page_size: 3, order: 1, ..asked() };
        let rest = find(NAMESPACE, next.clone()).expect("another size, and the order said");
        assert_eq!(rest.span, IdSpan::ALL.behind(FindOrder::NewestFirst, last));
        let order = pb::FindOrder::OldestFirst.into();
        for other in [
            pb::FindPayloadsRequest { order, ..next.clone() },
            pb::FindPayloadsRequest { tier: 2, ..next.clone() },
            pb::FindPayloadsRequest { size_bytes_min: Some(0), ..next.clone() },
            pb::FindPayloadsRequest { tags: vec![tag("a")], ..next.clone() },
            pb::FindPayloadsRequest { fields: Vec::new(), ..next.clone() },
        ] {
            refused(find(NAMESPACE, other), InvalidArgument, "filters");
        }
        refused(find(NamespaceId(8), next), InvalidArgument, "filters");
    }
}
