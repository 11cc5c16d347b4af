//! `ls` and `stat`: what is there.

use payload_client::Client;
use payload_types::limits;

use crate::common::{TierWord, for_each_id};
use crate::output::Output;
use crate::view::{Full, Listed};

/// Arguments of `ls`.
#[derive(clap::Args)]
pub struct LsArgs {
    /// Only payloads on this tier.
    #[arg(long, value_enum, ignore_case = true)]
    tier: Option<TierWord>,
}

/// Arguments of `stat`.
#[derive(clap::Args)]
pub struct StatArgs {
    /// What to show.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Lists page after page, printing each as it comes.
pub async fn run_ls(client: &Client, output: &mut Output, args: LsArgs) -> anyhow::Result<()> {
    const PAGE_SIZE: u16 = limits::LIST_PAGE_MAX as u16;
    let mut token = None;
    loop {
        let page = client.list(args.tier.map(Into::into), PAGE_SIZE, token).await?;
        for summary in &page.rows {
            output.row(&Listed::from(summary))?;
        }
        output.flush()?;
        token = page.next_page_token;
        if token.is_none() {
            return Ok(());
        }
    }
}

/// Shows each payload in full.
pub async fn run_stat(client: &Client, output: &mut Output, args: StatArgs) -> anyhow::Result<()> {
    for_each_id(client, output, &args.ids, Client::resolve, |output, _, descriptor| {
        output.block(&Full::from(&descriptor))
    })
    .await
}
