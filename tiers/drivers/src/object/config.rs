//! What a node is told of its object store, and the store that it makes of it. Nothing here asks the network.
//!
//! Credentials that the configuration does not give come from the usual environment (AWS_*, GOOGLE_*, AZURE_*), as
//! object_store reads it. TLS is verified unless it is told otherwise, and plain http is used only where it is asked for.

use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use payload_types::PayloadId;

use super::codec::Compression;
use super::error::{ObjectError, ObjectErrorKind};
use super::wire::{Seen, Watching};

/// S3 takes no smaller parts but for the last.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// S3 takes no more parts of one object.
pub(crate) const PARTS_MAX: u64 = 10_000;

/// `storage.object.filesystem_options.s3`, as far as it decides how a store is spoken to.
#[derive(Clone, Default)]
pub struct S3Options {
    /// `.endpoint_override`: `host:port` or a URL; `None`: AWS.
    pub endpoint: Option<String>,
    /// `.scheme: http`.
    pub allow_http: bool,
    /// `.region`; `None`: AWS_REGION, else us-east-1.
    pub region: Option<String>,
    /// `.access_key`; `None`: the usual AWS environment.
    pub access_key: Option<String>,
    /// `.secret_key`.
    pub secret_key: Option<String>,
    /// Goes with keys that expire.
    pub session_token: Option<String>,
    /// `.credentials_kind`: requests are not signed.
    pub anonymous: bool,
    /// `.force_virtual_addressing`.
    pub virtual_hosted: bool,
    /// Not `.tls_verify_certificates`.
    pub tls_unverified: bool,
    /// `.tls_ca_file_path`, and the files of `.tls_ca_dir_path`: PEM.
    pub tls_ca_files: Vec<PathBuf>,
    /// `.proxy_options`, as a URL.
    pub proxy_url: Option<String>,
    /// `.sse_customer_key`: base64.
    pub sse_customer_key: Option<String>,
}

impl std::fmt::Debug for S3Options {
    /// Without secrets.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("allow_http", &self.allow_http)
            .field("region", &self.region)
            .field("access_key", &self.access_key.as_ref().map(|_| "..."))
            .field("virtual_hosted", &self.virtual_hosted)
            .field("tls_unverified", &self.tls_unverified)
            .field("tls_ca_files", &self.tls_ca_files)
            .finish_non_exhaustive()
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct ObjectConfig {
    /// `storage.object.root_path`: `s3://bucket/prefix`, `gs://`, `az://`, `abfs[s]://`, `file:///directory` or a path.
    pub root: String,
    /// `storage.object.compression`.
    pub compression: Compression,
    /// How an S3 store is spoken to.
    pub s3: S3Options,
    /// `.connect_timeout`.
    pub connect_timeout: Duration,
    /// `.request_timeout`: of one request, which moves at most a part.
    pub request_timeout: Duration,
    /// The size of a part: [`PART_BYTES_MIN`] at least. Grown where an object would have more than 10,000.
    pub part_bytes: u64,
    /// Parts of all objects together; times `part_bytes`, this is the memory that the driver takes at most.
    pub parts_in_flight: usize,
    /// Objects that are moved at the same time; more wait.
    pub objects_in_flight: usize,
    /// Operations that wait at most.
    pub objects_waiting: usize,
    /// Attempts at one request before its operation fails.
    pub attempts: u32,
    /// The pause before a second attempt; it doubles, up to [`BACKOFF_MAX`].
    pub backoff: Duration,
}

/// The longest pause between two attempts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

impl Default for ObjectConfig {
    fn default() -> Self {
        Self {
            root: String::new(),
            compression: Compression::None,
            s3: S3Options::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            // 16 x 8 MiB = 128 MiB at most.
            part_bytes: 8 << 20,
            parts_in_flight: 16,
            objects_in_flight: 8,
            objects_waiting: 4096,
            attempts: 6,
            backoff: Duration::from_millis(200),
        }
    }
}

/// A store, and where in it this node's objects are.
pub(crate) struct Store {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// Cloud stores: uploads in parts that have names. A directory has none.
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    /// Who can sign URLs.
    pub(crate) signer: Option<Arc<dyn Signer>>,
    /// Of a local store: its directory.
    pub(crate) directory: Option<PathBuf>,
    prefix: String,
    /// What comes before a key in a URI, with the slash.
    uri: String,
    pub(crate) seen: Arc<Seen>,
}

impl Store {
    /// The key of a payload's bytes.
    pub(crate) fn key(&self, id: PayloadId) -> Path {
        self.named(&format!("{id}.bin"))
    }

    /// The key of its sidecar.
    pub(crate) fn sidecar_key(&self, id: PayloadId) -> Path {
        self.named(&format!("{id}.meta.json"))
    }

    pub(crate) fn named(&self, name: &str) -> Path {
        Path::from(format!("{}{name}", self.prefix))
    }

    /// Where all keys lie; `None`: at the top.
    pub(crate) fn prefix(&self) -> Option<Path> {
        let prefix = self.prefix.trim_end_matches('/');
        (!prefix.is_empty()).then(|| Path::from(prefix))
    }

    /// As clients are shown it: with the configured scheme.
    pub(crate) fn uri(&self, id: PayloadId) -> String {
        format!("{}{id}.bin", self.uri)
    }
}

/// Makes the store of a configuration.
///
/// # Errors
/// `Config`: a sentence that names the key to change.
pub(crate) fn open(config: &ObjectConfig) -> Result<Store, ObjectError> {
    if config.part_bytes < PART_BYTES_MIN {
        let said =
            format!("parts of {} bytes are too small; S3 takes at least {PART_BYTES_MIN}", config.part_bytes);
        return Err(wrong(said));
    }
    let Some((scheme, rest)) = config.root.split_once("://") else {
        return local(&config.root, config.root.as_ref());
    };
    if scheme == "file" {
        return local(&config.root, rest.as_ref());
    }
    let rest = rest.trim_end_matches('/');
    let root = &format!("{scheme}://{rest}");
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong(format!(
            "storage.object.root_path `{root}` names no bucket; write {scheme}://bucket/prefix"
        )));
    }
    cloud(config, scheme, root, (bucket, prefix))
}

/// A store that is spoken to over the network.
fn cloud(
    config: &ObjectConfig,
    scheme: &str,
    root: &str,
    (bucket, prefix): (&str, &str),
) -> Result<Store, ObjectError> {
    use_rustls();
    let watching = Watching::default();
    let seen = Arc::clone(&watching.0);
    let refused = |error: object_store::Error| {
        wrong(format!("storage.object.root_path `{root}` cannot be used: {error}"))
    };
    let client = client(config)?;
    // Every attempt is ours to count and to repeat: see `gate`.
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: config.request_timeout,
    };
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let store = |objects, multipart, signer| Store {
        objects,
        multipart: Some(multipart),
        signer: Some(signer),
        directory: None,
        prefix,
        uri: format!("{root}/"),
        seen,
    };
    match scheme {
        "s3" | "s3a" => {
            let made = Arc::new(
                s3(config, bucket)
                    .with_client_options(client)
                    .with_retry(retry)
                    .with_http_connector(watching)
                    .build()
                    .map_err(refused)?,
            );
            Ok(store(made.clone(), made.clone(), made))
        }
        "gs" => {
            let made = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            let made = Arc::new(
                made.with_client_options(client)
                    .with_retry(retry)
                    .with_http_connector(watching)
                    .build()
                    .map_err(refused)?,
            );
            Ok(store(made.clone(), made.clone(), made))
        }
        "az" | "abfs" | "abfss" => {
            let made = MicrosoftAzureBuilder::from_env().with_url(root);
            let made = Arc::new(
                made.with_client_options(client)
                    .with_retry(retry)
                    .with_http_connector(watching)
                    .build()
                    .map_err(refused)?,
            );
            Ok(store(made.clone(), made.clone(), made))
        }
        other => Err(wrong(format!(
            "storage.object.root_path has the scheme `{other}`; it must be s3, gs, az, abfs, abfss or file, or a path"
        ))),
    }
}

fn wrong(message: String) -> ObjectError {
    ObjectError::new(ObjectErrorKind::Config, message)
}

fn local(root: &str, directory: &std::path::Path) -> Result<Store, ObjectError> {
    let refused = |error: &dyn std::fmt::Display| {
        wrong(format!("storage.object.root_path `{root}` cannot be used as a directory: {error}"))
    };
    if root.is_empty() {
        return Err(wrong(
            "storage.object.root_path is empty; name a bucket's URL or a directory".to_owned(),
        ));
    }
    std::fs::create_dir_all(directory).map_err(|error| refused(&error))?;
    let directory = directory.canonicalize().map_err(|error| refused(&error))?;
    let made = LocalFileSystem::new_with_prefix(&directory).map_err(|error| refused(&error))?;
    Ok(Store {
        objects: Arc::new(made.with_fsync(true)),
        multipart: None,
        signer: None,
        uri: format!("file://{}/", directory.display()),
        directory: Some(directory),
        prefix: String::new(),
        seen: Arc::default(),
    })
}

fn s3(config: &ObjectConfig, bucket: &str) -> AmazonS3Builder {
    let options = &config.s3;
    let mut made = AmazonS3Builder::from_env();
    // AWS wants the bucket in the host's name, and other servers, which the environment may name too, in the path.
    let is_aws = options.endpoint.is_none() && made.get_config_value(&AmazonS3ConfigKey::Endpoint).is_none();
    made = made
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // What the store compares the body with, before it says that it has it.
        .with_checksum_algorithm(Checksum::CRC64NVME)
        // One name a request, as every compatible server takes it.
        .with_disable_bulk_delete(true)
        .with_virtual_hosted_style_request(options.virtual_hosted || is_aws)
        .with_allow_http(options.allow_http);
    if let Some(endpoint) = &options.endpoint {
        let scheme = if options.allow_http { "http" } else { "https" };
        let url = if endpoint.contains("://") { endpoint.clone() } else { format!("{scheme}://{endpoint}") };
        made = made.with_endpoint(url);
    }
    if let Some(region) = &options.region {
        made = made.with_region(region);
    }
    if let (Some(key), Some(secret)) = (&options.access_key, &options.secret_key) {
        made = made.with_access_key_id(key).with_secret_access_key(secret);
    }
    if let Some(token) = &options.session_token {
        made = made.with_config(AmazonS3ConfigKey::Token, token);
    }
    if let Some(key) = &options.sse_customer_key {
        made = made.with_ssec_encryption(key);
    }
    // A signature over the body costs more than moving it does; over TLS the checksum above says as much.
    made.with_skip_signature(options.anonymous).with_unsigned_payload(!options.allow_http)
}

fn client(config: &ObjectConfig) -> Result<ClientOptions, ObjectError> {
    let options = &config.s3;
    let mut client = ClientOptions::new()
        .with_allow_http(options.allow_http)
        .with_allow_invalid_certificates(options.tls_unverified)
        .with_connect_timeout(config.connect_timeout)
        .with_timeout(config.request_timeout)
        .with_pool_max_idle_per_host(config.parts_in_flight)
        .with_http1_only();
    if let Some(url) = &options.proxy_url {
        client = client.with_proxy_url(url);
    }
    for path in &options.tls_ca_files {
        let refused = |error: &dyn std::fmt::Display| {
            let key = "storage.object.filesystem_options.s3.tls_ca_file_path";
            wrong(format!("{key} {} cannot be used: {error}", path.display()))
        };
        let text = std::fs::read(path).map_err(|error| refused(&error))?;
        for certificate in Certificate::from_pem_bundle(&text).map_err(|error| refused(&error))? {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

/// reqwest takes the process' TLS provider: ours is ring. Whoever installed another one first keeps it.
fn use_rustls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _kept = rustls::crypto::ring::default_provider().install_default();
    });
}
