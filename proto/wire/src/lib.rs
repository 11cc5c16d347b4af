//! The wire contract: generated protobuf and gRPC types, decoding, encoding, status mapping.
//!
//! Used by `front` (server side) and `client`. A request comes in as a [`pb`] message, is validated and turned into
//! `payload_types` values by [`decode`]; a reply goes the other way by [`encode`]. No I/O, no clock, no state.
//!
//! ```text
//! bytes --tonic--> pb --decode--> types ... shard ... types --encode--> pb --tonic--> bytes
//!                                   `--PayloadError--> status::to_status --> tonic::Status
//! ```
#![forbid(unsafe_code)]

pub mod decode;
pub mod encode;
pub mod enums;
pub mod ids;
pub mod page_token;
pub mod pb;
pub mod status;

pub use encode::Locate;

/// The compiled contract as an encoded `google.protobuf.FileDescriptorSet`: our files and all they import, HTTP
/// options included, comments left out. What gRPC reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
