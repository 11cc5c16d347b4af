//! What the table says about one key.

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its full path; `[]` stands for any index of a list.
    pub path: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// What holds when it is not set.
    pub default: Default,
    /// What it does, for an operator.
    pub meaning: &'static str,
    /// What this version does with it.
    pub standing: Standing,
    /// Whether its value may be shown.
    pub secrecy: Secrecy,
}

/// The kinds of values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number in this range.
    Count(u64, u64),
    /// Bytes: an integer, or text like `8GiB`.
    Size,
    /// Text like `20s`.
    Duration,
    /// Text like `20s`, or a number of seconds, as the S3 options of existing files have them.
    Seconds,
    /// Any text.
    Text,
    /// Text of letters, digits, `_`, `-` and `.`.
    Name,
    /// A file or directory.
    Path,
    /// `host:port`.
    Address,
    /// Where objects lie: a URI of a known scheme, or a path.
    ObjectRoot,
    /// One of these words.
    Word(&'static Words),
    /// Cores: `[0, 1, 2]` or `0-3,8`.
    Cores,
    /// Numbers of users or groups: `[0, 1000]`.
    Ids,
    /// Permission bits in octal, as text.
    Mode,
    /// `{}`: being there is all it says.
    Presence,
    /// Keys of the user's own, each with a scalar.
    Map,
}

/// The words of an enum.
#[derive(Debug)]
pub(super) struct Words {
    /// As they are written. The comparison ignores case.
    pub taken: &'static [&'static str],
    /// Other spellings, and what they mean; an empty meaning: the default.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Words of existing files that are understood and refused, and why.
    pub refused: &'static [(&'static str, &'static str)],
}

/// What holds when a key is not set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Default {
    /// This value, as the file would have it.
    Value(&'static str),
    /// What these words say: computed at start, or by the part that reads the key. Empty: nothing.
    Said(&'static str),
}

/// What this version does with a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// What `meaning` says.
    Used,
    /// Validates it; the part that reads it is not built yet.
    Later,
    /// Accepts it and warns: it has no effect, for this reason.
    Ignored(&'static str),
    /// Understands and refuses it, for this reason; `false` and `{}` are as good as nothing.
    Refused(&'static str),
}

/// Whether a value may be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Secrecy {
    /// It may.
    Open,
    /// Never.
    Secret,
    /// All but the password in it.
    PasswordInside,
}

impl Key {
    /// A key that this version uses.
    pub const fn new(path: &'static str, kind: Kind, default: Default, meaning: &'static str) -> Self {
        Self { path, kind, default, meaning, standing: Standing::Used, secrecy: Secrecy::Open }
    }

    /// A key of a part that is not built yet.
    pub const fn later(path: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Self {
        let mut key = Self::new(path, kind, Default::Said(default), meaning);
        key.standing = Standing::Later;
        key
    }

    /// A key that has no effect.
    pub const fn ignored(path: &'static str, kind: Kind, meaning: &'static str, why: &'static str) -> Self {
        let mut key = Self::new(path, kind, Default::Said(""), meaning);
        key.standing = Standing::Ignored(why);
        key
    }

    /// A key that is understood and refused.
    pub const fn refused(path: &'static str, kind: Kind, why: &'static str) -> Self {
        let mut key = Self::new(path, kind, Default::Said(""), "");
        key.standing = Standing::Refused(why);
        key
    }

    /// This key, with a value that is never shown.
    pub const fn secret(mut self) -> Self {
        self.secrecy = Secrecy::Secret;
        self
    }

    /// This key, with a value that may hold a password.
    pub const fn with_password(mut self) -> Self {
        self.secrecy = Secrecy::PasswordInside;
        self
    }
}

impl Kind {
    /// What the key takes, as the end of a sentence.
    pub fn expected(&self) -> String {
        match self {
            Self::Flag => "true or false".into(),
            Self::Count(min, max) => format!("a whole number from {min} to {max}"),
            Self::Size => "a size: bytes, or text like `64MiB` or `8GiB`".into(),
            Self::Duration => "a duration with its unit, like `500ms`, `20s` or `10m`".into(),
            Self::Seconds => "a duration, like `20s`, or a number of seconds".into(),
            Self::Text => "text".into(),
            Self::Name => "1 to 63 letters, digits, `_`, `-` or `.`, not beginning with `.`".into(),
            Self::Path => "a path".into(),
            Self::Address => "`host:port`, like `127.0.0.1:50051` or `[::1]:50051`".into(),
            Self::ObjectRoot => {
                "`s3://`, `gs://`, `az://`, `abfs://`, `abfss://` or `file:///` with a bucket or directory, or a path"
                    .into()
            }
            Self::Word(words) => format!("one of {}", words.taken.join(", ")),
            Self::Cores => "cores, like `[0, 1]` or `0-3,8`".into(),
            Self::Ids => "numbers of users or groups, like `[0, 1000]`".into(),
            Self::Mode => "permission bits in octal as text, from `\"0400\"` to `\"0666\"`".into(),
            Self::Presence => "`{}`".into(),
            Self::Map => "a mapping of names to text".into(),
        }
    }

    /// The kind's name in the documentation.
    pub fn name(&self) -> String {
        match self {
            Self::Flag => "flag".into(),
            Self::Count(..) => "integer".into(),
            Self::Size => "size".into(),
            Self::Duration | Self::Seconds => "duration".into(),
            Self::Text | Self::Name => "text".into(),
            Self::Path => "path".into(),
            Self::Address => "host:port".into(),
            Self::ObjectRoot => "URI or path".into(),
            Self::Word(words) => words.taken.join(", "),
            Self::Cores => "list of cores".into(),
            Self::Ids => "list of integers".into(),
            Self::Mode => "octal text".into(),
            Self::Presence => "`{}`".into(),
            Self::Map => "mapping".into(),
        }
    }

    /// True for kinds whose environment variable is taken as it is, not read as YAML.
    pub fn is_textual(&self) -> bool {
        !matches!(self, Self::Flag | Self::Count(..) | Self::Presence | Self::Map | Self::Seconds)
    }
}
