//! `BASE_BACKUP`: a consistent copy of a running server's data directory, as one tar archive: those that
//! PostgreSQL sends of tablespaces are merged into that of the data directory.
//!
//! Source: PostgreSQL's manual, "Streaming Replication Protocol", as of 15: one copy stream whose messages
//! begin with a letter: a new archive, data, the manifest, progress.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use proto::{Lsn, Timeline};

use crate::backup::merge::Merge;
use crate::protocol::client::{ClientError, Fields, ReplicationClient, parse_row, timely};
use crate::protocol::wire::WireError;

const COMMAND: &str = "BASE_BACKUP";

/// The most rows of one result: one for each tablespace.
const ROWS_MAX: usize = 10_000;

/// A base backup under way.
#[derive(Debug)]
pub struct BaseBackup {
    client: ReplicationClient,
    /// Makes one archive of several; none where there is only one.
    merge: Option<Merge>,
    ready: VecDeque<Bytes>,
    /// Where its redo begins.
    pub start_lsn: Lsn,
    /// The timeline of its redo.
    pub timeline: Timeline,
    /// The server's estimate of the bytes to come.
    pub total_bytes: u64,
    /// The tablespaces in it that lie outside of the data directory.
    pub tablespaces: Vec<TablespaceBackup>,
}

/// A tablespace in a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceBackup {
    /// Its object id. In the archive its files are below `pg_tblspc/<oid>`.
    pub oid: u32,
    /// Where it lies on the server.
    pub path: PathBuf,
    /// The server's estimate of its bytes.
    pub bytes: u64,
}

/// What comes in a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The next bytes of the tar archive.
    Data(Bytes),
    /// The archive is complete; it is consistent once redo up to here is applied.
    End {
        /// The end of the redo it needs.
        end_lsn: Lsn,
    },
}

impl ReplicationClient {
    /// Starts a base backup, with a fast checkpoint and without redo.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn base_backup(mut self, label: &str) -> Result<BaseBackup, ClientError> {
        let label = label.replace('\'', "");
        // It does not wait for the archiver, which may hang: its redo comes from the volume.
        self.send_query(&format!(
            "{COMMAND} (LABEL '{label}', PROGRESS true, CHECKPOINT 'fast', WAL false, WAIT false, MANIFEST 'no', \
             TARGET 'client')"
        ))
        .await?;
        let begin = self.result().await?;
        let begin = Fields { command: COMMAND, row: begin.first() };
        let (start_lsn, timeline) = (begin.parse(0)?, Timeline(begin.parse(1)?));
        let rows = self.result().await?;
        // The data directory's row has no location; one of a tablespace inside of it is no absolute one.
        let several = rows.iter().any(|row| row.get(1).is_some_and(Option::is_some));
        let bytes = |row: &[Option<String>]| {
            row.get(2).and_then(|size| size.as_deref()?.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
        };
        let total_bytes = rows.iter().map(|row| bytes(row)).fold(0, u64::saturating_add);
        let tablespaces = rows.iter().filter_map(|row| {
            let oid = row.first()?.as_deref()?.parse().ok()?;
            let path = PathBuf::from(row.get(1)?.as_deref()?);
            path.is_absolute().then(|| TablespaceBackup { oid, path, bytes: bytes(row) })
        });
        let tablespaces = tablespaces.collect();
        let merge = several.then(Merge::default);
        match self.next().await?.tag {
            b'H' => Ok(BaseBackup {
                client: self,
                merge,
                ready: VecDeque::new(),
                start_lsn,
                timeline,
                total_bytes,
                tablespaces,
            }),
            tag => Err(ClientError::Unexpected { command: COMMAND, tag }),
        }
    }

    /// One result, up to its end. The first waits for a checkpoint, so there is no deadline but the
    /// connection's own.
    async fn result(&mut self) -> Result<Vec<Vec<Option<String>>>, ClientError> {
        let mut rows = Vec::new();
        loop {
            let message = self.next().await?;
            match message.tag {
                b'T' => {}
                b'D' if rows.len() < ROWS_MAX => {
                    rows.push(parse_row(message.body).ok_or(WireError::Malformed { tag: b'D' })?);
                }
                b'C' => return Ok(rows),
                tag => return Err(ClientError::Unexpected { command: COMMAND, tag }),
            }
        }
    }
}

impl BaseBackup {
    /// Waits for the next event.
    ///
    /// # Errors
    /// When the connection fails or the server gives up.
    pub async fn next(&mut self) -> Result<BackupEvent, ClientError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Ok(BackupEvent::Data(data));
            }
            let message = self.client.next().await?;
            match message.tag {
                b'd' => match parse_copy(message.body).ok_or(WireError::Malformed { tag: b'd' })? {
                    CopyPart::Data(data) => match &mut self.merge {
                        None => return Ok(BackupEvent::Data(data)),
                        Some(merge) => merge.take(data, &mut self.ready),
                    },
                    CopyPart::Archive(of) => {
                        if let Some(merge) = &mut self.merge {
                            let begun = merge.begin(of, &mut self.ready);
                            begun.map_err(|_| WireError::Malformed { tag: b'd' })?;
                        }
                    }
                    CopyPart::Other => {}
                },
                b'c' => {
                    let end = timely(COMMAND, self.client.result()).await?;
                    let end_lsn = Fields { command: COMMAND, row: end.first() }.parse(0)?;
                    return Ok(BackupEvent::End { end_lsn });
                }
                tag => return Err(ClientError::Unexpected { command: COMMAND, tag }),
            }
        }
    }
}

/// A message inside a backup's copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyPart {
    /// An archive begins: that of a tablespace, or of the data directory.
    Archive(Option<u32>),
    /// Its next bytes.
    Data(Bytes),
    /// What is passed over.
    Other,
}

/// What a message inside a backup's copy says; none when it is malformed.
#[must_use]
pub fn parse_copy(mut body: Bytes) -> Option<CopyPart> {
    match body.try_get_u8().ok()? {
        b'd' => Some(CopyPart::Data(body)),
        b'n' => {
            let name = std::str::from_utf8(body.split(|byte| *byte == 0).next()?).ok()?;
            match Path::new(name).file_stem()?.to_str()? {
                "base" => Some(CopyPart::Archive(None)),
                oid => Some(CopyPart::Archive(Some(oid.parse().ok()?))),
            }
        }
        _ => Some(CopyPart::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_begin_and_go_on_and_the_rest_is_passed_over() {
        let parsed = |body: &'static [u8]| parse_copy(Bytes::from_static(body));
        assert_eq!(parsed(b"dab"), Some(CopyPart::Data(Bytes::from_static(b"ab"))));
        assert_eq!(parsed(b"nbase.tar\0\0"), Some(CopyPart::Archive(None)));
        assert_eq!(parsed(b"n16385.tar\0/a/b\0"), Some(CopyPart::Archive(Some(16385))));
        assert_eq!((parsed(b"p"), parsed(b"m")), (Some(CopyPart::Other), Some(CopyPart::Other)));
        for malformed in [&b""[..], b"n", b"nother.tar\0\0", b"n\xff\0"] {
            assert_eq!(parse_copy(Bytes::from_static(malformed)), None, "{malformed:?}");
        }
    }
}
