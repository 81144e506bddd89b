//! Error texts of a bounded length.

use code_mode_protocol::Limits;

/// Cuts an error text that is longer than [`Limits::MAX_ERROR_BYTES`] in the middle,
/// and says how much was left out.
pub(crate) fn bounded(text: String) -> String {
    const MAX: usize = Limits::MAX_ERROR_BYTES;
    /// Room for the sentence in the middle.
    const MARK: usize = 64;
    if text.len() <= MAX {
        return text;
    }
    let half = (MAX - MARK) / 2;
    let head = text.floor_char_boundary(half);
    let tail = text.ceil_char_boundary(text.len() - half);
    let omitted = tail - head;
    format!(
        "{}…[{omitted} bytes of the error left out]…{}",
        &text[..head],
        &text[tail..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_keeps_its_ends_and_says_what_is_missing() {
        let long = format!("Error: é{}end", "é".repeat(Limits::MAX_ERROR_BYTES));
        let cut = bounded(long);
        assert!(cut.len() <= Limits::MAX_ERROR_BYTES);
        assert!(cut.starts_with("Error: é") && cut.ends_with("éend"));
        assert!(cut.contains("bytes of the error left out"));
        assert_eq!(bounded("short".to_owned()), "short");
    }
}
