//! What a walsender answers, as bytes.

use bytes::{BufMut, Bytes, BytesMut};
use proto::{Lsn, Timeline};

use super::RedoPiece;
use crate::protocol::wire::{self, error_response, put_message, put_text};

/// The most redo in one message to a standby, as in PostgreSQL.
pub(super) const REDO_MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// PostgreSQL can be built with pages of redo of up to this many bytes; every smaller size divides it.
const PAGE_BYTES_MAX: u64 = 64 * 1024;

/// Object ids of PostgreSQL's types in results.
pub(super) const TEXT: u32 = 25;
pub(super) const INT8: u32 = 20;

pub(super) fn put_ready(out: &mut BytesMut) {
    put_message(out, b'Z', |body| body.put_u8(b'I'));
}

pub(super) fn put_row(out: &mut BytesMut, columns: &[(&str, u32)], fields: &[Option<&str>]) {
    let count = |n: usize| u16::try_from(n).unwrap_or(0);
    put_message(out, b'T', |body| {
        body.put_u16(count(columns.len()));
        for (name, type_id) in columns {
            put_text(body, name);
            body.put_u32(0);
            body.put_u16(0);
            body.put_u32(*type_id);
            body.put_i16(if *type_id == INT8 { 8 } else { -1 });
            body.put_i32(-1);
            body.put_u16(0);
        }
    });
    put_message(out, b'D', |body| {
        body.put_u16(count(fields.len()));
        for field in fields {
            match field {
                Some(text) => {
                    body.put_u32(u32::try_from(text.len()).unwrap_or(0));
                    body.put_slice(text.as_bytes());
                }
                None => body.put_i32(-1),
            }
        }
    });
}

pub(super) fn result(tag: &str, columns: &[(&str, u32)], fields: &[Option<&str>]) -> Bytes {
    let mut out = BytesMut::new();
    put_row(&mut out, columns, fields);
    put_message(&mut out, b'C', |body| put_text(body, tag));
    put_ready(&mut out);
    out.freeze()
}

/// What follows a stream: the next timeline and where it begins, if there is one.
pub(super) fn end_of_stream(next: Option<(Timeline, Lsn)>) -> Bytes {
    let mut out = BytesMut::new();
    if let Some((next, begin_lsn)) = next {
        let (next, begin) = (next.to_string(), begin_lsn.to_string());
        put_row(&mut out, &[("next_tli", INT8), ("next_tli_startpos", TEXT)], &[Some(&next), Some(&begin)]);
    }
    put_message(&mut out, b'C', |body| put_text(body, "START_STREAMING"));
    put_ready(&mut out);
    out.freeze()
}

pub(super) fn failure(code: &str, message: &str) -> Bytes {
    let mut out = BytesMut::from(&error_response("ERROR", code, message)[..]);
    put_ready(&mut out);
    out.freeze()
}

pub(super) fn keepalive(end_lsn: Lsn, now_us: i64) -> Bytes {
    keepalive_message(end_lsn, now_us, 1)
}

pub(super) fn keepalive_quietly(end_lsn: Lsn, now_us: i64) -> Bytes {
    keepalive_message(end_lsn, now_us, 0)
}

fn keepalive_message(end_lsn: Lsn, now_us: i64, reply: u8) -> Bytes {
    let mut out = BytesMut::new();
    put_message(&mut out, b'd', |body| {
        body.put_u8(b'k');
        body.put_u64(end_lsn.0);
        body.put_i64(wire::to_postgres_us(now_us));
        body.put_u8(reply);
    });
    out.freeze()
}

/// Appends `piece`, up to `end_lsn` where the timeline ends; returns the end of what was appended.
///
/// A message ends where a page does, or the piece: a standby may read what it has flushed after any message,
/// and takes the rest of a record's first page for there once the record's header is (`XLogDecodeNextRecord`
/// in PostgreSQL's `xlogreader.c`).
pub(super) fn put_redo(out: &mut BytesMut, piece: &RedoPiece, end_lsn: Option<Lsn>, now_us: i64) -> Lsn {
    let room = end_lsn.map_or(u64::MAX, |end_lsn| end_lsn.bytes_since(piece.begin_lsn));
    let length = piece.bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
    let piece_end_lsn = piece.begin_lsn + length as u64;
    let mut at_lsn = piece.begin_lsn;
    let mut rest = &piece.bytes[..length];
    while !rest.is_empty() {
        let full_lsn = at_lsn + REDO_MESSAGE_BYTES_MAX as u64;
        let page_lsn = Lsn(full_lsn.0 - full_lsn.0 % PAGE_BYTES_MAX);
        let fits = usize::try_from(page_lsn.bytes_since(at_lsn)).unwrap_or(usize::MAX);
        let (chunk, later) = rest.split_at(fits.min(rest.len()));
        put_message(out, b'd', |body| {
            body.put_u8(b'w');
            body.put_u64(at_lsn.0);
            body.put_u64(piece_end_lsn.0);
            body.put_i64(wire::to_postgres_us(now_us));
            body.put_slice(chunk);
        });
        (at_lsn, rest) = (at_lsn + chunk.len() as u64, later);
    }
    at_lsn
}
