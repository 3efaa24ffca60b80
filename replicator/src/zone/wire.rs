//! Orders, events and answers of copies as messages, and back. What comes from a peer is checked here.

use bytes::Bytes;
use proto::messages as m;
use proto::messages::{copy_event, copy_order};
use proto::{Epoch, Lsn, Timeline, TimelineHistory};
use volume::ballot::{Ballot, Ballots};
use volume::copy::{Contents, Damage, Event, Order, Put, Scrubbed, SegmentInfo, Stored};
use volume::quorum::{Adoption, CopyId, Held, Keep, Vote, Writer};
use volume::seal::KeyId;
use volume::{Durable, VolumeError};

/// The largest answer of a copy: records of one read, or the contents of a large volume.
pub const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Something that a peer sent is not what it should be.
pub type Malformed = String;

/// A ballot as a message.
#[must_use]
pub fn ballot(ballot: Ballot) -> m::Ballot {
    m::Ballot { epoch: ballot.epoch.0, opening: ballot.opening, writer: ballot.writer }
}

/// A ballot of a message.
///
/// # Errors
/// When there is none.
pub fn to_ballot(message: Option<m::Ballot>) -> Result<Ballot, Malformed> {
    let message = message.ok_or("a ballot is missing")?;
    Ok(Ballot { epoch: Epoch(message.epoch), opening: message.opening, writer: message.writer })
}

/// Who gives an order, as a message.
#[must_use]
pub fn writer(writer: Writer) -> m::CopyWriter {
    m::CopyWriter { ballot: Some(ballot(writer.ballot)), generation: writer.generation }
}

/// Who gives an order.
///
/// # Errors
/// When that is not said.
pub fn to_writer(message: Option<m::CopyWriter>) -> Result<Writer, Malformed> {
    let message = message.ok_or("an order does not say who gives it")?;
    Ok(Writer { ballot: to_ballot(message.ballot)?, generation: message.generation })
}

/// The copy of this name.
///
/// # Errors
/// When it is none.
pub fn to_copy(name: &str) -> Result<CopyId, Malformed> {
    name.parse()
}

fn ballots(ballots: &Ballots) -> Vec<m::CopyBallot> {
    let entry = |(b, lsn): &(Ballot, Lsn)| m::CopyBallot { ballot: Some(ballot(*b)), begin_lsn: lsn.0 };
    ballots.entries().iter().map(entry).collect()
}

fn to_ballots(messages: Vec<m::CopyBallot>) -> Result<Ballots, Malformed> {
    let entry = |entry: m::CopyBallot| Ok((to_ballot(entry.ballot)?, Lsn(entry.begin_lsn)));
    let entries = messages.into_iter().map(entry).collect::<Result<Vec<_>, Malformed>>()?;
    Ballots::new(entries).ok_or_else(|| "ballots that do not ascend".into())
}

fn position(at: Durable) -> m::CopyPosition {
    m::CopyPosition { lsn: at.lsn.0, timeline: at.timeline.0, epoch: at.epoch.0 }
}

fn to_position(message: Option<m::CopyPosition>) -> Result<Durable, Malformed> {
    let m::CopyPosition { lsn, timeline, epoch } = message.ok_or("a position is missing")?;
    Ok(Durable { lsn: Lsn(lsn), timeline: Timeline(timeline), epoch: Epoch(epoch) })
}

/// A segment as a message.
#[must_use]
pub fn segment(info: SegmentInfo) -> m::CopySegment {
    let SegmentInfo { begin_lsn, end_lsn, stored_bytes, newest_commit_us, key } = info;
    let key = key.map(|key| key.0);
    m::CopySegment { begin_lsn: begin_lsn.0, end_lsn: end_lsn.0, stored_bytes, newest_commit_us, key }
}

/// A segment as another process describes it.
#[must_use]
pub fn to_segment(message: m::CopySegment) -> SegmentInfo {
    let m::CopySegment { begin_lsn, end_lsn, stored_bytes, newest_commit_us, key } = message;
    let key = key.map(KeyId);
    SegmentInfo { begin_lsn: Lsn(begin_lsn), end_lsn: Lsn(end_lsn), stored_bytes, newest_commit_us, key }
}

/// A peer's segment that is put in place, as a message.
#[must_use]
pub fn put(put: Put) -> m::CopyPut {
    let Put { writer: by, segment: info, history } = put;
    m::CopyPut { by: Some(writer(by)), segment: Some(segment(info)), history: history.0 }
}

/// A peer's segment that is put in place.
///
/// # Errors
/// When it does not say which, or in whose name.
pub fn to_put(message: m::CopyPut) -> Result<Put, Malformed> {
    let segment = to_segment(message.segment.ok_or("a segment is not named")?);
    Ok(Put { writer: to_writer(message.by)?, segment, history: Timeline(message.history) })
}

fn history(history: TimelineHistory) -> m::TimelineFile {
    m::TimelineFile { timeline: history.timeline.0, content: history.content.into() }
}

fn to_history(file: &m::TimelineFile) -> Result<TimelineHistory, Malformed> {
    TimelineHistory::parse(Timeline(file.timeline), &file.content).map_err(|e| e.to_string())
}

/// An order as a message.
#[must_use]
pub fn order(order: Order) -> m::CopyOrder {
    let nothing = m::CopyNothing {};
    let by = match &order {
        Order::Append { writer, .. }
        | Order::History(writer, _)
        | Order::DropBefore(writer, _)
        | Order::DistrustNewest(writer) => Some(self::writer(*writer)),
        Order::Check(writer) => writer.map(self::writer),
        Order::Promise(_) | Order::Adopt(_) => None,
    };
    let body = match order {
        Order::Promise(b) => copy_order::Body::Promise(ballot(b)),
        Order::Adopt(adoption) => {
            let (keep_before_lsn, begin, held) = match adoption.keep {
                Keep::Before(lsn) => (Some(lsn.0), None, Held::default()),
                Keep::Nothing { begin, held } => (None, Some(position(begin)), held),
            };
            copy_order::Body::Adopt(m::CopyAdoption {
                ballot: Some(ballot(adoption.ballot)),
                generation: adoption.generation,
                ballots: ballots(&adoption.ballots),
                keep_before_lsn,
                begin,
                held_ballot: Some(ballot(held.ballot)),
                held_lsn: held.lsn.0,
            })
        }
        Order::Append { stored, hurried, .. } => copy_order::Body::Append(m::CopyAppend {
            record: stored.record,
            begins_segment: stored.begins_segment,
            hurried,
        }),
        Order::History(_, file) => copy_order::Body::History(history(file)),
        Order::DropBefore(_, lsn) => copy_order::Body::DropBefore(lsn.0),
        Order::DistrustNewest(_) => copy_order::Body::DistrustNewest(nothing),
        Order::Check(_) => copy_order::Body::Check(nothing),
    };
    m::CopyOrder { by, body: Some(body) }
}

/// The order of a message.
///
/// # Errors
/// What is wrong with it.
pub fn to_order(message: m::CopyOrder) -> Result<Order, Malformed> {
    let by = message.by;
    Ok(match message.body.ok_or("an order says nothing")? {
        copy_order::Body::Promise(b) => Order::Promise(to_ballot(Some(b))?),
        copy_order::Body::Adopt(adopt) => Order::Adopt(Adoption {
            ballot: to_ballot(adopt.ballot)?,
            generation: adopt.generation,
            ballots: to_ballots(adopt.ballots)?,
            keep: match adopt.keep_before_lsn {
                Some(lsn) => Keep::Before(Lsn(lsn)),
                None => Keep::Nothing {
                    begin: to_position(adopt.begin)?,
                    held: Held { ballot: to_ballot(adopt.held_ballot)?, lsn: Lsn(adopt.held_lsn) },
                },
            },
        }),
        copy_order::Body::Append(append) => Order::Append {
            writer: to_writer(by)?,
            stored: Stored::decode(&append.record, append.begins_segment)?,
            hurried: append.hurried,
        },
        copy_order::Body::History(file) => Order::History(to_writer(by)?, to_history(&file)?),
        copy_order::Body::DropBefore(lsn) => Order::DropBefore(to_writer(by)?, Lsn(lsn)),
        copy_order::Body::DistrustNewest(_) => Order::DistrustNewest(to_writer(by)?),
        copy_order::Body::Check(_) => Order::Check(by.map(|by| to_writer(Some(by))).transpose()?),
    })
}

/// An event as a message.
#[must_use]
pub fn event(event: Event) -> m::CopyEvent {
    let body = match event {
        Event::Promised(promised, vote) => copy_event::Body::Promised(m::CopyVote {
            ballot: Some(ballot(promised)),
            generation: vote.generation,
            ballots: ballots(&vote.ballots),
            begin: Some(position(vote.begin)),
            end: Some(position(vote.end)),
            proven_lsn: vote.proven_lsn.0,
            held_lsn: vote.held.lsn.0,
            held_ballot: Some(ballot(vote.held.ballot)),
        }),
        Event::Refused(b) => copy_event::Body::Refused(ballot(b)),
        Event::Adopted(b, generation, lsn) => {
            copy_event::Body::Adopted(m::CopyAdopted { ballot: Some(ballot(b)), generation, end_lsn: lsn.0 })
        }
        Event::Flushed(lsn) => copy_event::Body::FlushedLsn(lsn.0),
        Event::Failed(why) => copy_event::Body::Failed(why),
    };
    m::CopyEvent { body: Some(body) }
}

/// The event of a message.
///
/// # Errors
/// What is wrong with it.
pub fn to_event(message: m::CopyEvent) -> Result<Event, Malformed> {
    Ok(match message.body.ok_or("an event says nothing")? {
        copy_event::Body::Promised(vote) => Event::Promised(
            to_ballot(vote.ballot)?,
            Vote {
                generation: vote.generation,
                ballots: to_ballots(vote.ballots)?,
                begin: to_position(vote.begin)?,
                end: to_position(vote.end)?,
                proven_lsn: Lsn(vote.proven_lsn),
                held: Held { ballot: to_ballot(vote.held_ballot)?, lsn: Lsn(vote.held_lsn) },
            },
        ),
        copy_event::Body::Refused(b) => Event::Refused(to_ballot(Some(b))?),
        copy_event::Body::Adopted(m::CopyAdopted { ballot, generation, end_lsn }) => {
            Event::Adopted(to_ballot(ballot)?, generation, Lsn(end_lsn))
        }
        copy_event::Body::FlushedLsn(lsn) => Event::Flushed(Lsn(lsn)),
        copy_event::Body::Failed(why) => Event::Failed(why),
    })
}

/// An error as a message, with its kind.
#[must_use]
pub fn error(e: &VolumeError) -> m::CopyError {
    let horizon_lsn = match e {
        VolumeError::HorizonPassed { horizon_lsn, .. } => Some(horizon_lsn.0),
        _ => None,
    };
    let damaged =
        matches!(e, VolumeError::Damaged { .. } | VolumeError::Io { .. } | VolumeError::OtherWriter { .. });
    m::CopyError { what: e.to_string(), horizon_lsn, damaged }
}

/// What went wrong at `place`, where redo from `asked_lsn` was asked for.
#[must_use]
pub fn to_error(e: m::CopyError, place: &str, asked_lsn: Lsn) -> VolumeError {
    match e.horizon_lsn {
        Some(lsn) => VolumeError::HorizonPassed { asked_lsn, horizon_lsn: Lsn(lsn) },
        None if e.damaged => VolumeError::Damaged { path: place.into(), offset: 0, what: e.what },
        None => VolumeError::NoCopy { lsn: asked_lsn },
    }
}

/// What a copy has, or why not, as a message.
#[must_use]
pub fn contents(found: Result<Contents, VolumeError>) -> m::CopyContents {
    match found {
        Ok(found) => m::CopyContents {
            segments: found.segments.into_iter().map(segment).collect(),
            histories: found.histories.into_iter().map(history).collect(),
            error: None,
        },
        Err(e) => m::CopyContents { error: Some(error(&e)), ..m::CopyContents::default() },
    }
}

/// What a copy has.
///
/// # Errors
/// What is wrong with the message.
pub fn to_contents(message: &m::CopyContents) -> Result<Contents, Malformed> {
    let histories = message.histories.iter().map(to_history).collect::<Result<_, _>>()?;
    Ok(Contents { segments: message.segments.iter().copied().map(to_segment).collect(), histories })
}

/// Records, or why there are none, as a message.
#[must_use]
pub fn records(found: Result<Vec<Stored>, VolumeError>) -> m::CopyRecords {
    let record = |s: Stored| m::CopyRecord { record: s.record, begins_segment: s.begins_segment };
    match found {
        Ok(found) => m::CopyRecords { records: found.into_iter().map(record).collect(), error: None },
        Err(e) => m::CopyRecords { records: Vec::new(), error: Some(error(&e)) },
    }
}

/// Every record is checked against its checksum again: the network is not trusted either.
///
/// # Errors
/// What is wrong with one of them.
pub fn to_records(message: m::CopyRecords) -> Result<Vec<Stored>, Malformed> {
    message.records.into_iter().map(|r| Stored::decode(&r.record, r.begins_segment)).collect()
}

/// What a scrub found, as a message.
#[must_use]
pub fn scrubbed(found: Result<Scrubbed, VolumeError>) -> m::CopyScrubbed {
    let damage = |d: Damage| m::CopyDamage { begin_lsn: d.begin_lsn.0, what: d.what };
    match found {
        Ok(found) => m::CopyScrubbed {
            segments: found.segments,
            bytes: found.bytes,
            damage: found.damage.into_iter().map(damage).collect(),
            error: None,
        },
        Err(e) => m::CopyScrubbed { error: Some(error(&e)), ..m::CopyScrubbed::default() },
    }
}

/// What a scrub found.
#[must_use]
pub fn to_scrubbed(message: m::CopyScrubbed) -> Scrubbed {
    let damage = |d: m::CopyDamage| Damage { begin_lsn: Lsn(d.begin_lsn), what: d.what };
    let m::CopyScrubbed { segments, bytes, damage: found, .. } = message;
    Scrubbed { segments, bytes, damage: found.into_iter().map(damage).collect() }
}

/// Chunks of a segment, each well below the limit of a message.
pub fn chunks(bytes: &Bytes) -> impl Iterator<Item = m::CopyChunk> + '_ {
    const CHUNK_BYTES: usize = 512 * 1024;
    let count = bytes.len().div_ceil(CHUNK_BYTES).max(1);
    (0..count).map(move |index| m::CopyChunk {
        data: bytes.slice(index * CHUNK_BYTES..bytes.len().min((index + 1) * CHUNK_BYTES)),
        last: index + 1 == count,
        error: None,
    })
}
