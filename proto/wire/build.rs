//! Compiles the .proto files of `proto/` without protoc: protox parses, tonic-prost-build writes Rust into OUT_DIR.
//!
//!     proto/payload/**.proto --protox--> descriptors --tonic-prost-build--> OUT_DIR/payload.manager.*.rs
//!     proto/vendor/**.proto --'              '--without comments, with imports--> OUT_DIR/descriptors.bin
//!
//! The second product is what reflection serves. It is encoded by protox and not by prost, because prost drops the
//! bytes of options that it does not know, and `google.api.http` is such an option.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let proto_dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate lies in proto/")?;
    let ours = proto_dir.join("payload");
    let vendor = proto_dir.join("vendor");
    println!("cargo::rerun-if-changed={}", ours.display());
    println!("cargo::rerun-if-changed={}", vendor.display());

    let mut files = Vec::new();
    proto_files(&ours, &mut files)?;
    files.sort();

    let mut compiler = protox::Compiler::new([proto_dir, &vendor])?;
    compiler.include_imports(true).open_files(&files)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.include_source_info(false).encode_file_descriptor_set())?;

    // Comments become rustdoc. Google's well-known types map to prost-types; HTTP routes need no Rust types.
    let mut descriptors = compiler.include_source_info(true).file_descriptor_set();
    descriptors.file.retain(|file| file.package() != "google.api");
    // Maps in the order of their keys: a message has one encoding, whoever decoded it.
    let configured = tonic_prost_build::configure().btree_map(".").emit_rerun_if_changed(false);
    configured.compile_fds(descriptors)?;
    Ok(())
}

/// Adds every .proto file below `dir` to `files`.
fn proto_files(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
