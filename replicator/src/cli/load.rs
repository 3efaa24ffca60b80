//! `replicator load`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use proto::RegionName;

use super::AnyResult;
use crate::events::show_time;
use crate::load::Machine;
use crate::load::series::{Called, Cut, Load, Top};
use crate::operator::Operator;
use crate::units::show_bytes;

/// The width of a bar.
const BAR: usize = 24;

/// The width of the load over time.
const COURSE: usize = 72;

/// The widest name, and the widest word of what it mostly did.
const NAME: usize = 90;
const MOSTLY: usize = 60;

/// The statements of pg_stat_statements that are shown.
const CALLED: usize = 5;

/// Prints what `region`, or the primary, was busy with in the last `since`.
pub(super) async fn show(
    operator: &Operator,
    region: Option<RegionName>,
    since: Duration,
    by: Cut,
    json: bool,
) -> AnyResult {
    let load = operator.load(region, since, by).await?;
    let text = match json {
        true => serde_json::to_string(&load)? + "\n",
        false => table(&load),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// What a daemon said goes to a terminal: nothing in it may command that.
fn plain(text: &str, most: usize) -> String {
    let mut plain: String = text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        plain.pop();
        plain.push('…');
    }
    plain
}

fn table(load: &Load) -> String {
    let Load { region, from_s, to_s, cores, looks, average, .. } = load;
    let time = |at_s: i64| show_time(at_s.saturating_mul(1_000_000)).replace(".000Z", "Z");
    let mut text = format!("{}, {} to {}\n", plain(region, 64), time(*from_s), time(*to_s));
    if *looks == 0 {
        text += "PostgreSQL was not seen in this time.\n";
    } else {
        let plural = if *cores == 1 { "core" } else { "cores" };
        let _ =
            writeln!(text, "{average:.2} sessions active on average, {cores} {plural}; seen {looks} times");
        let (bars, most) = course(load);
        let _ = writeln!(text, "{bars}  at most {most:.1}");
    }
    if let Some(machine) = load.machine {
        text += &machine_line(&machine);
    }
    if !load.top.is_empty() {
        let _ = writeln!(text, "\nSessions  Share  {:BAR$}  {}, mostly", "", title(load.by));
        let most = load.top.iter().map(|top| top.average).fold(0.001, f64::max);
        text.extend(load.top.iter().map(|top| line(top, most)));
    }
    if load.by == Cut::Statement && !load.statements.is_empty() {
        text +=
            "\nBy pg_stat_statements, since it began to count:\n     Calls     Mean  All time  Statement\n";
        text.extend(load.statements.iter().take(CALLED).map(called));
    }
    text
}

fn title(by: Cut) -> &'static str {
    match by {
        Cut::Wait => "Wait",
        Cut::Statement => "Statement",
        Cut::User => "User",
        Cut::Application => "Application",
        Cut::Host => "Host",
    }
}

fn line(top: &Top, most: f64) -> String {
    let Top { name, average, share, with, .. } = top;
    let name = if name.is_empty() { "(none)".into() } else { plain(name, NAME) };
    let mostly = with.first().map(|with| format!("  {}", plain(&with.name, MOSTLY))).unwrap_or_default();
    let bar = bar(average / most);
    format!("{average:8.2}  {:3.0} %  {bar:BAR$}  {name}{mostly}\n", share * 100.0)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the width")]
fn steps(share: f64, most: usize) -> usize {
    let most = f64::from(u32::try_from(most).unwrap_or(u32::MAX));
    (share.clamp(0.0, 1.0) * most).round() as usize
}

/// A bar of this share of the width, to the eighth of a character.
fn bar(share: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = steps(share, BAR * 8);
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

/// The load over time, and the most that a column shows. Where nobody looked there is a dot.
fn course(load: &Load) -> (String, f64) {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let wide = i64::try_from(COURSE).unwrap_or(1);
    let length_s = load.to_s.saturating_sub(load.from_s).max(1);
    let mut columns: Vec<Option<f64>> = vec![None; COURSE];
    for point in &load.points {
        let at_s = point.at_s.saturating_sub(load.from_s).clamp(0, length_s - 1);
        let index = usize::try_from(i128::from(at_s) * i128::from(wide) / i128::from(length_s)).unwrap_or(0);
        // Where points are longer than columns, one fills several.
        let length = i128::from(load.step_s.max(1)) * i128::from(wide) / i128::from(length_s);
        let length = usize::try_from(length).unwrap_or(COURSE).clamp(1, COURSE);
        for column in columns.iter_mut().skip(index).take(length) {
            *column = match (*column, point.average) {
                (Some(one), Some(other)) => Some(one.max(other)),
                (one, other) => one.or(other),
            };
        }
    }
    let most = columns.iter().flatten().copied().fold(0.0, f64::max);
    let scale = most.max(1.0);
    let bar = |column: &Option<f64>| column.map_or('·', |average| BARS[steps(average / scale, 7)]);
    (columns.iter().map(bar).collect(), most)
}

fn machine_line(machine: &Machine) -> String {
    let percent = |thousandths: u64| thousandths.saturating_add(5) / 10;
    let used = machine.memory_bytes.saturating_sub(machine.memory_free_bytes);
    format!(
        "machine: processors {} % (programs {} %, kernel {} %), waiting for disks {} %; memory {} of {}; \
         disks read {}/s, written {}/s, busy {} %; network in {}/s, out {}/s\n",
        percent(machine.cpu_user.saturating_add(machine.cpu_system)),
        percent(machine.cpu_user),
        percent(machine.cpu_system),
        percent(machine.cpu_disk),
        show_bytes(used),
        show_bytes(machine.memory_bytes),
        show_bytes(machine.disk_read_bytes),
        show_bytes(machine.disk_written_bytes),
        percent(machine.disk_busy),
        show_bytes(machine.network_in_bytes),
        show_bytes(machine.network_out_bytes),
    )
}

fn called(called: &Called) -> String {
    let Called { calls, total_ms, statement, .. } = called;
    let (calls, seconds) = (*calls, total_ms / 1000);
    #[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
    let mean = *total_ms as f64 / calls.max(1) as f64;
    format!("{calls:10}  {mean:5.1} ms  {seconds:6} s  {}\n", plain(statement, NAME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::series::{Point, With};

    fn load() -> Load {
        let top = |name: &str, average| Top {
            name: name.into(),
            query_id: None,
            average,
            share: average / 4.0,
            with: vec![With { name: "UPDATE t SET a = ?".into(), average }],
        };
        let point = |at_s, average| Point { at_s, average, top: vec![3.0, 1.0], cpu: Some(0.5) };
        Load {
            region: "us-east".into(),
            from_s: 1_700_000_000,
            to_s: 1_700_000_072,
            step_s: 1,
            cores: 2,
            looks: 70,
            average: 4.0,
            top: vec![top("Lock:transactionid", 3.0), top("CP\x1bU", 1.0)],
            points: vec![point(1_700_000_000, Some(8.0)), point(1_700_000_071, Some(0.0))],
            machine: Some(Machine { cpu_user: 304, cpu_system: 100, ..Machine::default() }),
            ..Load::default()
        }
    }

    #[test]
    fn the_table_tells_the_most_first_and_commands_no_terminal() {
        let text = table(&load());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "us-east, 2023-11-14T22:13:20Z to 2023-11-14T22:14:32Z");
        assert_eq!(lines[1], "4.00 sessions active on average, 2 cores; seen 70 times");
        assert_eq!(lines[2], format!("█{}▁  at most 8.0", "·".repeat(COURSE - 2)));
        assert!(
            lines[3].starts_with("machine: processors 40 % (programs 30 %, kernel 10 %)"),
            "{}",
            lines[3]
        );
        let full = "█".repeat(BAR);
        assert_eq!(lines[6], format!("    3.00   75 %  {full}  Lock:transactionid  UPDATE t SET a = ?"));
        assert!(lines[7].contains("████████ ") && lines[7].contains("CP U"), "{}", lines[7]);
        let nothing = table(&Load { looks: 0, top: Vec::new(), machine: None, ..load() });
        assert!(nothing.ends_with("PostgreSQL was not seen in this time.\n"), "{nothing}");
    }
}
