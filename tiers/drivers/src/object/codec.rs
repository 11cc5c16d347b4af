//! Bytes on their way: from a source into parts, and from parts into a destination; hashed, and compressed or not.
//!
//! ```text
//! source --pread 1 MiB--> hash --> [compress] --> part buffers --> upload         (a thread of the blocking pool)
//! download --> parts in order --> [decompress] --> hash --> pwrite                (the same)
//! ```
//! The hash is of the payload's own bytes as they were read, before compression and after decompression. Formats are those that
//! other programs read: a zstd frame, an lz4 frame.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use payload_types::limits::IO_BYTES_MAX;
use payload_types::{ByteCount, Checksum};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::error::{ObjectError, ObjectErrorKind};
use super::gate::{Buffer, Gate, Permit};

/// What zstd itself takes when it is not told: three quarters of its best ratio at a tenth of the time.
const ZSTD_LEVEL: i32 = 3;

/// How an object's bytes are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// A zstd frame.
    Zstd,
    /// An lz4 frame.
    Lz4,
}

impl Compression {
    /// The level that the sidecar records.
    pub fn level(self) -> u32 {
        if self == Self::Zstd { ZSTD_LEVEL.unsigned_abs() } else { 0 }
    }
}

/// Where an upload's bytes are. Called on threads that may block.
pub trait Source: Send + Sync {
    /// How many there are.
    fn size(&self) -> ByteCount;
    /// Fills `into` with what is at `offset`.
    ///
    /// # Errors
    /// As the system's; `UnexpectedEof` when there are fewer bytes than `size` said.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Where a download's bytes go. Called on threads that may block, front to back.
pub trait Sink: Send + Sync {
    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// As the system's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

/// A part of a file: a segment, a file of one replica, an extent of a segment file, a block of a slab. It is read and
/// written by system calls alone: whoever cuts the file harms nobody.
#[derive(Clone, Debug)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// Where the first byte is.
    pub offset: u64,
    /// How many there are.
    pub size: ByteCount,
}

impl Source for FileRange {
    fn size(&self) -> ByteCount {
        self.size
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, self.offset + offset)
    }
}

impl Sink for FileRange {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.size.0 {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "more bytes than the destination has"));
        }
        self.file.write_all_at(bytes, self.offset + offset)
    }
}

/// What is uploaded in one request.
pub(crate) struct Part {
    pub(crate) index: u32,
    pub(crate) bytes: Bytes,
    /// Of these very bytes: an upload that is resumed leaves out what the store has already.
    pub(crate) hash: u64,
}

/// Reads a source into parts, until it ends or nobody takes them; answers its checksum.
pub(crate) fn produce(
    source: &dyn Source,
    compression: Compression,
    part_bytes: usize,
    gate: &Arc<Gate>,
    runtime: &Handle,
    parts: mpsc::Sender<Part>,
) -> Result<Checksum, ObjectError> {
    let mut cutter = Cutter { gate, runtime, parts, part_bytes, present: None, index: 0, failed: None };
    let (mut hasher, size) = (Xxh3::new(), source.size().0);
    let done = if compression == Compression::None {
        read_straight(source, size, &mut hasher, &mut cutter)
    } else {
        read_through(source, size, &mut hasher, compression, &mut cutter)
    };
    let done = done.and_then(|()| cutter.send());
    match (done, cutter.failed) {
        (Ok(()), _) => Ok(Checksum(hasher.digest())),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => {
            Err(ObjectError::of_io(ObjectErrorKind::Source, "reading what is to be stored", &error))
        }
    }
}

/// Straight into the buffers that are sent.
fn read_straight(
    source: &dyn Source,
    size: u64,
    hasher: &mut Xxh3,
    cutter: &mut Cutter<'_>,
) -> io::Result<()> {
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(cutter.part_bytes as u64) as usize;
        let mut buffer = Buffer::of(cutter.permit()?, length);
        for (number, chunk) in buffer.bytes().chunks_mut(IO_BYTES_MAX).enumerate() {
            source.read_at(chunk, offset + (number * IO_BYTES_MAX) as u64)?;
            hasher.update(chunk);
        }
        cutter.present = Some(buffer);
        cutter.send()?;
        offset += length as u64;
    }
    Ok(())
}

fn read_through(
    source: &dyn Source,
    size: u64,
    hasher: &mut Xxh3,
    compression: Compression,
    cutter: &mut Cutter<'_>,
) -> io::Result<()> {
    let mut chunk = vec![0; IO_BYTES_MAX];
    let mut feed = |encoder: &mut dyn Write| -> io::Result<()> {
        let mut offset = 0;
        while offset < size {
            let length = (size - offset).min(IO_BYTES_MAX as u64) as usize;
            source.read_at(&mut chunk[..length], offset)?;
            hasher.update(&chunk[..length]);
            encoder.write_all(&chunk[..length])?;
            offset += length as u64;
        }
        Ok(())
    };
    match compression {
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(cutter, ZSTD_LEVEL)?;
            feed(&mut encoder)?;
            encoder.finish().map(drop)
        }
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(cutter);
            feed(&mut encoder)?;
            encoder.finish().map(drop).map_err(io::Error::from)
        }
        Compression::None => feed(cutter),
    }
}

/// Fills parts and sends each when it is full.
struct Cutter<'upload> {
    gate: &'upload Arc<Gate>,
    runtime: &'upload Handle,
    parts: mpsc::Sender<Part>,
    part_bytes: usize,
    present: Option<Buffer>,
    index: u32,
    /// Why nothing more is taken, when it was not the source's fault.
    failed: Option<ObjectError>,
}

impl Cutter<'_> {
    fn permit(&mut self) -> io::Result<Permit> {
        self.runtime.block_on(self.gate.acquire()).map_err(|error| {
            self.failed = Some(error);
            io::ErrorKind::Interrupted.into()
        })
    }

    fn send(&mut self) -> io::Result<()> {
        let Some(mut buffer) = self.present.take() else { return Ok(()) };
        let (index, hash) = (self.index, xxh3_64(buffer.bytes()));
        self.index += 1;
        self.parts.blocking_send(Part { index, bytes: buffer.into_bytes(), hash }).map_err(|_| {
            // The upload ended, and knows why.
            self.failed = Some(ObjectError::new(ObjectErrorKind::Stopping, "the upload ended early"));
            io::ErrorKind::BrokenPipe.into()
        })
    }
}

impl Write for Cutter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.present.is_none() {
            let mut buffer = Buffer::of(self.permit()?, 0);
            buffer.bytes().reserve_exact(self.part_bytes);
            self.present = Some(buffer);
        }
        let buffer = self.present.as_mut().expect("just made").bytes();
        let taken = bytes.len().min(self.part_bytes - buffer.len());
        buffer.extend_from_slice(&bytes[..taken]);
        if buffer.len() == self.part_bytes {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What one request brought, with the permit that it is charged to.
pub(crate) struct Fetched {
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) permit: Permit,
}

/// Writes what comes, in order, and answers its checksum once all is there.
///
/// # Errors
/// `Corrupt`: it cannot be decompressed, or is of another size. `Destination`: it cannot be written.
pub(crate) fn consume(
    parts: mpsc::Receiver<Fetched>,
    compression: Compression,
    size: ByteCount,
    sink: &dyn Sink,
) -> Result<Checksum, ObjectError> {
    let mut reader = Parts { parts, present: VecDeque::new(), permit: None };
    let mut writer = Writer { sink, hasher: Xxh3::new(), offset: 0, size: size.0 };
    match compression {
        Compression::None => {
            while let Some(chunk) = reader.chunk() {
                writer.take(&chunk)?;
            }
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(reader).map_err(|error| garbled(&error))?;
            drain(decoder, &mut writer)?;
        }
        Compression::Lz4 => drain(lz4_flex::frame::FrameDecoder::new(reader), &mut writer)?,
    }
    if writer.offset != size.0 {
        let said = format!("the object has {} bytes, and must have {}", writer.offset, size.0);
        return Err(ObjectError::new(ObjectErrorKind::Corrupt, said));
    }
    Ok(Checksum(writer.hasher.digest()))
}

fn garbled(error: &io::Error) -> ObjectError {
    ObjectError::new(ObjectErrorKind::Corrupt, format!("the object cannot be decompressed: {error}"))
}

fn drain(mut decoder: impl Read, writer: &mut Writer<'_>) -> Result<(), ObjectError> {
    let mut chunk = vec![0; IO_BYTES_MAX];
    loop {
        match decoder.read(&mut chunk).map_err(|error| garbled(&error))? {
            0 => return Ok(()),
            length => writer.take(&chunk[..length])?,
        }
    }
}

struct Writer<'download> {
    sink: &'download dyn Sink,
    hasher: Xxh3,
    offset: u64,
    size: u64,
}

impl Writer<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        if bytes.len() as u64 > self.size - self.offset {
            let said = format!("the object has more than the {} bytes that it must have", self.size);
            return Err(ObjectError::new(ObjectErrorKind::Corrupt, said));
        }
        self.hasher.update(bytes);
        let written = self.sink.write_at(bytes, self.offset);
        self.offset += bytes.len() as u64;
        written.map_err(|error| {
            ObjectError::of_io(ObjectErrorKind::Destination, "writing what was fetched", &error)
        })
    }
}

/// The parts of a download as one stream.
struct Parts {
    parts: mpsc::Receiver<Fetched>,
    present: VecDeque<Bytes>,
    permit: Option<Permit>,
}

impl Parts {
    fn chunk(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.present.pop_front() {
                return Some(chunk);
            }
            self.permit = None;
            let Fetched { chunks, permit } = self.parts.blocking_recv()?;
            self.present = chunks.into();
            self.permit = Some(permit);
        }
    }
}

impl Read for Parts {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(mut chunk) = self.chunk() else { return Ok(0) };
        let length = chunk.len().min(into.len());
        into[..length].copy_from_slice(&chunk.split_to(length));
        if !chunk.is_empty() {
            self.present.push_front(chunk);
        }
        Ok(length)
    }
}
