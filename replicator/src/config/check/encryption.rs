//! `[encryption]`, and `encryption` of a region.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeTable;

use crate::config::model::{EncryptionConfig, KeyProvider};
use crate::config::read::Reader;

const PROVIDER: &str =
    "\"file\" (a file has the keys), \"command\" (programs wrap them), or \"off\" (new redo is in the clear)";

impl Reader {
    /// What `table` says under `encryption`; the keys of a region may lie elsewhere than in its directory.
    pub(super) fn encryption(&mut self, table: &DeTable<'_>, of_region: bool) -> Option<EncryptionConfig> {
        let (value, table) = self.section(table, "encryption")?;
        let known: &[&str] =
            if of_region { &["provider", "file", "wrap", "unwrap"] } else { &["provider", "wrap", "unwrap"] };
        self.known_keys(table, known);
        let file = self.optional(table, "file", "the path of the file of keys, absolute", |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        });
        if !table.contains_key("provider") {
            return self.mistake(value.span(), format!("`encryption` lacks `provider`: {PROVIDER}"));
        }
        let (wrap, unwrap) = (self.program(table, "wrap"), self.program(table, "unwrap"));
        let provider = self.optional(table, "provider", PROVIDER, |text| match text {
            "off" => Some(KeyProvider::Off),
            "file" => Some(KeyProvider::File),
            // What they are comes below.
            "command" => Some(KeyProvider::Command { wrap: Vec::new(), unwrap: Vec::new() }),
            _ => None,
        })?;
        let provider = match provider {
            KeyProvider::Command { .. } => match (wrap, unwrap) {
                (Some(wrap), Some(unwrap)) => KeyProvider::Command { wrap, unwrap },
                _ if table.contains_key("wrap") && table.contains_key("unwrap") => return None,
                _ => {
                    let what = "provider \"command\" wants `wrap` and `unwrap`: each a program and its arguments, which turns what it reads \
                                into what it prints";
                    return self.mistake(value.span(), what);
                }
            },
            other => {
                for key in ["wrap", "unwrap"] {
                    if let Some(at) = table.get(key).map(Spanned::span) {
                        let _: Option<()> =
                            self.mistake(at, format!("`{key}` goes with provider \"command\" alone"));
                    }
                }
                other
            }
        };
        Some(EncryptionConfig { provider, file })
    }

    fn program(&mut self, table: &DeTable<'_>, key: &str) -> Option<Vec<String>> {
        let value = table.get(key)?;
        let words = value.get_ref().as_array().and_then(|words| {
            words.iter().map(|word| word.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        match words.filter(|words| words.first().is_some_and(|program| program.starts_with('/'))) {
            Some(words) => Some(words),
            None => {
                let what = format!(
                    "`{key}` is a program by its absolute path, and its arguments: [\"/usr/bin/age\", \"-d\"]"
                );
                self.mistake(value.span(), what)
            }
        }
    }
}
