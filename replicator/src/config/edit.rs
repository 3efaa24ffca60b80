//! Changes of `regions.toml` by commands. The text is the user's: what is added is a section of its own, what
//! is removed is a whole section, and every other byte stays. Where a section is not written as one, nothing
//! is changed, and the user is told what to write.

use std::ops::Range;

use proto::{NodeName, RegionName};

/// The lines of each section that is written as one: its name, such as `region.us-east.node.n1`, and from its
/// header to the next one.
fn sections(text: &str) -> Vec<(String, Range<usize>)> {
    let mut found: Vec<(String, Range<usize>)> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Some(name) = header(line) {
            if let Some((_, last)) = found.last_mut() {
                last.end = at;
            }
            found.push((name, at..text.len()));
        }
        at += line.len();
    }
    found
}

/// The name in a section's header, without what may be written around its parts.
fn header(line: &str) -> Option<String> {
    let (name, rest) = line.trim().strip_prefix('[')?.split_once(']')?;
    let is_header = rest.trim().is_empty() || rest.trim_start().starts_with('#');
    is_header.then(|| name.chars().filter(|c| !c.is_whitespace() && *c != '"' && *c != '\'').collect())
}

fn name_of(region: &RegionName, node: &NodeName) -> String {
    format!("region.{region}.node.{node}")
}

/// A node as a section: its header, and `lines`.
#[must_use]
pub fn node_section(region: &RegionName, node: &NodeName, lines: &str) -> String {
    format!("[{}]\n{lines}", name_of(region, node))
}

/// `text` with that section, after the last one of the region; at the end where it has none.
#[must_use]
pub fn with_node(text: &str, region: &RegionName, section: &str) -> String {
    let own = format!("region.{region}");
    let is_of =
        |name: &str| name.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let last = sections(text).into_iter().rev().find(|(name, _)| is_of(name));
    // Comments before the next section are that one's.
    let at = last.map_or(text.len(), |(_, lines)| lines.start + body_bytes(&text[lines]));
    let (before, after) = text.split_at(at);
    let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    format!("{before}{gap}{section}{after}")
}

/// How much of a section is its own: up to the last line that is neither empty nor a comment.
fn body_bytes(section: &str) -> usize {
    let (mut at, mut own) = (0, 0);
    for line in section.split_inclusive('\n') {
        at += line.len();
        if !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            own = at;
        }
    }
    own
}

/// `text` without the section of that node; none where it is not written as a section.
#[must_use]
pub fn without_node(text: &str, region: &RegionName, node: &NodeName) -> Option<String> {
    let name = name_of(region, node);
    let (_, lines) = sections(text).into_iter().find(|(found, _)| *found == name)?;
    let own = lines.start..lines.start + body_bytes(&text[lines.clone()]);
    Some(format!("{}{}", &text[..own.start], &text[own.end..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "cluster = \"x\"\n\n[region.a] # first\nrole = \"primary\"\n\n# The second.\n[region.b]\nrole = \"secondary\"";

    fn names() -> (RegionName, NodeName) {
        ("a".parse().unwrap(), "n1".parse().unwrap())
    }

    #[test]
    fn a_node_stands_after_its_region_and_what_is_removed_leaves_no_trace() {
        let (region, node) = names();
        let section = node_section(&region, &node, "postgres = \"127.0.0.1:1\"\n");
        let with = with_node(FILE, &region, &section);
        let expected =
            "role = \"primary\"\n[region.a.node.n1]\npostgres = \"127.0.0.1:1\"\n\n# The second.\n[region.b]";
        assert!(with.contains(expected), "{with}");
        assert_eq!(without_node(&with, &region, &node).as_deref(), Some(FILE));
        assert_eq!(without_node(FILE, &region, &node), None, "there is none");
        let second = node_section(&region, &"n2".parse().unwrap(), "postgres = \"127.0.0.1:2\"\n");
        let both = with_node(&with, &region, &second);
        assert!(both.find("node.n1") < both.find("node.n2") && both.find("node.n2") < both.find("region.b]"));
        let last = with_node(FILE, &"b".parse().unwrap(), &section);
        assert!(last.ends_with("role = \"secondary\"\n[region.a.node.n1]\npostgres = \"127.0.0.1:1\"\n"));
        // However its header is written.
        let quoted = with.replace("[region.a.node.n1]", "[ region.\"a\" . node.'n1' ] # mine");
        assert_eq!(without_node(&quoted, &region, &node).as_deref(), Some(FILE));
        // Another region's name that begins alike is not this one.
        let alike = FILE.replace("[region.b]", "[region.ab]");
        assert!(with_node(&alike, &region, &section).find("node.n1") < alike.find("[region.ab]"));
    }

    proptest! {
        #[test]
        fn whatever_the_file_is_removing_undoes_adding(text in "(\\[region\\.[ab](\\.node\\.x)?\\]|[a-z]+ = 1|#c|\\[x\\]|\n){0,12}") {
            let (region, node) = names();
            let section = node_section(&region, &node, "postgres = \"h:1\"\n");
            let with = with_node(&text, &region, &section);
            prop_assert!(with.contains(&section));
            let gap = usize::from(with.len() > text.len() + section.len());
            let without = without_node(&with, &region, &node).unwrap();
            prop_assert_eq!(without.len(), text.len() + gap);
        }
    }
}
