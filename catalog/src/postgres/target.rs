//! What `connection_uri` says: where the database is, and how the connection to it is protected.
//!
//! ```text
//! postgresql://user@host/db?sslmode=verify-full&sslrootcert=/etc/pg/ca.pem     (or key=value pairs)
//!   sslmode, sslrootcert: read here      everything else: tokio-postgres
//! ```
//! As libpq has it: `disable` never speaks TLS; `prefer` (the default) does where the server can, `require` always, both
//! whoever the server is; `verify-ca` and `require` with a root certificate want one that `sslrootcert` vouches for, and
//! `verify-full` one of the server's own name. A Unix socket needs none of it. What is asked for and cannot be done is refused:
//! nobody shall believe in a protection that is not there. Errors never quote what was given, which may be a password.

use std::str::FromStr as _;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::StoreError;

/// What PostgreSQL calls its protocol where TLS begins without being asked for.
const PROTOCOL: &[u8] = b"postgresql";

/// See the module.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: Config,
    /// `None`: TLS is not spoken.
    pub(super) tls: Option<MakeRustlsConnect>,
}

/// Who the server must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Check {
    Nobody,
    Vouched,
    Named,
}

/// A parameter's name and its value, as they are meant.
type Parameter = (String, String);

/// Reads `uri`.
///
/// # Errors
/// [`StoreError::Refused`].
pub(super) fn read(uri: &str) -> Result<Target, StoreError> {
    let (rest, ours) = split(uri).ok_or_else(unreadable)?;
    let mut config = Config::from_str(&rest).map_err(|_| unreadable())?;
    let (mut check, mut roots) = (Check::Nobody, None);
    for (name, value) in ours {
        match (name.as_str(), value.as_str()) {
            ("sslmode", "disable") => drop(config.ssl_mode(SslMode::Disable)),
            ("sslmode", "prefer") => drop(config.ssl_mode(SslMode::Prefer)),
            ("sslmode", "require") => drop(config.ssl_mode(SslMode::Require)),
            ("sslmode", mode @ ("verify-ca" | "verify-full")) => {
                config.ssl_mode(SslMode::Require);
                check = if mode == "verify-ca" { Check::Vouched } else { Check::Named };
            }
            ("sslmode", _) => {
                return refuse("its sslmode is none of disable, prefer, require, verify-ca and verify-full");
            }
            ("sslrootcert", "system") => {
                return refuse("it says sslrootcert=system; name a file with the certificates to trust");
            }
            ("sslrootcert", path) => roots = Some(path.to_owned()),
            // Such as certificates of the client's own.
            _ => {
                return Err(StoreError::Refused(format!(
                    "its parameter `{name}` is not understood; of TLS there are sslmode, sslrootcert and sslnegotiation"
                )));
            }
        }
    }
    let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    if is_local || config.get_ssl_mode() == SslMode::Disable {
        config.ssl_mode(SslMode::Disable);
        return Ok(Target { config, tls: None });
    }
    if roots.is_some() && check == Check::Nobody && config.get_ssl_mode() == SslMode::Require {
        check = Check::Vouched;
    }
    let tls = MakeRustlsConnect::new(client(check, roots.as_deref())?);
    Ok(Target { config, tls: Some(tls) })
}

fn unreadable() -> StoreError {
    StoreError::Refused(
        "it cannot be read; write it like `postgresql://user:password@host:5432/database`".to_owned(),
    )
}

fn refuse<T>(why: &str) -> Result<T, StoreError> {
    Err(StoreError::Refused(why.to_owned()))
}

/// `uri` without what is read here, and that. `None`: it is neither of both kinds.
fn split(uri: &str) -> Option<(String, Vec<Parameter>)> {
    let is_ours = |name: &str| name.starts_with("ssl") && name != "sslnegotiation";
    if !(uri.starts_with("postgres://") || uri.starts_with("postgresql://")) {
        let (ours, others): (Vec<_>, Vec<_>) = pairs(uri)?.into_iter().partition(|(name, _)| is_ours(name));
        let quoted = |(name, value): Parameter| {
            format!("{name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
        };
        return Some((others.into_iter().map(quoted).collect::<Vec<_>>().join(" "), ours));
    }
    let Some((place, query)) = uri.split_once('?') else { return Some((uri.to_owned(), Vec::new())) };
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        if is_ours(name) {
            let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
            ours.push((name.to_owned(), value.into_owned()));
        } else {
            others.push(pair);
        }
    }
    let mark = if others.is_empty() { "" } else { "?" };
    Some((format!("{place}{mark}{}", others.join("&")), ours))
}

/// The parameters of `key=value key='a value'`.
fn pairs(text: &str) -> Option<Vec<Parameter>> {
    let (mut found, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (quoted, after) = match after.strip_prefix('\'') {
            Some(after) => (true, after),
            None => (false, after),
        };
        let (mut value, mut end, mut characters) = (String::new(), None, after.char_indices());
        while let Some((place, character)) = characters.next() {
            match character {
                '\\' => value.push(characters.next()?.1),
                '\'' if quoted => {
                    end = Some(place + 1);
                    break;
                }
                space if !quoted && space.is_whitespace() => {
                    end = Some(place);
                    break;
                }
                character => value.push(character),
            }
        }
        if quoted && end.is_none() {
            return None;
        }
        found.push((name.trim_end().to_owned(), value));
        rest = after[end.unwrap_or(after.len())..].trim_start();
    }
    Some(found)
}

/// How TLS is spoken.
fn client(check: Check, roots: Option<&str>) -> Result<ClientConfig, StoreError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: rustls::Error| StoreError::Refused(format!("TLS cannot be spoken ({error})"));
    let verifier: Arc<dyn ServerCertVerifier> = match (check, roots) {
        (Check::Nobody, _) => Arc::new(Lenient { roots: None, provider: Arc::clone(&provider) }),
        (_, None) => {
            return refuse(
                "it asks to verify the server's certificate; say with sslrootcert=FILE which certificates are trusted",
            );
        }
        (Check::Vouched, Some(path)) => {
            Arc::new(Lenient { roots: Some(trusted(path)?), provider: Arc::clone(&provider) })
        }
        (Check::Named, Some(path)) => {
            let roots = Arc::new(trusted(path)?);
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|error| StoreError::Refused(format!("sslrootcert cannot be used ({error})")))?
        }
    };
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(client)
}

/// The certificates of a PEM file.
fn trusted(path: &str) -> Result<RootCertStore, StoreError> {
    let unusable = |why: &str| StoreError::Refused(format!("sslrootcert {path} {why}"));
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(&format!("cannot be read ({error})")))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| unusable(&format!("has an unusable certificate ({error})")))?;
    }
    if roots.is_empty() {
        return Err(unusable("holds no certificate; it needs at least one, in PEM"));
    }
    Ok(roots)
}

/// Takes a server under any name: whoever it is, or whoever somebody trusted vouches for.
#[derive(Debug)]
struct Lenient {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(uri: &str) -> Option<(String, Vec<(String, String)>)> {
        split(uri)
    }

    fn refusal(uri: &str) -> String {
        match read(uri) {
            Err(StoreError::Refused(why)) => why,
            Err(other) => panic!("{uri}: {other:?}"),
            Ok(_) => panic!("{uri} was taken"),
        }
    }

    #[test]
    fn given_uris_when_split_then_only_what_is_said_of_tls_is_taken_out() {
        let mode = |mode: &str| ("sslmode".to_owned(), mode.to_owned());
        let root = ("sslrootcert".to_owned(), "/a b/c.pem".to_owned());
        for (uri, rest, taken) in [
            ("postgresql://u:p%3F@h/d", "postgresql://u:p%3F@h/d", vec![]),
            ("postgres://h/d?sslmode=require", "postgres://h/d", vec![mode("require")]),
            (
                "postgresql://h/d?application_name=x&sslmode=verify-full&sslrootcert=/a%20b/c.pem&port=1",
                "postgresql://h/d?application_name=x&port=1",
                vec![mode("verify-full"), root.clone()],
            ),
            ("host=h sslmode = disable", "host='h'", vec![mode("disable")]),
            (
                r"password='it\'s \\' sslrootcert='/a b/c.pem' host=h",
                r"password='it\'s \\' host='h'",
                vec![root],
            ),
        ] {
            assert_eq!(ours(uri), Some((rest.to_owned(), taken)), "{uri}");
        }
        for uri in ["", "host"] {
            assert!(read(uri).is_err() || uri.is_empty(), "{uri}");
        }
        assert_eq!(ours("password='open"), None);
    }

    #[test]
    fn given_what_cannot_be_done_when_read_then_refused_and_nothing_secret_is_quoted() {
        for (parameters, words) in [
            ("sslmode=allow", "verify-full"),
            ("sslmode=verify-full", "sslrootcert=FILE"),
            ("sslmode=verify-ca&sslrootcert=system", "name a file"),
            ("sslmode=verify-ca&sslrootcert=/nowhere.pem", "/nowhere.pem"),
            ("sslmode=require&sslcert=/c.pem&sslkey=/k.pem", "sslcert"),
            ("sslmode=verify-ca&sslrootcert=/dev/null", "no certificate"),
            ("strange=1", "cannot be read"),
        ] {
            let why = refusal(&format!("postgresql://u:secret@h/d?{parameters}"));
            assert!(why.contains(words) && !why.contains("secret"), "{parameters}: {why}");
        }
    }

    #[test]
    fn given_modes_when_read_then_tls_is_spoken_where_it_is_asked_for_and_not_through_a_socket() {
        for (uri, expected) in [
            ("postgresql://h/d", true),
            ("postgresql://h/d?sslmode=prefer", true),
            ("postgresql://h/d?sslmode=require", true),
            ("postgresql://h/d?sslmode=disable", false),
            ("host=/run/postgresql sslmode=require", false),
        ] {
            assert_eq!(read(uri).expect("read").tls.is_some(), expected, "{uri}");
        }
    }
}
