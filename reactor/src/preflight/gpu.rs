//! The check for an NVIDIA driver. It looks at files only: loading the driver's library may take seconds and memory.

use std::fs;
use std::path::{Path, PathBuf};

use super::Check;

/// Where distributions and container runtimes put the driver's library.
const LIBRARY_DIRECTORIES: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
];

/// A GPU driver, its devices and its library are present. Never a fault: without one the GPU tier is unavailable.
pub(super) fn driver(configured: bool) -> Check {
    driver_under(Path::new("/"), library_path().is_some(), configured)
}

/// [`driver`] with /dev and /proc below `root`.
pub(super) fn driver_under(root: &Path, library: bool, configured: bool) -> Check {
    const NAME: &str = "GPU";
    const FIX: &str = "install the NVIDIA driver (in a container: --gpus all), or remove storage.gpu";
    let devices = device_count(&root.join("dev"));
    let version = driver_version(&root.join("proc/driver/nvidia/version"));
    let (detail, complete) = match (devices, version) {
        (0, None) => ("no GPU driver".to_owned(), false),
        (0, Some(version)) => (format!("driver {version}, but no device is visible to this process"), false),
        (count, version) => {
            let version = version.unwrap_or_else(|| "of unknown version".into());
            let missing = if library { "" } else { ", but libcuda.so.1 was not found" };
            (format!("{count} device(s), driver {version}{missing}"), library)
        }
    };
    if configured && !complete {
        return Check::warning(NAME, format!("{detail}; the GPU tier is unavailable"), FIX);
    }
    Check::ok(NAME, detail)
}

fn device_count(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.strip_prefix("nvidia").is_some_and(|number| number.parse::<u32>().is_ok()))
        .count()
}

/// The version in `NVRM version: NVIDIA UNIX ... Kernel Module  550.54.15  ...`: the first word with two dots.
fn driver_version(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let is_version =
        |word: &&str| word.split('.').count() >= 2 && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

fn library_path() -> Option<PathBuf> {
    let configured = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&configured)
        .filter(|directory| !directory.as_os_str().is_empty())
        .chain(LIBRARY_DIRECTORIES.map(PathBuf::from));
    directories.find_map(|directory| Some(directory.join("libcuda.so.1")).filter(|path| path.exists()))
}
