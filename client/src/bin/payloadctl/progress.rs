//! The progress bar of `put` and `get`: drawn on stderr, and only where that is a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str =
    "{bar:24} {binary_bytes:>10} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta}  {wide_msg}";

/// Of so many bytes in all; hidden where nobody looks.
pub fn bar(total: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(TEMPLATE).expect("the template is constant and tested");
    ProgressBar::new(total).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_template_when_drawn_to_a_terminal_then_it_is_valid() {
        ProgressStyle::with_template(TEMPLATE).expect("valid");
    }
}
