//! `allocate`, `commit` and `rm`: a payload's life, step by step, for scripts whose own programs write the bytes.

use payload_client::{Client, ClientError};
use payload_types::{ByteCount, Checksum};

use crate::common::{Fence, Placement, for_each_id};
use crate::output::Output;
use crate::view::{Brief, Full};

/// Arguments of `allocate`.
#[derive(clap::Args)]
pub struct AllocateArgs {
    /// How many bytes, like 4096 or 8GiB.
    size: ByteCount,
    #[command(flatten)]
    placement: Placement,
}

/// Arguments of `commit`.
#[derive(clap::Args)]
pub struct CommitArgs {
    /// What to commit.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// The XXH3-64 of the bytes, 16 hexadecimal digits, when it is known.
    #[arg(long, value_name = "HEX", value_parser = parse_checksum)]
    checksum: Option<Checksum>,
}

/// Arguments of `rm`.
#[derive(clap::Args)]
pub struct RmArgs {
    /// What to delete.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Also when somebody leases it; those leases end.
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    fence: Fence,
}

/// Reserves space and shows where it is.
pub async fn run_allocate(client: &Client, output: &mut Output, args: AllocateArgs) -> anyhow::Result<()> {
    let allocation = client.allocate_payload(args.size, &args.placement.options()).await?;
    Ok(output.block(&Full::from(&allocation))?)
}

/// Commits each payload.
pub async fn run_commit(client: &Client, output: &mut Output, args: CommitArgs) -> anyhow::Result<()> {
    if args.checksum.is_some() && args.ids.len() > 1 {
        anyhow::bail!(
            "--checksum is of one payload, and {} are named; commit them one by one",
            args.ids.len()
        );
    }
    let commit = async |client: &Client, id| client.commit_payload(id, args.checksum).await;
    for_each_id(client, output, &args.ids, commit, |output, _, descriptor| {
        output.row(&Brief::from(&descriptor))
    })
    .await
}

/// Deletes each payload.
pub async fn run_rm(client: &Client, output: &mut Output, args: RmArgs) -> anyhow::Result<()> {
    let delete = async |client: &Client, id| client.delete(id, args.force, args.fence.version()).await;
    for_each_id(client, output, &args.ids, delete, |output, id, ()| output.done("id", &id, "deleted")).await
}

/// Reads a checksum.
pub fn parse_checksum(text: &str) -> Result<Checksum, ClientError> {
    let digits =
        Some(text).filter(|text| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Checksum).ok_or_else(|| {
        ClientError::Input(format!("`{text}` is not a checksum; it is written as 16 hexadecimal digits"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_checksum_when_printed_and_read_then_it_is_the_same() {
        let checksum = Checksum(0x0123_4567_89AB_CDEF);
        assert_eq!(parse_checksum(&checksum.to_string()).expect("own text"), checksum);
        for text in ["", "0x0123456789abcd", "+123456789abcdef", "0123456789abcdef0"] {
            assert!(parse_checksum(text).is_err(), "{text}");
        }
    }
}
