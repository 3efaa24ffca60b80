//! Durations, sizes and rates as people write and read them.

use std::time::Duration;

/// `500ms`, `1s`, `5m`, `24h`, `7d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    scaled(text, &units).map(Duration::from_millis)
}

/// `512KiB`, `64MiB`, `10GiB`, `1TB`; a plain number is bytes.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    scaled(text, &units)
}

/// `200Mbit/s`, `1Gbit/s`, in bits per second; not zero.
#[must_use]
pub fn parse_rate(text: &str) -> Option<u64> {
    let units = [("kbit/s", 1_000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000), ("bit/s", 1)];
    // Below 64 kbit/s a heartbeat would take its second.
    scaled(text, &units).filter(|rate| *rate >= 64_000)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// Two digits for each byte, as programs print hashes and keys.
#[must_use]
pub fn show_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `0 B`, `1.5 MiB`.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub fn show_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut shown = (bytes as f64, "B");
    for unit in units {
        if shown.0 < 1024.0 {
            break;
        }
        shown = (shown.0 / 1024.0, unit);
    }
    if shown.1 == "B" { format!("{bytes} B") } else { format!("{:.1} {}", shown.0, shown.1) }
}

/// `4 ms`, `1.2 s`, `3 min`, `2 h`.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub fn show_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(parse_duration("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_bytes("10GiB"), Some(10 << 30));
        assert_eq!(parse_rate("200Mbit/s"), Some(200_000_000));
        for bad in ["", "h", "-1s", "1.5s", "1 fortnight", "99999999999999999999s", "0Mbit/s"] {
            assert_eq!((parse_duration(bad), parse_rate(bad)), (None, None), "{bad}");
        }
        assert_eq!((show_bytes(512), show_bytes(1536)), ("512 B".into(), "1.5 KiB".into()));
        assert_eq!((show_ms(4), show_ms(1200)), ("4 ms".into(), "1.2 s".into()));
    }
}
