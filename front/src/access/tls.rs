//! TLS of the gRPC socket: rustls with ring, HTTP/2 only, TLS 1.2 and 1.3.
//!
//! The certificate may be exchanged while the server runs ([`Tls::reload`]). Where an authority for clients is
//! configured, their certificates are verified against it, and the names in them tell who calls (`access::book`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::audit;
use crate::config::TlsConfig;

/// The one protocol that is spoken (RFC 9113).
const PROTOCOL: &[u8] = b"h2";

/// What connections begin with; shared by its clones.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

struct Inner {
    files: TlsConfig,
    now: RwLock<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.inner.files).finish()
    }
}

impl Tls {
    /// Reads certificate, key and the clients' authority.
    ///
    /// # Errors
    /// One sentence: which key and file, what is wrong and what to do.
    pub fn load(files: &TlsConfig) -> anyhow::Result<Self> {
        let now = RwLock::new(Arc::new(read(files)?));
        audit::loaded::<anyhow::Error>("certificate", &files.certificate, &Ok(()));
        Ok(Self { inner: Arc::new(Inner { files: files.clone(), now }) })
    }

    /// Reads them again.
    ///
    /// # Errors
    /// As [`Tls::load`]; then nothing has changed.
    pub fn reload(&self) -> anyhow::Result<()> {
        let files = &self.inner.files;
        let config = read(files);
        audit::loaded("certificate", &files.certificate, &config.as_ref().map(drop));
        *self.inner.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config?);
        Ok(())
    }

    /// What the next connection begins with.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.inner.now.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(files: &TlsConfig) -> anyhow::Result<ServerConfig> {
    let chain = certificates("server.tls.certificate", &files.certificate)?;
    let shown = files.private_key.display();
    let key = PrivateKeyDer::from_pem_file(&files.private_key).map_err(|error| {
        anyhow::anyhow!("server.tls.private_key {shown} cannot be read as a private key in PEM: {error}")
    })?;
    warn_of_readers(&files.private_key);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| anyhow::anyhow!("TLS cannot be set up: {error}"))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            const KEY: &str = "server.tls.client_ca";
            let mut roots = RootCertStore::empty();
            for certificate in certificates(KEY, authority)? {
                roots.add(certificate).map_err(|error| {
                    anyhow::anyhow!("{KEY} {} holds no authority's certificate: {error}", authority.display())
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match files.is_client_optional {
                true => verifier.allow_unauthenticated(),
                false => verifier,
            };
            let verifier = verifier
                .build()
                .map_err(|error| anyhow::anyhow!("{KEY} {}: {error}", authority.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        anyhow::anyhow!(
            "server.tls.certificate {} and server.tls.private_key {shown} do not fit each other: {error}",
            files.certificate.display()
        )
    })?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn certificates(key: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(chain) if chain.is_empty() => anyhow::bail!("{key} {shown} holds no certificate in PEM"),
        Ok(chain) => Ok(chain),
        Err(error) => anyhow::bail!("{key} {shown} cannot be read as certificates in PEM: {error}"),
    }
}

fn warn_of_readers(key: &Path) {
    let mode = std::fs::metadata(key).map_or(0, |found| found.permissions().mode());
    if mode & 0o004 != 0 {
        tracing::warn!(
            file = %key.display(),
            "every user of this host can read the private key; take it from them with `chmod o-r`"
        );
    }
}

/// The DNS names and URIs that a verified certificate is for; none when it has no subject alternative names.
pub fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(read) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    read.valid_dns_names().chain(read.valid_uri_names()).map(str::to_owned).collect()
}
