//! How numbers, times and ids are written for people.

use crate::clock::date;

/// Characters of an address or id that are shown.
const SHORT: usize = 8;

/// A duration in its two largest units.
pub(crate) fn time(seconds: u64) -> String {
    let (minute, hour, day) = (60, 3600, 24 * 3600);
    let two = |large: u64, name: &str, small: u64, small_name: &str| match (seconds / large, seconds % large / small) {
        (count, 0) => format!("{count}{name}"),
        (count, rest) => format!("{count}{name} {rest}{small_name}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(minute, "m", 1, "s"),
        3600..86_400 => two(hour, "h", minute, "m"),
        _ => two(day, "d", hour, "h"),
    }
}

/// The date and time of a moment given in seconds since the Unix epoch; `never` if it has no date.
pub(crate) fn moment(unix: u64) -> String {
    date(unix).map_or("never".into(), |date| date.replace('T', " ").replace('Z', " UTC"))
}

/// A number of bytes.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{count} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

/// A count with its noun.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// The beginning of an address or id.
pub(crate) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_bytes_read_well() {
        assert_eq!(
            ["0s", "59s", "1m", "1m 1s", "2h", "2h 5m", "1d 1h"].map(String::from),
            [0, 59, 60, 61, 7200, 7530, 90_001].map(time)
        );
        assert_eq!(["0 B", "1023 B", "1.0 KiB", "1.5 MiB"].map(String::from), [0, 1023, 1024, 1_572_864].map(bytes));
        assert_eq!(moment(1_795_362_000), "2026-11-22 15:40:00 UTC");
        assert_eq!(moment(u64::MAX), "never");
        assert_eq!((plural(1, "node"), plural(2, "node")), ("1 node".into(), "2 nodes".into()));
    }
}
