//! `[postgresql]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postgres::instance::{GIVEN_SETTINGS, LEAST_SETTINGS, RESERVED_SETTINGS, WAL_LEVELS};
use toml::de::{DeTable, DeValue};

use crate::config::model::Config;
use crate::config::read::{Reader, Value};

/// What a line of `pg_hba.conf` begins with.
const HBA_KINDS: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// What the names of our own maps in `pg_ident.conf` begin with.
const OURS: &str = "replicator";

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
        self.known_keys(table, &["bin_dir", "hba", "ident", "os_user", "settings", "token_roles"]);
        config.bin_dir = self.bin_dir(table);
        config.os_user = table.get("os_user").and_then(|v| self.text(v, "a user's name"));
        if let Some((_, settings)) = self.section(table, "settings") {
            config.settings = self.settings(settings);
        }
        config.hba = table.get("hba").map(|value| self.hba(value)).unwrap_or_default();
        config.ident = table.get("ident").map(|value| self.ident(value)).unwrap_or_default();
        config.token_roles =
            table.get("token_roles").map(|value| self.token_roles(value)).unwrap_or_default();
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
        const WANTED: &str = "`hba` is a list of lines of pg_hba.conf, such as [\"hostssl all app 10.0.0.0/8 cert\"]; maps named replicator… are not its to use";
        self.lines(value, WANTED, |text| {
            let first = text.split_whitespace().next().unwrap_or_default();
            HBA_KINDS.contains(&first)
                && text.split_whitespace().count() >= 4
                && !text.replace('"', "").contains(&format!("map={OURS}"))
        })
    }

    /// Lines of `pg_ident.conf`. What lets the daemon in, and tokens, is in maps of our own.
    fn ident(&mut self, value: &Value<'_>) -> Vec<String> {
        const WANTED: &str = "`ident` is a list of lines of pg_ident.conf, such as [\"people ann@EXAMPLE.ORG ann\"]; maps named replicator… are not its to have";
        self.lines(value, WANTED, |text| {
            let first = text.split_whitespace().next().unwrap_or_default().trim_matches('"');
            let is_map =
                !first.starts_with(OURS) && !first.starts_with("include") && !first.starts_with(['@', '#']);
            is_map && text.split_whitespace().count() >= 3
        })
    }

    /// The texts of a list, each of one line and as `is_one` has it.
    pub(super) fn lines(
        &mut self,
        value: &Value<'_>,
        wanted: &str,
        is_one: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let Some(lines) = value.get_ref().as_array() else {
            let _: Option<()> = self.mistake(value.span(), wanted);
            return Vec::new();
        };
        let mut kept = Vec::new();
        for line in lines {
            let text = line.get_ref().as_str();
            match text.filter(|text| !text.contains(['\n', '\r', '\0']) && is_one(text)) {
                Some(text) => kept.push(text.to_owned()),
                None => {
                    let _: Option<()> = self.mistake(line.span(), wanted);
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
