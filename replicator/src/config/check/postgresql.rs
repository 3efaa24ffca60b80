//! `[postgresql]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postgres::instance::{GIVEN_SETTINGS, LEAST_SETTINGS, RESERVED_SETTINGS, WAL_LEVELS};
use toml::de::{DeTable, DeValue};

use crate::config::model::Config;
use crate::config::read::{Reader, Value};

/// What a line of `pg_hba.conf` begins with.
const HBA_KINDS: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// Why a setting would not have the effect that its value asks for; none when it has.
fn without_effect(name: &str, value: &str) -> Option<String> {
    if GIVEN_SETTINGS.contains(&name) {
        return Some(format!("{name} is Replicator's to set; take it out"));
    }
    if let Some((_, least)) = LEAST_SETTINGS.iter().find(|(needed, _)| *needed == name) {
        let enough = value.parse::<u64>().is_ok_and(|value| value >= *least);
        return (!enough).then(|| format!("{name} is {least} or more: Replicator needs as many"));
    }
    let unfit = name == "wal_level" && !WAL_LEVELS.contains(&value);
    unfit.then(|| format!("wal_level is one of {}: replication needs no less", WAL_LEVELS.join(", ")))
}

impl Reader {
    pub(super) fn postgresql(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "postgresql") else { return };
        self.known_keys(table, &["bin_dir", "hba", "os_user", "settings"]);
        config.bin_dir = self.bin_dir(table);
        config.os_user = table.get("os_user").and_then(|v| self.text(v, "a user's name"));
        if let Some((_, settings)) = self.section(table, "settings") {
            config.settings = self.settings(settings);
        }
        config.hba = table.get("hba").map(|value| self.hba(value)).unwrap_or_default();
    }

    /// Where PostgreSQL's programs are: the same from every working directory. Whether they are there, the
    /// region's machine knows.
    pub(super) fn bin_dir(&mut self, table: &DeTable<'_>) -> Option<PathBuf> {
        let wanted = "an absolute path, that of the directory of PostgreSQL's programs, such as \"/usr/lib/postgresql/17/bin\"";
        let directory = |text: &str| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
        self.optional(table, "bin_dir", wanted, directory)
    }

    /// Lines of `pg_hba.conf`.
    fn hba(&mut self, value: &Value<'_>) -> Vec<String> {
        const WANTED: &str =
            "`hba` is a list of lines of pg_hba.conf, such as [\"hostssl all app 10.0.0.0/8 cert\"]";
        let Some(lines) = value.get_ref().as_array() else {
            let _: Option<()> = self.mistake(value.span(), WANTED);
            return Vec::new();
        };
        let mut kept = Vec::new();
        for line in lines {
            let text = line.get_ref().as_str().filter(|text| {
                let first = text.split_whitespace().next().unwrap_or_default();
                HBA_KINDS.contains(&first)
                    && text.split_whitespace().count() >= 4
                    && !text.contains(['\n', '\r', '\0'])
            });
            match text {
                Some(text) => kept.push(text.to_owned()),
                None => {
                    let _: Option<()> = self.mistake(line.span(), WANTED);
                }
            }
        }
        kept
    }

    pub(super) fn settings(&mut self, table: &DeTable<'_>) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        for (key, value) in table {
            let name = key.get_ref();
            if RESERVED_SETTINGS.contains(&name.to_ascii_lowercase().as_str()) {
                let what = format!("{name} is Replicator's to set; take it out");
                let _: Option<()> = self.mistake(key.span(), what);
                continue;
            }
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
                let _: Option<()> = self.mistake(key.span(), "this is no name of a PostgreSQL setting");
                continue;
            }
            let text = match value.get_ref() {
                DeValue::String(text) if !text.contains(['\n', '\r', '\0']) => text.to_string(),
                DeValue::Integer(number) => number.to_string(),
                DeValue::Float(number) => number.to_string(),
                DeValue::Boolean(true) => "on".into(),
                DeValue::Boolean(false) => "off".into(),
                _ => {
                    let _: Option<()> = self
                        .mistake(value.span(), "a setting is a text of one line, a number, true or false");
                    continue;
                }
            };
            if let Some(what) = without_effect(&name.to_ascii_lowercase(), &text) {
                let _: Option<()> = self.mistake(value.span(), what);
                continue;
            }
            settings.insert(name.to_ascii_lowercase(), text);
        }
        settings
    }
}
