//! The physical replication client: how a region reads its writer's redo.
//!
//! Source: PostgreSQL's manual, "Streaming Replication Protocol". No released crate speaks the physical
//! protocol with both directions of copy mode and the result that follows the end of a timeline; so this one
//! does, and nothing more.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::timeline::TimelineError;
use proto::{Lsn, SystemId, Timeline, TimelineHistory};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use crate::major::Major;
use crate::protocol::logins::Logins;
use crate::protocol::wire::{self, Incoming, Message, Outgoing, WireError, put_message, put_text, take_text};

/// The largest message taken from a server. A walsender sends at most 128 KiB of redo in one; a base backup,
/// less.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The most rows of one result: those of the commands asked here have a few, and one for each tablespace.
const ROWS_MAX: usize = 10_000;

/// A server that does not answer a command within this is taken for lost. Not for copy mode, which may be
/// silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How to reach a server: by its local socket, which says who we are without a password.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The directory of the socket.
    pub socket_dir: PathBuf,
    /// The port in the socket's name.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// The name that `synchronous_standby_names` and `pg_stat_replication` know the connection by.
    pub application_name: String,
    /// The server's major version.
    pub major: Major,
    /// The logins to it that are not answered.
    pub logins: Logins,
}

/// Why a command to the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be connected to.
    #[error("cannot connect to PostgreSQL at {path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The connection failed or carried something else than the protocol.
    #[error("connection to PostgreSQL: {0}")]
    Wire(#[from] WireError),
    /// The server refused.
    #[error("{0}")]
    Server(ServerError),
    /// The server asks for a password, which the local socket should not.
    #[error(
        "PostgreSQL asks for authentication method {0} on its local socket; pg_hba.conf must let this user in by 'peer'"
    )]
    Authentication(u32),
    /// The server sent something that does not belong here.
    #[error("PostgreSQL answered {command} with an unexpected '{}' message", tag.escape_ascii())]
    Unexpected {
        /// What was asked.
        command: &'static str,
        /// The message's tag.
        tag: u8,
    },
    /// The server's answer lacks a field or has one that is not what it should be.
    #[error("PostgreSQL's answer to {command} is not understood: {what}")]
    Answer {
        /// What was asked.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The server did not answer.
    #[error("PostgreSQL did not answer {0} within 30 s")]
    Timeout(&'static str),
    /// A history file that cannot be used.
    #[error("timeline history from PostgreSQL: {0}")]
    History(#[from] TimelineError),
}

/// An error or notice as the server words it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL` …
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// What happened.
    pub message: String,
    /// More about it; often empty.
    pub detail: String,
    /// What to do; often empty.
    pub hint: String,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgreSQL says {} {}: {}", self.severity, self.code, self.message)?;
        for more in [&self.detail, &self.hint] {
            if !more.is_empty() {
                write!(f, " ({more})")?;
            }
        }
        Ok(())
    }
}

impl ServerError {
    /// The body of an error or a notice; what is not understood of it is left out.
    #[must_use]
    pub fn parse(mut body: Bytes) -> ServerError {
        let mut error = ServerError::default();
        while body.first().is_some_and(|field| *field != 0) {
            let field = body.get_u8();
            let Some(text) = take_text(&mut body) else { break };
            match field {
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
        }
        error
    }
}

/// Who a server is and how far its redo goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The PostgreSQL system.
    pub system_id: SystemId,
    /// Its newest timeline.
    pub timeline: Timeline,
    /// The end of its durable redo.
    pub flush_lsn: Lsn,
}

/// A connection in command mode.
#[derive(Debug)]
pub struct ReplicationClient {
    incoming: Incoming<ReadHalf<UnixStream>>,
    outgoing: Outgoing<WriteHalf<UnixStream>>,
}

/// A row of a result, each field as text or NULL.
pub type Row = Vec<Option<String>>;

impl ReplicationClient {
    /// Connects for physical replication.
    ///
    /// # Errors
    /// When the server cannot be reached or does not let us in.
    pub async fn connect(options: &ConnectOptions) -> Result<ReplicationClient, ClientError> {
        timely("the connection", Self::connect_slowly(options)).await
    }

    async fn connect_slowly(options: &ConnectOptions) -> Result<ReplicationClient, ClientError> {
        let (user, name) = (options.user.as_str(), options.application_name.as_str());
        Self::log_in(options, &[("user", user), ("replication", "true"), ("application_name", name)]).await
    }

    /// Connects with these parameters of the protocol's first message. It has no deadline.
    pub(super) async fn log_in(
        options: &ConnectOptions,
        parameters: &[(&str, &str)],
    ) -> Result<ReplicationClient, ClientError> {
        let to_database = parameters.iter().any(|(name, _)| *name == "database");
        let mut login = options.logins.begin(to_database).await;
        let path = crate::sockets::socket_path(&options.socket_dir, options.port);
        let failed = |source| ClientError::Connect { path: path.display().to_string(), source };
        let socket = UnixStream::connect(&path).await.map_err(failed)?;
        login.asks(socket.as_fd()).map_err(failed)?;
        let answer = Self::introduce(socket, parameters).await;
        login.end();
        answer
    }

    async fn introduce(
        socket: UnixStream,
        parameters: &[(&str, &str)],
    ) -> Result<ReplicationClient, ClientError> {
        let (incoming, outgoing) = wire::channel(socket, MESSAGE_BYTES_MAX);
        let mut client = ReplicationClient { incoming, outgoing };
        let mut packet = BytesMut::new();
        packet.put_u32(0);
        packet.put_u32(3 << 16);
        for (name, value) in parameters {
            put_text(&mut packet, name);
            put_text(&mut packet, value);
        }
        packet.put_u8(0);
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        packet[..4].copy_from_slice(&length.to_be_bytes());
        client.outgoing.write(&mut packet).await?;
        loop {
            let mut message = client.next().await?;
            match message.tag {
                b'R' => match message.body.try_get_u32() {
                    Ok(0) => {}
                    Ok(method) => return Err(ClientError::Authentication(method)),
                    Err(_) => return Err(WireError::Malformed { tag: b'R' }.into()),
                },
                b'K' => {}
                b'Z' => return Ok(client),
                tag => return Err(ClientError::Unexpected { command: "the connection", tag }),
            }
        }
    }

    /// Asks who the server is.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ClientError> {
        const COMMAND: &str = "IDENTIFY_SYSTEM";
        let rows = self.query(COMMAND, COMMAND).await?;
        let row = Fields { command: COMMAND, row: rows.first() };
        Ok(SystemIdentity {
            system_id: SystemId(row.parse(0)?),
            timeline: Timeline(row.parse(1)?),
            flush_lsn: row.parse(2)?,
        })
    }

    /// Asks for a timeline's history.
    ///
    /// # Errors
    /// When the server has none, or it is malformed.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<TimelineHistory, ClientError> {
        const COMMAND: &str = "TIMELINE_HISTORY";
        let rows = self.query(COMMAND, &format!("{COMMAND} {timeline}")).await?;
        let content: String = Fields { command: COMMAND, row: rows.first() }.parse(1)?;
        Ok(TimelineHistory::parse(timeline, content.as_bytes())?)
    }

    /// Asks for a setting, in PostgreSQL's words: `16MB`.
    ///
    /// # Errors
    /// When there is no such setting.
    pub async fn show(&mut self, name: &str) -> Result<String, ClientError> {
        let rows = self.query("SHOW", &format!("SHOW {name}")).await?;
        Fields { command: "SHOW", row: rows.first() }.parse(0)
    }

    /// Where a slot's kept redo begins, or `None` when there is no such slot.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub async fn read_slot(&mut self, slot: &str) -> Result<Option<Lsn>, ClientError> {
        const COMMAND: &str = "READ_REPLICATION_SLOT";
        let rows = self.query(COMMAND, &format!("{COMMAND} {slot}")).await?;
        let row = Fields { command: COMMAND, row: rows.first() };
        match row.optional(0) {
            Some(_) => Ok(Some(row.parse(1)?)),
            None => Ok(None),
        }
    }

    /// Makes a permanent slot that keeps redo from now on.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create_physical_slot(&mut self, slot: &str) -> Result<(), ClientError> {
        const COMMAND: &str = "CREATE_REPLICATION_SLOT";
        self.query(COMMAND, &format!("{COMMAND} {slot} PHYSICAL RESERVE_WAL")).await.map(drop)
    }

    /// Starts streaming redo of `timeline` from `from_lsn`, or says that the timeline has ended there.
    ///
    /// # Errors
    /// When the server has no such redo any more, or refuses otherwise.
    pub async fn start_replication(
        mut self,
        slot: &str,
        from_lsn: Lsn,
        timeline: Timeline,
    ) -> Result<Started, ClientError> {
        const COMMAND: &str = "START_REPLICATION";
        self.send_query(&format!("{COMMAND} SLOT {slot} PHYSICAL {from_lsn} TIMELINE {timeline}")).await?;
        timely(COMMAND, async move {
            match self.next().await? {
                Message { tag: b'W', .. } => Ok(Started::Streaming(ReplicationStream {
                    incoming: self.incoming,
                    reporter: StreamReporter { outgoing: self.outgoing },
                })),
                // Nothing of this timeline is left to stream.
                Message { tag: b'T', .. } => {
                    let (next, begin_lsn) = self.next_timeline(false).await?;
                    Ok(Started::TimelineEnded { next, begin_lsn, client: self })
                }
                Message { tag, .. } => Err(ClientError::Unexpected { command: COMMAND, tag }),
            }
        })
        .await
    }

    /// Reads the result that says which timeline comes next.
    async fn next_timeline(&mut self, described: bool) -> Result<(Timeline, Lsn), ClientError> {
        const COMMAND: &str = "START_REPLICATION";
        let rows = self.rows(COMMAND, described).await?;
        let row = Fields { command: COMMAND, row: rows.first() };
        Ok((Timeline(row.parse(0)?), row.parse(1)?))
    }

    pub(crate) async fn send_query(&mut self, query: &str) -> Result<(), ClientError> {
        let mut out = BytesMut::new();
        put_message(&mut out, b'Q', |body| put_text(body, query));
        Ok(self.outgoing.write(&mut out).await?)
    }

    async fn query(&mut self, command: &'static str, query: &str) -> Result<Vec<Row>, ClientError> {
        self.send_query(query).await?;
        timely(command, self.rows(command, true)).await
    }

    /// Reads results up to where the server is ready for the next command.
    pub(super) async fn rows(
        &mut self,
        command: &'static str,
        mut described: bool,
    ) -> Result<Vec<Row>, ClientError> {
        // What START_REPLICATION leaves is the rest of a copy before its result.
        described = !described;
        let mut rows = Vec::new();
        loop {
            let message = self.next().await?;
            match message.tag {
                b'T' if !described => described = true,
                b'D' if rows.len() < ROWS_MAX => {
                    rows.push(parse_row(message.body).ok_or(WireError::Malformed { tag: b'D' })?);
                }
                b'T' | b'C' | b'I' | b'c' | b'd' => {}
                b'Z' => return Ok(rows),
                tag => return Err(ClientError::Unexpected { command, tag }),
            }
        }
    }

    /// The next message that is neither a notice nor a parameter; an error of the server is returned as one.
    pub(crate) async fn next(&mut self) -> Result<Message, ClientError> {
        loop {
            let message = self.incoming.next().await?;
            if let Some(message) = sift(message)? {
                return Ok(message);
            }
        }
    }
}

/// Drops parameters and notices, and turns the server's errors into ours.
fn sift(message: Message) -> Result<Option<Message>, ClientError> {
    match message.tag {
        b'E' => Err(ClientError::Server(ServerError::parse(message.body))),
        b'N' => {
            tracing::debug!("{}", ServerError::parse(message.body));
            Ok(None)
        }
        b'S' => Ok(None),
        _ => Ok(Some(message)),
    }
}

pub(crate) async fn timely<T>(
    command: &'static str,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(ClientError::Timeout(command)))
}

/// The fields of a `DataRow`; none when it is malformed.
#[must_use]
pub fn parse_row(mut body: Bytes) -> Option<Row> {
    let count = body.try_get_u16().ok()?;
    (0..count)
        .map(|_| {
            let length = body.try_get_i32().ok()?;
            match usize::try_from(length) {
                Ok(length) if length <= body.len() => {
                    Some(Some(String::from_utf8_lossy(&body.split_to(length)).into_owned()))
                }
                Ok(_) => None,
                Err(_) => Some(None),
            }
        })
        .collect()
}

/// Access to a row's fields with errors that say whose answer it was.
pub(crate) struct Fields<'a> {
    pub(crate) command: &'static str,
    pub(crate) row: Option<&'a Row>,
}

impl Fields<'_> {
    pub(crate) fn optional(&self, index: usize) -> Option<&str> {
        self.row?.get(index)?.as_deref()
    }

    pub(crate) fn parse<T: std::str::FromStr>(&self, index: usize) -> Result<T, ClientError> {
        let field = self.optional(index);
        let what = || match field {
            Some(text) => format!("field {index} is '{}'", text.chars().take(40).collect::<String>()),
            None => format!("field {index} is missing"),
        };
        let parsed = field.and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| ClientError::Answer { command: self.command, what: what() })
    }
}

/// What a server answers to `START_REPLICATION`.
#[derive(Debug)]
pub enum Started {
    /// Redo will come.
    Streaming(ReplicationStream),
    /// The timeline ended where it was to begin; the server's history goes on with another.
    TimelineEnded {
        /// The next timeline.
        next: Timeline,
        /// Where it begins.
        begin_lsn: Lsn,
        /// The connection, in command mode again.
        client: ReplicationClient,
    },
}

/// What comes on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Redo.
    Redo {
        /// Where it begins.
        begin_lsn: Lsn,
        /// The redo.
        bytes: Bytes,
        /// The server's clock when it sent it, microseconds since 1970.
        sent_at_us: i64,
    },
    /// A sign of life.
    Keepalive {
        /// The end of the server's durable redo.
        end_lsn: Lsn,
        /// Whether an answer is asked for at once.
        reply_requested: bool,
    },
    /// The timeline has ended; all its redo has come.
    TimelineEnded,
}

/// How far we have come, for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StandbyStatus {
    /// The end of the redo received.
    pub written_lsn: Lsn,
    /// The end of the redo that is durable: what a synchronous commit waits for.
    pub flushed_lsn: Lsn,
    /// The end of the redo applied.
    pub applied_lsn: Lsn,
}

/// A connection in copy mode: redo in, positions out.
#[derive(Debug)]
pub struct ReplicationStream {
    incoming: Incoming<ReadHalf<UnixStream>>,
    reporter: StreamReporter,
}

/// The half that reports positions.
#[derive(Debug)]
pub struct StreamReporter {
    outgoing: Outgoing<WriteHalf<UnixStream>>,
}

impl ReplicationStream {
    /// Waits for the next event. Cancel safe.
    ///
    /// # Errors
    /// When the connection fails or the server ends it.
    pub async fn next(&mut self) -> Result<StreamEvent, ClientError> {
        loop {
            let message = self.incoming.next().await?;
            if let Some(event) = self.event(message)? {
                return Ok(event);
            }
        }
    }

    /// The next event if it is here already; never waits.
    ///
    /// # Errors
    /// As [`ReplicationStream::next`].
    pub fn try_next(&mut self) -> Result<Option<StreamEvent>, ClientError> {
        while let Some(message) = self.incoming.poll_now()? {
            if let Some(event) = self.event(message)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Reports how far we have come. `now_us` is microseconds since 1970.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn report(&mut self, status: StandbyStatus, now_us: i64) -> Result<(), ClientError> {
        self.reporter.report(status, now_us).await
    }

    /// Has the server keep what its catalogs had when transaction `xid` began, counted through all epochs, in
    /// the name of this stream's slot; nothing when it is 0. As a standby's `hot_standby_feedback` does.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn hold_catalogs(&mut self, xid: u64, now_us: i64) -> Result<(), ClientError> {
        let mut out = BytesMut::new();
        put_message(&mut out, b'd', |body| {
            body.put_u8(b'h');
            body.put_i64(wire::to_postgres_us(now_us));
            // No xmin but that of the catalogs; its epoch is the upper half.
            body.put_u64(0);
            body.put_u32(u32::try_from(xid & u64::from(u32::MAX)).unwrap_or(0));
            body.put_u32(u32::try_from(xid >> 32).unwrap_or(0));
        });
        Ok(self.reporter.outgoing.write(&mut out).await?)
    }

    /// Leaves copy mode after [`StreamEvent::TimelineEnded`]: the connection in command mode, the next
    /// timeline, and where it begins.
    ///
    /// # Errors
    /// When the server does not say what comes next.
    pub async fn finish(self) -> Result<(ReplicationClient, Timeline, Lsn), ClientError> {
        let ReplicationStream { incoming, reporter: StreamReporter { outgoing } } = self;
        let mut client = ReplicationClient { incoming, outgoing };
        let mut done = BytesMut::new();
        put_message(&mut done, b'c', |_| ());
        client.outgoing.write(&mut done).await?;
        let (next, begin_lsn) = timely("the end of a timeline", client.next_timeline(true)).await?;
        Ok((client, next, begin_lsn))
    }

    fn event(&mut self, message: Message) -> Result<Option<StreamEvent>, ClientError> {
        let Some(message) = sift(message)? else { return Ok(None) };
        match message.tag {
            b'd' => parse_copy(message.body).map(Some).ok_or(WireError::Malformed { tag: b'd' }.into()),
            b'c' => Ok(Some(StreamEvent::TimelineEnded)),
            // A server that shuts down ends the command without ending the copy.
            b'C' => Err(WireError::Closed.into()),
            tag => Err(ClientError::Unexpected { command: "START_REPLICATION", tag }),
        }
    }
}

impl StreamReporter {
    async fn report(&mut self, status: StandbyStatus, now_us: i64) -> Result<(), ClientError> {
        let mut out = BytesMut::new();
        put_message(&mut out, b'd', |body| {
            body.put_u8(b'r');
            body.put_u64(status.written_lsn.0);
            body.put_u64(status.flushed_lsn.0);
            body.put_u64(status.applied_lsn.0);
            body.put_i64(wire::to_postgres_us(now_us));
            body.put_u8(0);
        });
        Ok(self.outgoing.write(&mut out).await?)
    }
}

/// A message inside copy mode; none when it is malformed.
#[must_use]
pub fn parse_copy(mut body: Bytes) -> Option<StreamEvent> {
    match body.try_get_u8().ok()? {
        b'w' => {
            let begin_lsn = Lsn(body.try_get_u64().ok()?);
            let _wal_end = body.try_get_u64().ok()?;
            let sent_at_us = wire::from_postgres_us(body.try_get_i64().ok()?);
            begin_lsn.checked_add(body.len() as u64)?;
            Some(StreamEvent::Redo { begin_lsn, bytes: body, sent_at_us })
        }
        b'k' => {
            let end_lsn = Lsn(body.try_get_u64().ok()?);
            let _sent = body.try_get_i64().ok()?;
            Some(StreamEvent::Keepalive { end_lsn, reply_requested: body.try_get_u8().ok()? != 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_carry_the_servers_words() {
        let error = ServerError::parse(Bytes::from_static(b"SERROR\0VERROR\0C58P01\0Mgone\0Hreseed\0\0"));
        assert_eq!(error.to_string(), "PostgreSQL says ERROR 58P01: gone (reseed)");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = (parse_copy(bytes.clone()), parse_row(bytes.clone()), ServerError::parse(bytes));
        }
    }
}
