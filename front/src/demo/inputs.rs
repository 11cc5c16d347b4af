//! What the demo moves: files that it was given, or files of the working directory and generated samples.
//!
//! Samples are read from a generator and lie nowhere: xorshift64* with a fixed seed, so every run has the same bytes
//! and no two samples share any. The working directory is walked without what git ignores in this repository
//! (`target`, dot directories), in the order of names, up to [`FILES_MAX`] files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use payload_types::{ByteCount, Checksum};

/// Files taken from the working directory: enough to be varied, few enough for a table that people read.
const FILES_MAX: usize = 24;

/// Files taken from the working directory have at most this size; the samples bring the large ones.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Directory entries looked at, so that a start in `/` ends.
const ENTRIES_MAX: usize = 20_000;

/// The samples, 64 MiB together: each half of the one before, and the last MiB split at a length that is no multiple
/// of anything.
const SAMPLES: [u64; 8] = [32 << 20, 16 << 20, 8 << 20, 4 << 20, 2 << 20, 1 << 20, (1 << 20) - 1237, 1237];

const _: () = {
    let (mut sum, mut index) = (0, 0);
    while index < SAMPLES.len() {
        sum += SAMPLES[index];
        index += 1;
    }
    assert!(sum == 64 << 20, "64 MiB of samples");
};

/// Bytes hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// One thing to move.
#[derive(Clone, Debug)]
pub struct Input {
    /// How the table calls it.
    pub name: String,
    /// How long it is.
    pub size: ByteCount,
    /// XXH3-64 of its bytes, computed here, from the source.
    pub checksum: Checksum,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    File(PathBuf),
    Sample { seed: u64, bytes: u64 },
}

impl Input {
    /// Its bytes.
    ///
    /// # Errors
    /// When the file cannot be opened any more.
    pub fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        self.source.open()
    }

    fn new(name: String, size: u64, source: Source) -> anyhow::Result<Self> {
        let read = source.open().and_then(|reader| checksum_of(reader, size));
        let checksum = read.with_context(|| format!("{name} cannot be read"))?;
        Ok(Self { name, size: ByteCount(size), checksum, source })
    }
}

impl Source {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::File(path) => Ok(Box::new(File::open(path)?)),
            Self::Sample { seed, bytes } => Ok(Box::new(Sample::new(*seed).take(*bytes))),
        }
    }
}

/// The files named on the command line.
///
/// # Errors
/// A file that is missing, empty or no regular file, by name.
pub fn from_files(files: &[PathBuf]) -> anyhow::Result<Vec<Input>> {
    files.iter().map(|path| from_file(path, path.display().to_string())).collect()
}

/// Files of the working directory, then the samples.
///
/// # Errors
/// When a file vanishes between being found and being read.
pub fn found_and_generated() -> anyhow::Result<Vec<Input>> {
    let root = std::env::current_dir().context("the working directory cannot be found")?;
    let mut inputs = Vec::new();
    for path in walk(&root) {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        inputs.push(from_file(&path, name)?);
    }
    for (seed, bytes) in (1..).zip(SAMPLES) {
        let name = format!("sample {seed} ({})", ByteCount(bytes));
        inputs.push(Input::new(name, bytes, Source::Sample { seed, bytes })?);
    }
    Ok(inputs)
}

fn from_file(path: &Path, name: String) -> anyhow::Result<Input> {
    let metadata = fs::metadata(path).with_context(|| format!("{name} cannot be read"))?;
    anyhow::ensure!(metadata.is_file(), "{name} is not a regular file; name files");
    anyhow::ensure!(metadata.len() > 0, "{name} is empty; a payload needs at least 1 byte");
    Input::new(name, metadata.len(), Source::File(path.to_owned()))
}

/// Regular, readable, not empty, not too large; in the order of names.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    let mut looked_at = 0;
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            looked_at += 1;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let Ok(kind) = entry.file_type() else { continue };
            if hidden || looked_at > ENTRIES_MAX {
                continue;
            }
            if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != "payload-data" {
                directories.push(entry.path());
            } else if kind.is_file()
                && entry.metadata().is_ok_and(|file| (1..=FILE_BYTES_MAX).contains(&file.len()))
                && File::open(entry.path()).is_ok()
            {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    // Spread over the tree instead of the first two dozen names of it.
    let step = found.len().div_ceil(FILES_MAX).max(1);
    found.into_iter().step_by(step).collect()
}

fn checksum_of(mut reader: impl Read, size: u64) -> io::Result<Checksum> {
    let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        reader.read_exact(&mut chunk[..wanted])?;
        hash.update(&chunk[..wanted]);
        left -= wanted as u64;
    }
    Ok(Checksum(hash.digest()))
}

/// An endless reader of xorshift64* (Vigna 2016).
struct Sample {
    state: u64,
    /// The last number's bytes, and how many of them were given out.
    bytes: [u8; 8],
    used: usize,
}

impl Sample {
    fn new(seed: u64) -> Self {
        // Any odd constant keeps the state from 0, where xorshift would stay.
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, bytes: [0; 8], used: 8 }
    }

    fn next(&mut self) -> [u8; 8] {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes()
    }
}

impl Read for Sample {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let started = (8 - self.used).min(buffer.len());
        let (rest, fresh) = buffer.split_at_mut(started);
        rest.copy_from_slice(&self.bytes[self.used..self.used + started]);
        self.used += started;
        let (words, tail) = fresh.as_chunks_mut::<8>();
        for word in words {
            *word = self.next();
        }
        if !tail.is_empty() {
            self.bytes = self.next();
            self.used = tail.len();
            tail.copy_from_slice(&self.bytes[..tail.len()]);
        }
        Ok(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_sample_when_read_twice_in_other_pieces_then_the_bytes_are_the_same() {
        let mut whole = vec![0; 4096];
        Sample::new(3).read_exact(&mut whole).expect("endless");
        let mut pieces = vec![0; 4096];
        let mut reader = Sample::new(3);
        for piece in pieces.chunks_mut(13) {
            reader.read_exact(piece).expect("endless");
        }
        assert_eq!(whole, pieces);
        let mut other = vec![0; 4096];
        Sample::new(4).read_exact(&mut other).expect("endless");
        assert_ne!(whole, other);
    }

    #[test]
    fn given_bad_files_when_named_then_each_error_names_the_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let empty = directory.path().join("empty");
        fs::write(&empty, b"").expect("written");
        for (path, word) in [
            (empty, "is empty"),
            (directory.path().to_owned(), "not a regular file"),
            (directory.path().join("missing"), "cannot be read"),
        ] {
            let error = from_files(std::slice::from_ref(&path)).expect_err("refused").to_string();
            assert!(error.contains(word) && error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn given_a_tree_when_walked_then_build_products_and_hidden_files_are_left_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["a.txt", ".hidden", "target/b", "src/c.rs"] {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
            fs::write(path, name).expect("written");
        }
        let found: Vec<PathBuf> = walk(directory.path());
        assert_eq!(found, ["a.txt", "src/c.rs"].map(|name| directory.path().join(name)));
    }
}
