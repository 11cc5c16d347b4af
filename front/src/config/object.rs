//! `storage.object`: where objects lie and how the store is spoken to. Plain data here; `front/src/object` makes the driver of it.
//!
//! What the store itself can refuse (bucket, credentials, region) is found at the first request, not here: it need not be up.

use std::path::PathBuf;
use std::time::Duration;

use payload_drivers::object::{Compression, ObjectConfig, S3Options};

use super::error::ConfigError;
use super::key::Standing;
use super::setting::Setting;
use super::settings::{Settings, without_indices};
use super::tree::Secret;
use super::{resolve, table};

const ROOT: &str = "storage.object.root_path";
const S3: &str = "storage.object.filesystem_options.s3";

/// `storage.object`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectTierConfig {
    /// A URL: `s3://bucket/prefix`, `file:///directory` ...
    pub root: String,
    /// How objects are stored from now on.
    pub compression: Compression,
    /// How an S3 store is spoken to.
    pub s3: S3Config,
    /// How long connecting may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long one request may take, in milliseconds.
    pub request_timeout_ms: u64,
}

/// `storage.object.filesystem_options.s3`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct S3Config {
    /// `host:port` or a URL; `None`: AWS.
    pub endpoint: Option<String>,
    /// Plain http.
    pub allow_http: bool,
    /// `None`: from the environment.
    pub region: Option<String>,
    /// Key and its secret; `None`: from the environment.
    pub keys: Option<(Secret, Secret)>,
    /// Requests are not signed.
    pub anonymous: bool,
    /// The bucket goes into the host's name.
    pub virtual_hosted: bool,
    /// The server's certificate is not checked.
    pub tls_unverified: bool,
    /// A file of certificates to trust.
    pub tls_ca_file: Option<PathBuf>,
    /// A directory of such files.
    pub tls_ca_dir: Option<PathBuf>,
    /// A proxy's URL, with its password.
    pub proxy: Option<Secret>,
    /// A key for encryption at rest, in base64.
    pub sse_customer_key: Option<Secret>,
}

impl ObjectTierConfig {
    /// The store at this URL, with all else as it is by default.
    pub fn at(root: String) -> Self {
        let defaults = ObjectConfig::default();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            root,
            compression: defaults.compression,
            s3: S3Config::default(),
            connect_timeout_ms: millis(defaults.connect_timeout),
            request_timeout_ms: millis(defaults.request_timeout),
        }
    }

    /// As the driver is told. Reads the names of the files in `tls_ca_dir_path`, nothing else.
    ///
    /// # Errors
    /// That directory cannot be read.
    pub fn driver(&self) -> Result<ObjectConfig, ConfigError> {
        let s3 = &self.s3;
        let open = |secret: &Secret| secret.0.clone();
        let mut tls_ca_files: Vec<PathBuf> = s3.tls_ca_file.iter().cloned().collect();
        if let Some(directory) = &s3.tls_ca_dir {
            tls_ca_files.extend(certificates(directory)?);
        }
        Ok(ObjectConfig {
            root: self.root.clone(),
            compression: self.compression,
            s3: S3Options {
                endpoint: s3.endpoint.clone(),
                allow_http: s3.allow_http,
                region: s3.region.clone(),
                access_key: s3.keys.as_ref().map(|(key, _)| open(key)),
                secret_key: s3.keys.as_ref().map(|(_, secret)| open(secret)),
                session_token: None,
                anonymous: s3.anonymous,
                virtual_hosted: s3.virtual_hosted,
                tls_unverified: s3.tls_unverified,
                tls_ca_files,
                proxy_url: s3.proxy.as_ref().map(open),
                sse_customer_key: s3.sse_customer_key.as_ref().map(open),
            },
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            request_timeout: Duration::from_millis(self.request_timeout_ms),
            ..ObjectConfig::default()
        })
    }
}

/// The files of a directory of certificates: `.pem`, `.crt` and `.cer`, in the order of their names.
fn certificates(directory: &std::path::Path) -> Result<Vec<PathBuf>, ConfigError> {
    let refused = |error: std::io::Error| {
        let reason = format!("{} cannot be read: {error}; name a readable directory", directory.display());
        ConfigError::refused(&format!("{S3}.tls_ca_dir_path"), reason)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("pem" | "crt" | "cer")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The section, if it names a root.
pub(super) fn resolve(
    settings: &mut Settings,
    warnings: &mut Vec<String>,
) -> Result<Option<ObjectTierConfig>, ConfigError> {
    refuse(settings)?;
    let Some(given) = settings.text(ROOT) else {
        if resolve::is_present(settings, "storage.object") {
            warnings.push(format!(
                "`storage.object` is configured without `{ROOT}`, so there is no OBJECT tier; name a bucket's URL or a directory"
            ));
        }
        return Ok(None);
    };
    let root = match given.split_once("://") {
        Some(_) => given,
        None => format!("file://{}", resolve::absolute(ROOT, given.as_ref())?.display()),
    };
    fits(settings, &root)?;
    settings.set(ROOT, Setting::Text(root.clone()));
    let compression = match settings.text("storage.object.compression").as_deref() {
        Some("COMPRESSION_ZSTD") => Compression::Zstd,
        Some("COMPRESSION_LZ4") => Compression::Lz4,
        _ => Compression::None,
    };
    let defaults = ObjectConfig::default();
    let millis = |name: &str, default: Duration| match settings.given(&format!("{S3}.{name}")) {
        Some(Setting::Millis(0)) => Err(ConfigError::refused(
            &format!("{S3}.{name}"),
            "0s leaves no time for any request; give it at least 1ms, or leave it out",
        )),
        Some(Setting::Millis(milliseconds)) => Ok(*milliseconds),
        _ => Ok(u64::try_from(default.as_millis()).unwrap_or(u64::MAX)),
    };
    let s3 = s3(settings)?;
    if s3.tls_unverified {
        warnings.push(format!(
            "`{S3}.tls_verify_certificates` is false: whoever is between this server and the store can read and change objects"
        ));
    }
    Ok(Some(ObjectTierConfig {
        root,
        compression,
        s3,
        connect_timeout_ms: millis("connect_timeout", defaults.connect_timeout)?,
        request_timeout_ms: millis("request_timeout", defaults.request_timeout)?,
    }))
}

/// Refuses keys that are understood and that this server cannot follow.
fn refuse(settings: &Settings) -> Result<(), ConfigError> {
    for (path, setting) in settings.iter() {
        let says_nothing = match setting {
            Setting::Flag(flag) => !flag,
            Setting::Map(map) => map.is_empty(),
            _ => false,
        };
        let standing = table::find(&without_indices(path)).map(|key| key.standing);
        if let Some(Standing::Refused(why)) = standing
            && !says_nothing
        {
            return Err(ConfigError::refused(path, why));
        }
    }
    Ok(())
}

/// Refuses a `filesystem` that the root is none of.
fn fits(settings: &Settings, root: &str) -> Result<(), ConfigError> {
    const KEY: &str = "storage.object.filesystem";
    let wanted = match settings.text(KEY).as_deref() {
        Some("FILE_SYSTEM_LOCAL") => &["file"][..],
        Some("FILE_SYSTEM_S3") => &["s3", "s3a"],
        Some("FILE_SYSTEM_GCS") => &["gs"],
        Some("FILE_SYSTEM_AZURE") => &["az", "abfs", "abfss"],
        _ => return Ok(()),
    };
    let scheme = root.split_once("://").map_or("file", |(scheme, _)| scheme);
    if wanted.contains(&scheme) {
        return Ok(());
    }
    let reason = format!(
        "{ROOT} is `{root}`, which is no {}:// URL; change one of the two, or leave this one out",
        wanted[0]
    );
    Err(ConfigError::refused(KEY, reason))
}

fn s3(settings: &Settings) -> Result<S3Config, ConfigError> {
    let path = |name: &str| format!("{S3}.{name}");
    let text = |name: &str| settings.text(&path(name));
    let kind = text("credentials_kind").unwrap_or_default();
    let keys = match (text("access_key"), text("secret_key")) {
        (Some(key), Some(secret)) => Some((Secret(key), Secret(secret))),
        (Some(_), None) => {
            let reason =
                "it is not set, and access_key is; set both, or neither to take the AWS environment's";
            return Err(ConfigError::refused(&path("secret_key"), reason));
        }
        (None, Some(_)) => {
            let reason =
                "it is not set, and secret_key is; set both, or neither to take the AWS environment's";
            return Err(ConfigError::refused(&path("access_key"), reason));
        }
        (None, None) if kind == "explicit" => {
            let reason = "credentials_kind is explicit, and access_key and secret_key are not set; set both";
            return Err(ConfigError::refused(&path("access_key"), reason));
        }
        (None, None) => None,
    };
    let endpoint = text("endpoint_override");
    let is_plain = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let verifies = path("tls_verify_certificates");
    Ok(S3Config {
        allow_http: is_plain || text("scheme").as_deref() == Some("http"),
        endpoint,
        region: text("region"),
        keys: keys.filter(|_| kind != "anonymous" && kind != "web_identity"),
        anonymous: kind == "anonymous",
        virtual_hosted: settings.flag(&path("force_virtual_addressing")),
        tls_unverified: settings.given(&verifies).is_some() && !settings.flag(&verifies),
        tls_ca_file: text("tls_ca_file_path").map(PathBuf::from),
        tls_ca_dir: text("tls_ca_dir_path").map(PathBuf::from),
        proxy: proxy(settings)?,
        sse_customer_key: text("sse_customer_key").map(Secret),
    })
}

/// `proxy_options` as a URL.
fn proxy(settings: &Settings) -> Result<Option<Secret>, ConfigError> {
    let key = format!("{S3}.proxy_options");
    let Some(Setting::Map(options)) = settings.given(&key) else { return Ok(None) };
    if options.is_empty() {
        return Ok(None);
    }
    const KNOWN: [&str; 5] = ["scheme", "host", "port", "username", "password"];
    if let Some(strange) = options.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        let reason = format!("`{strange}` is none of {}; remove it", KNOWN.join(", "));
        return Err(ConfigError::refused(&key, reason));
    }
    let option = |name: &str| options.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let Some(host) = option("host") else {
        return Err(ConfigError::refused(&key, "it has no `host`; name the proxy's, or remove the key"));
    };
    let mut url = format!("{}://", option("scheme").unwrap_or("http"));
    if let Some(user) = option("username") {
        url.push_str(&encoded(user));
        if let Some(password) = option("password") {
            url.push_str(&format!(":{}", encoded(password)));
        }
        url.push('@');
    }
    url.push_str(host);
    if let Some(port) = option("port") {
        url.push_str(&format!(":{port}"));
    }
    Ok(Some(Secret(url)))
}

/// A user's name or password as a URL holds it.
fn encoded(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
