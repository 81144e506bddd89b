//! What a cell calls a server's tool.

use std::collections::{HashMap, HashSet};

use code_mode_protocol::normalize_tool_name;
use sha2::{Digest, Sha256};

use crate::texts::hex;

/// The identifiers of some (server, tool) pairs, in their order.
///
/// An identifier is the normalised `SERVER__TOOL`. Where several pairs have one, the pair
/// that is written like it keeps it, and each other gets the beginning of a hash of both
/// names. So a tool's identifier does not depend on the order in which servers come.
pub(crate) fn identifiers(pairs: &[(&str, &str)]) -> Vec<String> {
    let plain: Vec<(String, String)> = pairs
        .iter()
        .map(|(server, tool)| {
            let written = format!("{server}__{tool}");
            (normalize_tool_name(&written), written)
        })
        .collect();
    let mut sharing: HashMap<&str, HashSet<(&str, &str)>> = HashMap::new();
    let mut writing: HashMap<&str, HashSet<(&str, &str)>> = HashMap::new();
    for ((name, written), pair) in plain.iter().zip(pairs) {
        sharing.entry(name).or_default().insert(*pair);
        writing.entry(written).or_default().insert(*pair);
    }
    plain
        .iter()
        .zip(pairs)
        .map(|((name, written), (server, tool))| {
            let is_shared = sharing.get(name.as_str()).is_some_and(|all| all.len() > 1);
            // Two pairs may be written alike: `a` + `b__c` and `a__b` + `c`. None of
            // them is more that name than the other.
            let is_own = name == written
                && writing
                    .get(written.as_str())
                    .is_some_and(|all| all.len() == 1);
            match is_shared && !is_own {
                true => format!("{name}_{}", hash(server, tool)),
                false => name.clone(),
            }
        })
        .collect()
}

/// How the identifiers of a server's tools begin.
pub(crate) fn prefix(server: &str) -> String {
    normalize_tool_name(&format!("{server}__"))
}

/// The first eight hexadecimal digits of SHA-256 over both names.
fn hash(server: &str, tool: &str) -> String {
    let digest = Sha256::new()
        .chain_update(server)
        .chain_update([0])
        .chain_update(tool)
        .finalize();
    hex(&digest[..4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_collisions_are_told_apart() {
        let pairs = [
            ("git", "log-all"),
            ("git", "log_all"),
            ("a", "b__c"),
            ("a__b", "c"),
            ("fs", "read"),
        ];
        let names = identifiers(&pairs);
        assert_eq!(names[1], "git__log_all");
        assert!(
            names[0].starts_with("git__log_all_") && names[0].len() == "git__log_all_".len() + 8
        );
        assert_ne!(names[2], names[3]);
        assert_eq!(names[4], "fs__read");
        let mut backwards = pairs;
        backwards.reverse();
        let mut again = identifiers(&backwards);
        again.reverse();
        assert_eq!(again, names);
    }
}
