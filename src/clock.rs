//! The time of day as people and programs read it: RFC 3339, UTC.
//!
//! Durations are never computed from it (it may step); those use `std::time::Instant`.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, as RFC 3339 in UTC with milliseconds.
pub fn now_rfc3339() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_millisecond(now.millisecond()).unwrap_or(now);
    // Formatting fails only outside years 0-9999, which a clock of this machine cannot show.
    now.format(&Rfc3339).unwrap_or_default()
}

/// A moment in seconds since 1970, as RFC 3339 in UTC.
pub fn rfc3339(seconds: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Now, in seconds since 1970, to compare with another machine's clock.
pub fn now_s() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}
