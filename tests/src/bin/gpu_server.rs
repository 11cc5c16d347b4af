//! `gpu_server`: the server, with GPUs that are played in host memory. Command line and configuration are `payload-manager`'s.
//!
//! Devices 0 and 1 have 64 MiB each. What fails is said by empty files in the data directory, which are looked for every few
//! milliseconds: `gpu-lost` (for good), `gpu-out-of-memory` (while it is there).
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser as _;
use payload_drivers::gpu::fake::{FakeFaults, FakePlatform};
use payload_front::cli::Cli;
use payload_front::program;
use payload_types::ByteCount;

const DEVICES: u32 = 2;
const DEVICE_BYTES: ByteCount = ByteCount(64 << 20);
const LOOK: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let platform = FakePlatform::new(DEVICES, DEVICE_BYTES);
    let (faults, directory) = (Arc::clone(&platform.faults), cli.data_dir.clone());
    std::thread::spawn(move || obey(&faults, &directory));
    match program::serve(&cli, &platform) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(faults: &FakeFaults, directory: &Path) {
    loop {
        if directory.join("gpu-lost").exists() {
            faults.lost.store(true, Ordering::SeqCst);
        }
        faults.out_of_memory.store(directory.join("gpu-out-of-memory").exists(), Ordering::SeqCst);
        std::thread::sleep(LOOK);
    }
}
