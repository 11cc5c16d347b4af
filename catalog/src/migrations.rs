//! What both SQL backends say about their schema's version: the numbered files in `migrations/` are the only DDL there is.

use crate::error::StoreError;

/// A numbered file: its name without `.sql`, and what it says. Its place in the list is its number.
pub(crate) type Migration = (&'static str, &'static str);

/// The files of a backend's directory, in order.
macro_rules! migrations {
    ($directory:literal: $($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../../migrations/", $directory, "/", $name, ".sql")))),+]
    };
}
pub(crate) use migrations;

/// Those of `known` that a database has not seen, which has seen the first `seen` of them.
///
/// # Errors
/// [`StoreError::NewerFormat`] when it has seen more than are known.
pub(crate) fn pending(known: &'static [Migration], seen: i64) -> Result<&'static [Migration], StoreError> {
    let count = known.len();
    usize::try_from(seen.max(0)).ok().and_then(|seen| known.get(seen..)).ok_or_else(|| {
        StoreError::NewerFormat(format!(
            "its schema has version {seen}, and this program knows versions up to {count}; run the newer program that wrote it, or restore a backup from before the upgrade"
        ))
    })
}

/// The names of migrations.
pub(crate) fn names(migrations: &[Migration]) -> Vec<&'static str> {
    migrations.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_files_when_listed_then_their_numbers_are_their_places() {
        #[cfg(feature = "sqlite")]
        check(crate::sqlite::MIGRATIONS);
        #[cfg(feature = "postgres")]
        check(crate::postgres::MIGRATIONS);
    }

    fn check(known: &'static [Migration]) {
        assert!(!known.is_empty());
        for (number, (name, _)) in (1..).zip(known) {
            assert!(name.starts_with(&format!("{number:04}_")), "{name} stands at {number}");
        }
        assert_eq!(pending(known, known.len() as i64), Ok(&[][..]));
        assert_eq!(pending(known, 0).map(<[_]>::len), Ok(known.len()));
        assert!(matches!(pending(known, known.len() as i64 + 1), Err(StoreError::NewerFormat(_))));
    }
}
