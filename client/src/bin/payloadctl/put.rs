//! `put`: files into payloads, one each.
//!
//!     arguments --walk (-r)--> files --allocate, map, copy + hash, commit--> a row each
//!
//! A file that fails is named on stderr and the rest goes on. A directory is walked in the order of its names; symbolic
//! links to files are followed, those to directories are refused, so that a walk always ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use payload_client::{AllocateOptions, Client, ClientError, Descriptor};
use payload_types::{ByteCount, Tier};

use crate::common::{Placement, shown};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress;
use crate::view::WithPath;

/// Arguments of `put`.
#[derive(clap::Args)]
pub struct Args {
    /// What to store: files, and with -r directories.
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Store every file below each directory.
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    placement: Placement,
}

/// A file to store, or why it cannot be.
type Found = (PathBuf, Result<u64, ClientError>);

/// Stores each file and prints a row for it.
pub async fn run(client: &Client, output: &mut Output, args: Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let files: Vec<Found> = args.paths.iter().flat_map(|path| find(path, args.recursive)).collect();
    let bar = progress::bar(files.iter().filter_map(|(_, size)| size.as_ref().ok()).sum());
    let options = args.placement.options();
    for (path, size) in files {
        interrupt.check()?;
        bar.set_message(shown(&path));
        let result = match size {
            Ok(_) => store(client, &path, &options, &bar, &interrupt).await,
            Err(error) => Err(error),
        };
        bar.suspend(|| match &result {
            Ok(descriptor) => {
                output.row(&WithPath::new(descriptor, None, &path))?;
                output.flush()
            }
            Err(error) => output.fail(&shown(&path), error),
        })?;
        if matches!(result, Err(ClientError::Connect { .. })) {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(interrupt.check()?)
}

/// Stores one file, as long as it is when it is opened: what is appended meanwhile is left out.
async fn store(
    client: &Client,
    path: &Path,
    options: &AllocateOptions,
    bar: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<Descriptor, ClientError> {
    let file = File::open(path).map_err(cannot_read)?;
    let size = measured(&file.metadata().map_err(cannot_read)?)?;
    let reader = interrupt.guard(bar.wrap_read(file));
    match options.tier {
        // Past the server: it hands out a signed URL, or the path of its directory.
        Tier::Object => client.put_object(reader, ByteCount(size), options).await,
        Tier::Gpu | Tier::Ram | Tier::Disk => client.put_bytes(reader, ByteCount(size), options).await,
    }
}

/// What `path` stands for: itself, or the files below it.
fn find(path: &Path, recursive: bool) -> Vec<Found> {
    let mut found = Vec::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(next) = waiting.pop() {
        let result = match fs::metadata(&next) {
            // A link that was met on the way, not named: it may lead anywhere, also back.
            Ok(metadata) if metadata.is_dir() && next.as_path() != path && next.is_symlink() => {
                Err(ClientError::Input(
                    "it is a symbolic link to a directory; name it to store what it leads to".to_owned(),
                ))
            }
            Ok(metadata) if metadata.is_dir() && recursive => match names_in(&next) {
                Ok(names) => {
                    waiting.extend(names.into_iter().rev());
                    continue;
                }
                Err(error) => Err(cannot_read(error)),
            },
            Ok(metadata) => measured(&metadata),
            Err(error) => Err(cannot_read(error)),
        };
        found.push((next, result));
    }
    found
}

/// The entries of a directory, by name.
fn names_in(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The size of what can be stored.
fn measured(metadata: &fs::Metadata) -> Result<u64, ClientError> {
    let refused = |why: &str| Err(ClientError::Input(why.to_owned()));
    if metadata.is_dir() {
        return refused("it is a directory; add -r to store the files below it");
    }
    if !metadata.is_file() {
        return refused("it is not a regular file, so its size is not known; save it to one first");
    }
    match metadata.len() {
        0 => refused("it is empty; a payload needs at least 1 byte"),
        size => Ok(size),
    }
}

fn cannot_read(reason: io::Error) -> ClientError {
    ClientError::Io { what: "cannot read it", reason }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn given_a_tree_when_walked_then_files_in_order_and_what_cannot_be_stored_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path();
        fs::create_dir_all(root.join("b/deep")).expect("made");
        for (name, bytes) in [("a", "1"), ("b/deep/x", "22"), ("b/z", "333"), ("c", ""), ("d", "4444")] {
            fs::write(root.join(name), bytes).expect("written");
        }
        symlink(root, root.join("b/loop")).expect("linked");
        symlink("nowhere", root.join("e")).expect("linked");
        symlink(root.join("a"), root.join("f")).expect("linked");
        let found = find(root, true);
        let told: Vec<(String, Option<u64>)> = found
            .iter()
            .map(|(path, size)| (shown(path.strip_prefix(root).expect("below")), size.as_ref().ok().copied()))
            .collect();
        let expected = [
            ("a", Some(1)),
            ("b/deep/x", Some(2)),
            ("b/loop", None),
            ("b/z", Some(3)),
            ("c", None),
            ("d", Some(4)),
            ("e", None),
            ("f", Some(1)),
        ];
        assert_eq!(told, expected.map(|(name, size)| (name.to_owned(), size)));
        let empty =
            found.iter().find(|(path, _)| path.ends_with("c")).and_then(|(_, size)| size.as_ref().err());
        assert!(empty.is_some_and(|error| error.to_string().contains("empty")));
    }

    #[test]
    fn given_a_directory_without_r_or_a_device_when_found_then_the_sentence_says_what_to_do() {
        let dir = tempfile::tempdir().expect("tempdir");
        let sentence = |path: &Path| match find(path, false).pop() {
            Some((_, Err(error))) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(sentence(dir.path()).contains("add -r"));
        assert!(sentence(Path::new("/dev/null")).contains("not a regular file"));
        assert!(sentence(&dir.path().join("absent")).contains("No such file"));
    }
}
