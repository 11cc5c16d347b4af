//! Which NUMA nodes this machine has.

use std::path::Path;

/// Where the kernel says so.
const ONLINE: &str = "/sys/devices/system/node/online";

/// How many nodes are online; 1 where the kernel does not say.
pub(super) fn node_count() -> usize {
    std::fs::read_to_string(Path::new(ONLINE)).ok().and_then(|text| count(&text)).unwrap_or(1)
}

/// Counts what is written as `0-3,8`.
fn count(text: &str) -> Option<usize> {
    text.trim().split(',').try_fold(0, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_what_kernels_write_when_counted_then_every_node_counts_once() {
        for (text, nodes) in
            [("0\n", Some(1)), ("0-1\n", Some(2)), ("0-3,8,10-11\n", Some(7)), ("", None), ("3-1", None)]
        {
            assert_eq!(count(text), nodes, "{text}");
        }
        assert!(node_count() >= 1);
    }
}
