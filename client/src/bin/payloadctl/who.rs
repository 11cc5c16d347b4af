//! Who asks: the token, certificate and namespace of the command line or the environment.

use std::path::PathBuf;

use anyhow::Context as _;
use payload_client::{ConnectOptions, TlsOptions};

/// How the server is reached, and as whom.
#[derive(clap::Args)]
pub struct Args {
    /// Speak TLS, and trust the authorities in this PEM file. With `https://` before the address and without this: those that
    /// the system trusts.
    #[arg(long, global = true, env = "PAYLOAD_MANAGER_TLS_CA", value_name = "FILE", hide_env_values = true)]
    tls_ca: Option<PathBuf>,
    /// The client's certificate, in PEM.
    #[arg(
        long,
        global = true,
        env = "PAYLOAD_MANAGER_TLS_CERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    tls_cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, global = true, env = "PAYLOAD_MANAGER_TLS_KEY", value_name = "FILE", hide_env_values = true)]
    tls_key: Option<PathBuf>,
    /// The name that the server's certificate is for, when it is not the host of the address.
    #[arg(
        long,
        global = true,
        env = "PAYLOAD_MANAGER_TLS_NAME",
        value_name = "NAME",
        hide_env_values = true
    )]
    tls_name: Option<String>,
    /// Send the token in this file; without it the one in the environment variable PAYLOAD_MANAGER_TOKEN.
    #[arg(
        long,
        global = true,
        env = "PAYLOAD_MANAGER_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
    /// The namespace to work in.
    #[arg(
        long,
        global = true,
        env = "PAYLOAD_MANAGER_NAMESPACE",
        value_name = "NAME",
        hide_env_values = true
    )]
    in_namespace: Option<String>,
}

impl Args {
    /// As the client takes it.
    ///
    /// # Errors
    /// A file that cannot be read, a certificate without its key.
    pub fn options(&self) -> anyhow::Result<ConnectOptions> {
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => anyhow::bail!("a certificate goes with its private key; give both --tls-cert and --tls-key"),
        };
        let has_tls = self.tls_ca.is_some() || identity.is_some() || self.tls_name.is_some();
        let tls = has_tls.then(|| TlsOptions {
            ca: self.tls_ca.clone(),
            identity,
            server_name: self.tls_name.clone(),
        });
        let token = match &self.token_file {
            // Never as an argument: every user of the host sees those.
            None => std::env::var("PAYLOAD_MANAGER_TOKEN").ok().filter(|token| !token.is_empty()),
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("the token in {} cannot be read", path.display()))?
                    .trim()
                    .to_owned(),
            ),
        };
        Ok(ConnectOptions { tls, token, namespace: self.in_namespace.clone() })
    }
}
