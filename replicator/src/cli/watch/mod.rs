//! `replicator status --watch` on a terminal: a view that is drawn anew each second.
//!
//! [`model`] is what is shown, [`draw`] how; here it is asked for, and keys are read.

mod draw;
mod model;

use std::collections::BTreeMap;
use std::time::Duration;

use proto::RegionName;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use runtime::clock::wall_us;
use runtime::task::{Task, blocking};
use tokio::sync::mpsc;

use super::{AnyResult, signal};
use crate::operator::{Journals, Operator};
use model::{Asked, Model};

/// How often the daemons are asked.
const ASK: Duration = Duration::from_secs(1);

/// How long a key is waited for before it is looked whether there is something new to draw.
const KEYS: Duration = Duration::from_millis(100);

/// The answers that may wait to be drawn; then it is not asked any more.
const ANSWERS_MAX: usize = 4;

/// How far back events are shown.
const EVENTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the view is told.
enum Heard {
    Asked(Box<Asked>),
    Events(Journals),
}

/// Shows every region until q or Ctrl-C, or a signal.
pub(super) async fn run(operator: &Operator, region: Option<RegionName>, max_lag: Duration) -> AnyResult {
    let (stop, _listening) = signal::on_signal()?;
    let (tell, mut heard) = mpsc::channel(ANSWERS_MAX);
    let _asking = Task::spawn("ask how the regions are", ask(operator.clone(), region, tell.clone()));
    let _asking_events = Task::spawn("ask what happened", ask_events(operator.clone(), tell));
    let mut model = Model::new(max_lag);
    // A panic restores the terminal as well.
    let mut terminal = ratatui::try_init()?;
    let shown = async {
        loop {
            while let Ok(heard) = heard.try_recv() {
                match heard {
                    Heard::Asked(asked) => model.take(*asked),
                    Heard::Events(journals) => model.note(journals),
                }
            }
            terminal.draw(|frame| draw::draw(&model, frame))?;
            if stop.is_cancelled() || blocking("read a key", leaves).await?? {
                return Ok(());
            }
        }
    };
    let shown: AnyResult = shown.await;
    ratatui::restore();
    shown
}

/// Whether a key is pressed that ends the view.
fn leaves() -> std::io::Result<bool> {
    if !event::poll(KEYS)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    Ok(key.kind == KeyEventKind::Press && (interrupts || quits))
}

/// Asks how the regions are, again and again, as long as somebody looks.
async fn ask(operator: Operator, region: Option<RegionName>, tell: mpsc::Sender<Heard>) {
    let mut ticks = tokio::time::interval(ASK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let (status, record) = tokio::join!(operator.status(region.as_ref()), operator.record());
        let asked = Asked {
            at_us: wall_us(),
            status: status.map_err(|e| e.to_string()),
            promotion: record.ok().and_then(|record| record.promotion),
        };
        if tell.send(Heard::Asked(Box::new(asked))).await.is_err() {
            return;
        }
    }
}

/// Asks what happened, again and again. All are waited for, so it is apart: one that is down holds up nothing
/// else.
async fn ask_events(operator: Operator, tell: mpsc::Sender<Heard>) {
    let mut ticks = tokio::time::interval(ASK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let far = i64::try_from(EVENTS.as_micros()).unwrap_or(i64::MAX);
    let since_us = wall_us().saturating_sub(far);
    let mut after: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        ticks.tick().await;
        let Ok((journals, _)) = operator.events(None, since_us, &after).await else { continue };
        for (name, events) in &journals {
            if let Some(last) = events.last() {
                after.insert(name.clone(), last.number);
            }
        }
        if tell.send(Heard::Events(journals)).await.is_err() {
            return;
        }
    }
}
