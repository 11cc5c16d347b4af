//! `ls` and `stat`: what is there.

use payload_client::Client;
use payload_types::limits;

use crate::common::{TierWord, for_each_id};
use crate::output::Output;
use crate::view::{Full, Listed, WithNode};

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
    let (mut token, mut is_shared) = (None, None);
    loop {
        let page = client.list(args.tier.map(Into::into), PAGE_SIZE, token).await?;
        // A table has its columns from the first page on: those of one node alone need none for it.
        let is_shared = *is_shared.get_or_insert_with(|| {
            let is_several = page.nodes.windows(2).any(|pair| pair[0] != pair[1]);
            is_several || (page.next_page_token.is_some() && page.nodes.iter().any(|node| !node.is_empty()))
        });
        for (summary, node) in page.rows.iter().zip(&page.nodes) {
            let listed = Listed::new(summary, node);
            if is_shared { output.row(&WithNode(listed))? } else { output.row(&listed)? }
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
