//! Mistakes in `regions.toml`, each shown in its place.

use std::fmt;
use std::ops::Range;

/// One mistake in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where, in bytes of the file.
    pub span: Range<usize>,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file has mistakes.
    Mistakes {
        /// The file.
        path: String,
        /// Its content.
        text: String,
        /// The mistakes.
        mistakes: Vec<Mistake>,
    },
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Read { path, source } => {
                write!(
                    f,
                    "{path}: {source}. Name the file with --config; the repository's regions.toml is one to begin with"
                )
            }
            ConfigError::Mistakes { path, text, mistakes } => {
                let count = mistakes.len();
                write!(f, "{path} has {count} mistake{}", if count == 1 { "" } else { "s" })?;
                for Mistake { span, what } in mistakes {
                    let start = span.start.min(text.len());
                    let before = text.get(..start).unwrap_or_default();
                    let line_begin = before.rfind('\n').map_or(0, |at| at + 1);
                    let (line, column) =
                        (before.matches('\n').count() + 1, before[line_begin..].chars().count() + 1);
                    let content = text[line_begin..].lines().next().unwrap_or_default();
                    let room = content.chars().count().saturating_sub(column - 1);
                    let width = text.get(span.clone()).map_or(1, |s| s.chars().count()).clamp(1, room.max(1));
                    let margin = line.to_string().len();
                    write!(f, "\n\n{path}:{line}:{column}: {what}\n {line} | {content}\n")?;
                    write!(f, " {:margin$} | {}{}", "", " ".repeat(column - 1), "^".repeat(width))?;
                }
                Ok(())
            }
        }
    }
}
