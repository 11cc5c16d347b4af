//! Any bytes through everything that reads what the other side of a native session wrote: what
//! `tests/hostile_bytes.rs` does from fixed seeds, guided by coverage. `cargo +nightly fuzz run decode`, in proto/local.
#![no_main]

#[path = "../../tests/hostile/mod.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::feed(bytes));
