//! Looks at every request on its way to a cloud store: counts, the store's clock, and answers that are errors.
//!
//! ```text
//! object_store --> Watched::call --> reqwest --> store        an answer of 4xx/5xx --> Err(Answer) --> ObjectError::of_store
//! ```
//! object_store hides status and body of what failed behind a private type; here they are public, so errors are told apart by
//! what the store said and not by searching in sentences. 304, 404, 409 and 412 pass: object_store gives them meaning. So no answer
//! that is an error is ever retried below us: [`super::gate`] sees each.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};

use super::error::Answer;

/// What is read of an answer that is an error: S3's are below 1 KiB.
const BODY_BYTES_MAX: usize = 16 << 10;
/// What is repeated of the store's own words.
const MESSAGE_BYTES_MAX: usize = 200;

/// Counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicU64,
    /// The store's clock less ours, in milliseconds, as the last answer's `Date` had it (whole seconds).
    pub(crate) skew_ms: AtomicI64,
}

/// Makes clients that are watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watching(pub(crate) Arc<Seen>);

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watched { inner, seen: Arc::clone(&self.0) }))
    }
}

#[derive(Debug)]
struct Watched {
    inner: HttpClient,
    seen: Arc<Seen>,
}

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.seen.requests.fetch_add(1, Relaxed);
        let response = self.inner.execute(request).await?;
        if let Some(skew) =
            response.headers().get(http::header::DATE).and_then(|date| skew_ms(date.to_str().ok()?))
        {
            self.seen.skew_ms.store(skew, Relaxed);
        }
        let status = response.status().as_u16();
        if status < 300 || matches!(status, 304 | 404 | 409 | 412) {
            return Ok(response);
        }
        let answer = read(status, response.into_body()).await;
        Err(HttpError::new(HttpErrorKind::Unknown, answer))
    }
}

fn skew_ms(date: &str) -> Option<i64> {
    let theirs = chrono::DateTime::parse_from_rfc2822(date).ok()?.timestamp_millis();
    let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis();
    Some(theirs - i64::try_from(ours).ok()?)
}

async fn read(status: u16, body: HttpResponseBody) -> Answer {
    let (mut text, mut stream) = (Vec::new(), body.bytes_stream());
    while let Some(Ok(bytes)) = stream.next().await
        && text.len() < BODY_BYTES_MAX
    {
        text.extend_from_slice(&bytes[..bytes.len().min(BODY_BYTES_MAX)]);
    }
    let text = String::from_utf8_lossy(&text);
    let mut message = element(&text, "Message");
    message.retain(|letter| !letter.is_control());
    if let Some((end, _)) = message.char_indices().find(|(at, _)| *at >= MESSAGE_BYTES_MAX) {
        message.truncate(end);
    }
    Answer { status, code: element(&text, "Code"), message }
}

/// The text of an XML element without attributes and without children, as S3's errors have them.
fn element(text: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let found = text.split_once(open.as_str()).and_then(|(_, rest)| rest.split_once(close.as_str()));
    found.map(|(inside, _)| inside.to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_error_of_s3_when_read_then_its_code_is_found_and_other_text_has_none() {
        let text = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please</Message></Error>";
        assert_eq!((element(text, "Code"), element(text, "Message")), ("SlowDown".into(), "Please".into()));
        assert_eq!(element("<html>502</html>", "Code"), "");
        assert_eq!(element("<Code>cut", "Code"), "");
    }

    #[test]
    fn given_a_date_when_compared_then_the_difference_is_theirs_less_ours() {
        let skew = skew_ms("Thu, 01 Jan 1970 00:00:00 GMT").expect("a date");
        assert!(skew < -1_700_000_000_000, "{skew}");
        assert_eq!(skew_ms("yesterday"), None);
    }
}
