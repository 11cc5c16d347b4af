//! Python's values as the client's, and back: ids, tiers, times and policies. Pure.

use std::time::Duration;

use payload_types::tier::SpillTarget;
use payload_types::{
    EvictionPolicy, EvictionPriority, Memory, PayloadId, PayloadState, PromotionPolicy, Tier, WallMs,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyType};

use crate::error::invalid;

/// The longest time that a call takes: 2^53 ms, beyond which a float does not count milliseconds any more.
const SECONDS_MAX: f64 = 9_007_199_254_740.0;

fn uuid_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "uuid", "UUID")
}

/// A payload's id: `uuid.UUID`, its text, or its 16 bytes.
///
/// # Errors
/// `InvalidArgument` for anything else.
pub fn id(value: &Bound<'_, PyAny>) -> PyResult<PayloadId> {
    let py = value.py();
    if value.is_instance(uuid_class(py)?)? {
        let number: u128 = value.getattr(intern!(py, "int"))?.extract()?;
        return Ok(PayloadId::from_bytes(number.to_be_bytes()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return text
            .to_string_lossy()
            .parse()
            .map_err(|error: payload_types::PayloadError| invalid(py, error.message));
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return <[u8; 16]>::try_from(bytes)
            .map(PayloadId::from_bytes)
            .map_err(|_| invalid(py, format!("a payload id has 16 bytes, and {} were given", bytes.len())));
    }
    let kind = value.get_type().name()?.to_string();
    Err(invalid(py, format!("a {kind} is no payload id; give a uuid.UUID, its text or its 16 bytes")))
}

/// As Python knows it.
///
/// # Errors
/// When `uuid` cannot be imported.
pub fn uuid(py: Python<'_>, id: PayloadId) -> PyResult<Bound<'_, PyAny>> {
    let arguments = PyDict::new(py);
    arguments.set_item(intern!(py, "int"), u128::from_be_bytes(*id.as_bytes()))?;
    uuid_class(py)?.call((), Some(&arguments))
}

/// A time that passes, in seconds.
///
/// # Errors
/// `InvalidArgument` when it is negative, too long or no number.
pub fn duration(py: Python<'_>, name: &str, seconds: f64) -> PyResult<Duration> {
    if (0.0..=SECONDS_MAX).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(invalid(py, format!("{name} is {seconds}; it is a number of seconds, from 0 on")))
}

/// The same in milliseconds, at least one.
///
/// # Errors
/// As [`duration`].
pub fn millis(py: Python<'_>, name: &str, seconds: Option<f64>) -> PyResult<Option<u64>> {
    let millis = |seconds| Ok((duration(py, name, seconds)?.as_secs_f64() * 1e3).ceil().max(1.0) as u64);
    seconds.map(millis).transpose()
}

/// Seconds since 1970, as `time.time()` counts them.
pub fn seconds(time: WallMs) -> f64 {
    time.as_millis() as f64 / 1e3
}

/// `gpu`, `ram`, `disk` or `object`.
///
/// # Errors
/// `InvalidArgument` for another word.
pub fn tier(py: Python<'_>, name: &str, word: &str) -> PyResult<Tier> {
    Tier::ALL.into_iter().find(|tier| tier.to_string().eq_ignore_ascii_case(word)).ok_or_else(|| {
        invalid(py, format!("{name} is {word:?}; it is \"gpu\", \"ram\", \"disk\" or \"object\""))
    })
}

/// The same, where it may be left out.
///
/// # Errors
/// As [`tier`].
pub fn tier_or_none(py: Python<'_>, name: &str, word: Option<&str>) -> PyResult<Option<Tier>> {
    word.map(|word| tier(py, name, word)).transpose()
}

/// A tier, or `void`.
///
/// # Errors
/// `InvalidArgument` for another word.
pub fn target(py: Python<'_>, name: &str, word: Option<&str>) -> PyResult<Option<SpillTarget>> {
    match word {
        None => Ok(None),
        Some(word) if word.eq_ignore_ascii_case("void") => Ok(Some(SpillTarget::Void)),
        Some(word) => Ok(Some(SpillTarget::Tier(tier(py, name, word)?))),
    }
}

/// As [`tier`] reads it.
pub fn word(tier: Tier) -> &'static str {
    match tier {
        Tier::Gpu => "gpu",
        Tier::Ram => "ram",
        Tier::Disk => "disk",
        Tier::Object => "object",
    }
}

/// `allocated`, `active` ...
pub fn state_word(state: PayloadState) -> String {
    state.to_string().to_ascii_lowercase()
}

/// The state with this word.
///
/// # Errors
/// `InvalidArgument` when there is none.
pub fn state(py: Python<'_>, word: &str) -> PyResult<PayloadState> {
    let shown = |state: &PayloadState| *state != PayloadState::Committing;
    PayloadState::ALL
        .into_iter()
        .filter(shown)
        .find(|state| state.to_string().eq_ignore_ascii_case(word))
        .ok_or_else(|| invalid(py, format!("{word:?} is no state; one is \"active\", another \"durable\"")))
}

/// `low`, `normal`, `high` or `never`.
///
/// # Errors
/// `InvalidArgument` for another word.
pub fn priority(py: Python<'_>, word: Option<&str>) -> PyResult<EvictionPriority> {
    Ok(match word.map(str::to_ascii_lowercase).as_deref() {
        None => EvictionPriority::Unspecified,
        Some("low") => EvictionPriority::Low,
        Some("normal") => EvictionPriority::Normal,
        Some("high") => EvictionPriority::High,
        Some("never") => EvictionPriority::Never,
        Some(word) => {
            let sentence = format!("priority is {word:?}; it is \"low\", \"normal\", \"high\" or \"never\"");
            return Err(invalid(py, sentence));
        }
    })
}

/// `blocking` or `best_effort`.
///
/// # Errors
/// `InvalidArgument` for another word.
pub fn promotion(py: Python<'_>, word: Option<&str>) -> PyResult<Option<PromotionPolicy>> {
    Ok(match word {
        None => None,
        Some("blocking") => Some(PromotionPolicy::Blocking),
        Some("best_effort") => Some(PromotionPolicy::BestEffort),
        Some(word) => {
            let sentence = format!("promotion is {word:?}; it is \"blocking\" or \"best_effort\"");
            return Err(invalid(py, sentence));
        }
    })
}

/// `arena`, `segment` or `sealed`; `None`: what is fastest.
///
/// # Errors
/// `InvalidArgument` for another word.
pub fn memory(py: Python<'_>, word: Option<&str>) -> PyResult<Option<Memory>> {
    Ok(match word {
        None => None,
        Some("arena") => Some(Memory::Arena),
        Some("segment") => Some(Memory::Segment),
        Some("sealed") => Some(Memory::Sealed),
        Some(word) => {
            let sentence = format!("memory is {word:?}; it is \"arena\", \"segment\" or \"sealed\"");
            return Err(invalid(py, sentence));
        }
    })
}

/// What Python says of a placement, as one policy.
///
/// # Errors
/// As its parts.
pub fn policy(
    py: Python<'_>,
    priority_word: Option<&str>,
    spill_target: Option<&str>,
    min_residency: Option<&str>,
    require_durable: bool,
) -> PyResult<EvictionPolicy> {
    Ok(EvictionPolicy {
        priority: priority(py, priority_word)?,
        require_durable,
        spill_target: target(py, "spill_target", spill_target)?,
        min_residency: tier_or_none(py, "min_residency", min_residency)?,
    })
}
