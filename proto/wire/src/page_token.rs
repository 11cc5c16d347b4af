//! Page tokens. Those of ListPayloads: opaque to clients, stateless for us, so they survive a restart.
//!
//! ```text
//! version 1 | tier filter 1 | last id 16 | XXH3-64 of (those, namespace) 8     as 52 hexadecimal digits
//! ```
//!
//! A token carries the id of the last row of its page; the next page holds the ids below it. Ids are UUIDv7 and
//! never reused, so rows that come and go between two pages move nothing. The filter is part of the token, because
//! going on under another one would skip rows silently. The checksum finds mangled tokens; it is no secret, and a
//! forged token gains its maker nothing but a cursor.
//!
//! Events of metadata are numbered and streams named, so a token of those is the last one's number or name, as text.

use std::fmt::Write;

use payload_types::limits::STORED_INTEGER_MAX;
use payload_types::record::StreamName;
use payload_types::{NamespaceId, PayloadError, PayloadId, Tier};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// First byte of the tokens of this layout.
const VERSION: u8 = 1;
/// Version, tier, id.
const BODY_BYTES: usize = 1 + 1 + 16;
/// The body and its checksum.
const TOKEN_BYTES: usize = BODY_BYTES + 8;

/// What the tokens of FindPayloads begin with: a hash of the question (16 digits), the id (32) and a checksum (16) follow.
const FIND_VERSION: &str = "f1";
/// Up to the checksum.
const FIND_BODY: usize = FIND_VERSION.len() + 16 + 32;

/// The listing a token belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listing {
    /// Whose payloads.
    pub namespace: NamespaceId,
    /// The filter; `None`: every tier.
    pub tier: Option<Tier>,
}

/// The token that leads to the rows after `last` of this listing.
pub fn encode(listing: Listing, last: PayloadId) -> String {
    let mut token = [0; TOKEN_BYTES];
    token[0] = VERSION;
    token[1] = tier_byte(listing.tier);
    token[2..BODY_BYTES].copy_from_slice(last.as_bytes());
    let checksum = checksum(listing.namespace, &token[..BODY_BYTES]);
    token[BODY_BYTES..].copy_from_slice(&checksum);
    let mut text = String::with_capacity(2 * TOKEN_BYTES);
    for byte in token {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

/// Where a page starts: after the returned id, or at the newest row when `token` is empty.
///
/// # Errors
/// `INVALID_ARGUMENT` when the token is not one of ours, is of another version, or belongs to another listing.
pub fn decode(listing: Listing, token: &str) -> Result<Option<PayloadId>, PayloadError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = bytes_of(token).ok_or_else(|| bad("is not one that ListPayloads returned"))?;
    if bytes[0] != VERSION {
        return Err(bad("was made by another version of the server"));
    }
    if bytes[BODY_BYTES..] != checksum(listing.namespace, &bytes[..BODY_BYTES]) {
        return Err(bad("is not one that ListPayloads returned"));
    }
    if bytes[1] != tier_byte(listing.tier) {
        return Err(bad("belongs to a listing with another tier_filter"));
    }
    PayloadId::from_slice(&bytes[2..BODY_BYTES]).map(Some)
}

/// The token that leads to what is found behind `last`, of the question whose words are hashed to `asked`.
pub fn find_encode(asked: u64, last: PayloadId) -> String {
    let mut token = format!("{FIND_VERSION}{asked:016x}");
    last.as_bytes()
        .iter()
        .for_each(|byte| write!(token, "{byte:02x}").expect("writing to a String cannot fail"));
    let checksum = xxh3_64(token.as_bytes());
    token + &format!("{checksum:016x}")
}

/// The id behind which a page of what is found starts; `None` when `token` is empty.
///
/// # Errors
/// `INVALID_ARGUMENT` when the token is not one of ours, or belongs to another question.
pub fn find_decode(asked: u64, token: &str) -> Result<Option<PayloadId>, PayloadError> {
    if token.is_empty() {
        return Ok(None);
    }
    let parts = || {
        let (body, checksum) = token.split_at_checked(FIND_BODY)?;
        let is_whole = checksum == format!("{:016x}", xxh3_64(body.as_bytes()));
        let (words, id) = body.strip_prefix(FIND_VERSION).filter(|_| is_whole)?.split_at_checked(16)?;
        Some((u64::from_str_radix(words, 16).ok()?, id.parse::<PayloadId>().ok()?))
    };
    match parts() {
        Some((words, id)) if words == asked => Ok(Some(id)),
        Some(_) => Err(bad("belongs to a question with other filters or another order")),
        None => Err(bad("is not one that FindPayloads returned")),
    }
}

/// The token that leads to the events after number `last`.
pub fn events_encode(last: u64) -> String {
    last.to_string()
}

/// The number after which a page of events starts; 0 when `token` is empty.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is no number of an event.
pub fn events_decode(token: &str) -> Result<u64, PayloadError> {
    if token.is_empty() {
        return Ok(0);
    }
    let digits = Some(token).filter(|token| token.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok()).filter(|number| *number <= STORED_INTEGER_MAX);
    number.ok_or_else(|| bad("is not one that ListPayloadMetadataEvents returned"))
}

/// The token that leads to the streams after `last`: `BYTES:NAMESPACENAME`, the first being the namespace's length.
pub fn streams_encode(last: &StreamName) -> String {
    format!("{}:{}{}", last.namespace.len(), last.namespace, last.name)
}

/// The stream after which a page of them starts; `None`: at the first one.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is not one of ours.
pub fn streams_decode(token: &str) -> Result<Option<StreamName>, PayloadError> {
    if token.is_empty() {
        return Ok(None);
    }
    let names = || {
        let (length, names) = token.split_once(':')?;
        let (namespace, name) = names.split_at_checked(length.parse().ok()?)?;
        (!name.is_empty()).then(|| StreamName { namespace: namespace.to_owned(), name: name.to_owned() })
    };
    names().map(Some).ok_or_else(|| bad("is not one that ListStreams returned"))
}

fn bad(what: &str) -> PayloadError {
    PayloadError::invalid(format!(
        "page_token {what}; send the next_page_token of the last page unchanged, or none to start anew"
    ))
}

/// The contract's number of the tier; 0, UNSPECIFIED, for no filter.
fn tier_byte(tier: Option<Tier>) -> u8 {
    tier.map_or(0, |tier| tier as u8)
}

fn checksum(namespace: NamespaceId, body: &[u8]) -> [u8; 8] {
    xxh3_64_with_seed(body, u64::from(namespace.0)).to_le_bytes()
}

/// Reads hexadecimal digits; `None` when there are too many, too few, or others.
fn bytes_of(text: &str) -> Option<[u8; TOKEN_BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * TOKEN_BYTES {
        return None;
    }
    let mut bytes = [0; TOKEN_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind;

    use super::*;

    const LISTING: Listing = Listing { namespace: NamespaceId::DEFAULT, tier: Some(Tier::Ram) };

    fn id() -> PayloadId {
        PayloadId::mint(1_800_000_000_000 << 12, 77)
    }

    #[test]
    fn given_a_token_when_sent_back_then_it_leads_to_its_id() {
        for tier in [None, Some(Tier::Ram), Some(Tier::Object)] {
            let listing = Listing { tier, ..LISTING };
            assert_eq!(decode(listing, &encode(listing, id())), Ok(Some(id())));
        }
        assert_eq!(decode(LISTING, ""), Ok(None));
    }

    #[test]
    fn given_a_token_of_an_earlier_server_when_sent_back_then_it_is_understood() {
        // Written down once: whoever changes the layout changes VERSION, and this.
        let token = "0102019fa5b8f80070008000000000000005aa51d7f5cadee7d5";
        let id = "019fa5b8-f800-7000-8000-000000000005".parse().expect("an id");
        assert_eq!(encode(LISTING, id), token);
        assert_eq!(decode(LISTING, token), Ok(Some(id)));
    }

    #[test]
    fn given_a_token_with_any_digit_changed_when_sent_back_then_invalid_argument() {
        let token = encode(LISTING, id());
        for at in 0..token.len() {
            let other = if &token[at..=at] == "0" { "1" } else { "0" };
            let mangled = format!("{}{other}{}", &token[..at], &token[at + 1..]);
            let error = decode(LISTING, &mangled).expect_err("a changed digit");
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "digit {at}");
        }
    }

    #[test]
    fn given_texts_that_are_no_token_when_sent_then_invalid_argument() {
        let token = encode(LISTING, id());
        let long = "0".repeat(100_000);
        let texts = ["1", "next", &token[..50], &format!("{token}00"), "ä".repeat(26).as_str(), &long]
            .map(str::to_owned);
        for text in texts {
            assert_eq!(decode(LISTING, &text).expect_err("no token").kind, ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn given_tokens_of_what_was_found_when_sent_back_then_each_belongs_to_its_question() {
        let token = find_encode(7, id());
        assert_eq!(find_decode(7, &token), Ok(Some(id())));
        assert_eq!(find_decode(7, ""), Ok(None));
        assert!(find_decode(8, &token).expect_err("another question").message.contains("filters"));
        for at in 0..token.len() {
            let other = if &token[at..=at] == "0" { "1" } else { "0" };
            let mangled = format!("{}{other}{}", &token[..at], &token[at + 1..]);
            let error = find_decode(7, &mangled).expect_err("a changed digit");
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "digit {at}");
        }
        let long = "0".repeat(100_000);
        for text in ["f1", "next", &token[..50], &format!("{token}0"), "ä".repeat(40).as_str(), &long] {
            assert_eq!(find_decode(7, text).expect_err("no token").kind, ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn given_another_listing_when_its_token_is_used_then_invalid_argument() {
        let token = encode(LISTING, id());
        let filter = decode(Listing { tier: None, ..LISTING }, &token).expect_err("another filter");
        assert!(filter.message.contains("tier_filter"), "{filter}");
        assert!(decode(Listing { namespace: NamespaceId(2), ..LISTING }, &token).is_err());
    }
}
