//! What the tests share: the simulator, the crash test, the explorer and the torture of direct leases, and for end-to-end tests a real server and a client as v1
//! programs are.
#![deny(unsafe_code)]

pub mod crash;
pub mod explore;
pub mod peer;
pub mod postgres;
pub mod seaweed;
pub mod server;
pub mod sim;
#[allow(unsafe_code, reason = "the one file with system calls that std does not wrap")]
pub mod sys;
pub mod torture;
pub mod v1;
