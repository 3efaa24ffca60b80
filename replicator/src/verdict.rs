//! Whether all is well, by what `status` shows: one pure judgement, for exit statuses and for monitoring.

use std::time::Duration;

use proto::messages::{ClusterStatus, RegionStatus};

use crate::units::show_ms;

/// The lag above which a region is degraded, where nobody says another.
pub const MAX_LAG: Duration = Duration::from_secs(10);

/// How well a cluster is. Its number is the exit status of `replicator status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Well = 0,
    /// It serves, and something is less than it should be.
    Degraded = 1,
    /// No region takes writes, or commits do not return.
    Down = 2,
}

impl Level {
    /// The exit status of `replicator status`.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        self as u8
    }

    /// In a word, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Well => "well",
            Level::Degraded => "degraded",
            Level::Down => "down",
        }
    }

    /// As monitoring plugins begin their line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Level::Well => "OK",
            Level::Degraded => "WARNING",
            Level::Down => "CRITICAL",
        }
    }
}

/// The judgement, and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The worst of what was found.
    pub level: Level,
    /// Each thing that is not well, in words; the worst first.
    pub findings: Vec<(Level, String)>,
}

impl Verdict {
    /// That of a cluster of which no daemon answers.
    #[must_use]
    pub fn unknown(why: &str) -> Verdict {
        let why = why.lines().next().unwrap_or_default().to_owned();
        Verdict { level: Level::Down, findings: vec![(Level::Down, why)] }
    }

    /// One line, as Nagios and Icinga take it, without the numbers of performance data.
    #[must_use]
    pub fn line(&self) -> String {
        let words: Vec<&str> = self.findings.iter().map(|(_, what)| what.as_str()).collect();
        match words.is_empty() {
            true => format!("{} - all regions are well", self.level.word()),
            false => format!("{} - {}", self.level.word(), words.join("; ")),
        }
    }
}

/// The one line of `status --check`: the verdict, and each region's lag as performance data.
#[must_use]
pub fn check_line(status: &ClusterStatus, max_lag: Duration) -> String {
    let mut line = judge(status, max_lag).line();
    let limit_s = max_lag.as_secs_f64();
    let lag = |row: &RegionStatus| {
        let lag_ms = row.visibility_lag_ms?;
        let seconds = Duration::from_millis(lag_ms).as_secs_f64();
        (row.role == "secondary").then(|| format!("'{} lag'={seconds}s;{limit_s};;0", row.name))
    };
    let lags: Vec<String> = status.regions.iter().filter_map(lag).collect();
    if !lags.is_empty() {
        line += &format!(" | {}", lags.join(" "));
    }
    line
}

/// Judges `status`: a lag above `max_lag` is too much.
#[must_use]
pub fn judge(status: &ClusterStatus, max_lag: Duration) -> Verdict {
    let mut findings = Vec::new();
    let primary = status.regions.iter().find(|row| row.role == "primary");
    match primary {
        Some(row) if !row.held.is_empty() => {
            findings.push((Level::Down, format!("{}: {}", row.name, row.held)));
        }
        Some(row) if row.state != "streaming" => {
            findings.push((
                Level::Down,
                format!("the primary {} does not take commits: {}", row.name, state(row)),
            ));
        }
        Some(_) => {}
        None => findings.push((Level::Down, "no region is known to be the primary".into())),
    }
    for row in &status.regions {
        judge_copies(row, &mut findings);
        judge_nodes(row, max_lag, &mut findings);
        let warnings = row.warnings.iter().map(|words| (Level::Degraded, format!("{}: {words}", row.name)));
        findings.extend(warnings);
        if row.role == "secondary" {
            judge_secondary(row, max_lag, &mut findings);
        }
    }
    findings.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let level = findings.iter().map(|(level, _)| *level).max().unwrap_or(Level::Well);
    Verdict { level, findings }
}

fn judge_copies(row: &RegionStatus, findings: &mut Vec<(Level, String)>) {
    let missing: Vec<String> = row
        .copies
        .iter()
        .filter(|copy| copy.state != "live")
        .map(|copy| format!("{} {}", copy.name, copy.state))
        .collect();
    if !missing.is_empty() {
        findings
            .push((Level::Degraded, format!("{}: copies of the volume: {}", row.name, missing.join(", "))));
    }
}

/// A node that holds copies alone is judged by those.
fn judge_nodes(row: &RegionStatus, max_lag: Duration, findings: &mut Vec<(Level, String)>) {
    for node in row.nodes.iter().filter(|node| !node.url.is_empty()) {
        let what = match node.lag_ms {
            _ if node.state != "streaming" => format!("does not stream: {}", node.state),
            Some(lag_ms) if u128::from(lag_ms) > max_lag.as_millis() => {
                format!("lags by {}", show_ms(lag_ms))
            }
            Some(_) => continue,
            None => "lags by what is not known".to_owned(),
        };
        findings.push((Level::Degraded, format!("{}, node {} {what}", row.name, node.name)));
    }
}

fn judge_secondary(row: &RegionStatus, max_lag: Duration, findings: &mut Vec<(Level, String)>) {
    // It catches up: then its lag says how far it is.
    if !matches!(row.state.as_str(), "streaming" | "catching_up") {
        findings.push((Level::Degraded, format!("{} does not stream: {}", row.name, state(row))));
        return;
    }
    match row.visibility_lag_ms {
        Some(lag_ms) if u128::from(lag_ms) > max_lag.as_millis() => {
            let most = show_ms(u64::try_from(max_lag.as_millis()).unwrap_or(u64::MAX));
            findings.push((
                Level::Degraded,
                format!("{} lags by {}, more than {most}", row.name, show_ms(lag_ms)),
            ));
        }
        Some(_) => {}
        None => findings.push((Level::Degraded, format!("the lag of {} is not known", row.name))),
    }
}

fn state(row: &RegionStatus) -> String {
    match row.detail.is_empty() {
        true => row.state.clone(),
        false => format!("{}, {}", row.state, row.detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::messages::CopyState;

    fn copies(states: &[&str]) -> Vec<CopyState> {
        let names = ["a1", "a2", "b1", "b2", "c1", "c2"];
        let copy = |(name, state): (&&str, &&str)| CopyState { name: (*name).into(), state: (*state).into() };
        names.iter().zip(states).map(copy).collect()
    }

    fn row(name: &str, role: &str, state: &str, lag_ms: Option<u64>) -> RegionStatus {
        RegionStatus {
            name: name.into(),
            role: role.into(),
            state: state.into(),
            visibility_lag_ms: lag_ms,
            copies: copies(&["live"; 6]),
            ..RegionStatus::default()
        }
    }

    fn cluster(primary: RegionStatus, secondary: RegionStatus) -> ClusterStatus {
        ClusterStatus { regions: vec![primary, secondary], ..ClusterStatus::default() }
    }

    #[test]
    fn each_case_of_the_table() {
        let well = || row("p", "primary", "streaming", Some(0));
        let near = || row("s", "secondary", "streaming", Some(3));
        let held = |why: &str| RegionStatus { held: why.into(), ..well() };
        let lost = |mut row: RegionStatus, state: &str| {
            row.copies[2].state = state.into();
            row
        };
        let cases = [
            ("all well", cluster(well(), near()), Level::Well, "all regions are well"),
            (
                "at the limit",
                cluster(well(), row("s", "secondary", "streaming", Some(5_000))),
                Level::Well,
                "",
            ),
            (
                "beyond",
                cluster(well(), row("s", "secondary", "streaming", Some(5_001))),
                Level::Degraded,
                "s lags by",
            ),
            (
                "unknown lag",
                cluster(well(), row("s", "secondary", "streaming", None)),
                Level::Degraded,
                "not known",
            ),
            (
                "near enough",
                cluster(well(), row("s", "secondary", "catching_up", Some(2_000))),
                Level::Well,
                "",
            ),
            (
                "away",
                cluster(well(), row("s", "secondary", "disconnected", None)),
                Level::Degraded,
                "s does not stream",
            ),
            ("seeded", cluster(well(), row("s", "secondary", "seeding", None)), Level::Degraded, "seeding"),
            (
                "a copy away",
                cluster(lost(well(), "absent"), near()),
                Level::Degraded,
                "p: copies of the volume: b1",
            ),
            ("of a secondary", cluster(well(), lost(near(), "failed")), Level::Degraded, "s: copies"),
            ("being filled", cluster(lost(well(), "filling"), near()), Level::Degraded, "b1 filling"),
            ("held", cluster(held("commits are held: x"), near()), Level::Down, "p: commits are held: x"),
            (
                "a disk full",
                cluster(RegionStatus { warnings: vec!["4 MiB left".into()], ..well() }, near()),
                Level::Degraded,
                "p: 4 MiB left",
            ),
            (
                "starting",
                cluster(row("p", "primary", "starting", None), near()),
                Level::Down,
                "does not take commits",
            ),
            ("gone", cluster(row("p", "primary", "unreachable", None), near()), Level::Down, "unreachable"),
            (
                "none",
                cluster(row("p", "secondary", "unreachable", None), near()),
                Level::Down,
                "no region is known",
            ),
            ("nothing", ClusterStatus::default(), Level::Down, "no region is known"),
        ];
        for (what, status, level, says) in cases {
            let verdict = judge(&status, Duration::from_secs(5));
            assert_eq!(verdict.level, level, "{what}: {verdict:?}");
            assert!(verdict.line().contains(says), "{what}: {}", verdict.line());
        }
    }

    #[test]
    fn the_worst_comes_first_and_the_line_carries_the_lags() {
        let held =
            RegionStatus { held: "commits are held".into(), ..row("p", "primary", "streaming", Some(0)) };
        let status = cluster(held, row("s", "secondary", "streaming", Some(9_500)));
        assert_eq!(
            check_line(&status, Duration::from_secs(5)),
            "CRITICAL - p: commits are held; s lags by 9.5 s, more than 5.0 s | 's lag'=9.5s;5;;0"
        );
        let status =
            cluster(row("p", "primary", "streaming", Some(0)), row("s", "secondary", "streaming", Some(4)));
        assert_eq!(
            check_line(&status, Duration::from_secs(5)),
            "OK - all regions are well | 's lag'=0.004s;5;;0"
        );
        assert_eq!([Level::Well, Level::Degraded, Level::Down].map(Level::exit_status), [0, 1, 2]);
    }
}
