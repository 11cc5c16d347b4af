//! `serve`: from the command line to a server that ends in order. The binary's, and of test programs that have other GPUs.

use anyhow::Context as _;
use payload_drivers::gpu::Platform;

use crate::access::Guards;
use crate::cli::Cli;
use crate::config::{Config, Loaded};
use crate::serve::{self, FrontLimits, Listeners};
use crate::{bootstrap, logging};

/// The configuration: file, environment, command line.
///
/// # Errors
/// One sentence: what is wrong, and where.
pub fn load(cli: &Cli) -> anyhow::Result<Loaded> {
    let file = cli.config_file().map_err(anyhow::Error::msg)?;
    // Names and values that are not text cannot be configuration.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Config::load(file, &cli.data_dir, variables)?)
}

/// Serves until a signal comes. The GPU tier's devices come from `platform`.
///
/// # Errors
/// One sentence: what keeps it from serving.
pub fn serve(cli: &Cli, platform: &dyn Platform) -> anyhow::Result<()> {
    let loaded = load(cli)?;
    let config = &loaded.config;
    logging::start(&config.logging).map_err(anyhow::Error::msg)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    config.check_supported()?;
    let guards = Guards::load(&config.server)?;
    let plan = bootstrap::plan(config)?;
    let listener = bootstrap::address::bind(&config.server)?;
    let metrics = config.observability.metrics_address.as_ref().map(bootstrap::address::bind_metrics);
    let metrics = metrics.transpose()?;
    bootstrap::preflight(config)?;
    config.prepare()?;
    let port = listener.local_addr().context("the listening socket has no address")?.port();
    let node = bootstrap::Node::start_on(config, &plan, port, platform)?;
    let listeners = Listeners { grpc: listener, metrics };
    serve::run(listeners, node, FrontLimits::of(config), guards, plan.front_cores.as_deref())
}
