//! placeholder while the workspace is laid out

pub mod preflight;
