//! Who may call what, and what a client may not do to a server: real processes, real TLS, certificates made here.

mod abuse;
mod roles;
mod tls;
