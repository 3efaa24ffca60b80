//! The walsender's side of streaming replication: answers the walreceiver of a stock standby.
//!
//! Source: PostgreSQL's manual, "Streaming Replication Protocol". [`Session`] decides, without I/O or clock,
//! what each message of the standby is answered with; [`serve`] moves the bytes. Who may connect is settled
//! before.

mod answers;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::{Lsn, Timeline, TimelineHistory};
use runtime::clock::wall_us;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::protocol::client::SystemIdentity;
use crate::protocol::wire::{self, Message, WireError, error_response, put_message, put_text, take_text};
use crate::sockets::REHEARSAL;

use answers::{
    INT8, TEXT, end_of_stream, failure, keepalive, keepalive_quietly, put_ready, put_redo, result,
};

/// The largest message taken from a standby: commands and replies are far smaller.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The largest startup packet, as in PostgreSQL.
const STARTUP_BYTES_MAX: usize = 10_000;

/// Redo that is ready together leaves in one write of up to about this size.
const WRITE_BYTES: usize = 512 * 1024;

/// A stock standby reports what it has *applied* only when asked. While it is behind, it is asked this often
/// …
const ASK_MIN_US: i64 = 5_000;
/// … and, as long as nothing moves, at growing intervals up to this.
const ASK_MAX_US: i64 = 100_000;

/// A standby that is up to date hears from us this often.
const KEEPALIVE_US: i64 = 10_000_000;

/// A standby that says nothing for this long is taken for lost.
const TIMEOUT_US: i64 = 60_000_000;

/// How far a standby has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StandbyProgress {
    /// The end of the redo it received.
    pub written_lsn: Lsn,
    /// The end of the redo it has durable.
    pub flushed_lsn: Lsn,
    /// The end of the redo it applied: what queries see.
    pub applied_lsn: Lsn,
    /// Whether it has said so on the connection on which it is fed now. One that was killed shows less when
    /// it lets clients in again.
    pub is_fed: bool,
}

impl StandbyProgress {
    /// What queries see at least; zero while that is not known.
    #[must_use]
    pub fn shown_lsn(&self) -> Lsn {
        if self.is_fed { self.applied_lsn } else { Lsn::ZERO }
    }
}

/// Where a walsender's redo comes from.
pub trait RedoSource: Send + Sync + 'static {
    /// A place in the redo.
    type Cursor: RedoCursor;
    /// The system, its newest timeline, and the end of its durable redo.
    fn identity(&self) -> SystemIdentity;
    /// The oldest redo kept.
    fn horizon_lsn(&self) -> Lsn;
    /// A timeline's history, if it is known.
    fn history(&self, timeline: Timeline) -> Option<TimelineHistory>;
    /// The region's standby has asked for redo from `from_lsn` on, which is not kept any more: it cannot go
    /// on with what is here.
    fn missing(&self, from_lsn: Lsn);
    /// A place that yields redo from `from_lsn` on, or why there is none, in words.
    fn open(&self, from_lsn: Lsn) -> Result<Self::Cursor, String>;
}

/// A place in the redo.
pub trait RedoCursor: Send + 'static {
    /// Waits for the durable redo that comes next; cancel safe. An error says why there is none, in words.
    fn next(&mut self) -> impl Future<Output = Result<RedoPiece, String>> + Send;
    /// The durable redo that comes next, if it is there.
    ///
    /// # Errors
    /// When it cannot be read, in words.
    fn try_next(&mut self) -> Result<Option<RedoPiece>, String>;
}

/// A run of durable redo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedoPiece {
    /// Where it begins.
    pub begin_lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// The redo.
    pub bytes: Bytes,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum WalsenderError {
    /// The connection failed or carried something else than the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The standby asked for something that cannot be.
    #[error("{0}")]
    Refused(String),
    /// The redo could not be read.
    #[error("reading redo for a standby: {0}")]
    Source(String),
    /// The standby said nothing for a minute.
    #[error("the standby has been silent for {} s", TIMEOUT_US / 1_000_000)]
    Silent,
}

/// What a standby's message leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send these bytes.
    Send(Bytes),
    /// Start sending redo of `timeline` from `from_lsn` up to `end_lsn`, or without end.
    Stream {
        /// Where to begin.
        from_lsn: Lsn,
        /// The timeline.
        timeline: Timeline,
        /// Where the timeline ends, if it has ended.
        end_lsn: Option<Lsn>,
    },
    /// Send no more redo.
    StopStreaming,
    /// The standby reported this.
    Progress(StandbyProgress),
    /// The standby asked for redo from here on, and it is not kept any more.
    Missing(Lsn),
    /// Close the connection; why, in words, unless the standby asked for it.
    Close(Option<String>),
}

/// What the session may say about the source, as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceView {
    /// The system.
    pub identity: SystemIdentity,
    /// The oldest redo kept.
    pub horizon_lsn: Lsn,
    /// The history of the newest timeline.
    pub history: TimelineHistory,
}

/// The state of one standby's connection.
#[derive(Debug)]
pub struct Session {
    server_version: String,
    phase: Phase,
    /// What it reports says how far the region is.
    counts: bool,
    sent_lsn: Lsn,
    progress: StandbyProgress,
    heard_us: i64,
    next_ask_us: i64,
    ask_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Startup,
    Command,
    /// Sending redo; `ended` is what comes after this timeline, once all of it was sent.
    Streaming {
        ended: Option<(Timeline, Lsn)>,
    },
}

impl Session {
    /// A session of a server that calls itself `server_version`, beginning at `now_us`.
    #[must_use]
    pub fn new(server_version: &str, now_us: i64) -> Session {
        Session {
            server_version: server_version.to_owned(),
            phase: Phase::Startup,
            counts: true,
            sent_lsn: Lsn::ZERO,
            progress: StandbyProgress::default(),
            heard_us: now_us,
            next_ask_us: now_us + KEEPALIVE_US,
            ask_us: ASK_MIN_US,
        }
    }

    /// Takes a startup packet.
    pub fn startup(&mut self, mut packet: Bytes) -> Vec<Output> {
        match packet.try_get_u32().unwrap_or(0) {
            // TLS or GSSAPI encryption: not on a local socket.
            80_877_103 | 80_877_104 => vec![Output::Send(Bytes::from_static(b"N"))],
            // A cancel request: a walsender has nothing to cancel.
            80_877_102 => vec![Output::Close(None)],
            version if version >> 16 == 3 => {
                let mut replication = false;
                while let Some((name, value)) = take_text(&mut packet).zip(take_text(&mut packet)) {
                    self.counts &= name != "application_name" || value != REHEARSAL;
                    replication |=
                        name == "replication" && matches!(value.as_str(), "true" | "on" | "yes" | "1");
                }
                if !replication {
                    let why =
                        "this socket serves redo to standbys only; applications connect to PostgreSQL itself";
                    return vec![
                        Output::Send(error_response("FATAL", "08004", why)),
                        Output::Close(Some("not a standby's connection".into())),
                    ];
                }
                self.phase = Phase::Command;
                vec![Output::Send(self.greeting())]
            }
            other => vec![Output::Close(Some(format!(
                "protocol {}.{} is not spoken here",
                other >> 16,
                other & 0xFFFF
            )))],
        }
    }

    /// Takes a message of the standby.
    pub fn handle(&mut self, now_us: i64, message: Message, source: &SourceView) -> Vec<Output> {
        self.heard_us = now_us;
        match (self.phase, message.tag) {
            (_, b'X') => vec![Output::Close(None)],
            (Phase::Command, b'Q') => {
                let query = take_text(&mut message.body.clone()).unwrap_or_default();
                self.command(now_us, query.trim().trim_end_matches(';'), source)
            }
            // Replies to what was sent before the stream ended.
            (Phase::Command, b'd' | b'c') => vec![],
            (Phase::Streaming { .. }, b'd') => self.reply(now_us, message.body),
            (Phase::Streaming { ended }, b'c') => {
                self.phase = Phase::Command;
                vec![Output::StopStreaming, Output::Send(end_of_stream(ended))]
            }
            (_, tag) => {
                vec![Output::Close(Some(format!("an unexpected '{}' message", tag.escape_ascii())))]
            }
        }
    }

    /// Redo up to `end_lsn` is being sent.
    pub fn sent(&mut self, now_us: i64, end_lsn: Lsn) {
        self.sent_lsn = end_lsn;
        self.ask_us = ASK_MIN_US;
        self.next_ask_us = self.next_ask_us.min(now_us + ASK_MIN_US);
    }

    /// The timeline has ended, and all its redo was sent.
    pub fn timeline_ended(&mut self, next: Timeline, begin_lsn: Lsn) -> Output {
        self.phase = Phase::Streaming { ended: Some((next, begin_lsn)) };
        let mut out = BytesMut::new();
        put_message(&mut out, b'c', |_| ());
        Output::Send(out.freeze())
    }

    /// When [`Session::timer`] wants to be called.
    #[must_use]
    pub fn wake_at_us(&self) -> i64 {
        self.next_ask_us.min(self.heard_us + TIMEOUT_US)
    }

    /// Time has passed.
    pub fn timer(&mut self, now_us: i64) -> Vec<Output> {
        if now_us >= self.heard_us + TIMEOUT_US {
            return vec![Output::Close(Some(WalsenderError::Silent.to_string()))];
        }
        if now_us < self.next_ask_us {
            return vec![];
        }
        self.next_ask_us = now_us + if self.behind() { self.ask_us } else { KEEPALIVE_US };
        self.ask_us = (self.ask_us * 2).min(ASK_MAX_US);
        match self.phase {
            Phase::Streaming { ended: None } => vec![Output::Send(keepalive(self.sent_lsn, now_us))],
            Phase::Startup | Phase::Command | Phase::Streaming { .. } => vec![],
        }
    }

    fn behind(&self) -> bool {
        self.progress.applied_lsn < self.sent_lsn
    }

    fn reply(&mut self, now_us: i64, mut body: Bytes) -> Vec<Output> {
        match body.try_get_u8() {
            Ok(b'r') if body.len() >= 33 => {
                let mut lsn = || Lsn(body.get_u64());
                let (written_lsn, flushed_lsn, applied_lsn) = (lsn(), lsn(), lsn());
                let progress = StandbyProgress { written_lsn, flushed_lsn, applied_lsn, is_fed: true };
                let reply_requested = body.last() == Some(&1);
                if progress.applied_lsn > self.progress.applied_lsn {
                    self.ask_us = ASK_MIN_US;
                    self.next_ask_us = self.next_ask_us.min(now_us + ASK_MIN_US);
                }
                self.progress = progress;
                if !self.behind() {
                    self.next_ask_us = now_us + KEEPALIVE_US;
                }
                let mut outputs = Vec::new();
                if self.counts {
                    outputs.push(Output::Progress(progress));
                }
                if reply_requested {
                    outputs.push(Output::Send(keepalive_quietly(self.sent_lsn, now_us)));
                }
                outputs
            }
            // Hot standby feedback: the primary region's writer is not held back by a secondary's queries.
            Ok(b'h') => vec![],
            _ => vec![Output::Close(Some("a malformed reply".into()))],
        }
    }

    fn command(&mut self, now_us: i64, query: &str, source: &SourceView) -> Vec<Output> {
        let words: Vec<&str> = query.split_whitespace().collect();
        let identity = &source.identity;
        let upper: Vec<String> = words.iter().map(|w| w.to_ascii_uppercase()).collect();
        let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
        let answer = match upper[..] {
            [] => {
                let mut out = BytesMut::new();
                put_message(&mut out, b'I', |_| ());
                put_ready(&mut out);
                return vec![Output::Send(out.freeze())];
            }
            ["IDENTIFY_SYSTEM"] => {
                let (system, timeline, end) = (
                    identity.system_id.to_string(),
                    identity.timeline.to_string(),
                    identity.flush_lsn.to_string(),
                );
                let columns = [("systemid", TEXT), ("timeline", INT8), ("xlogpos", TEXT), ("dbname", TEXT)];
                result("IDENTIFY_SYSTEM", &columns, &[Some(&system), Some(&timeline), Some(&end), None])
            }
            ["TIMELINE_HISTORY", number] => match number.parse() {
                Ok(number) if number > 1 && number <= source.history.timeline.0 => {
                    let name = TimelineHistory::file_name(Timeline(number));
                    // A standby that missed several promotions asks for every number on the way, and reads
                    // the newest.
                    let content = match number == source.history.timeline.0 {
                        true => String::from_utf8_lossy(&source.history.content),
                        false => TimelineHistory::UNUSED.into(),
                    };
                    result(
                        "TIMELINE_HISTORY",
                        &[("filename", TEXT), ("content", TEXT)],
                        &[Some(&name), Some(&content)],
                    )
                }
                _ => failure("58P01", &format!("there is no history of timeline {number} here")),
            },
            ["SHOW", name] => match name.to_ascii_lowercase().as_str() {
                "server_version" => {
                    result("SHOW", &[("server_version", TEXT)], &[Some(&self.server_version)])
                }
                other => failure("42704", &format!("{other} is not known to this walsender")),
            },
            ["START_REPLICATION", ref rest @ ..] => return self.start(now_us, rest, source),
            _ => failure(
                "42601",
                "a command that this walsender does not serve; it feeds physical standbys only",
            ),
        };
        vec![Output::Send(answer)]
    }

    /// `START_REPLICATION [SLOT name] [PHYSICAL] lsn [TIMELINE n]`
    fn start(&mut self, now_us: i64, words: &[&str], source: &SourceView) -> Vec<Output> {
        let refuse = |code, why: String| vec![Output::Send(failure(code, &why))];
        // The volume keeps what its standbys need; a slot adds nothing.
        let words = words.strip_prefix(&["SLOT"]).and_then(|w| w.get(1..)).unwrap_or(words);
        let words = words.strip_prefix(&["PHYSICAL"]).unwrap_or(words);
        let newest = source.identity.timeline;
        let (lsn, timeline) = match *words {
            [lsn] => (lsn.parse::<Lsn>(), Some(newest)),
            [lsn, "TIMELINE", number] => (lsn.parse::<Lsn>(), number.parse().ok().map(Timeline)),
            _ => return refuse("42601", "START_REPLICATION wants an LSN and a timeline".into()),
        };
        let (Ok(from_lsn), Some(timeline)) = (lsn, timeline) else {
            return refuse("42601", "START_REPLICATION wants an LSN and a timeline".into());
        };
        let fork = source.history.fork_of(timeline).zip(source.history.successor_of(timeline));
        if timeline != newest && fork.is_none() {
            return refuse("58P01", format!("timeline {timeline} is not in this region's history"));
        }
        let end_lsn = fork.map_or(source.identity.flush_lsn, |(fork_lsn, _)| fork_lsn);
        if from_lsn > end_lsn {
            let why = format!(
                "redo from {from_lsn} on timeline {timeline} was asked for; it ends at {end_lsn} here"
            );
            return refuse("22023", why);
        }
        if from_lsn < source.horizon_lsn {
            let why = format!(
                "redo from {from_lsn} has already been removed; the oldest kept is {}",
                source.horizon_lsn
            );
            let mut outputs = refuse("58P01", why);
            if self.counts {
                outputs.push(Output::Missing(from_lsn));
            }
            return outputs;
        }
        if let Some((fork_lsn, next)) = fork
            && from_lsn == fork_lsn
        {
            return vec![Output::Send(end_of_stream(Some((next, fork_lsn))))];
        }
        self.phase = Phase::Streaming { ended: None };
        self.sent_lsn = from_lsn;
        self.next_ask_us = now_us;
        let mut out = BytesMut::new();
        put_message(&mut out, b'W', |body| {
            body.put_u8(0);
            body.put_u16(0);
        });
        let end_lsn = fork.map(|(fork_lsn, _)| fork_lsn);
        vec![Output::Send(out.freeze()), Output::Stream { from_lsn, timeline, end_lsn }]
    }

    fn greeting(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_message(&mut out, b'R', |body| body.put_u32(0));
        let parameters = [
            ("server_version", self.server_version.as_str()),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
        ];
        for (name, value) in parameters {
            put_message(&mut out, b'S', |body| {
                put_text(body, name);
                put_text(body, value);
            });
        }
        put_message(&mut out, b'K', |body| body.put_u64(0));
        put_ready(&mut out);
        out.freeze()
    }
}

/// Serves one standby until it leaves; its progress goes to `progress`.
///
/// # Errors
/// When the connection fails, the standby breaks the protocol, or the redo cannot be read.
pub async fn serve<S, T>(
    stream: S,
    source: Arc<T>,
    server_version: &str,
    progress: watch::Sender<StandbyProgress>,
) -> Result<(), WalsenderError>
where
    S: AsyncRead + AsyncWrite + Send,
    T: RedoSource,
{
    let (mut incoming, outgoing) = wire::channel(stream, MESSAGE_BYTES_MAX);
    let session = Session::new(server_version, wall_us());
    let mut server = Server { session, source, outgoing, progress, sending: None };
    while server.session.phase == Phase::Startup {
        let packet = tokio::time::timeout(Duration::from_secs(10), incoming.startup(STARTUP_BYTES_MAX));
        let packet = packet.await.map_err(|_| WalsenderError::Silent)??;
        let outputs = server.session.startup(packet);
        if server.carry_out(outputs).await? {
            return Ok(());
        }
    }
    loop {
        let wait_us = server.session.wake_at_us().saturating_sub(wall_us()).max(0).unsigned_abs();
        let sending = server.sending.as_mut();
        let outputs = tokio::select! {
            message = incoming.next() => {
                let view = server.view();
                server.session.handle(wall_us(), message?, &view)
            }
            piece = next_piece(sending) => server.send_redo(piece.map_err(WalsenderError::Source)?).await?,
            () = tokio::time::sleep(Duration::from_micros(wait_us)) => server.session.timer(wall_us()),
        };
        if server.carry_out(outputs).await? {
            return Ok(());
        }
    }
}

/// The redo being sent.
struct Sending<C> {
    cursor: C,
    timeline: Timeline,
    end_lsn: Option<Lsn>,
}

async fn next_piece<C: RedoCursor>(sending: Option<&mut Sending<C>>) -> Result<RedoPiece, String> {
    match sending {
        Some(sending) => sending.cursor.next().await,
        None => std::future::pending().await,
    }
}

struct Server<W, T: RedoSource> {
    session: Session,
    source: Arc<T>,
    outgoing: wire::Outgoing<W>,
    progress: watch::Sender<StandbyProgress>,
    sending: Option<Sending<T::Cursor>>,
}

impl<W, T: RedoSource> Server<W, T> {
    /// The standby is not fed any more, or not yet: what it has said of itself is kept, and holds no more.
    fn forget(&self) {
        if self.session.counts {
            // Nobody who waits for progress is told.
            self.progress.send_if_modified(|progress| {
                progress.is_fed = false;
                false
            });
        }
    }
}

impl<W, T: RedoSource> Drop for Server<W, T> {
    fn drop(&mut self) {
        if self.sending.is_some() {
            self.forget();
        }
    }
}

impl<W: AsyncWrite + Unpin, T: RedoSource> Server<W, T> {
    /// Sends `piece` and whatever else is ready.
    async fn send_redo(&mut self, piece: RedoPiece) -> Result<Vec<Output>, WalsenderError> {
        let Some(sending) = &mut self.sending else { return Ok(vec![]) };
        let (mut out, mut next, mut sent_lsn) = (BytesMut::new(), Some(piece), self.session.sent_lsn);
        let mut ended = false;
        while let Some(piece) = next.take() {
            // A fork that came while this timeline was being streamed without a known end.
            if piece.timeline > sending.timeline && sending.end_lsn.is_none() {
                sending.end_lsn = Some(piece.begin_lsn);
            }
            sent_lsn = sent_lsn.max(put_redo(&mut out, &piece, sending.end_lsn, wall_us()));
            ended = sending.end_lsn.is_some_and(|end_lsn| sent_lsn >= end_lsn);
            if !ended && out.len() < WRITE_BYTES {
                next = sending.cursor.try_next().map_err(WalsenderError::Source)?;
            }
        }
        self.outgoing.write(&mut out).await?;
        self.session.sent(wall_us(), sent_lsn);
        if !ended {
            return Ok(vec![]);
        }
        let timeline = sending.timeline;
        self.sending = None;
        match self.view().history.successor_of(timeline) {
            Some(next) => Ok(vec![self.session.timeline_ended(next, sent_lsn)]),
            None => Err(WalsenderError::Source(format!(
                "timeline {timeline} ended and nothing is known to follow it"
            ))),
        }
    }

    /// Does what the session says; true when the connection is over.
    async fn carry_out(&mut self, outputs: Vec<Output>) -> Result<bool, WalsenderError> {
        for output in outputs {
            match output {
                Output::Send(bytes) => self.outgoing.write(&mut BytesMut::from(&bytes[..])).await?,
                Output::Stream { from_lsn, timeline, end_lsn } => {
                    tracing::info!(lsn = %from_lsn, "feeding a standby from {from_lsn} on timeline {timeline}");
                    self.forget();
                    let cursor = self.source.open(from_lsn).map_err(WalsenderError::Source)?;
                    self.sending = Some(Sending { cursor, timeline, end_lsn });
                }
                Output::StopStreaming => {
                    self.forget();
                    self.sending = None;
                }
                Output::Progress(progress) => {
                    self.progress.send_replace(progress);
                }
                Output::Missing(from_lsn) => self.source.missing(from_lsn),
                Output::Close(None) => return Ok(true),
                Output::Close(Some(why)) => return Err(WalsenderError::Refused(why)),
            }
        }
        Ok(false)
    }

    fn view(&self) -> SourceView {
        let identity = self.source.identity();
        let known = self.source.history(identity.timeline);
        let history =
            known.unwrap_or(TimelineHistory { timeline: identity.timeline, ..TimelineHistory::first() });
        SourceView { identity, horizon_lsn: self.source.horizon_lsn(), history }
    }
}

#[cfg(test)]
mod tests {
    use super::answers::REDO_MESSAGE_BYTES_MAX;
    use super::*;
    use proptest::prelude::*;
    use proto::SystemId;

    fn view() -> SourceView {
        let history = TimelineHistory::parse(Timeline(2), b"1\t0/500\tx\n").unwrap();
        let identity =
            SystemIdentity { system_id: SystemId(42), timeline: Timeline(2), flush_lsn: Lsn(0x900) };
        SourceView { identity, horizon_lsn: Lsn(0x100), history }
    }

    fn started() -> Session {
        let mut session = Session::new("15.0", 0);
        let mut packet = BytesMut::new();
        packet.put_u32(3 << 16);
        for text in ["user", "x", "replication", "true"] {
            put_text(&mut packet, text);
        }
        packet.put_u8(0);
        assert!(matches!(session.startup(packet.freeze())[..], [Output::Send(_)]));
        session
    }

    fn ask(session: &mut Session, query: &str) -> Vec<Output> {
        let mut body = BytesMut::new();
        put_text(&mut body, query);
        session.handle(0, Message { tag: b'Q', body: body.freeze() }, &view())
    }

    #[test]
    fn a_standby_that_needs_redo_which_is_gone_is_told_of_unless_it_is_a_rehearsal_s() {
        let missing = |outputs: &[Output]| outputs.contains(&Output::Missing(Lsn(0x50)));
        let mut session = started();
        assert!(missing(&ask(&mut session, "START_REPLICATION 0/50 TIMELINE 1")));
        assert!(!missing(&ask(&mut session, "START_REPLICATION 0/100 TIMELINE 1")));
        session.counts = false;
        assert!(!missing(&ask(&mut session, "START_REPLICATION 0/50 TIMELINE 1")));
    }

    fn said(outputs: &[Output]) -> String {
        outputs
            .iter()
            .filter_map(|o| if let Output::Send(b) = o { Some(b.escape_ascii().to_string()) } else { None })
            .collect()
    }

    #[test]
    fn answers_a_walreceivers_commands() {
        let mut session = started();
        let identity = said(&ask(&mut session, "IDENTIFY_SYSTEM"));
        assert!(identity.contains("42") && identity.contains("0/900"), "{identity}");
        assert!(said(&ask(&mut session, "TIMELINE_HISTORY 2")).contains("00000002.history"));
        let outputs = ask(&mut session, "START_REPLICATION 0/600 TIMELINE 2");
        assert_eq!(outputs[1], Output::Stream { from_lsn: Lsn(0x600), timeline: Timeline(2), end_lsn: None });
    }

    #[test]
    fn an_old_timeline_is_sent_to_its_fork_and_then_the_next_is_named() {
        let mut session = started();
        let outputs = ask(&mut session, "START_REPLICATION SLOT \"s\" 0/400 TIMELINE 1");
        let end_lsn = Some(Lsn(0x500));
        assert_eq!(outputs[1], Output::Stream { from_lsn: Lsn(0x400), timeline: Timeline(1), end_lsn });
        session.timeline_ended(Timeline(2), Lsn(0x500));
        let done = session.handle(1, Message { tag: b'c', body: Bytes::new() }, &view());
        assert_eq!(done[0], Output::StopStreaming);
        assert!(said(&done).contains("next_tli_startpos"));
        assert!(said(&ask(&mut session, "START_REPLICATION 0/500 TIMELINE 1")).contains("next_tli"));
    }

    #[test]
    fn what_is_not_there_is_refused_in_words() {
        let mut session = started();
        assert!(
            said(&ask(&mut session, "START_REPLICATION 0/50 TIMELINE 1")).contains("already been removed")
        );
        assert!(said(&ask(&mut session, "START_REPLICATION 0/901 TIMELINE 2")).contains("ends at 0/900"));
        assert!(said(&ask(&mut session, "START_REPLICATION 0/501 TIMELINE 1")).contains("ends at 0/500"));
        assert!(
            said(&ask(&mut session, "START_REPLICATION 0/600 TIMELINE 3")).contains("not in this region")
        );
        assert!(said(&ask(&mut session, "SELECT 1")).contains("physical standbys only"));
    }

    #[test]
    fn a_standby_that_is_behind_is_asked_how_far_it_is() {
        let mut session = started();
        ask(&mut session, "START_REPLICATION 0/600 TIMELINE 2");
        session.sent(1000, Lsn(0x700));
        assert!(session.wake_at_us() <= 1000 + ASK_MIN_US);
        assert!(matches!(session.timer(1000 + ASK_MIN_US)[..], [Output::Send(_)]));
        let mut reply = BytesMut::from(&b"r"[..]);
        for value in [0x700u64, 0x700, 0x700, 0] {
            reply.put_u64(value);
        }
        reply.put_u8(0);
        let progress = session.handle(5000, Message { tag: b'd', body: reply.freeze() }, &view());
        assert!(matches!(progress[..], [Output::Progress(StandbyProgress { applied_lsn: Lsn(0x700), .. })]));
        assert!(session.wake_at_us() > 1_000_000, "nothing to ask");
    }

    #[test]
    fn others_than_standbys_are_sent_away() {
        let mut session = Session::new("15.0", 0);
        let mut packet = BytesMut::new();
        packet.put_u32(3 << 16);
        packet.put_u8(0);
        let outputs = session.startup(packet.freeze());
        assert!(said(&outputs).contains("standbys only"));
        assert!(matches!(outputs[1], Output::Close(Some(_))));
    }

    proptest! {
        #[test]
        fn a_message_of_redo_ends_with_a_page_or_with_the_piece(begin in 0..3_000_000_u64, length in 1..1_500_000_usize) {
            let bytes: Bytes = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let piece = RedoPiece { begin_lsn: Lsn(begin), timeline: Timeline(1), bytes: bytes.clone() };
            let (mut out, mut at, mut redo) = (BytesMut::new(), begin, Vec::new());
            prop_assert_eq!(put_redo(&mut out, &piece, None, 0), Lsn(begin) + length as u64);
            while !out.is_empty() {
                let message = wire::take_message(&mut out, 1 << 20).unwrap().unwrap();
                let mut body = message.body.slice(1..);
                prop_assert_eq!(body.get_u64(), at);
                body.advance(16);
                at += body.len() as u64;
                prop_assert!(body.len() <= REDO_MESSAGE_BYTES_MAX && (at % 8192 == 0 || at == begin + length as u64));
                redo.extend_from_slice(&body);
            }
            prop_assert!(redo == bytes);
        }

        #[test]
        fn any_message_is_answered_or_refused(
            tags in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..20),
            packet in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = Session::new("15.0", 0).startup(packet.into());
            let mut session = started();
            for (tag, body) in tags {
                session.handle(1, Message { tag, body: body.into() }, &view());
            }
        }
    }
}
