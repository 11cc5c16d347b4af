//! Finding payloads: by what they are, and by their metadata.

use payload_types::reply::Summary;
use payload_types::{PayloadState, Tier, WallMs};
use payload_wire::enums;
use payload_wire::pb::operations::v1 as operations;

use crate::client::Client;
use crate::descriptor::{decode_summary, encode_tier};
use crate::error::ClientError;

/// What payloads must be. What is left out holds for all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FindOptions {
    /// The descriptor's tier.
    pub tier: Option<Tier>,
    /// The state as shown.
    pub state: Option<PayloadState>,
    /// Created then or later.
    pub created_from: Option<WallMs>,
    /// Created earlier.
    pub created_before: Option<WallMs>,
    /// At least so many bytes.
    pub size_min: Option<u64>,
    /// At most so many bytes.
    pub size_max: Option<u64>,
    /// The schema of the current metadata.
    pub schema: Option<String>,
    /// Members of the metadata's JSON object: names with dots between them or a JSON pointer, and the value as JSON text.
    pub fields: Vec<(String, String)>,
    /// Tags of the metadata: of the JSON object's member `tags`.
    pub tags: Vec<(String, String)>,
    /// The order of creation, instead of the newest first.
    pub oldest_first: bool,
    /// Rows of a page; 0: the server's default.
    pub page_size: u16,
}

/// One page of what was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundPage {
    /// In the order asked for. May be fewer than a page has, and none, while there are more.
    pub rows: Vec<Summary>,
    /// Where the next page starts; `None` after the last.
    pub next_page_token: Option<String>,
}

impl Client {
    /// A page of the payloads for which all holds that `options` say. Go on with the same options until there is no token.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a field that cannot be read, a range that nothing can be in, and a token of another question.
    pub async fn find(
        &self,
        options: &FindOptions,
        page_token: Option<String>,
    ) -> Result<FoundPage, ClientError> {
        let order = match options.oldest_first {
            true => operations::FindOrder::OldestFirst,
            false => operations::FindOrder::NewestFirst,
        };
        let field = |(path, value_json): &(String, String)| operations::FieldEquals {
            path: path.clone(),
            value_json: value_json.clone(),
        };
        let tag =
            |(key, value): &(String, String)| operations::FieldTag { key: key.clone(), value: value.clone() };
        let request = operations::FindPayloadsRequest {
            tier: encode_tier(options.tier),
            state: options.state.map_or(0, |state| enums::state_to_pb(state).into()),
            created_from_ms: options.created_from.map(WallMs::as_millis),
            created_before_ms: options.created_before.map(WallMs::as_millis),
            size_bytes_min: options.size_min,
            size_bytes_max: options.size_max,
            schema: options.schema.clone().unwrap_or_default(),
            fields: options.fields.iter().map(field).collect(),
            tags: options.tags.iter().map(tag).collect(),
            order: order.into(),
            page_size: options.page_size.into(),
            page_token: page_token.unwrap_or_default(),
        };
        let answer = self.answer(self.records().find_payloads(self.request(request)).await)?;
        Ok(FoundPage {
            rows: answer.payloads.into_iter().map(decode_summary).collect::<Result<_, _>>()?,
            next_page_token: Some(answer.next_page_token).filter(|token| !token.is_empty()),
        })
    }
}
