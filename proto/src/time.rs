//! Wall time for display, and durations as furt.conf writes them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::names::{NameError, quoted};

/// RFC 3339 in UTC with whole seconds and `Z`, as the seed's `last_ping`; empty when out of range.
pub fn rfc3339(unix_ms: i64) -> String {
    let floor = Timestamp::from_second(unix_ms.div_euclid(1000));
    floor.map(|time| time.to_string()).unwrap_or_default()
}

/// RFC 3339 in UTC with milliseconds and `Z`, for logs; empty when out of range.
pub fn rfc3339_ms(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map(|time| format!("{time:.3}")).unwrap_or_default()
}

/// Seconds since 1970 of an RFC 3339 time.
pub fn parse_rfc3339(text: &str) -> Result<i64, NameError> {
    text.parse::<Timestamp>()
        .map(|time| time.as_second())
        .map_err(|_| NameError(format!("expected a time such as 2027-01-31T00:00:00Z, got {}", quoted(text))))
}

/// An HTTP date (RFC 9110 §5.6.7); empty when out of range.
pub fn http_date(unix_ms: i64) -> String {
    let time = Timestamp::from_second(unix_ms.div_euclid(1000));
    time.map(|time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap_or_default()
}

/// Now, in milliseconds since 1970.
pub fn unix_ms_now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// A duration: seconds (`30`, `0.5`) or `500ms`. Up to ten years, never negative.
pub fn parse_duration(text: &str) -> Result<Duration, NameError> {
    let parse = || {
        if let Some(ms) = text.strip_suffix("ms") {
            let ms = ms.trim();
            return ms.bytes().all(|byte| byte.is_ascii_digit()).then(|| ms.parse().ok().map(Duration::from_millis))?;
        }
        let seconds = text.strip_suffix('s').unwrap_or(text).trim();
        let plain = seconds.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !seconds.is_empty();
        plain.then(|| seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))?
    };
    let longest = SignedDuration::from_hours(24 * 3653).unsigned_abs();
    parse()
        .filter(|duration| *duration <= longest)
        .ok_or_else(|| NameError(format!("expected seconds such as 30, or milliseconds such as 500ms, got {}", quoted(text))))
}

/// A duration as [`parse_duration`] reads it: whole seconds, else milliseconds.
pub fn format_duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => duration.as_secs().to_string(),
        _ => format!("{}ms", duration.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_seconds_in_utc() {
        assert_eq!(rfc3339(1_763_152_200_999), "2025-11-14T20:30:00Z");
        assert_eq!(rfc3339_ms(1_763_152_200_070), "2025-11-14T20:30:00.070Z");
        assert_eq!(parse_rfc3339("2025-11-14T20:30:00Z"), Ok(1_763_152_200));
        assert!(parse_rfc3339("tomorrow").is_err());
        assert_eq!(http_date(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn durations_are_seconds_or_milliseconds() {
        for (text, ms) in [("30", 30_000), ("0.5", 500), ("500ms", 500), ("5s", 5_000), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "-1", "abc", "1h", "1e3", "inf", "ms", "99999999999", "1.2.3"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(format_duration(Duration::from_millis(500)), "500ms");
        assert_eq!(format_duration(Duration::from_secs(30)), "30");
    }
}
