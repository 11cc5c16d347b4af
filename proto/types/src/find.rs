//! Looking for payloads by what they are and by their metadata: FindPayloads, as shards, the catalog and the front say it.
//!
//! Every source of payloads (a shard, the catalog's index of metadata, the rows of other nodes) is asked the same way: for
//! the ids of a span, in an order, a bounded part at a time. It answers with what it found and how far it looked, so that
//! the parts of all sources can be put together without a row twice and without one skipped.
//!
//! Ids carry the time of their creation, so a range of times is a span of ids.

use crate::ids::{NamespaceId, PayloadId};
use crate::reply::Summary;
use crate::state::PayloadState;
use crate::tier::Tier;
use crate::time::WallMs;

/// Payloads that one part of an answer looks at, at most. In a shard 512 of them take about 100 µs (0.2 µs each, FACTS.md), as
/// much as the longest page of a listing.
pub const FIND_STEPS_MAX: usize = 512;

/// Fields and tags of one question: each is a look at the catalog's index.
pub const FIND_CONDITIONS_MAX: usize = 16;

/// Ids in one [`Describe`].
pub const DESCRIBE_IDS_MAX: usize = FIND_STEPS_MAX;

/// Which end of a span comes first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FindOrder {
    /// The greatest ids first.
    NewestFirst,
    /// The least ids first.
    OldestFirst,
}

impl FindOrder {
    /// True when `one` comes before `other`.
    pub fn is_before(self, one: PayloadId, other: PayloadId) -> bool {
        match self {
            Self::NewestFirst => one > other,
            Self::OldestFirst => one < other,
        }
    }
}

/// The ids from `low` to `high`, both included; empty when `low` is greater.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdSpan {
    /// The least id.
    pub low: PayloadId,
    /// The greatest id.
    pub high: PayloadId,
}

/// Milliseconds that an id has room for.
const ID_MILLIS_BITS: u32 = 48;

impl IdSpan {
    /// Every id.
    pub const ALL: Self =
        Self { low: PayloadId::from_bytes([0; 16]), high: PayloadId::from_bytes([0xFF; 16]) };

    /// No id.
    pub const NONE: Self = Self { low: Self::ALL.high, high: Self::ALL.low };

    /// Ids of payloads created at `from` or later, and before `before`.
    pub fn created(from: Option<WallMs>, before: Option<WallMs>) -> Self {
        // The first id of a millisecond; `None`: no id is as late.
        let first = |at: WallMs| {
            let millis = u128::from(at.as_millis());
            (millis < 1 << ID_MILLIS_BITS).then_some(millis << (128 - ID_MILLIS_BITS))
        };
        let low = from.map_or(Some(0), first);
        let high = before.map_or(Some(u128::MAX), |before| match first(before) {
            Some(end) => end.checked_sub(1),
            None => Some(u128::MAX),
        });
        match (low, high) {
            (Some(low), Some(high)) if low <= high => Self { low: id_of(low), high: id_of(high) },
            _ => Self::NONE,
        }
    }

    /// What is left behind `last`.
    pub fn behind(self, order: FindOrder, last: PayloadId) -> Self {
        let at = u128::from_be_bytes(*last.as_bytes());
        match order {
            FindOrder::NewestFirst => match at.checked_sub(1).map(id_of) {
                Some(high) => Self { high: self.high.min(high), ..self },
                None => Self::NONE,
            },
            FindOrder::OldestFirst => match at.checked_add(1).map(id_of) {
                Some(low) => Self { low: self.low.max(low), ..self },
                None => Self::NONE,
            },
        }
    }

    /// True when there is no id in it.
    pub fn is_empty(self) -> bool {
        self.low > self.high
    }

    /// True when `id` is in it.
    pub fn contains(self, id: PayloadId) -> bool {
        self.low <= id && id <= self.high
    }
}

fn id_of(number: u128) -> PayloadId {
    PayloadId::from_bytes(number.to_be_bytes())
}

/// What a payload must be, beside its metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PayloadFilter {
    /// The descriptor's tier; `None`: any.
    pub tier: Option<Tier>,
    /// The state, as shown; `None`: any.
    pub state: Option<PayloadState>,
    /// Bytes, at least.
    pub size_min: u64,
    /// Bytes, at most.
    pub size_max: u64,
}

impl Default for PayloadFilter {
    fn default() -> Self {
        Self { tier: None, state: None, size_min: 0, size_max: u64::MAX }
    }
}

impl PayloadFilter {
    /// True for a payload of which all is as asked.
    pub fn admits(&self, payload: &Summary) -> bool {
        let shown = match payload.state {
            PayloadState::Committing => PayloadState::Allocated,
            state => state,
        };
        self.tier.is_none_or(|tier| tier == payload.tier)
            && self.state.is_none_or(|state| state == shown)
            && (self.size_min..=self.size_max).contains(&payload.size.0)
    }
}

/// A JSON value that is neither an object nor an array, in the one form in which equal ones are the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A number, as [`Scalar::number`] writes it.
    Number(String),
    /// A string.
    Text(String),
}

impl Scalar {
    /// The number that this JSON text is, whatever its length: two texts of one number (`1`, `1.0`, `10e-1`) make the same.
    ///
    /// Written as its digits without zeros at either end, and the power of ten that they are multiplied by: `15e-1`. A
    /// number whose power of ten does not fit into 64 bits is taken as it is written, but for case.
    pub fn number(text: &str) -> Self {
        Self::Number(canonical(text).unwrap_or_else(|| text.to_ascii_lowercase()))
    }
}

/// `None` for a power of ten beyond 64 bits.
fn canonical(text: &str) -> Option<String> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        // Also -0, and 0 with any exponent.
        return Some("0".to_owned());
    }
    let exponent: i64 = match exponent {
        Some(exponent) => exponent.parse().ok()?,
        None => 0,
    };
    let zeros = (digits.len() - digits.trim_end_matches('0').len()) as i64;
    let power = exponent.checked_sub(fraction.len() as i64)?.checked_add(zeros)?;
    Some(format!("{sign}{significant}e{power}"))
}

/// A member of a JSON object, and what it must be equal to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FieldEquals {
    /// Names of members, from the outermost object on; at least one.
    pub path: Vec<String>,
    /// Its value.
    pub value: Scalar,
}

/// What the current metadata of a payload must be. All of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MetadataFilter {
    /// The name of its schema.
    pub schema: Option<String>,
    /// Its data are a JSON object with these members.
    pub fields: Vec<FieldEquals>,
    /// Its data are a JSON object whose member `tags` has these: an object's members with strings as values, or the strings
    /// of an array, which are keys with empty values.
    pub tags: Vec<(String, String)>,
}

impl MetadataFilter {
    /// True when any metadata will do, and none.
    pub fn is_empty(&self) -> bool {
        self.schema.is_none() && self.fields.is_empty() && self.tags.is_empty()
    }
}

/// One shard's part of FindPayloads without a word about metadata. Sent to every shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Find {
    /// Whose payloads.
    pub namespace: NamespaceId,
    /// Only these.
    pub span: IdSpan,
    /// From which end.
    pub order: FindOrder,
    /// What they must be.
    pub filter: PayloadFilter,
    /// At most so many rows. It looks at [`FIND_STEPS_MAX`] payloads at most, too.
    pub rows_max: usize,
}

/// Asks a shard for its payloads among these, as listings show them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Describe {
    /// Whose payloads.
    pub namespace: NamespaceId,
    /// Which: at most [`DESCRIBE_IDS_MAX`], all of this shard.
    pub ids: Vec<PayloadId>,
}

/// A part of what a source has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FoundPart {
    /// In the order asked for.
    pub rows: Vec<Summary>,
    /// Everything up to this id was looked at, and it; `None`: the whole span.
    pub reached: Option<PayloadId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> PayloadId {
        id_of(number)
    }

    #[test]
    fn given_numbers_in_many_spellings_when_read_then_equal_ones_are_the_same_and_others_are_not() {
        let same = [
            &["1", "1.0", "1e0", "1E0", "10e-1", "0.1e1", "0.01E+2", "1.000"][..],
            &["0", "-0", "0.0", "-0.000e5", "0e99999999999999999999"],
            &["-15", "-1.5e1", "-150E-1"],
            &["18446744073709551617", "18446744073709551617.0", "1.8446744073709551617e19"],
            &["0.1", "1e-1", "0.10"],
            &["100", "1e2", "1E+2", "100.00"],
            &["1e99999999999999999999", "1E99999999999999999999"],
            &["1e-99999999999999999999"],
        ];
        for (place, texts) in same.iter().enumerate() {
            for text in *texts {
                for (other, others) in same.iter().enumerate() {
                    for second in *others {
                        let is_equal = Scalar::number(text) == Scalar::number(second);
                        assert_eq!(is_equal, place == other, "{text} and {second}");
                    }
                }
            }
        }
        assert_ne!(Scalar::number("1"), Scalar::Text("1".to_owned()));
    }

    #[test]
    fn given_times_when_made_a_span_then_it_has_the_ids_of_these_milliseconds_and_no_other() {
        let at = WallMs::from_millis;
        let span = IdSpan::created(Some(at(1_000)), Some(at(2_000)));
        for (millis, is_in) in [(999, false), (1_000, true), (1_999, true), (2_000, false)] {
            for ticks in [millis << 12, (millis << 12) + 4_095] {
                for tail in [0, u64::MAX] {
                    assert_eq!(span.contains(PayloadId::mint(ticks, tail)), is_in, "{millis}");
                }
            }
        }
        assert_eq!(IdSpan::created(None, None), IdSpan::ALL);
        assert!(IdSpan::created(Some(at(5)), Some(at(5))).is_empty());
        assert!(IdSpan::created(None, Some(at(0))).is_empty());
        assert!(IdSpan::created(Some(at(1 << 48)), None).is_empty());
        assert_eq!(IdSpan::created(None, Some(at(1 << 48))), IdSpan::ALL);
    }

    #[test]
    fn given_a_span_when_some_of_it_was_seen_then_the_rest_is_left() {
        let span = IdSpan { low: id(10), high: id(20) };
        let newest = span.behind(FindOrder::NewestFirst, id(15));
        assert_eq!((newest.low, newest.high), (id(10), id(14)));
        let oldest = span.behind(FindOrder::OldestFirst, id(15));
        assert_eq!((oldest.low, oldest.high), (id(16), id(20)));
        assert!(span.behind(FindOrder::NewestFirst, id(10)).is_empty());
        assert!(span.behind(FindOrder::OldestFirst, id(20)).is_empty());
        assert!(IdSpan::ALL.behind(FindOrder::NewestFirst, id(0)).is_empty());
        assert!(IdSpan::ALL.behind(FindOrder::OldestFirst, id(u128::MAX)).is_empty());
        assert_eq!(span.behind(FindOrder::NewestFirst, id(30)), span);
    }
}
