//! The names of shared-memory segments: `/<shm_prefix>-<uuid>`, as the v1 contract's `RamLocation` implies.

use payload_types::{PayloadError, PayloadId};

/// The longest `storage.ram.shm_prefix`: NAME_MAX is 255, a UUID and what limbo names add stay below 100.
pub const PREFIX_BYTES_MAX: usize = 64;

/// Checks a configured prefix.
///
/// # Errors
/// `INVALID_ARGUMENT` unless it is 1 ..= 64 of `A-Z a-z 0-9 . _ -` and does not start with a dot.
pub fn validate_prefix(prefix: &str) -> Result<(), PayloadError> {
    let plain = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !plain || prefix.starts_with('.') {
        return Err(PayloadError::invalid(format!(
            "`{prefix}` cannot start the name of a shared-memory segment; use 1 to {PREFIX_BYTES_MAX} letters, digits, dots, dashes or underscores"
        )));
    }
    Ok(())
}

/// The segment's name as clients see it, with its slash.
pub fn shm_name(prefix: &str, id: PayloadId) -> String {
    format!("/{prefix}-{id}")
}

/// The file name below `/dev/shm` of a segment that a descriptor names.
///
/// # Errors
/// `INVALID_ARGUMENT` for a name that could leave that directory: a client must not open what it asks for.
pub fn file_name(shm_name: &str) -> Result<&str, PayloadError> {
    let name = shm_name.strip_prefix('/').unwrap_or(shm_name);
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(PayloadError::invalid(format!(
            "`{shm_name}` is not the name of a shared-memory segment; a segment is named `/<prefix>-<uuid>`"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_payload_when_named_then_prefix_and_uuid_follow_the_slash() {
        let id = PayloadId::from_bytes([0xAB; 16]);
        assert_eq!(shm_name("pm", id), "/pm-abababab-abab-abab-abab-abababababab");
        assert_eq!(file_name(&shm_name("pm", id)).expect("own name"), &shm_name("pm", id)[1..]);
    }

    #[test]
    fn given_names_that_leave_the_directory_when_opened_then_refused() {
        for name in ["", "/", "/../etc/passwd", "/a/b", "..", "/a\0"] {
            assert!(file_name(name).is_err(), "{name:?}");
        }
        assert!(
            validate_prefix("../x").is_err()
                && validate_prefix("").is_err()
                && validate_prefix("pm_1.a-b").is_ok()
        );
    }
}
