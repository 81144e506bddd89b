//! Sizes and times as people write them in options: `64M`, `30s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Units and how much each is, the largest first; the last one is what a bare number means.
type Units = [(&'static str, u64)];

const SIZES: &Units = &[("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];
const TIMES: &Units = &[
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
    ("", 1),
];

/// Why a text cannot be read as a size or a time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnitError {
    #[error("expected a number and one of {0}, such as 64M")]
    Size(&'static str),
    #[error("expected a number and one of {0}, such as 30s")]
    Time(&'static str),
    #[error("it is too large")]
    TooLarge,
}

/// A number of bytes: `1024`, `64K`, `64KiB`, `1G`; the units are powers of 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) usize);

/// A time: `500ms`, `30s`, `5m`, `2h`; a bare number is in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.to_ascii_uppercase();
        let text = text.strip_suffix("IB").unwrap_or(&text);
        let text = text.strip_suffix('B').unwrap_or(text);
        let bytes = read(text, SIZES, UnitError::Size("K, M and G"))?;
        usize::try_from(bytes)
            .map(Self)
            .map_err(|_| UnitError::TooLarge)
    }
}

impl FromStr for Time {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let ms = read(text, TIMES, UnitError::Time("ms, s, m and h"))?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0 as u64, SIZES)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(
            f,
            u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX),
            TIMES,
        )
    }
}

fn read(text: &str, units: &Units, error: UnitError) -> Result<u64, UnitError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = units.iter().find(|(name, _)| *name == unit.trim());
    let (Some((_, unit)), false) = (unit, number.is_empty()) else {
        return Err(error);
    };
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge)?;
    number.checked_mul(*unit).ok_or(UnitError::TooLarge)
}

fn write(f: &mut fmt::Formatter<'_>, value: u64, units: &Units) -> fmt::Result {
    let fits = |(_, unit): &&(&str, u64)| value >= *unit && value.is_multiple_of(*unit);
    match units.iter().find(fits) {
        Some((name, unit)) => write!(f, "{}{name}", value / unit),
        None => write!(f, "{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_are_shown_with_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("64K", 64 << 10),
            ("64KiB", 64 << 10),
            ("64 MB", 64 << 20),
            ("2g", 2 << 30),
        ] {
            assert_eq!(text.parse::<Bytes>().expect(text), Bytes(bytes), "{text}");
        }
        assert_eq!(Bytes(256 << 20).to_string(), "256M");
        assert_eq!(Bytes(1000).to_string(), "1000");
        for text in [
            "",
            "M",
            "1.5M",
            "-1",
            "1X",
            "99999999999999999999",
            "99999999999G",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_units_and_a_bare_number_is_in_milliseconds() {
        for (text, ms) in [
            ("0", 0),
            ("250", 250),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
        ] {
            let time = Time(Duration::from_millis(ms));
            assert_eq!(text.parse::<Time>().expect(text), time, "{text}");
        }
        assert_eq!(Time(Duration::from_secs(300)).to_string(), "5m");
        assert_eq!(Time(Duration::from_millis(1500)).to_string(), "1500ms");
        assert_eq!(Time(Duration::ZERO).to_string(), "0");
        for text in ["", "s", "1d", "1.5s", "-1s"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }
}
