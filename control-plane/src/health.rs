//! The health of one instance, as a pure state machine (DESIGN §5).
use std::time::Duration;

/// Intervals and thresholds of the probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `health_check_interval`.
    pub interval: Duration,
    /// `health_check_timeout`, at most the interval.
    pub timeout: Duration,
    /// `down_check_interval`.
    pub down_interval: Duration,
    /// `max_consecutive_failures`.
    pub down_after: u32,
    /// `stop_ping_after_failures`, above `down_after`.
    pub park_after: u32,
    /// `forget_parked_after`; `None`: never.
    pub forget_parked_after: Option<Duration>,
}
