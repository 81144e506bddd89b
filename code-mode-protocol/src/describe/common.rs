//! What all descriptions of a server say.

/// How many bytes of descriptions say the same in all of them: whole sentences or headings at the
/// start of three or more. Servers that write `This tool belongs to ...` before everything leave
/// no room for what differs.
///
/// ```
/// # use code_mode_protocol::describe::common_start;
/// let of = ["Part of the bank. Pays.", "Part of the bank. Lists payments.", "Part of the bank. Opens."];
/// assert_eq!(common_start(&of), "Part of the bank. ".len());
/// assert_eq!(common_start(&of[..2]), 0);
/// ```
pub fn common_start(descriptions: &[&str]) -> usize {
    let [first, others @ ..] = descriptions else {
        return 0;
    };
    if others.len() < 2 {
        return 0;
    }
    let mut common = first.len();
    for other in others {
        let same = first.bytes().zip(other.bytes());
        let same = same.take_while(|(a, b)| a == b).count();
        common = common.min(same);
    }
    let common = &first[..first.floor_char_boundary(common)];
    let ends = [". ", ": ", ".\n", ":\n"]
        .iter()
        .filter_map(|end| common.rfind(end));
    ends.max().map_or(0, |at| at + 2)
}
