//! The file of callers: who they are, by the hash of a token or the name in a certificate, and what they may do.
//!
//! ```yaml
//! callers:
//!   - name: trainer
//!     role: producer
//!     token_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//!   - name: dashboards
//!     role: reader
//!     namespace: default
//!     certificate: dashboards.example      # a DNS name or URI of the certificate's subject alternative names
//! ```
//! Tokens are long random text, so that one round of SHA-256 is enough to keep them; they are found by their hash, whose
//! comparison tells nothing about any token.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::Deserialize;

use super::{Caller, Role, namespace};

/// The largest file: about ten thousand callers.
const FILE_BYTES_MAX: u64 = 2 << 20;

/// The longest token that is looked at.
const TOKEN_LEN_MAX: usize = 4096;

type Hash = [u8; SHA256_OUTPUT_LEN];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    callers: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    role: Role,
    namespace: Option<String>,
    token_sha256: Option<String>,
    certificate: Option<String>,
}

/// What the file says. Never shown: it holds hashes.
pub(super) struct Book {
    by_token: HashMap<Hash, Arc<Caller>>,
    by_certificate: HashMap<String, Arc<Caller>>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tokens, certificates) = (self.by_token.len(), self.by_certificate.len());
        write!(f, "Book {{ {tokens} tokens, {certificates} certificates }}")
    }
}

impl Book {
    /// Reads `path`.
    ///
    /// # Errors
    /// One sentence: the file, what is wrong in it and what to do.
    pub fn read(path: &Path, has_client_ca: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|error| anyhow::anyhow!("server.access_file {shown} cannot be read: {error}"))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            anyhow::bail!("server.access_file {shown} is larger than {FILE_BYTES_MAX} bytes; remove callers");
        }
        Self::parse(&text, has_client_ca)
            .map_err(|reason| anyhow::anyhow!("server.access_file {shown}: {reason}"))
    }

    fn parse(text: &str, has_client_ca: bool) -> Result<Self, String> {
        let file: File = serde_yaml_ng::from_str(text).map_err(|error| {
            format!("{error}; it holds `callers:`, a list of name, role (reader, producer, operator or admin), token_sha256 and certificate")
        })?;
        let mut book = Self { by_token: HashMap::new(), by_certificate: HashMap::new() };
        let mut names = std::collections::BTreeSet::new();
        for row in &file.callers {
            if !names.insert(&row.name) {
                return Err(format!("`{}` is listed twice; give every caller a name of its own", row.name));
            }
            book.enter(row, has_client_ca).map_err(|reason| format!("`{}`: {reason}", row.name))?;
        }
        match names.is_empty() {
            true => {
                Err("it names no caller, so nobody could call; add one, or remove server.access_file"
                    .to_owned())
            }
            false => Ok(book),
        }
    }

    fn enter(&mut self, row: &Row, has_client_ca: bool) -> Result<(), String> {
        let fits = |symbol: char| symbol.is_ascii_graphic();
        if row.name.is_empty() || row.name.len() > 63 || !row.name.chars().all(fits) {
            return Err("its name must have 1 to 63 printable characters without spaces".to_owned());
        }
        let namespace = row.namespace.as_deref().unwrap_or(namespace::DEFAULT);
        if namespace != namespace::DEFAULT {
            return Err(format!(
                "the namespace `{namespace}` does not exist; this version has `{}` only",
                namespace::DEFAULT
            ));
        }
        let caller =
            Arc::new(Caller { name: row.name.clone(), role: row.role, namespace: namespace.to_owned() });
        if row.token_sha256.is_none() && row.certificate.is_none() {
            return Err("it has neither token_sha256 nor certificate; give it one".to_owned());
        }
        if let Some(text) = &row.token_sha256 {
            let hash = hash_read(text).ok_or("its token_sha256 is not the 64 hexadecimal digits of a SHA-256; make it with `printf %s \"$TOKEN\" | sha256sum`")?;
            if hash == hash_of(b"") {
                return Err(
                    "its token_sha256 is the hash of no token at all; was the variable unset?".to_owned()
                );
            }
            put(&mut self.by_token, hash, &caller, "token")?;
        }
        if let Some(name) = &row.certificate {
            if !has_client_ca {
                return Err(
                    "it is known by a certificate, and no certificate is asked for; set server.tls.client_ca"
                        .to_owned(),
                );
            }
            if name.is_empty() {
                return Err("its certificate is empty; name a DNS name or URI of it".to_owned());
            }
            put(&mut self.by_certificate, name.clone(), &caller, "certificate's name")?;
        }
        Ok(())
    }

    /// Whose token a header carries.
    pub fn by_token(&self, header: &[u8]) -> Option<Arc<Caller>> {
        let (scheme, token) = header.split_at_checked("Bearer ".len())?;
        let fits = scheme.eq_ignore_ascii_case(b"bearer ") && (1..=TOKEN_LEN_MAX).contains(&token.len());
        fits.then(|| self.by_token.get(&hash_of(token)).cloned()).flatten()
    }

    /// Whose certificate has one of these names.
    pub fn by_certificate(&self, names: &[String]) -> Option<Arc<Caller>> {
        names.iter().find_map(|name| self.by_certificate.get(name)).cloned()
    }
}

fn put<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, Arc<Caller>>,
    key: K,
    caller: &Arc<Caller>,
    what: &str,
) -> Result<(), String> {
    match map.entry(key) {
        Entry::Vacant(place) => drop(place.insert(Arc::clone(caller))),
        Entry::Occupied(other) => {
            return Err(format!("it has the same {what} as `{}`; each is for one caller", other.get().name));
        }
    }
    Ok(())
}

fn hash_of(token: &[u8]) -> Hash {
    digest(&SHA256, token).as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

fn hash_read(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    if digits.len() != 2 * SHA256_OUTPUT_LEN {
        return None;
    }
    let mut hash = [0; SHA256_OUTPUT_LEN];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    // printf %s secret | sha256sum
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn row(rest: &str) -> String {
        format!("callers: [{{name: one, {rest}}}]")
    }

    #[test]
    fn given_a_book_when_tokens_and_certificates_come_then_only_the_right_ones_are_known() {
        let text = row(&format!("role: operator, token_sha256: {SECRET}, certificate: one.example"));
        let book = Book::parse(&text, true).expect("valid");
        let caller = book.by_token(b"Bearer secret").expect("known");
        assert_eq!((caller.name.as_str(), caller.role), ("one", Role::Operator));
        assert!(book.by_token(b"bearer secret").is_some(), "the scheme's case does not matter");
        for wrong in
            ["Bearer secret ", "Bearer Secret", "Bearer ", "Basic secret", "secret", "Bearer  secret", ""]
        {
            assert!(book.by_token(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert!(book.by_certificate(&["other".into(), "one.example".into()]).is_some());
        assert!(book.by_certificate(&["sub.one.example".into()]).is_none());
        assert!(!format!("{book:?}").contains("2bb8"), "{book:?}");
    }

    #[test]
    fn given_what_is_wrong_in_the_file_when_read_then_a_sentence_says_what() {
        let token = format!("role: reader, token_sha256: {SECRET}");
        for (text, words) in [
            (String::new(), "callers"),
            ("callers: []".to_owned(), "names no caller"),
            (row("role: king, token_sha256: aa"), "king"),
            (row("role: reader"), "neither"),
            (row("role: reader, token: secret"), "token"),
            (row("role: reader, token_sha256: 00ff"), "64 hexadecimal"),
            (row(&format!("role: reader, token_sha256: {EMPTY}")), "no token at all"),
            (row("role: reader, certificate: a.example"), "server.tls.client_ca"),
            (row(&format!("{token}, namespace: team")), "`team` does not exist"),
            (format!("callers: [{{name: one, {token}}}, {{name: one, {token}}}]"), "twice"),
            (format!("callers: [{{name: one, {token}}}, {{name: two, {token}}}]"), "same token as `one`"),
            (format!("callers: [{{name: '', {token}}}]"), "1 to 63"),
        ] {
            let said = Book::parse(&text, false).expect_err(words);
            assert!(said.contains(words), "{words}: {said}");
        }
        let missing = Book::read(Path::new("/nowhere/callers.yaml"), false).expect_err("absent").to_string();
        assert!(missing.contains("/nowhere/callers.yaml cannot be read"), "{missing}");
    }
}
