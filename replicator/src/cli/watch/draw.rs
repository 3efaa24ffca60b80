//! How the view looks.

use std::collections::VecDeque;

use coordination::leadership::{Promotion, Step};
use proto::messages::{ClusterStatus, CopyState, NodeStatus, RegionStatus};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Wrap};

use super::model::{Course, Model};
use crate::events::{Weight, file::weight, show_time};
use crate::render::seeding;
use crate::units::{show_bytes, show_ms};
use crate::verdict::Level;

/// The width of a terminal in which links are shown beside lags.
const WIDE: u16 = 132;

/// Draws everything.
pub(super) fn draw(model: &Model, frame: &mut Frame<'_>) {
    let status = model.asked.as_ref().and_then(|asked| asked.status.as_ref().ok());
    let promotion = model.asked.as_ref().and_then(|asked| asked.promotion.as_ref());
    let rows = |status: &ClusterStatus| status.regions.iter().map(|row| 1 + row.nodes.len()).sum();
    let regions: usize = status.map_or(0, rows);
    let findings = model.verdict.findings.len();
    let height = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(height(regions + 3)),
        Constraint::Length(height(if findings == 0 { 0 } else { findings.min(6) + 2 })),
        Constraint::Length(promotion.map_or(0, |promotion| height(promotion.steps.len() + 4))),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [head, table, wrong, promoting, events, foot] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(header(model, status)), head);
    match status {
        Some(status) => regions_table(model, status, frame, table),
        None => frame.render_widget(Paragraph::new("asking the daemons …").block(block("regions")), table),
    }
    let lines = model.verdict.findings.iter().map(|(level, what)| {
        Line::from(vec![Span::styled("● ", level_style(*level)), Span::raw(what.clone())])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block("what is not well")), wrong);
    if let Some(promotion) = promotion {
        frame.render_widget(promotion_lines(promotion).block(block("promotion in progress")), promoting);
    }
    draw_events(model, frame, events);
    let keys = " q leaves · a b c: copies by zone, ● live ◐ coming ○ away · lags by the primary's clock";
    frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn block(title: &str) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(Style::new().add_modifier(Modifier::DIM))
        .title(Span::styled(format!(" {title} "), Style::new().add_modifier(Modifier::BOLD)))
}

fn level_style(level: Level) -> Style {
    Style::new().fg(match level {
        Level::Well => Color::Green,
        Level::Degraded => Color::Yellow,
        Level::Down => Color::Red,
    })
}

fn header<'a>(model: &'a Model, status: Option<&'a ClusterStatus>) -> Line<'a> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let word = match model.verdict.level {
        Level::Well => " well ",
        Level::Degraded => " degraded ",
        Level::Down => " down ",
    };
    let mut spans = vec![
        Span::styled(word, level_style(model.verdict.level).add_modifier(Modifier::REVERSED)),
        Span::raw(" "),
    ];
    if let Some(ClusterStatus { cluster, epoch, primary, .. }) = status {
        spans.push(Span::styled(cluster.as_str(), bold));
        spans.push(Span::raw(format!("  epoch {epoch}  primary ")));
        spans.push(Span::styled(primary.as_str(), bold));
    }
    if let Some(asked) = &model.asked {
        spans.push(Span::styled(
            format!("  {}", show_time(asked.at_us)),
            Style::new().add_modifier(Modifier::DIM),
        ));
    }
    Line::from(spans)
}

fn regions_table(model: &Model, status: &ClusterStatus, frame: &mut Frame<'_>, area: Rect) {
    let wide = area.width >= WIDE;
    let mut heads = vec!["Region", "Role", "State", "Durable", "Visible", "Behind", "a  b  c"];
    let mut widths = vec![
        Constraint::Length(width(status)),
        Constraint::Length(9),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    if wide {
        heads.extend(["Redo/s", "WAN/s"]);
        widths.extend([Constraint::Length(10), Constraint::Length(10)]);
    }
    heads.push("Visible lag, a second each");
    let fixed: u16 =
        widths.iter().map(|width| if let Constraint::Length(n) = width { n + 1 } else { 0 }).sum();
    let room = usize::from(area.width.saturating_sub(fixed));
    widths.push(Constraint::Min(10));
    let dash = || "-".to_owned();
    let ms = |ms: Option<u64>| ms.map_or_else(dash, show_ms);
    let region = |row: &RegionStatus| {
        let course = model.courses.get(&row.name);
        let mut cells = vec![
            Cell::from(row.name.clone()).style(Style::new().add_modifier(Modifier::BOLD)),
            Cell::from(row.role.clone()),
            Cell::from(seeding(&row.state, [row.seed_bytes, row.seed_total_bytes, 0]))
                .style(level_style(row_level(row))),
            Cell::from(ms(row.durability_lag_ms)),
            Cell::from(ms(row.visibility_lag_ms)),
            Cell::from(row.behind_bytes.map_or_else(dash, show_bytes)),
            Cell::from(copies(&row.copies)),
        ];
        if wide {
            let rates = course.and_then(|course| course.rates).filter(|_| row.role == "secondary");
            cells.push(Cell::from(rates.map_or_else(dash, |(redo, _)| show_bytes(redo))));
            cells.push(Cell::from(rates.map_or_else(dash, |(_, wan)| show_bytes(wan))));
        }
        cells.push(Cell::from(match (row.role.as_str(), course) {
            ("secondary", Some(course)) => sparkline(course, room),
            _ => Line::default(),
        }));
        Row::new(cells)
    };
    let node = |node: &NodeStatus| {
        let (state, level) = node_state(node);
        Row::new([
            Cell::from(format!("  {}", node.name)),
            Cell::from(if node.url.is_empty() { "node" } else { "replica" }),
            Cell::from(state).style(level_style(level)),
            Cell::from("-"),
            Cell::from(ms(node.lag_ms)),
        ])
    };
    let rows =
        status.regions.iter().flat_map(|row| [region(row)].into_iter().chain(row.nodes.iter().map(node)));
    let head = Row::new(heads).style(Style::new().add_modifier(Modifier::DIM));
    let title = format!("regions of {}", status.cluster);
    frame.render_widget(Table::new(rows, widths).header(head).block(block(&title)), area);
}

/// Of the column of names; those of nodes stand two to the right.
fn width(status: &ClusterStatus) -> u16 {
    let length = |name: &str| name.chars().count();
    let nodes = status.regions.iter().flat_map(|row| row.nodes.iter()).map(|node| length(&node.name) + 2);
    let widest = status.regions.iter().map(|row| length(&row.name)).chain(nodes).max().unwrap_or(0);
    u16::try_from(widest.clamp(6, 24)).unwrap_or(24)
}

/// A node without PostgreSQL has nothing to say: it holds a zone's copies, which stand with the region.
fn node_state(node: &NodeStatus) -> (String, Level) {
    match node.state.as_str() {
        "" => ("-".into(), Level::Well),
        "streaming" => (node.state.clone(), Level::Well),
        state => (seeding(state, [node.seed_bytes, node.seed_total_bytes, 0]), Level::Degraded),
    }
}

fn row_level(row: &RegionStatus) -> Level {
    match (row.role.as_str(), row.state.as_str()) {
        (_, "streaming") if row.held.is_empty() => Level::Well,
        ("primary", _) => Level::Down,
        _ => Level::Degraded,
    }
}

/// Two marks for each zone.
fn copies(copies: &[CopyState]) -> Line<'static> {
    let mut spans = Vec::new();
    if copies.is_empty() {
        return Line::from("?");
    }
    for zone in ['a', 'b', 'c'] {
        for copy in copies.iter().filter(|copy| copy.name.starts_with(zone)) {
            let (mark, color) = match copy.state.as_str() {
                "live" => ("●", Color::Green),
                "filling" | "opening" => ("◐", Color::Yellow),
                _ => ("○", Color::Red),
            };
            spans.push(Span::styled(mark, Style::new().fg(color)));
        }
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

/// The newest lags that there is room for, as bars up to the highest of them. A sample that is not known is a
/// dot.
fn sparkline(course: &Course, room: usize) -> Line<'static> {
    let (bars, highest) = bars(&course.lags, room.saturating_sub(8));
    let mut spans: Vec<Span<'static>> = Vec::new();
    for bar in bars.chars() {
        let style = if bar == '·' { Style::new().fg(Color::Red) } else { Style::new().fg(Color::Cyan) };
        match spans.last_mut() {
            Some(last) if last.style == style => last.content.to_mut().push(bar),
            _ => spans.push(Span::styled(bar.to_string(), style)),
        }
    }
    let most = format!(" {}", show_ms(highest));
    spans.push(Span::styled(most, Style::new().add_modifier(Modifier::DIM)));
    Line::from(spans)
}

fn bars(lags: &VecDeque<Option<u64>>, room: usize) -> (String, u64) {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown: Vec<Option<u64>> = lags.iter().skip(lags.len().saturating_sub(room)).copied().collect();
    let highest = shown.iter().flatten().copied().max().unwrap_or(0);
    // A few milliseconds are no mountains.
    let scale = highest.max(20);
    let bar = |lag: &Option<u64>| match lag {
        Some(lag) => BARS[usize::try_from(lag.saturating_mul(7) / scale).unwrap_or(7).min(7)],
        None => '·',
    };
    (shown.iter().map(bar).collect(), highest)
}

fn promotion_lines(promotion: &Promotion) -> Paragraph<'static> {
    let Promotion { mode, from, to, coordinator, attempt, .. } = promotion;
    let again = if *attempt > 0 { format!(", attempt {}", attempt + 1) } else { String::new() };
    let mut lines =
        vec![Line::from(format!("{mode} from {from} to {to}, coordinated by {coordinator}{again}"))];
    lines.extend(promotion.steps.iter().map(|step| {
        let time = format!("{:>8} ms  ", step.us / 1000);
        Line::from(vec![
            Span::styled("  ✓", Style::new().fg(Color::Green)),
            Span::raw(time),
            Span::raw(step.name.clone()),
        ])
    }));
    let doing = match promotion.step {
        Step::HandOver => format!("{from} stops its writer, and {to} applies its last record"),
        Step::Fence => format!("{from} is fenced; {to} gathers what survivors have"),
        Step::Promote => format!("{to} promotes its PostgreSQL"),
    };
    lines.push(Line::from(vec![Span::styled("  ▸ ", Style::new().fg(Color::Yellow)), Span::raw(doing)]));
    Paragraph::new(lines)
}

fn draw_events(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let room = usize::from(area.height.saturating_sub(1));
    let newest = model.events.iter().rev().take(room);
    let lines = newest.map(|(region, event)| {
        let color = match weight(&event.kind) {
            Weight::Good => Color::Green,
            Weight::Plain => Color::Reset,
            Weight::Warning => Color::Yellow,
            Weight::Grave => Color::Red,
        };
        let at: String = show_time(event.at_us).chars().skip(5).take(14).collect();
        Line::from(vec![
            Span::styled(format!("{} ", at.replace('T', " ")), Style::new().add_modifier(Modifier::DIM)),
            Span::styled(format!("{region:13} "), Style::new().add_modifier(Modifier::DIM)),
            Span::styled("● ", Style::new().fg(color)),
            Span::raw(event.text.clone()),
        ])
    });
    let text = Paragraph::new(lines.collect::<Vec<_>>()).wrap(Wrap { trim: false });
    frame.render_widget(text.block(block("events, newest first, UTC")), area);
}

#[cfg(test)]
mod tests {
    use super::super::model::Asked;
    use super::*;
    use coordination::leadership::{Change, Order};
    use coordination::{Leadership, Mode};
    use proto::messages::Event;
    use ratatui::{Terminal, backend::TestBackend};
    use std::time::Duration;

    fn row(name: &str, role: &str, lag: Option<u64>) -> RegionStatus {
        let copies = ["a1", "a2", "b1", "b2", "c1", "c2"].map(|name| CopyState {
            name: name.into(),
            state: if name == "b1" { "absent".into() } else { "live".into() },
        });
        RegionStatus {
            name: name.into(),
            role: role.into(),
            state: "streaming".into(),
            visibility_lag_ms: lag,
            copies: copies.to_vec(),
            ..RegionStatus::default()
        }
    }

    fn shown(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(model, frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn everything_is_on_it_and_a_small_terminal_is_no_error() {
        let mut model = Model::new(Duration::from_secs(5));
        shown(&model, 80, 24);
        let order = Order::new(1, proto::Epoch(1), Mode::Switchover, &"eu-west".parse().unwrap());
        let record = Leadership::first(proto::Epoch(1), "us-east".parse().unwrap());
        let node = NodeStatus {
            name: "n2".into(),
            zone: "b".into(),
            state: "lagging".into(),
            lag_ms: Some(7_000),
            url: "127.0.0.1:6402".into(),
            ..NodeStatus::default()
        };
        let primary = RegionStatus { nodes: vec![node], ..row("us-east", "primary", Some(0)) };
        let status = ClusterStatus {
            cluster: "demo".into(),
            epoch: 1,
            primary: "us-east".into(),
            regions: vec![primary, row("eu-west", "secondary", Some(9_000))],
            notes: Vec::new(),
        };
        let event =
            Event { kind: "copy-lost".into(), text: "copy b1 of us-east: absent".into(), ..Event::default() };
        model.take(Asked {
            at_us: 0,
            status: Ok(status),
            promotion: record.apply(&Change::Begin(order)).unwrap().promotion,
        });
        model.note(vec![("us-east".into(), vec![event])]);
        let text = shown(&model, 120, 30);
        for expected in [
            "degraded",
            "primary us-east",
            "●● ○● ●●",
            "9.0 s",
            "  n2    replica   lagging      -        7.0 s",
            "switchover from us-east to eu-west",
            "us-east stops its writer",
            "copy b1 of us-east: absent",
            "eu-west lags by 9.0 s, more than 5.0 s",
        ] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            shown(&model, width, height);
        }
    }

    #[test]
    fn bars_rise_with_the_lag_and_what_is_unknown_is_seen() {
        let lags = VecDeque::from([Some(0), Some(10), None, Some(20)]);
        assert_eq!(bars(&lags, 10), ("▁▄·█".into(), 20));
        assert_eq!(bars(&lags, 2), ("·█".into(), 20));
        assert_eq!(bars(&VecDeque::from([Some(1), Some(2)]), 9).0, "▁▁");
    }
}
