//! The check for an NVIDIA driver. It looks at files only: loading the driver's library may take seconds and memory.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, sys};

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
    let found = Found::below(root, library);
    let detail = found.detail();
    match found.problem() {
        Some((problem, fix)) if configured => {
            let said = if problem.is_empty() { detail } else { format!("{detail}: {problem}") };
            Check::warning(NAME, format!("{said}; the GPU tier is unavailable"), fix)
        }
        Some((problem, _)) if !problem.is_empty() => Check::ok(NAME, format!("{detail}: {problem}")),
        _ if configured && found.instances > 0 => Check::warning(
            NAME,
            format!("{detail}; {} of them is split into instances (MIG)", found.instances),
            "storage.gpu.devices counts instances then, and a process sees one of them: name it in CUDA_VISIBLE_DEVICES \
             (MIG-<uuid>, from nvidia-smi -L), here and in clients, and use device_id 0",
        ),
        _ => Check::ok(NAME, detail),
    }
}

/// What the files say.
struct Found {
    library: bool,
    version: Option<String>,
    devices: usize,
    /// Nodes in /dev that this user may not use.
    forbidden: Vec<String>,
    /// /dev/nvidiactl and /dev/nvidia-uvm are there, which CUDA needs beside the device's own.
    has_control: bool,
    /// Devices that are split.
    instances: usize,
}

impl Found {
    fn below(root: &Path, library: bool) -> Self {
        let dev = root.join("dev");
        let names = device_names(&dev);
        let control = ["nvidiactl", "nvidia-uvm"];
        let has_control = control.iter().all(|name| dev.join(name).exists());
        let nodes = names.iter().map(String::as_str).chain(control);
        let forbidden =
            nodes.filter(|name| dev.join(name).exists() && !sys::may_read_and_write(&dev.join(name)));
        Self {
            library,
            version: driver_version(&root.join("proc/driver/nvidia/version")),
            devices: names.len(),
            forbidden: forbidden.map(|name| format!("/dev/{name}")).collect(),
            has_control,
            instances: split_devices(&root.join("proc/driver/nvidia/capabilities")),
        }
    }

    fn detail(&self) -> String {
        match (self.devices, &self.version) {
            (0, None) => "no GPU driver".to_owned(),
            (0, Some(version)) => format!("driver {version}, but no device is visible to this process"),
            (count, version) => {
                let version = version.as_deref().unwrap_or("of unknown version");
                format!("{count} device(s), driver {version}")
            }
        }
    }

    /// What keeps CUDA from working, if the detail does not say it, and what to do.
    fn problem(&self) -> Option<(String, &'static str)> {
        if self.devices == 0 && self.version.is_none() {
            let fix = "install the NVIDIA driver (in a container: --gpus all), or remove storage.gpu";
            return Some((String::new(), fix));
        }
        if self.devices == 0 {
            let fix = "give this process the device (in a container: --gpus all; on the machine: nvidia-modprobe makes \
                       /dev/nvidia0), or remove storage.gpu";
            return Some((String::new(), fix));
        }
        if !self.library {
            let fix = "install the driver's library (in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility), or remove \
                       storage.gpu";
            return Some(("libcuda.so.1 was not found".to_owned(), fix));
        }
        if !self.forbidden.is_empty() {
            let fix = "give this user read and write access to them (often the group `video` or `render`), or remove \
                       storage.gpu";
            return Some((format!("this user may not use {}", self.forbidden.join(", ")), fix));
        }
        if !self.has_control {
            let fix = "run nvidia-modprobe -u -c 0 on the machine, and give the container both nodes, or remove storage.gpu";
            return Some(("/dev/nvidiactl or /dev/nvidia-uvm is missing".to_owned(), fix));
        }
        None
    }
}

fn device_names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.strip_prefix("nvidia").is_some_and(|number| number.parse::<u32>().is_ok()))
        .collect();
    names.sort();
    names
}

/// Devices in MIG mode: each of their instances is a directory `gpuN/mig/giM`.
fn split_devices(capabilities: &Path) -> usize {
    let Ok(entries) = fs::read_dir(capabilities) else { return 0 };
    let is_split = |device: &fs::DirEntry| {
        fs::read_dir(device.path().join("mig")).is_ok_and(|mut parts| {
            parts.any(|part| part.is_ok_and(|part| part.file_name().to_string_lossy().starts_with("gi")))
        })
    };
    entries.flatten().filter(is_split).count()
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
