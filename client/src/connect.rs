//! How a client connects: which server, over TLS or not, and who it says it is.
//!
//! ```text
//! host:port, http://, https:// --+--> channel (TLS where options or https:// ask for it)
//! path of a socket --------------'--> native session, and gRPC of the same server beside it
//! options: token, namespace --------> metadata of every call over gRPC
//! ```
//! A native session carries neither: there the socket's peer credentials tell who calls.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::client::{
    ADDRESS_DEFAULT, CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, Client, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    STREAM_WINDOW_BYTES,
};
use crate::error::ClientError;
use crate::native::Session;
use crate::operations::NodeInfo;
use crate::transfer::blocking;

/// Who a client says it is, and how it proves it. Nothing of it is needed for a server that asks for nothing.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConnectOptions {
    /// TLS, also for an address without `https://`.
    pub tls: Option<TlsOptions>,
    /// Sent as `authorization: Bearer TOKEN`.
    pub token: Option<String>,
    /// Sent as `x-payload-namespace`; `None`: the caller's own, or `default`.
    pub namespace: Option<String>,
}

/// How TLS is spoken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsOptions {
    /// Certificates, in PEM, of the authorities that may have signed the server's; `None`: those the system trusts.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and private key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for; `None`: the host that is connected to.
    pub server_name: Option<String>,
}

impl fmt::Debug for ConnectOptions {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "********");
        f.debug_struct("ConnectOptions")
            .field("tls", &self.tls)
            .field("token", &token)
            .field("namespace", &self.namespace)
            .finish()
    }
}

/// What every call carries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    authorization: Option<MetadataValue<Ascii>>,
    namespace: Option<MetadataValue<Ascii>>,
}

impl Credentials {
    fn of(options: &ConnectOptions) -> Result<Self, ClientError> {
        let authorization = match options.token.as_deref().map(str::trim) {
            None => None,
            Some(token) => {
                let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
                let value = is_token.then(|| format!("Bearer {token}").parse().ok()).flatten();
                let mut value: MetadataValue<Ascii> = value.ok_or_else(|| {
                    ClientError::Input("the token is empty or has characters that no token has".to_owned())
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let namespace = options.namespace.as_deref().map(|name| {
            name.parse().map_err(|_| ClientError::Input(format!("`{name}` is no name of a namespace")))
        });
        Ok(Self { authorization, namespace: namespace.transpose()? })
    }

    pub(crate) fn put(&self, metadata: &mut MetadataMap) {
        if let Some(value) = &self.authorization {
            metadata.insert("authorization", value.clone());
        }
        if let Some(value) = &self.namespace {
            metadata.insert("x-payload-namespace", value.clone());
        }
    }
}

impl Client {
    /// Connects to `host:port` (`http://host:port` is understood too, and `https://host:port`, over TLS), or to the path of a
    /// native session's socket. Where the server is on this host and lets this user in, leases and allocations go over a
    /// native session, and all else over gRPC; otherwise everything does. Connected by a path to a server whose gRPC cannot
    /// be reached from here (a container with the socket and a network of its own), there is nothing but leases and
    /// allocations.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when no server answers there, [`ClientError::Refused`] when a socket was named and its server
    /// lets this process not in, [`ClientError::Input`] when it is neither address nor path.
    pub async fn connect(target: &str) -> Result<Self, ClientError> {
        Self::connect_with(target, &ConnectOptions::default()).await
    }

    /// As [`Client::connect`], with these options.
    ///
    /// # Errors
    /// As there; [`ClientError::Input`] for a certificate, key or token that cannot be used.
    pub async fn connect_with(target: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        if is_path(target) {
            let credentials = Arc::new(Credentials::of(options)?);
            let session = Self::open_session(target.into()).await?;
            if let Some(client) = Self::connect_beside_with(&session, options).await {
                return Ok(Self { session: Some(session), ..client });
            }
            // Nobody listens on port 0, so that no call over this channel is ever sent; `answer` says what is wrong.
            let channel = Endpoint::from_static("http://127.0.0.1:0").connect_lazy();
            return Ok(Self::over(channel, target.to_owned(), credentials, Some(session)));
        }
        let mut client = Self::connect_grpc_with(target, options).await?;
        // A server that does not know the call serves no sessions.
        let info = client.node_info().await.ok().filter(NodeInfo::is_this_host);
        if let Some(path) = info.and_then(|info| info.native_socket) {
            // Another user, another file system: gRPC does all it did.
            client.session = Self::open_session(path).await.ok();
        }
        Ok(client)
    }

    /// gRPC of the server behind `session`, where it tells an address that leads there: in a container the same address may
    /// be another server's.
    pub(crate) async fn connect_beside_with(session: &Session, options: &ConnectOptions) -> Option<Self> {
        let welcome = session.welcome();
        if welcome.address.is_empty() {
            return None;
        }
        let client = Self::connect_grpc_with(&welcome.address, options).await.ok()?;
        let info = client.with_deadline(CONNECT_TIMEOUT).node_info().await.ok()?;
        let is_it = info.is_this_host()
            && info.boot_epoch == u64::from(welcome.epoch.0)
            && info.shard_count == u32::from(welcome.shard_count);
        is_it.then_some(client)
    }

    async fn open_session(path: PathBuf) -> Result<Arc<Session>, ClientError> {
        Ok(Arc::new(blocking(move || Session::connect(&path)).await?))
    }

    /// Connects to `host:port` and uses gRPC alone.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_grpc(address: &str) -> Result<Self, ClientError> {
        Self::connect_grpc_with(address, &ConnectOptions::default()).await
    }

    /// As [`Client::connect_grpc`], with these options.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_grpc_with(address: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        let (is_https, address) = match address.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, address.strip_prefix("http://").unwrap_or(address)),
        };
        let address = address.trim_end_matches('/');
        let wrong = || {
            ClientError::Input(format!(
                "`{address}` is not an address; write host:port, like {ADDRESS_DEFAULT}"
            ))
        };
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if port.and_then(|port| port.parse::<u16>().ok()).is_none() || address.contains(['/', '@', '?', '#'])
        {
            return Err(wrong());
        }
        let credentials = Arc::new(Credentials::of(options)?);
        let tls = options.tls.clone().or_else(|| is_https.then(TlsOptions::default));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| wrong())?;
        if let Some(tls) = &tls {
            endpoint = endpoint.tls_config(tls.config()?).map_err(|error| {
                ClientError::Input(format!(
                    "TLS to {address} cannot be set up: {}",
                    crate::error::innermost(&error)
                ))
            })?;
        }
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .connect()
            .await
            .map_err(|error| ClientError::from_connect(&error, address))?;
        Ok(Self::over(channel, address.to_owned(), credentials, None))
    }
}

/// True for the path of a socket.
pub(crate) fn is_path(target: &str) -> bool {
    target.contains('/') && !target.starts_with("http://") && !target.starts_with("https://")
}

impl TlsOptions {
    fn config(&self) -> Result<ClientTlsConfig, ClientError> {
        let read = |what: &str, path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                let reason = crate::error::reason_of(&error);
                ClientError::Input(format!("the {what} {} cannot be read: {reason}", path.display()))
            })
        };
        let mut config = match &self.ca {
            None => ClientTlsConfig::new().with_native_roots(),
            Some(path) => ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(read("authority's certificate", path)?)),
        };
        if let Some((certificate, key)) = &self.identity {
            let certificate = read("certificate", certificate)?;
            config = config.identity(Identity::from_pem(certificate, read("private key", key)?));
        }
        Ok(match &self.server_name {
            Some(name) => config.domain_name(name.clone()),
            None => config,
        })
    }
}

impl Client {
    fn over(
        channel: Channel,
        address: String,
        credentials: Arc<Credentials>,
        session: Option<Arc<Session>>,
    ) -> Self {
        Self { session, channel, address, credentials, deadline: None, request_id: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_options_when_shown_then_without_the_token() {
        let options = ConnectOptions { token: Some("s3cr3t".to_owned()), ..Default::default() };
        assert!(!format!("{options:?}").contains("s3cr3t"));
        let shown = format!("{:?}", Credentials::of(&options).expect("a token"));
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }

    #[tokio::test]
    async fn given_what_cannot_be_a_token_or_certificate_when_connected_then_refused_before_any_attempt() {
        for token in ["", " ", "two words", "new\nline"] {
            let options = ConnectOptions { token: Some(token.to_owned()), ..Default::default() };
            let error = Client::connect_grpc_with("127.0.0.1:1", &options).await.expect_err("no token");
            assert!(matches!(error, ClientError::Input(_)), "{token}: {error:?}");
        }
        let tls = TlsOptions { ca: Some("/nowhere/ca.pem".into()), ..Default::default() };
        let options = ConnectOptions { tls: Some(tls), ..Default::default() };
        let error =
            Client::connect_grpc_with("127.0.0.1:1", &options).await.expect_err("no file").to_string();
        assert!(error.contains("/nowhere/ca.pem cannot be read"), "{error}");
    }
}
