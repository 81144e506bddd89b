//! What a server says of its tools only gets stricter: a tool that was refused as destructive
//! could come back as read-only and run unasked.

use std::collections::HashMap;

use super::UpstreamTool;
use crate::policy::Claims;

/// Tools whose claims are remembered. A tool beyond them counts as destructive.
const MAX_TOOLS: usize = 20_000;

/// The strictest claims of each tool of a server, over all its listings and lives.
#[derive(Debug, Default)]
pub(super) struct StrictestClaims(HashMap<String, Claims>);

impl StrictestClaims {
    /// Gives each listed tool the strictest claims that were ever made about it.
    pub(super) fn apply(&mut self, tools: &mut [UpstreamTool]) {
        for tool in tools {
            let is_new = !self.0.contains_key(&tool.name);
            if is_new && self.0.len() >= MAX_TOOLS {
                tool.claims = Claims {
                    read_only: false,
                    destructive: true,
                };
                continue;
            }
            let known = self.0.entry(tool.name.clone()).or_insert(tool.claims);
            known.read_only &= tool.claims.read_only;
            known.destructive |= tool.claims.destructive;
            tool.claims = *known;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, read_only: bool, destructive: bool) -> UpstreamTool {
        UpstreamTool {
            name: name.to_owned(),
            description: String::new(),
            input_schema: None,
            output_schema: None,
            claims: Claims {
                read_only,
                destructive,
            },
            definition: serde_json::Value::Null,
        }
    }

    #[test]
    fn a_claim_gets_stricter_and_never_looser() {
        let mut strictest = StrictestClaims::default();
        let mut claims = |read_only, destructive| {
            let mut tools = [listed("t", read_only, destructive)];
            strictest.apply(&mut tools);
            (tools[0].claims.read_only, tools[0].claims.destructive)
        };
        assert_eq!(claims(true, false), (true, false));
        assert_eq!(claims(false, false), (false, false));
        assert_eq!(claims(true, false), (false, false));
        assert_eq!(claims(false, true), (false, true));
        assert_eq!(claims(true, false), (false, true));
    }

    #[test]
    fn a_server_with_endless_names_makes_nothing_forgotten() {
        let mut strictest = StrictestClaims::default();
        strictest.apply(&mut [listed("first", false, true)]);
        let mut more: Vec<_> = (0..MAX_TOOLS)
            .map(|number| listed(&number.to_string(), true, false))
            .collect();
        strictest.apply(&mut more);
        assert!(more.last().is_some_and(|tool| tool.claims.destructive));
        let mut again = [listed("first", true, false)];
        strictest.apply(&mut again);
        assert!(again[0].claims.destructive);
    }
}
