//! Finding tools by words: what `search_tools` answers, and names near a wrong one.

use std::collections::{BTreeMap, HashMap};

use code_mode_protocol::Json;
use code_mode_protocol::wire::native::WireTool;
use serde_json::Value;

/// Where a word stands, and what it counts there.
const IN_NAME: f64 = 8.0;
const IN_SERVER: f64 = 4.0;
const IN_DESCRIPTION: f64 = 2.0;
const IN_PARAMETERS: f64 = 1.0;
/// A word of the query that only begins a word of the tool.
const PREFIX: f64 = 0.5;
/// BM25's parameters: how soon repetition of a word stops counting, and how much length costs: the
/// usual parameters of BM25.
const K1: f64 = 1.2;
const B: f64 = 0.5;

/// The words of every tool of a table.
#[derive(Debug)]
pub(crate) struct Index {
    /// For each word: which tools have it, and with what weight.
    words: BTreeMap<String, Vec<(u32, f64)>>,
    /// The weight of all words of each tool.
    lengths: Vec<f64>,
    average: f64,
}

impl Index {
    /// Reads the words of these tools.
    pub(crate) fn new(tools: &[WireTool]) -> Self {
        let mut words: BTreeMap<String, Vec<(u32, f64)>> = BTreeMap::new();
        let mut lengths = Vec::new();
        for (number, tool) in (0u32..).zip(tools) {
            let mut weights: HashMap<String, f64> = HashMap::new();
            let mut add = |text: &str, weight: f64| {
                for word in words_of(text) {
                    *weights.entry(word).or_default() += weight;
                }
            };
            add(&tool.description, IN_DESCRIPTION);
            match &tool.details {
                Some(details) => {
                    add(&details.tool_name.name, IN_NAME);
                    add(
                        details.tool_name.namespace.as_deref().unwrap_or_default(),
                        IN_SERVER,
                    );
                    for parameter in parameters(details.input_schema.as_deref()) {
                        add(&parameter, IN_PARAMETERS);
                    }
                }
                None => add(&tool.name, IN_NAME),
            }
            lengths.push(weights.values().sum());
            for (word, weight) in weights {
                words.entry(word).or_default().push((number, weight));
            }
        }
        let average = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
        Self {
            words,
            lengths,
            average: average.max(1.0),
        }
    }

    /// The tools that have a word of the query, the best first; of equals the first by
    /// name.
    pub(crate) fn search(&self, tools: &[WireTool], query: &str) -> Vec<u32> {
        let mut scores: BTreeMap<u32, (f64, u32)> = BTreeMap::new();
        let mut words = words_of(query);
        words.sort();
        words.dedup();
        if words.iter().any(|word| !is_small(word)) {
            words.retain(|word| !is_small(word));
        }
        let asked = words.len().max(1) as f64;
        for word in words {
            let mut best: BTreeMap<u32, f64> = BTreeMap::new();
            let begins = self.words.range(word.clone()..);
            for (known, having) in begins.take_while(|(known, _)| known.starts_with(&word)) {
                let share = if *known == word { 1.0 } else { PREFIX };
                let rarity = self.rarity(having.len());
                for (tool, weight) in having {
                    let score = share * rarity * self.saturated(*tool, *weight);
                    let best = best.entry(*tool).or_default();
                    *best = best.max(score);
                }
            }
            for (tool, score) in best {
                let (sum, words) = scores.entry(tool).or_default();
                *sum += score;
                *words += 1;
            }
        }
        let name = |tool: &u32| tools.get(*tool as usize).map(|tool| tool.name.as_str());
        // A tool with all words of the query is nearer than one that has one of them often.
        let nearness = |(sum, words): (f64, u32)| sum * f64::from(words) / asked;
        let mut found: Vec<(u32, f64)> = scores
            .into_iter()
            .map(|(tool, score)| (tool, nearness(score)))
            .collect();
        found.sort_by(|(a, by_a), (b, by_b)| {
            by_b.total_cmp(by_a).then_with(|| name(a).cmp(&name(b)))
        });
        found.into_iter().map(|(tool, _)| tool).collect()
    }

    fn rarity(&self, having: usize) -> f64 {
        let (all, having) = (self.lengths.len() as f64, having as f64);
        (1.0 + (all - having + 0.5) / (having + 0.5)).ln()
    }

    fn saturated(&self, tool: u32, weight: f64) -> f64 {
        let length = self.lengths.get(tool as usize).copied().unwrap_or(1.0);
        weight * (K1 + 1.0) / (weight + K1 * (1.0 - B + B * length / self.average))
    }
}

/// Words that every question has.
fn is_small(word: &str) -> bool {
    const SMALL: [&str; 18] = [
        "a", "an", "the", "of", "to", "for", "in", "on", "at", "with", "and", "or", "by", "from",
        "my", "is", "it", "me",
    ];
    SMALL.contains(&word)
}

/// The words of a text, in small letters: camelCase, `_` and `-` part words too.
fn words_of(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut last_is_lower = false;
    for c in text.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && last_is_lower) {
            end_word(&mut words, &mut word);
        }
        last_is_lower = c.is_lowercase() || c.is_numeric();
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
    }
    end_word(&mut words, &mut word);
    words
}

fn end_word(words: &mut Vec<String>, word: &mut String) {
    if word.is_empty() {
        return;
    }
    let mut word = std::mem::take(word);
    // "files" finds "file": the plural is the one ending that names and questions differ
    // in all the time.
    if word.len() > 3 && word.ends_with('s') && !word.ends_with("ss") {
        word.pop();
    }
    words.push(word);
}

/// The names of an input's properties.
pub(crate) fn parameters(schema: Option<&str>) -> Vec<String> {
    let schema: Option<Value> = schema.and_then(|text| serde_json::from_str(text).ok());
    let properties = schema.as_ref().and_then(|schema| schema.get("properties"));
    match properties.and_then(Value::as_object) {
        Some(properties) => properties.keys().cloned().collect(),
        None => Vec::new(),
    }
}

/// The first sentence of a description, on one line.
pub(crate) fn summary(description: &str) -> String {
    const MAX: usize = 160;
    let line = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.find(". ").map_or(line.len(), |at| at + 1);
    let sentence = &line[..end];
    match sentence.len() > MAX {
        true => format!("{}…", &sentence[..sentence.floor_char_boundary(MAX)]),
        false => sentence.to_owned(),
    }
}

/// The name that was meant by one that is written otherwise: `booking_id` by `bookingId`.
pub(crate) fn meant<'a>(written: &str, names: &'a [String]) -> Option<&'a str> {
    let plain = |name: &str| words_of(name).concat();
    let wrong = plain(written);
    let is_near = |name: &&String| {
        let right = plain(name);
        right == wrong || (wrong.len() > 4 && strsim::damerau_levenshtein(&right, &wrong) <= 1)
    };
    names.iter().find(is_near).map(String::as_str)
}

/// Names near a wrong one: the nearest first, none where nothing is near.
pub(crate) fn near<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    const SHOWN: usize = 4;
    const NEAR: f64 = 0.8;
    let plain = |name: &str| words_of(name).concat();
    let wrong_plain = plain(wrong);
    let mut near: Vec<(f64, &str)> = names
        .filter_map(|name| {
            let name_plain = plain(name);
            let likeness = strsim::jaro_winkler(&wrong_plain, &name_plain).max(
                strsim::normalized_damerau_levenshtein(&wrong_plain, &name_plain),
            );
            // `search` for `github__search`: the last part is what one remembers.
            let last = name.rsplit("__").next().map(plain).unwrap_or_default();
            let of_last = strsim::jaro_winkler(&wrong_plain, &last);
            let contains = wrong_plain.len() >= 4
                && (name_plain.contains(&wrong_plain) || wrong_plain.contains(&name_plain));
            let likeness = likeness.max(of_last).max(if contains { NEAR } else { 0.0 });
            (likeness >= NEAR).then_some((likeness, name))
        })
        .collect();
    near.sort_by(|(a, name_a), (b, name_b)| b.total_cmp(a).then_with(|| name_a.cmp(name_b)));
    near.dedup();
    near.into_iter().take(SHOWN).map(|(_, name)| name).collect()
}

/// The text of a schema, if it is one.
pub(crate) fn schema(text: Option<&String>) -> Option<Json> {
    text.and_then(|text| Json::parse(text.clone()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use code_mode_protocol::ToolDefinition;

    fn tools(of: &[(&str, &str)]) -> Vec<WireTool> {
        let tool = |(name, description): &(&str, &str)| {
            WireTool::new(&ToolDefinition::function(*name, *description), true)
        };
        of.iter().map(tool).collect()
    }

    fn found<'a>(tools: &'a [WireTool], query: &str) -> Vec<&'a str> {
        let found = Index::new(tools).search(tools, query);
        found
            .iter()
            .map(|i| tools[*i as usize].name.as_str())
            .collect()
    }

    #[test]
    fn a_word_in_the_name_counts_more_than_one_in_the_description() {
        let tools = tools(&[
            ("list_repos", "Lists repositories, not an issue in sight."),
            ("createIssue", "Opens one."),
            ("close_issue", "Closes an issue."),
        ]);
        assert_eq!(
            found(&tools, "issue"),
            ["close_issue", "createIssue", "list_repos"]
        );
        assert_eq!(found(&tools, "create issues")[0], "createIssue");
        assert_eq!(found(&tools, "repo"), ["list_repos"]);
        assert_eq!(found(&tools, "zebra"), [""; 0]);
    }

    #[test]
    fn a_tool_with_all_words_comes_before_those_with_one() {
        let tools = tools(&[
            ("book_list", "Lists every book, and books of a shelf."),
            ("book_read", "Reads a book. A book has pages."),
            ("book_return", "Returns a book."),
            ("booking_cancel", "Cancels a booking."),
            ("reserve_seat", "Books a seat on a flight."),
            ("order_ticket", "Lets one book a flight."),
        ]);
        assert_eq!(
            found(&tools, "book a flight")[..2],
            ["order_ticket", "reserve_seat"]
        );
        assert!(found(&tools, "a").contains(&"book_read"));
    }

    #[test]
    fn names_near_a_wrong_one_are_found() {
        let names = ["search", "github__search_code", "read_file", "write_file"];
        let near = |wrong| near(wrong, names.into_iter());
        assert_eq!(near("serch")[0], "search");
        assert_eq!(near("readFile")[0], "read_file");
        assert!(near("search_code").contains(&"github__search_code"));
        assert_eq!(near("zzz"), [""; 0]);
    }
}
