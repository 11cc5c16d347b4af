//! The frames of the Unix socket: how a session begins and ends. One SOCK_SEQPACKET message each, little-endian.
//!
//! ```text
//! client  Hello ----------------------->          server   { versions spoken, features wanted, the program's name }
//!               <----- Welcome, descriptors                 memfd of the session, node page, one eventfd a shard
//!               <----- Doorbells, descriptors               the other eventfds, when one message cannot carry all
//!               <----- Refusal                              instead, and the socket is closed
//!               <----- SlabOffered, descriptor              memory that the session may write: it maps it, and says so
//!         SlabMapped ------------------>                    from then on nobody else can ever write there
//!         SlabWanted ------------------>                    memory of another session, to read
//!               <----- SlabOpened, descriptor               or SlabRefused
//!               <----- SlabClosed                           memory that the server takes back
//!               <----- Pages, 2 descriptors                 after the eventfds and tables: cells of direct leases, and their status
//!               <----- IndexOffered, descriptor             a table of what may be leased directly; it replaces the one before
//!         Bye ------------------------->                    then the socket is closed
//!               <----- Closed                               why the server ends it, then the socket is closed
//! ```
//!
//! Decoding takes any bytes: it is bounded by [`FRAME_BYTES_MAX`], never panics, and refuses what is shorter or longer
//! than it says. Descriptors travel beside the frames; who receives them counts them.

use payload_types::{ByteCount, Epoch, NamespaceId, PayloadError, ShardIndex, SlabId, limits};

use crate::direct::index::{HOMES_MAX, index_bytes};
use crate::direct::page::{STATUS_BYTES, written_bytes};
use crate::layout::{self, NODE_PAGE_BYTES, RING_ENTRIES, SESSION_HEADER_BYTES, SHARD_BYTES, TEXT_SLOTS};

/// What every frame starts with.
pub const MAGIC: [u8; 8] = *b"PMNATIVE";

/// The version of the protocol that this code speaks.
pub const VERSION: u16 = 1;

/// A feature: memory that the session writes and others map once, in slabs. A client that wants it answers SlabOffered.
pub const FEATURE_ARENAS: u64 = 1;

/// A feature: leases that ask nobody ([`crate::direct`]). Only beside [`FEATURE_ARENAS`]. A Pages follows the eventfds then.
pub const FEATURE_DIRECT: u64 = 2;

/// A feature: the Welcome says where the server serves gRPC, for a client that knows no more than the socket's path.
pub const FEATURE_ADDRESS: u64 = 4;

/// The longest frame: a Welcome with its longest path.
pub const FRAME_BYTES_MAX: usize = 2048;

/// Bytes of a program's name.
pub const PROGRAM_BYTES: usize = 32;

/// The longest path of a disk root.
pub const ROOT_BYTES_MAX: usize = 1024;

/// The longest address: a host's name of 253 bytes, or an IPv6 address in brackets, a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 264;

/// The longest text of a Refusal or of Closed.
pub const TEXT_BYTES_MAX: usize = 512;

/// Eventfds of one message: the kernel lets 253 descriptors travel (SCM_MAX_FD), and a Welcome has two others.
pub const DOORBELLS_PER_MESSAGE: u16 = 250;

const _: () = assert!(
    HEAD_BYTES + 72 + 2 + crate::segment::PREFIX_BYTES_MAX + 2 + ROOT_BYTES_MAX + 2 + ADDRESS_BYTES_MAX
        <= FRAME_BYTES_MAX
);

const HEAD_BYTES: usize = 12;
const KIND_HELLO: u16 = 1;
const KIND_WELCOME: u16 = 2;
const KIND_REFUSAL: u16 = 3;
const KIND_BYE: u16 = 4;
const KIND_CLOSED: u16 = 5;
const KIND_DOORBELLS: u16 = 6;
const KIND_SLAB_OFFERED: u16 = 7;
const KIND_SLAB_MAPPED: u16 = 8;
const KIND_SLAB_WANTED: u16 = 9;
const KIND_SLAB_OPENED: u16 = 10;
const KIND_SLAB_REFUSED: u16 = 11;
const KIND_SLAB_CLOSED: u16 = 12;
const KIND_PAGES: u16 = 13;
const KIND_INDEX_OFFERED: u16 = 14;

/// Of a SlabOffered: it is for one payload, which the kernel makes immutable at Commit.
const SLAB_ISOLATED: u32 = 1;
/// Of a SlabOffered: it has large pages, at least in part.
const SLAB_LARGE_PAGES: u32 = 2;

/// The first frame of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The oldest version it speaks.
    pub version_min: u16,
    /// The newest.
    pub version_max: u16,
    /// Bits of features it would use: [`FEATURE_ARENAS`], [`FEATURE_DIRECT`], [`FEATURE_ADDRESS`].
    pub features: u64,
    /// What people call the program; at most [`PROGRAM_BYTES`] bytes, cut.
    pub program: String,
}

/// A frame of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientFrame {
    /// Let me in.
    Hello(Hello),
    /// I am done: end what I hold.
    Bye,
    /// I have mapped what was offered.
    SlabMapped {
        /// Which.
        slab: SlabId,
    },
    /// I have a lease in a slab that I do not know.
    SlabWanted {
        /// Which.
        slab: SlabId,
    },
}

/// What a session is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub version: u16,
    /// Shards of the node, and eventfds that come.
    pub shard_count: u16,
    /// This session's number, for people.
    pub session: u32,
    /// Whose payloads it sees.
    pub namespace: NamespaceId,
    /// Of the features wanted, those that the server has.
    pub features: u64,
    /// The server's start, as the node page shows it while it runs.
    pub epoch: Epoch,
    /// A hash of the machine's boot id, as in the node page.
    pub boot_hash: u64,
    /// `storage.ram.shm_prefix`: segments are `/dev/shm/<prefix>-<uuid>`.
    pub shm_prefix: String,
    /// The disk root, absolute; empty without one.
    pub disk_root: String,
    /// `host:port` of gRPC, as programs on this host reach it: with [`FEATURE_ADDRESS`] only, else empty.
    pub address: String,
}

/// Why a client is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum RefusalKind {
    /// No version in common.
    Version = 1,
    /// The user may not.
    User = 2,
    /// As many sessions as there may be.
    Full = 3,
    /// The server is ending.
    Stopping = 4,
    /// That was no Hello.
    Malformed = 5,
    /// The server cannot: memory, descriptors.
    Unable = 6,
}

/// A frame of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerFrame {
    /// Come in; with the session memfd, the node page, and the eventfds of the first [`DOORBELLS_PER_MESSAGE`] shards.
    Welcome(Box<Welcome>),
    /// With the eventfds of the shards from this one on.
    Doorbells {
        /// The first one's shard.
        first: u16,
    },
    /// No; the socket is closed then.
    Refusal {
        /// For a program.
        kind: RefusalKind,
        /// For a person.
        text: String,
    },
    /// The session has ended; the socket is closed then.
    Closed {
        /// Why.
        text: String,
    },
    /// Memory for what this session writes, with one descriptor to be mapped shared, to read and write. To be answered
    /// by SlabMapped within a second.
    SlabOffered {
        /// Which.
        slab: SlabId,
        /// For one payload, which the kernel makes immutable at Commit: unmap it before.
        isolated: bool,
        /// At least some of its pages are large: nothing is gained by touching it ahead.
        large_pages: bool,
        /// Whole pages, at least one; not more than the largest payload.
        bytes: ByteCount,
    },
    /// Memory of any session, with one descriptor to be mapped shared, to read.
    SlabOpened {
        /// Which.
        slab: SlabId,
        /// Whole pages.
        bytes: ByteCount,
    },
    /// No.
    SlabRefused {
        /// Which.
        slab: SlabId,
        /// For a person.
        text: String,
    },
    /// Unmap it once no lease of yours lies in it; its number is never used again.
    SlabClosed {
        /// Which.
        slab: SlabId,
    },
    /// Of a session with direct leases, right after its eventfds: with the memory that it writes (cells and samples, to be mapped
    /// shared, to read and write) and its status (to read).
    Pages {
        /// Of the node, once more: the sizes of both follow from it.
        shard_count: u16,
    },
    /// The table of a shard and namespace, to be mapped shared, to read. It replaces the one before, which is closed.
    IndexOffered {
        /// Whose.
        shard: ShardIndex,
        /// Whose.
        namespace: NamespaceId,
        /// All of it.
        bytes: ByteCount,
    },
}

impl RefusalKind {
    const ALL: [Self; 6] =
        [Self::Version, Self::User, Self::Full, Self::Stopping, Self::Malformed, Self::Unable];
}

/// How many descriptors come with the frame that carries the eventfds of the shards from `first` on.
pub fn doorbells_in_message(shard_count: u16, first: u16) -> u16 {
    shard_count.saturating_sub(first).min(DOORBELLS_PER_MESSAGE)
}

impl ClientFrame {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => {
                let mut frame = head(KIND_HELLO);
                frame.extend(hello.version_min.to_le_bytes());
                frame.extend(hello.version_max.to_le_bytes());
                frame.extend(0u32.to_le_bytes());
                frame.extend(hello.features.to_le_bytes());
                let mut program = [0; PROGRAM_BYTES];
                let name = &hello.program[..hello.program.floor_char_boundary(PROGRAM_BYTES)];
                program[..name.len()].copy_from_slice(name.as_bytes());
                frame.extend(program);
                frame
            }
            Self::Bye => head(KIND_BYE),
            Self::SlabMapped { slab } => slab_frame(KIND_SLAB_MAPPED, *slab),
            Self::SlabWanted { slab } => slab_frame(KIND_SLAB_WANTED, *slab),
        }
    }

    /// Reads what a client sent.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for anything that is no frame of a client.
    pub fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = Reader { rest: bytes };
        let frame = match reader.head()? {
            KIND_HELLO => {
                let (version_min, version_max) = (reader.u16()?, reader.u16()?);
                reader.zero()?;
                let features = reader.u64()?;
                let program = reader.bytes(PROGRAM_BYTES)?;
                let length = program.iter().position(|byte| *byte == 0).unwrap_or(PROGRAM_BYTES);
                // Shown to people in lists: nothing that moves a terminal's cursor.
                let shown = String::from_utf8_lossy(&program[..length]);
                let program = shown.chars().filter(|character| !character.is_control()).collect();
                Self::Hello(Hello { version_min, version_max, features, program })
            }
            KIND_BYE => Self::Bye,
            KIND_SLAB_MAPPED => Self::SlabMapped { slab: reader.slab()? },
            KIND_SLAB_WANTED => Self::SlabWanted { slab: reader.slab()? },
            kind => return Err(wrong(format!("its kind {kind} is none that a client sends"))),
        };
        reader.end()?;
        Ok(frame)
    }
}

impl Hello {
    /// What this library says of itself.
    pub fn new(program: &str) -> Self {
        Self { version_min: VERSION, version_max: VERSION, features: 0, program: program.to_owned() }
    }

    /// The version to speak with this client.
    ///
    /// # Errors
    /// The frame that refuses it, when there is none.
    pub fn version(&self) -> Result<u16, ServerFrame> {
        if (self.version_min..=self.version_max).contains(&VERSION) {
            return Ok(VERSION);
        }
        Err(ServerFrame::Refusal {
            kind: RefusalKind::Version,
            text: format!(
                "this server speaks version {VERSION} of the native protocol, and the client speaks {} to {}; update the older of the two",
                self.version_min, self.version_max
            ),
        })
    }
}

impl ServerFrame {
    /// Its bytes.
    ///
    /// # Panics
    /// When a name is longer than its limit: who makes a Welcome has checked them.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome(welcome) => welcome.encode(),
            Self::Doorbells { first } => {
                let mut frame = head(KIND_DOORBELLS);
                frame.extend(first.to_le_bytes());
                frame
            }
            Self::Refusal { kind, text } => {
                let mut frame = head(KIND_REFUSAL);
                frame.extend((*kind as u16).to_le_bytes());
                put_text(&mut frame, cut(text));
                frame
            }
            Self::Closed { text } => {
                let mut frame = head(KIND_CLOSED);
                put_text(&mut frame, cut(text));
                frame
            }
            Self::SlabOffered { slab, isolated, large_pages, bytes } => {
                let mut frame = slab_frame(KIND_SLAB_OFFERED, *slab);
                let flag = |is_set, flag| if is_set { flag } else { 0 };
                let flags = flag(*isolated, SLAB_ISOLATED) | flag(*large_pages, SLAB_LARGE_PAGES);
                frame.extend(flags.to_le_bytes());
                frame.extend(bytes.0.to_le_bytes());
                frame
            }
            Self::SlabOpened { slab, bytes } => {
                let mut frame = slab_frame(KIND_SLAB_OPENED, *slab);
                frame.extend(bytes.0.to_le_bytes());
                frame
            }
            Self::SlabRefused { slab, text } => {
                let mut frame = slab_frame(KIND_SLAB_REFUSED, *slab);
                put_text(&mut frame, cut(text));
                frame
            }
            Self::SlabClosed { slab } => slab_frame(KIND_SLAB_CLOSED, *slab),
            Self::Pages { shard_count } => {
                let mut frame = head(KIND_PAGES);
                frame.extend(shard_count.to_le_bytes());
                frame.extend(0u16.to_le_bytes());
                frame.extend(pages_words(*shard_count).into_iter().flat_map(u32::to_le_bytes));
                frame
            }
            Self::IndexOffered { shard, namespace, bytes } => {
                let mut frame = head(KIND_INDEX_OFFERED);
                frame.extend(u32::from(shard.0).to_le_bytes());
                frame.extend(namespace.0.to_le_bytes());
                frame.extend(bytes.0.to_le_bytes());
                frame
            }
        }
    }

    /// Reads what a server sent.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for anything that is no frame of a server, and for a Welcome whose layout is not ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = Reader { rest: bytes };
        let frame = match reader.head()? {
            KIND_WELCOME => Self::Welcome(Box::new(Welcome::decode(&mut reader)?)),
            KIND_DOORBELLS => Self::Doorbells { first: reader.u16()? },
            KIND_REFUSAL => {
                let number = reader.u16()?;
                let kind = RefusalKind::ALL.into_iter().find(|kind| *kind as u16 == number);
                let kind = kind.ok_or_else(|| wrong(format!("its status {number} is not known")))?;
                Self::Refusal { kind, text: reader.text(TEXT_BYTES_MAX)? }
            }
            KIND_CLOSED => Self::Closed { text: reader.text(TEXT_BYTES_MAX)? },
            KIND_SLAB_OFFERED => {
                let (slab, flags) = (reader.slab()?, reader.u32()?);
                if flags & !(SLAB_ISOLATED | SLAB_LARGE_PAGES) != 0 {
                    return Err(wrong(format!("the flags of a slab are {flags:#x}")));
                }
                let (isolated, large_pages) = (flags & SLAB_ISOLATED != 0, flags & SLAB_LARGE_PAGES != 0);
                Self::SlabOffered { slab, isolated, large_pages, bytes: reader.slab_bytes()? }
            }
            KIND_SLAB_OPENED => Self::SlabOpened { slab: reader.slab()?, bytes: reader.slab_bytes()? },
            KIND_SLAB_REFUSED => {
                Self::SlabRefused { slab: reader.slab()?, text: reader.text(TEXT_BYTES_MAX)? }
            }
            KIND_SLAB_CLOSED => Self::SlabClosed { slab: reader.slab()? },
            KIND_PAGES => {
                let shard_count = reader.shards()?;
                reader.u16()?;
                for expected in pages_words(shard_count) {
                    let stated = reader.u32()?;
                    if stated != expected {
                        return Err(wrong(format!(
                            "a page has {stated} bytes, and {expected} are known here"
                        )));
                    }
                }
                Self::Pages { shard_count }
            }
            KIND_INDEX_OFFERED => {
                let (shard, namespace, bytes) = (reader.u32()?, NamespaceId(reader.u32()?), reader.u64()?);
                let shard = u16::try_from(shard).ok().filter(|shard| *shard < limits::SHARD_COUNT_MAX);
                let shard = shard.ok_or_else(|| wrong("no node has that shard".to_owned()))?;
                if !(index_bytes(1)..=index_bytes(HOMES_MAX)).contains(&bytes) {
                    return Err(wrong(format!("a table of {bytes} bytes cannot be")));
                }
                Self::IndexOffered { shard: ShardIndex(shard), namespace, bytes: ByteCount(bytes) }
            }
            kind => return Err(wrong(format!("its kind {kind} is none that a server sends"))),
        };
        reader.end()?;
        Ok(frame)
    }
}

/// What the sizes of the layout are, as a Welcome states them: a client that was built otherwise must not go on.
fn layout_words(shard_count: u16) -> [u32; 6] {
    [
        RING_ENTRIES as u32,
        TEXT_SLOTS as u32,
        SESSION_HEADER_BYTES as u32,
        SHARD_BYTES as u32,
        layout::session_bytes(shard_count) as u32,
        NODE_PAGE_BYTES as u32,
    ]
}

/// The sizes of a session's pages, as stated beside them.
fn pages_words(shard_count: u16) -> [u32; 2] {
    [written_bytes(shard_count) as u32, STATUS_BYTES as u32]
}

impl Welcome {
    fn encode(&self) -> Vec<u8> {
        assert!(self.shm_prefix.len() <= crate::segment::PREFIX_BYTES_MAX, "a validated prefix");
        assert!(self.disk_root.len() <= ROOT_BYTES_MAX, "a root whose length was checked");
        let mut frame = head(KIND_WELCOME);
        frame.extend(self.version.to_le_bytes());
        frame.extend(self.shard_count.to_le_bytes());
        frame.extend(self.session.to_le_bytes());
        frame.extend(self.namespace.0.to_le_bytes());
        frame.extend(self.epoch.0.to_le_bytes());
        frame.extend(self.features.to_le_bytes());
        frame.extend(self.boot_hash.to_le_bytes());
        frame.extend(layout_words(self.shard_count).into_iter().flat_map(u32::to_le_bytes));
        put_text(&mut frame, &self.shm_prefix);
        put_text(&mut frame, &self.disk_root);
        if self.features & FEATURE_ADDRESS != 0 {
            assert!(self.address.len() <= ADDRESS_BYTES_MAX, "an address whose length was checked");
            put_text(&mut frame, &self.address);
        }
        frame
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let (version, shard_count) = (reader.u16()?, reader.u16()?);
        let (session, namespace, epoch) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (features, boot_hash) = (reader.u64()?, reader.u64()?);
        if version != VERSION {
            return Err(wrong(format!("it speaks version {version}, which was not offered")));
        }
        possible_shards(shard_count)?;
        for expected in layout_words(shard_count) {
            let stated = reader.u32()?;
            if stated != expected {
                return Err(wrong(format!("a size of its memory is {stated}, and {expected} is known here")));
            }
        }
        let shm_prefix = reader.text(crate::segment::PREFIX_BYTES_MAX)?;
        crate::segment::validate_prefix(&shm_prefix)?;
        let disk_root = reader.text(ROOT_BYTES_MAX)?;
        if !disk_root.is_empty() && !disk_root.starts_with('/') {
            return Err(wrong(format!("the disk root `{disk_root}` is not absolute")));
        }
        let address = match features & FEATURE_ADDRESS {
            0 => String::new(),
            _ => reader.text(ADDRESS_BYTES_MAX)?,
        };
        Ok(Self {
            version,
            shard_count,
            session,
            namespace: NamespaceId(namespace),
            features,
            epoch: Epoch(epoch),
            boot_hash,
            shm_prefix,
            disk_root,
            address,
        })
    }
}

fn possible_shards(shard_count: u16) -> Result<u16, PayloadError> {
    if !(1..=limits::SHARD_COUNT_MAX).contains(&shard_count) {
        return Err(wrong(format!("a node of {shard_count} shards cannot be")));
    }
    Ok(shard_count)
}

fn head(kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64);
    frame.extend(MAGIC);
    frame.extend(kind.to_le_bytes());
    frame.extend(0u16.to_le_bytes());
    frame
}

fn slab_frame(kind: u16, slab: SlabId) -> Vec<u8> {
    let mut frame = head(kind);
    frame.extend(slab.get().to_le_bytes());
    frame
}

fn put_text(frame: &mut Vec<u8>, text: &str) {
    frame.extend((text.len() as u16).to_le_bytes());
    frame.extend(text.as_bytes());
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn wrong(what: String) -> PayloadError {
    PayloadError::invalid(format!("this is no frame of the native protocol: {what}"))
}

/// Takes a frame apart, from its start.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], PayloadError> {
        match self.rest.split_at_checked(length) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(wrong(format!("it ends {} bytes too early", length - self.rest.len()))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PayloadError> {
        Ok(self.bytes(N)?.try_into().expect("as long as asked for"))
    }

    fn u16(&mut self) -> Result<u16, PayloadError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, PayloadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, PayloadError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn shards(&mut self) -> Result<u16, PayloadError> {
        possible_shards(self.u16()?)
    }

    fn slab(&mut self) -> Result<SlabId, PayloadError> {
        SlabId::new(self.u32()?).ok_or_else(|| wrong("slab 0 cannot be".to_owned()))
    }

    /// Whole pages, and no more than the largest payload takes.
    fn slab_bytes(&mut self) -> Result<ByteCount, PayloadError> {
        match self.u64()? {
            bytes @ 1..=limits::PAYLOAD_BYTES_MAX if bytes.is_multiple_of(limits::PAGE_BYTES) => {
                Ok(ByteCount(bytes))
            }
            bytes => Err(wrong(format!("a slab of {bytes} bytes cannot be"))),
        }
    }

    fn zero(&mut self) -> Result<(), PayloadError> {
        match self.u32()? {
            0 => Ok(()),
            other => Err(wrong(format!("{other:#x} stands where 0 must be"))),
        }
    }

    fn text(&mut self, length_max: usize) -> Result<String, PayloadError> {
        let length = usize::from(self.u16()?);
        if length > length_max {
            return Err(wrong(format!("a text has {length} bytes, {length_max} at most")));
        }
        let bytes = self.bytes(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("a text is not UTF-8".to_owned()))?;
        Ok(text.to_owned())
    }

    /// The kind of the frame.
    fn head(&mut self) -> Result<u16, PayloadError> {
        if self.rest.len() > FRAME_BYTES_MAX {
            return Err(wrong(format!("it has {} bytes, {FRAME_BYTES_MAX} at most", self.rest.len())));
        }
        if self.array::<8>()? != MAGIC {
            return Err(wrong("it does not start with `PMNATIVE`".to_owned()));
        }
        let kind = self.u16()?;
        match self.u16()? {
            0 => Ok(kind),
            other => Err(wrong(format!("{other:#x} stands where 0 must be"))),
        }
    }

    fn end(&self) -> Result<(), PayloadError> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(wrong(format!("{more} bytes follow its end"))),
        }
    }
}
