//! `regions.toml`: read, checked, and every mistake reported at once with its place and what would be right.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::instance::RESERVED_SETTINGS;
use primary::gate::{CommitLevel, CommitPolicy};
use proto::RegionName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use volume::quorum::CopyId;

use crate::units;

/// The most secondaries a cluster may have.
pub const SECONDARIES_MAX: usize = 5;

/// The most witnesses a cluster may have: more voters than regions make nothing safer.
pub const WITNESSES_MAX: usize = 3;

/// The part a region plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows the primary.
    Secondary,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        })
    }
}

/// A checked `regions.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster's name.
    pub cluster: String,
    /// Where PostgreSQL's programs are, if not where packages put them.
    pub bin_dir: Option<PathBuf>,
    /// Who runs PostgreSQL.
    pub os_user: Option<String>,
    /// The user's own PostgreSQL settings.
    pub settings: BTreeMap<String, String>,
    /// What is promised of commits.
    pub commit: CommitPolicy,
    /// How long a primary that is cut off from the majority goes on acknowledging commits.
    pub lease: Duration,
    /// How long redo is kept.
    pub retain: Duration,
    /// The most redo kept, bytes.
    pub max_size_bytes: u64,
    /// The most that repair brings to one copy, bytes a second.
    pub repair_bytes_per_second: u64,
    /// How often every copy is read back.
    pub scrub_every: Duration,
    /// The regions, in the order of the file.
    pub regions: Vec<RegionConfig>,
    /// The witnesses, in the order of the file.
    pub witnesses: Vec<WitnessConfig>,
}

/// A daemon without data, which votes on who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessConfig {
    /// Its name.
    pub name: RegionName,
    /// Its QUIC address.
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`.
    pub advertise: String,
}

/// Where a daemon is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name, which its certificate must bear.
    pub name: RegionName,
    /// Its QUIC address, `host:port`.
    pub advertise: String,
}

/// One region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionConfig {
    /// Its name.
    pub name: RegionName,
    /// Its part at first start.
    pub role: Role,
    /// Its QUIC address.
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`.
    pub advertise: String,
    /// Where applications reach its PostgreSQL.
    pub postgres: SocketAddr,
    /// The zones that run as processes of their own, which join.
    pub own_process: Vec<char>,
    /// The most that may be sent to it, bits per second.
    pub bandwidth_bits_per_second: Option<u64>,
}

impl RegionConfig {
    /// Where its daemon is reached.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { name: self.name.clone(), advertise: self.advertise.clone() }
    }

    /// The copies that the region's own daemon holds.
    #[must_use]
    pub fn local_copies(&self) -> Vec<CopyId> {
        CopyId::all().filter(|copy| !self.own_process.contains(&copy.zone())).collect()
    }
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it cannot be read, or with all its mistakes.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
        Config::parse(&text).map_err(|mistakes| ConfigError::Mistakes { path: shown, text, mistakes })
    }

    /// Checks the content of the file.
    ///
    /// # Errors
    /// All mistakes, in the order of the file.
    pub fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
        let table = DeTable::parse(text)
            .map_err(|e| vec![Mistake { span: e.span().unwrap_or(0..0), what: e.message().to_owned() }])?;
        let mut reader = Reader::default();
        let config = reader.config(&table);
        let Reader { mut mistakes } = reader;
        mistakes.sort_by_key(|m| m.span.start);
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes),
        }
    }

    /// Everybody who votes on who leads: the regions, and the witnesses.
    #[must_use]
    pub fn voters(&self) -> Vec<Place> {
        let witness = |w: &WitnessConfig| Place { name: w.name.clone(), advertise: w.advertise.clone() };
        self.regions.iter().map(RegionConfig::place).chain(self.witnesses.iter().map(witness)).collect()
    }

    /// The region that leads the first epoch.
    #[must_use]
    pub fn first_primary(&self) -> Option<&RegionName> {
        self.regions.iter().find(|region| region.role == Role::Primary).map(|region| &region.name)
    }

    /// A region by its name.
    #[must_use]
    pub fn region(&self, name: &RegionName) -> Option<&RegionConfig> {
        self.regions.iter().find(|r| r.name == *name)
    }
}

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

type Value<'a> = Spanned<DeValue<'a>>;

/// Reads a table and collects its mistakes.
#[derive(Default)]
struct Reader {
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn mistake<T>(&mut self, span: Range<usize>, what: impl Into<String>) -> Option<T> {
        self.mistakes.push(Mistake { span, what: what.into() });
        None
    }

    fn config(&mut self, root: &Spanned<DeTable<'_>>) -> Option<Config> {
        let table = root.get_ref();
        self.known_keys(
            table,
            &["cluster", "commit", "lease", "postgresql", "region", "rpo", "volume", "witness"],
        );
        let whole = 0..0;
        let cluster = match table.get("cluster") {
            Some(value) => self.text(value, "a name, such as \"demo\"").and_then(|name| {
                let good = !name.is_empty() && name.len() <= 32;
                let good = good && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                let what = "a cluster's name is 1 to 32 letters, digits, '-' and '_'";
                if good { Some(name) } else { self.mistake(value.span(), what) }
            }),
            None => self.mistake(whole.clone(), "`cluster = \"…\"` is missing: the name of the cluster"),
        };
        let mut config = Config {
            cluster: cluster.unwrap_or_default(),
            bin_dir: None,
            os_user: None,
            settings: BTreeMap::new(),
            commit: CommitPolicy::default(),
            lease: Duration::from_secs(5),
            retain: Duration::from_secs(24 * 3600),
            max_size_bytes: 10 << 30,
            repair_bytes_per_second: 100 << 20,
            scrub_every: Duration::from_secs(24 * 3600),
            regions: Vec::new(),
            witnesses: Vec::new(),
        };
        if let Some((value, table)) = self.section(table, "volume") {
            self.known_keys(table, &["retain", "max_size", "repair", "scrub"]);
            let repair = self.optional(table, "repair", "a size a second, such as \"100MiB\"", |text| {
                units::parse_bytes(text).filter(|bytes| *bytes > 0)
            });
            config.repair_bytes_per_second = repair.unwrap_or(config.repair_bytes_per_second);
            let scrub = self.optional(table, "scrub", "a duration, such as \"24h\"", |text| {
                units::parse_duration(text).filter(|every| *every >= Duration::from_secs(1))
            });
            config.scrub_every = scrub.unwrap_or(config.scrub_every);
            let retain = self.optional(table, "retain", "a duration, such as \"24h\"", units::parse_duration);
            config.retain = retain.unwrap_or(config.retain);
            let max_size = self.optional(table, "max_size", "a size, such as \"10GiB\"", units::parse_bytes);
            config.max_size_bytes = max_size.unwrap_or(config.max_size_bytes);
            if config.max_size_bytes < 128 << 20 {
                let at = table.get("max_size").map_or(value.span(), Spanned::span);
                let _: Option<()> =
                    self.mistake(at, "`max_size` is at least 128MiB: a few segments must fit");
            }
        }
        if let Some((_, table)) = self.section(table, "postgresql") {
            self.known_keys(table, &["bin_dir", "os_user", "settings"]);
            config.bin_dir =
                table.get("bin_dir").and_then(|v| self.text(v, "a directory")).map(PathBuf::from);
            config.os_user = table.get("os_user").and_then(|v| self.text(v, "a user's name"));
            if let Some((_, settings)) = self.section(table, "settings") {
                config.settings = self.settings(settings);
            }
        }
        match self.section(table, "region") {
            Some((value, regions)) => {
                let mut named: Vec<_> = regions.iter().collect();
                named.sort_by_key(|(name, _)| name.span().start);
                config.regions =
                    named.into_iter().filter_map(|(name, value)| self.region(name, value)).collect();
                self.roles(value.span(), regions);
                let witnesses = self.section(table, "witness").map(|(_, witnesses)| witnesses);
                if let Some(witnesses) = witnesses {
                    config.witnesses = self.witnesses(witnesses, &config.regions);
                }
                self.addresses(regions, witnesses);
            }
            None if table.contains_key("region") => {}
            None => return self.mistake(whole, "there are no regions: add a table such as [region.us-east]"),
        }
        config.commit = self.commit(table, &config.regions);
        let lease = self.optional(table, "lease", "a duration from \"1s\" to \"60s\"", |text| {
            units::parse_duration(text)
                .filter(|l| (Duration::from_secs(1)..=Duration::from_secs(60)).contains(l))
        });
        config.lease = lease.unwrap_or(config.lease);
        Some(config)
    }

    /// `commit = "local"`, `"region"` or `{ regions = n }`, and `rpo`.
    fn commit(&mut self, table: &DeTable<'_>, regions: &[RegionConfig]) -> CommitPolicy {
        let mut policy = CommitPolicy::default();
        let secondaries = regions.iter().filter(|region| region.role == Role::Secondary).count();
        if let Some(value) = table.get("commit") {
            let wanted = "`commit` is \"local\", \"region\" or { regions = 1 }";
            let count = value.get_ref().as_table().and_then(|t| t.get("regions"));
            let count = count.and_then(|n| n.get_ref().as_integer()?.as_str().parse::<u8>().ok());
            let level = match (value.get_ref().as_str(), count) {
                (Some("local"), _) => Some(CommitLevel::Local),
                (Some("region"), _) => Some(CommitLevel::Region),
                (None, Some(count)) if count > 0 && usize::from(count) <= secondaries => {
                    Some(CommitLevel::Regions(count))
                }
                (None, Some(count)) => {
                    let what = format!(
                        "commits cannot wait for {count} secondary regions: the file has {secondaries}, \
                         and at least one is waited for"
                    );
                    self.mistake(value.span(), what)
                }
                _ => self.mistake(value.span(), wanted),
            };
            policy.level = level.unwrap_or_default();
        }
        policy.rpo = self.optional(table, "rpo", "a duration, such as \"30s\"", |text| {
            units::parse_duration(text).filter(|rpo| *rpo >= Duration::from_secs(1))
        });
        if let (Some(_), Some(value)) = (policy.rpo, table.get("rpo")) {
            let what = match policy.level {
                CommitLevel::Local => {
                    "`rpo` holds commits, and with `commit = \"local\"` none waits: use \"region\""
                }
                _ if secondaries == 0 => {
                    "`rpo` holds commits while no secondary is near enough, and the file has none"
                }
                _ => return policy,
            };
            let _: Option<()> = self.mistake(value.span(), what);
        }
        policy
    }

    fn region(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Value<'_>,
    ) -> Option<RegionConfig> {
        let name = self.name(key);
        let Some(table) = value.get_ref().as_table() else {
            return self.mistake(value.span(), "a region is a table: role, listen, postgres");
        };
        self.known_keys(table, &["role", "listen", "advertise", "postgres", "bandwidth", "own_process"]);
        let role = self.required(key, table, "role", "\"primary\" or \"secondary\"", |text| match text {
            "primary" => Some(Role::Primary),
            "secondary" => Some(Role::Secondary),
            _ => None,
        });
        let (listen, advertise) = self.places(key, table);
        let postgres = self.required(key, table, "postgres", ADDRESS, parse_address);
        let bandwidth_bits_per_second =
            self.optional(table, "bandwidth", "a rate, such as \"200Mbit/s\"", units::parse_rate);
        let own_process = table.get("own_process").map(|value| self.zones(value)).unwrap_or_default();
        let (name, role, listen, postgres) = (name?, role?, listen?, postgres?);
        let advertise = advertise.unwrap_or_else(|| listen.to_string());
        Some(RegionConfig { name, role, listen, advertise, postgres, own_process, bandwidth_bits_per_second })
    }

    fn zones(&mut self, value: &Value<'_>) -> Vec<char> {
        let wanted = "`own_process` names zones that run by themselves, such as [\"b\", \"c\"]; a region has a, b and c";
        let zone = |zone: &Value<'_>| match zone.get_ref().as_str() {
            Some("a") => Some('a'),
            Some("b") => Some('b'),
            Some("c") => Some('c'),
            _ => None,
        };
        let zones = value
            .get_ref()
            .as_array()
            .and_then(|zones| zones.iter().map(zone).collect::<Option<Vec<char>>>());
        match zones {
            Some(mut zones) => {
                zones.sort_unstable();
                zones.dedup();
                zones
            }
            None => {
                let _: Option<()> = self.mistake(value.span(), wanted);
                Vec::new()
            }
        }
    }

    /// Daemons that only vote.
    fn witnesses(&mut self, table: &DeTable<'_>, regions: &[RegionConfig]) -> Vec<WitnessConfig> {
        let mut named: Vec<_> = table.iter().collect();
        named.sort_by_key(|(name, _)| name.span().start);
        let surplus = named.get(WITNESSES_MAX).map(|(name, _)| name.span());
        if let Some(span) = surplus {
            let what = format!("a cluster has at most {WITNESSES_MAX} witnesses");
            let _: Option<()> = self.mistake(span, what);
        }
        let witness = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Value<'_>)| {
            let name = self.name(key);
            let Some(table) = value.get_ref().as_table() else {
                return self.mistake(value.span(), "a witness is a table: listen, advertise");
            };
            self.known_keys(table, &["listen", "advertise"]);
            let (listen, advertise) = self.places(key, table);
            let (name, listen) = (name?, listen?);
            if regions.iter().any(|region| region.name == name) {
                return self
                    .mistake(key.span(), format!("{name} is a region: a witness has a name of its own"));
            }
            let advertise = advertise.unwrap_or_else(|| listen.to_string());
            Some(WitnessConfig { name, listen, advertise })
        };
        named.into_iter().filter_map(witness).collect()
    }

    fn name(&mut self, key: &Spanned<std::borrow::Cow<'_, str>>) -> Option<RegionName> {
        match key.get_ref().parse::<RegionName>() {
            Ok(name) if name.as_str() == transport::identity::OPERATOR => self.mistake(
                key.span(),
                "'operator' is the name in operators' certificates; call the region otherwise",
            ),
            Ok(name) => Some(name),
            Err(e) => self.mistake(key.span(), e.to_string()),
        }
    }

    /// `listen` and `advertise`.
    fn places(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        table: &DeTable<'_>,
    ) -> (Option<SocketAddr>, Option<String>) {
        let listen = self.required(key, table, "listen", ADDRESS, parse_address);
        let advertise =
            self.optional(table, "advertise", "a host and a port, such as \"eu.example.org:7402\"", |text| {
                let (host, port) = text.rsplit_once(':')?;
                (!host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0)).then(|| text.to_owned())
            });
        (listen, advertise)
    }

    /// One primary, and at most five secondaries.
    fn roles(&mut self, span: Range<usize>, regions: &DeTable<'_>) {
        let mut with_role: Vec<(Range<usize>, &str)> = regions
            .iter()
            .filter_map(|(_, value)| {
                let role = value.get_ref().as_table()?.get("role")?;
                Some((role.span(), role.get_ref().as_str()?))
            })
            .collect();
        with_role.sort_by_key(|(span, _)| span.start);
        let of = |role: &str| -> Vec<Range<usize>> {
            with_role.iter().filter(|(_, r)| *r == role).map(|(span, _)| span.clone()).collect()
        };
        let (primaries, secondaries) = (of("primary"), of("secondary"));
        if primaries.is_empty() {
            let _: Option<()> = self.mistake(span, "no region is the primary: give one `role = \"primary\"`");
        }
        for span in primaries.into_iter().skip(1) {
            let _: Option<()> = self
                .mistake(span, "a second primary: one region is the primary, make this one \"secondary\"");
        }
        for span in secondaries.into_iter().skip(SECONDARIES_MAX) {
            let what =
                format!("more than {SECONDARIES_MAX} secondaries: a cluster has at most {SECONDARIES_MAX}");
            let _: Option<()> = self.mistake(span, what);
        }
    }

    /// No address twice.
    fn addresses(&mut self, regions: &DeTable<'_>, witnesses: Option<&DeTable<'_>>) {
        let mut seen: Vec<(SocketAddr, String)> = Vec::new();
        let mut given: Vec<(Range<usize>, SocketAddr, String)> = regions
            .iter()
            .chain(witnesses.into_iter().flat_map(|table| table.iter()))
            .filter_map(|(name, value)| Some((name.get_ref(), value.get_ref().as_table()?)))
            .flat_map(|(name, table)| ["listen", "postgres"].map(|key| (name, key, table.get(key))))
            .filter_map(|(name, key, value)| {
                let value = value?;
                Some((value.span(), value.get_ref().as_str()?.parse().ok()?, format!("{key} of {name}")))
            })
            .collect();
        given.sort_by_key(|(span, ..)| span.start);
        for (span, address, whose) in given {
            let same =
                |other: &SocketAddr| other.port() == address.port() && overlap(other.ip(), address.ip());
            if let Some((_, taken)) = seen.iter().find(|(other, _)| same(other)) {
                let what = format!("{address} is taken already, by {taken}: give each its own port");
                let _: Option<()> = self.mistake(span, what);
            } else {
                seen.push((address, whose));
            }
        }
    }

    fn settings(&mut self, table: &DeTable<'_>) -> BTreeMap<String, String> {
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
            settings.insert(name.to_string(), text);
        }
        settings
    }

    fn section<'t, 'a>(
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

    fn known_keys(&mut self, table: &DeTable<'_>, known: &[&str]) {
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

    fn text(&mut self, value: &Value<'_>, wanted: &str) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.mistake(value.span(), format!("a text is wanted here: {wanted}")),
        }
    }

    fn optional<T>(
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

    fn required<T>(
        &mut self,
        region: &Spanned<std::borrow::Cow<'_, str>>,
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
}

/// What an address looks like.
const ADDRESS: &str = "an address with a port, such as \"127.0.0.1:7401\"";

fn parse_address(text: &str) -> Option<SocketAddr> {
    text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0)
}

fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(name: &str, role: &str, port: u16) -> String {
        format!(
            "[region.{name}]\nrole = \"{role}\"\nlisten = \"127.0.0.1:{port}\"\npostgres = \"127.0.0.1:{}\"\n",
            port + 1000
        )
    }

    fn mistakes(text: &str) -> Vec<String> {
        Config::parse(text).unwrap_err().into_iter().map(|m| m.what).collect()
    }

    #[test]
    fn the_default_file_is_good() {
        let config = Config::parse(include_str!("../../regions.toml")).unwrap();
        let names: Vec<&str> = config.regions.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["us-east", "eu-west", "ap-northeast"]);
        assert_eq!(config.regions[0].role, Role::Primary);
        assert_eq!(config.max_size_bytes, 10 << 30);
    }

    #[test]
    fn commit_levels_and_zones() {
        let with = |head: &str| {
            let regions = region("a", "primary", 7000) + &region("b", "secondary", 7001);
            format!("cluster = \"x\"\n{head}\n{regions}own_process = [\"c\", \"b\", \"c\"]\n")
        };
        let policy = |head: &str| Config::parse(&with(head)).unwrap().commit;
        assert_eq!(policy("").level, CommitLevel::Region);
        assert_eq!(policy("commit = \"local\"").level, CommitLevel::Local);
        assert_eq!(policy("commit = { regions = 1 }").level, CommitLevel::Regions(1));
        assert_eq!(policy("rpo = \"30s\"").rpo, Some(Duration::from_secs(30)));
        let mistake = |head: &str| mistakes(&with(head)).concat();
        assert!(mistake("commit = { regions = 2 }").contains("the file has 1"));
        assert!(mistake("commit = \"all\"").contains("`commit` is \"local\""));
        assert!(mistake("commit = \"local\"\nrpo = \"30s\"").contains("none waits"));
        let config = Config::parse(&with("")).unwrap();
        assert_eq!(config.regions[1].own_process, ['b', 'c']);
        let local: Vec<String> = config.regions[1].local_copies().iter().map(ToString::to_string).collect();
        assert_eq!(local, ["a1", "a2"]);
        assert!(
            mistakes(&with("").replace("\"b\", \"c\"]", "\"d\"]"))
                .concat()
                .contains("a region has a, b and c")
        );
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = format!(
            "cluster = \"x\"\nclutser = 1\n{}{}{}[region.c]\nrole = \"primry\"\nlisten = \"localhost\"\n[volume]\nretain = \"soon\"\n",
            region("a", "primary", 7000),
            region("b", "primary", 7000),
            region("operator", "secondary", 7005),
        );
        let found = mistakes(&text).join("\n");
        for wanted in [
            "unknown key `clutser`; did you mean `cluster`?",
            "a second primary",
            "127.0.0.1:7000 is taken already, by listen of a",
            "127.0.0.1:8000 is taken already",
            "'operator' is the name",
            "`role` is \"primary\" or \"secondary\"",
            "`listen` is an address",
            "region c lacks `postgres`",
            "`retain` is a duration",
        ] {
            assert!(found.contains(wanted), "{wanted} is not in:\n{found}");
        }
        assert_eq!(found.lines().count(), 9, "{found}");
    }

    #[test]
    fn at_most_five_secondaries_and_one_primary_at_least() {
        let secondaries: String = (0..6).map(|i| region(&format!("s{i}"), "secondary", 7000 + i)).collect();
        let found = mistakes(&format!("cluster = \"x\"\n{secondaries}")).join("\n");
        assert!(
            found.contains("no region is the primary") && found.contains("more than 5 secondaries"),
            "{found}"
        );
    }

    #[test]
    fn witnesses_vote_and_have_names_and_addresses_of_their_own() {
        let regions = region("a", "primary", 7000) + &region("b", "secondary", 7001);
        let with = |witnesses: &str| format!("cluster = \"x\"\n{regions}{witnesses}");
        let good = Config::parse(&with("[witness.w]\nlisten = \"127.0.0.1:7009\"\n")).unwrap();
        let voters: Vec<String> = good.voters().iter().map(|voter| voter.name.to_string()).collect();
        assert_eq!(voters, ["a", "b", "w"]);
        let found =
            mistakes(&with("[witness.a]\nlisten = \"127.0.0.1:7001\"\nrole = \"primary\"\n")).concat();
        assert!(found.contains("a is a region") && found.contains("taken already"), "{found}");
        assert!(found.contains("unknown key `role`"), "{found}");
    }

    #[test]
    fn settings_that_replication_depends_on_are_refused() {
        let text = format!(
            "cluster = \"x\"\n{}[postgresql]\nsettings = {{ fsync = false, work_mem = \"1MB\" }}\n",
            region("a", "primary", 7000)
        );
        assert_eq!(mistakes(&text), ["fsync is Replicator's to set; take it out"]);
    }

    #[test]
    fn a_mistake_is_shown_in_its_place() {
        let text = "cluster = \"x\"\n[region.a]\nrole = \"chief\"\nlisten = \"127.0.0.1:1\"\npostgres = \"127.0.0.1:2\"\n";
        let mistakes = Config::parse(text).unwrap_err();
        let error = ConfigError::Mistakes { path: "regions.toml".into(), text: text.into(), mistakes };
        let shown = error.to_string();
        assert!(shown.contains("regions.toml:3:8: `role` is"), "{shown}");
        assert!(shown.contains(" 3 | role = \"chief\"\n   |        ^^^^^^^"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(\\PC|[\n\\[\\]=\".]){0,200}") {
            if let Err(mistakes) = Config::parse(&text) {
                let _ = ConfigError::Mistakes { path: "x".into(), text, mistakes }.to_string();
            }
        }
    }
}
