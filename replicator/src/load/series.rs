//! What is shown of looks: averages over time, cut by one thing, and who stands at the top. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::machine::Average;
use super::{Group, Look, Machine, OTHERS};

/// The most that are told one by one; the rest is one more.
pub const TOP_MAX: usize = 10;

/// The most points in time.
pub const POINTS_MAX: usize = 240;

/// How long a point may be, seconds.
const STEPS_S: [i64; 15] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400];

/// The longest that is told, seconds: a little more than is kept.
pub const LONGEST_S: i64 = 8 * 86_400;

/// By what the load is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// What sessions wait for.
    #[default]
    Wait,
    /// What they run.
    Statement,
    /// The role.
    User,
    /// `application_name`.
    Application,
    /// Where the client is.
    Host,
}

impl Cut {
    /// All that there are.
    pub const ALL: [Cut; 5] = [Cut::Wait, Cut::Statement, Cut::User, Cut::Application, Cut::Host];

    /// Its name, as it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cut::Wait => "wait",
            Cut::Statement => "statement",
            Cut::User => "user",
            Cut::Application => "application",
            Cut::Host => "host",
        }
    }

    /// The cut of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Cut> {
        Cut::ALL.into_iter().find(|cut| cut.name() == name)
    }

    /// What tells one group from another: PostgreSQL's number of a statement where it has one, else its text.
    fn of(self, group: &Group) -> (i64, Arc<str>) {
        let key = &group.key;
        match self {
            Cut::Wait => (0, key.wait.clone()),
            Cut::Statement if key.query_id != 0 => (key.query_id, Arc::from("")),
            Cut::Statement => (0, key.statement.clone()),
            Cut::User => (0, key.user.clone()),
            Cut::Application => (0, key.application.clone()),
            Cut::Host => (0, key.host.clone()),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Question {
    /// From when on, seconds since 1970.
    pub from_s: i64,
    /// Up to when, exclusive.
    pub to_s: i64,
    /// Cut by what.
    pub by: Cut,
}

/// The load of a region: the stable contract of `load --json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Load {
    /// The region.
    pub region: String,
    /// From when on, seconds since 1970.
    pub from_s: i64,
    /// Up to when, exclusive.
    pub to_s: i64,
    /// How long a point is, seconds.
    pub step_s: i64,
    /// By what it is cut.
    pub by: Cut,
    /// The processors.
    pub cores: u32,
    /// How often PostgreSQL was seen.
    pub looks: u64,
    /// How many sessions were active, on average.
    pub average: f64,
    /// Those with the most active sessions, the most first; what is beyond is the last, `(others)`.
    pub top: Vec<Top>,
    /// Over time. Where nobody looked there is no point.
    pub points: Vec<Point>,
    /// How busy the machine was on average; none where that is not known.
    pub machine: Option<Machine>,
    /// The statements that took longest since PostgreSQL began to count, by pg_stat_statements; empty without
    /// it.
    #[serde(default)]
    pub statements: Vec<Called>,
}

/// One thing that the load is cut into.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Top {
    /// What it is.
    pub name: String,
    /// PostgreSQL's number of the statement, as text; none where it has none, and of anything else.
    pub query_id: Option<String>,
    /// How many of its sessions were active, on average.
    pub average: f64,
    /// Its share of all, 0 to 1.
    pub share: f64,
    /// What its sessions waited for most; of a wait, the statements that waited most.
    pub with: Vec<With>,
}

/// A part of a [`Top`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct With {
    /// What it is.
    pub name: String,
    /// How many sessions, on average.
    pub average: f64,
}

/// A point in time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Point {
    /// When it begins, seconds since 1970.
    pub at_s: i64,
    /// How many sessions were active, on average; none where PostgreSQL did not answer.
    pub average: Option<f64>,
    /// The same of each of [`Load::top`], in that order.
    pub top: Vec<f64>,
    /// Processor time of the machine, 0 to 1; none where it is not known.
    pub cpu: Option<f64>,
}

/// A statement as pg_stat_statements counts it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Called {
    /// PostgreSQL's number of it.
    pub query_id: i64,
    /// How often it was run.
    pub calls: u64,
    /// How long that took in all, milliseconds.
    pub total_ms: u64,
    /// The rows that it returned or changed.
    pub rows: u64,
    /// The statement without its values.
    pub statement: String,
}

/// How many of the parts of each are told.
const WITH_MAX: usize = 3;

type Name = (i64, Arc<str>);

#[derive(Debug, Default)]
struct Sums {
    looks: u64,
    all: u64,
    by: BTreeMap<Name, u64>,
    machine: Average,
}

/// Looks on their way to a [`Load`].
#[derive(Debug, Default)]
pub struct Series {
    question: Question,
    step_s: i64,
    cores: u32,
    points: BTreeMap<i64, Sums>,
    /// The text of each statement that has a number, as it came first.
    texts: BTreeMap<i64, Arc<str>>,
    with: BTreeMap<Name, BTreeMap<Name, u64>>,
}

impl Series {
    /// Nothing yet. A question that makes no sense is answered with nothing. Looks are there from `looks_s`
    /// on: where what is older is asked for, no point is shorter than a minute.
    #[must_use]
    pub fn new(mut question: Question, looks_s: i64) -> Series {
        question.from_s = question.from_s.max(question.to_s.saturating_sub(LONGEST_S));
        let length_s = question.to_s.saturating_sub(question.from_s).max(1);
        let most = i64::try_from(POINTS_MAX).unwrap_or(i64::MAX);
        let least_s = if question.from_s < looks_s { 60 } else { 1 };
        let fits = |step_s: &i64| *step_s >= least_s && length_s / step_s < most;
        let step_s = STEPS_S.into_iter().find(fits).unwrap_or(LONGEST_S / most + 1);
        Series { question, step_s, ..Series::default() }
    }

    /// From when on looks are wanted, and up to when.
    #[must_use]
    pub fn range(&self) -> (i64, i64) {
        (self.question.from_s, self.question.to_s)
    }

    /// Adds a look, or the sum of a minute.
    pub fn add(&mut self, look: &Look) {
        if !(self.question.from_s..self.question.to_s).contains(&look.at_s) {
            return;
        }
        self.cores = self.cores.max(look.cores);
        let at_s = look.at_s.div_euclid(self.step_s).saturating_mul(self.step_s);
        let point = self.points.entry(at_s).or_default();
        point.looks = point.looks.saturating_add(u64::from(look.looks));
        if let Some(machine) = look.machine {
            point.machine.add(machine, look.looks);
        }
        let by = self.question.by;
        let beside = if by == Cut::Wait { Cut::Statement } else { Cut::Wait };
        for group in &look.groups {
            let sum = u64::from(group.sum);
            if group.key.query_id != 0 {
                self.texts.entry(group.key.query_id).or_insert_with(|| group.key.statement.clone());
            }
            let name = by.of(group);
            point.all = point.all.saturating_add(sum);
            add(&mut point.by, name.clone(), sum);
            add(self.with.entry(name).or_default(), beside.of(group), sum);
        }
    }

    fn words(&self, (id, name): &Name) -> String {
        match self.texts.get(id) {
            Some(text) if *id != 0 => text.to_string(),
            _ => name.to_string(),
        }
    }

    /// What is shown of `region`.
    #[must_use]
    pub fn load(self, region: &str, statements: Vec<Called>) -> Load {
        let (mut looks, mut all, mut machine) = (0_u64, 0_u64, Average::default());
        let mut by: BTreeMap<Name, u64> = BTreeMap::new();
        for point in self.points.values() {
            looks = looks.saturating_add(point.looks);
            all = all.saturating_add(point.all);
            for (name, sum) in &point.by {
                add(&mut by, name.clone(), *sum);
            }
            if let Some(average) = point.machine.get() {
                machine.add(average, u32::try_from(point.looks).unwrap_or(u32::MAX));
            }
        }
        let mut sorted: Vec<(Name, u64)> = by.into_iter().collect();
        // What was summed up when it was kept is none of the top: it goes last.
        let rest = |name: &Name| *name.1 == *OTHERS;
        sorted.sort_by(|a, b| rest(&a.0).cmp(&rest(&b.0)).then(b.1.cmp(&a.1)).then_with(|| a.0.cmp(&b.0)));
        let told = sorted.iter().take(TOP_MAX).filter(|(name, _)| !rest(name)).count();
        let told: Vec<(Name, u64)> = sorted.drain(..told).collect();
        let beyond = sorted.iter().fold(0_u64, |sum, (_, more)| sum.saturating_add(*more));
        let mut top: Vec<Top> = told
            .iter()
            .map(|(name, sum)| Top {
                name: self.words(name),
                query_id: (name.0 != 0).then(|| name.0.to_string()),
                average: ratio(*sum, looks),
                share: ratio(*sum, all),
                with: self.with_of(name, looks),
            })
            .collect();
        if !sorted.is_empty() {
            let (average, share) = (ratio(beyond, looks), ratio(beyond, all));
            top.push(Top { name: OTHERS.into(), query_id: None, average, share, with: Vec::new() });
        }
        let point = |(at_s, point): (&i64, &Sums)| {
            let of = |name: &Name| point.by.get(name).copied().unwrap_or(0);
            let mut sums: Vec<u64> = told.iter().map(|(name, _)| of(name)).collect();
            if !sorted.is_empty() {
                let told = sums.iter().fold(0_u64, |sum, more| sum.saturating_add(*more));
                sums.push(point.all.saturating_sub(told));
            }
            Point {
                at_s: *at_s,
                average: (point.looks > 0).then(|| ratio(point.all, point.looks)),
                top: sums.into_iter().map(|sum| ratio(sum, point.looks)).collect(),
                cpu: point.machine.get().map(|machine| {
                    let busy = machine.cpu_user.saturating_add(machine.cpu_system);
                    ratio(busy, 1000)
                }),
            }
        };
        Load {
            region: region.into(),
            from_s: self.question.from_s,
            to_s: self.question.to_s,
            step_s: self.step_s,
            by: self.question.by,
            cores: self.cores,
            looks,
            average: ratio(all, looks),
            points: self.points.iter().map(point).collect(),
            top,
            machine: machine.get(),
            statements,
        }
    }

    fn with_of(&self, name: &Name, looks: u64) -> Vec<With> {
        let mut with: Vec<(&Name, &u64)> = self.with.get(name).into_iter().flatten().collect();
        with.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        let told = with.into_iter().take(WITH_MAX);
        told.map(|(name, sum)| With { name: self.words(name), average: ratio(*sum, looks) }).collect()
    }
}

fn add(sums: &mut BTreeMap<Name, u64>, name: Name, sum: u64) {
    let before = sums.entry(name).or_default();
    *before = before.saturating_add(sum);
}

/// `sum` by `of`, to the thousandth; 0 by nothing.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn ratio(sum: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { (sum as f64 / of as f64 * 1e3).round() / 1e3 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tests::key;
    use proptest::prelude::*;

    fn looked(at_s: i64, groups: &[(&str, i64, &str, u32)]) -> Look {
        let group = |(wait, query_id, statement, sum): &(&str, i64, &str, u32)| Group {
            key: crate::load::Key { query_id: *query_id, ..key(wait, statement) },
            sum: *sum,
        };
        Look { at_s, looks: 1, cores: 4, groups: groups.iter().map(group).collect(), machine: None }
    }

    fn load(question: Question, looks: &[Look]) -> Load {
        let mut series = Series::new(question, question.from_s);
        looks.iter().for_each(|look| series.add(look));
        series.load("a", Vec::new())
    }

    #[test]
    fn averages_are_those_of_the_looks_and_a_missing_one_counts_for_nothing() {
        let locked = ("Lock:tuple", 7, "UPDATE t SET a = ?", 3);
        let mut looks: Vec<Look> =
            (100..110).map(|at_s| looked(at_s, &[locked, ("CPU", 0, "SELECT ?", 1)])).collect();
        looks.push(Look { looks: 0, ..looked(110, &[]) });
        looks.push(looked(111, &[("CPU", 7, "another text", 4)]));
        let question = Question { from_s: 100, to_s: 120, by: Cut::Wait };
        let wait = load(question, &looks);
        assert_eq!((wait.looks, wait.average, wait.cores, wait.step_s), (11, 4.0, 4, 1));
        let told: Vec<(&str, f64)> = wait.top.iter().map(|top| (top.name.as_str(), top.average)).collect();
        assert_eq!(told, [("Lock:tuple", 2.727), ("CPU", 1.273)]);
        assert_eq!(wait.top[0].with[0].name, "UPDATE t SET a = ?");
        assert_eq!(wait.points.len(), 12);
        assert_eq!((wait.points[10].average, wait.points[11].average), (None, Some(4.0)));
        assert_eq!(wait.points[0].top, [3.0, 1.0]);
        // A statement is known by its number, whatever its text.
        let statement = load(Question { by: Cut::Statement, ..question }, &looks);
        let first = &statement.top[0];
        assert_eq!((first.name.as_str(), first.query_id.as_deref()), ("UPDATE t SET a = ?", Some("7")));
        assert_eq!((statement.top.len(), first.share), (2, 0.773));
        assert_eq!(
            first.with.iter().map(|with| with.name.as_str()).collect::<Vec<_>>(),
            ["Lock:tuple", "CPU"]
        );
        assert_eq!(
            load(Question { to_s: 100, ..question }, &looks),
            load(Question { to_s: 100, ..question }, &[])
        );
    }

    #[test]
    fn the_rest_is_one_and_points_are_few() {
        let groups: Vec<String> = (0..30).map(|n| format!("SELECT t{n}")).collect();
        let mut groups: Vec<(&str, i64, &str, u32)> =
            groups.iter().zip(1..).map(|(text, sum)| ("CPU", 0, text.as_str(), sum)).collect();
        groups.push(("CPU", 0, OTHERS, 100));
        let looks: Vec<Look> = (0..10_000).map(|n| looked(n * 60, &groups)).collect();
        let question = Question { from_s: 0, to_s: 600_000, by: Cut::Statement };
        let load = load(question, &looks);
        assert_eq!((load.top.len(), load.top[0].name.as_str()), (TOP_MAX + 1, "SELECT t29"));
        assert_eq!(load.top[TOP_MAX].name, OTHERS);
        assert_eq!(load.top[TOP_MAX].average, 310.0);
        assert!(load.points.len() <= POINTS_MAX, "{}", load.points.len());
        for point in &load.points {
            assert_eq!(point.top.iter().sum::<f64>(), point.average.unwrap());
        }
        // It fits into an answer.
        let bytes = serde_json::to_vec(&load).unwrap();
        assert!(bytes.len() < 64 << 10, "{}", bytes.len());
        assert_eq!(serde_json::from_slice::<Load>(&bytes).unwrap(), load);
    }

    proptest! {
        #[test]
        fn any_question_and_any_look_are_taken(
            from_s: i64, to_s: i64, at_s: i64, looks: u32, sums: [u32; 3], id: i64, cut in 0..5_usize,
        ) {
            let question = Question { from_s, to_s, by: Cut::ALL[cut] };
            let groups = sums.map(|sum| Group { key: crate::load::Key { query_id: id, ..key("CPU", "a") }, sum });
            let look = Look { at_s, looks, cores: looks, groups: groups.to_vec(), machine: Some(Machine::default()) };
            let load = load(question, &[look.clone(), look]);
            prop_assert!(load.points.len() <= POINTS_MAX + 1);
            prop_assert!(Cut::named(question.by.name()) == Some(question.by));
        }
    }
}
