//! Reads a table of `regions.toml` value by value, and collects its mistakes.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::show::Mistake;

/// A name before `=`, or in the head of a table.
pub(super) type Key<'a> = Spanned<Cow<'a, str>>;

/// What stands behind a key.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// Reads values and collects mistakes.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) mistakes: Vec<Mistake>,
}

impl Reader {
    pub(super) fn mistake<T>(&mut self, span: Range<usize>, what: impl Into<String>) -> Option<T> {
        self.mistakes.push(Mistake { span, what: what.into() });
        None
    }

    pub(super) fn section<'t, 'a>(
        &mut self,
        table: &'t DeTable<'a>,
        key: &str,
    ) -> Option<(&'t Value<'a>, &'t DeTable<'a>)> {
        let value = table.get(key)?;
        match value.get_ref().as_table() {
            Some(section) => Some((value, section)),
            None => self.mistake(value.span(), format!("`{key}` is a table: [{key}]")),
        }
    }

    pub(super) fn known_keys(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref();
            if known.contains(&name.as_ref()) {
                continue;
            }
            let nearest = known.iter().min_by_key(|k| distance(name, k)).filter(|k| distance(name, k) <= 3);
            let hint = match nearest {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            let _: Option<()> = self.mistake(key.span(), format!("unknown key `{name}`; {hint}"));
        }
    }

    pub(super) fn text(&mut self, value: &Value<'_>, wanted: &str) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.mistake(value.span(), format!("a text is wanted here: {wanted}")),
        }
    }

    pub(super) fn optional<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = table.get(key)?;
        let text = self.text(value, wanted)?;
        match parse(&text) {
            Some(parsed) => Some(parsed),
            None => self.mistake(value.span(), format!("`{key}` is {wanted}")),
        }
    }

    /// A whole number within `range`.
    pub(super) fn number(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Option<u32> {
        let value = table.get(key)?;
        let number = value.get_ref().as_integer();
        let number = number.and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        match number.filter(|number| range.contains(number)).and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Some(number),
            None => {
                let what = format!("`{key}` is a number from {} to {}", range.start(), range.end());
                self.mistake(value.span(), what)
            }
        }
    }

    pub(super) fn required<T>(
        &mut self,
        region: &Key<'_>,
        table: &DeTable<'_>,
        key: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        if !table.contains_key(key) {
            return self
                .mistake(region.span(), format!("region {} lacks `{key}`: {wanted}", region.get_ref()));
        }
        self.optional(table, key, wanted, parse)
    }

    /// The tables of a table by name, in the order of the file.
    pub(super) fn in_order<'t, 'a>(table: &'t DeTable<'a>) -> Vec<(&'t Key<'a>, &'t Value<'a>)> {
        let mut named: Vec<_> = table.iter().collect();
        named.sort_by_key(|(name, _)| name.span().start);
        named
    }
}

/// How many letters must change to make one word the other (Levenshtein's distance).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
