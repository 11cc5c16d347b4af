//! Runs a test of this binary again in a process of its own, which can be killed, limited or made unprivileged.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in a child: the directory to work in.
const DIRECTORY: &str = "PAYLOAD_CATALOG_TEST_CHILD";

/// The directory to work in, when this process is such a child.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// A command that runs `program`, which is this one, for `test` (with its modules) as a child in `directory`.
pub fn command(program: &Path, test: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(DIRECTORY, directory);
    command
}

/// This program, for a user without rights on the folder that it was built in.
pub fn anybodys_program() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// This program, by its name.
pub fn program() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}
