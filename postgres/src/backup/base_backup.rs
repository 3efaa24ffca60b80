//! `BASE_BACKUP`: a consistent copy of a running server's data directory, as a tar archive.
//!
//! Source: PostgreSQL's manual, "Streaming Replication Protocol", as of 15: one copy stream whose messages
//! begin with a letter: a new archive, data, the manifest, progress.

use bytes::{Buf, Bytes};
use proto::{Lsn, Timeline};

use crate::protocol::client::{ClientError, Fields, ReplicationClient, parse_row, timely};
use crate::protocol::wire::WireError;

const COMMAND: &str = "BASE_BACKUP";

/// The most rows of one result: one for each tablespace.
const ROWS_MAX: usize = 10_000;

/// A base backup under way.
#[derive(Debug)]
pub struct BaseBackup {
    client: ReplicationClient,
    /// Where its redo begins.
    pub start_lsn: Lsn,
    /// The timeline of its redo.
    pub timeline: Timeline,
    /// The server's estimate of the bytes to come.
    pub total_bytes: u64,
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
    /// When the server refuses, or has tablespaces, which are not carried.
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
        let tablespaces = self.result().await?;
        // The default tablespace's row has no location.
        let own = tablespaces.iter().filter(|row| row.get(1).is_some_and(Option::is_some)).count();
        if own > 0 {
            return Err(ClientError::Tablespaces(own));
        }
        let total = tablespaces.first().and_then(|row| row.get(2)?.as_deref()?.parse::<u64>().ok());
        let total_bytes = total.unwrap_or(0).saturating_mul(1024);
        match self.next().await?.tag {
            b'H' => Ok(BaseBackup { client: self, start_lsn, timeline, total_bytes }),
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
            let message = self.client.next().await?;
            match message.tag {
                b'd' => {
                    if let Some(data) = parse_copy(message.body).ok_or(WireError::Malformed { tag: b'd' })? {
                        return Ok(BackupEvent::Data(data));
                    }
                }
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

/// A message inside a backup's copy: the archive's next bytes, or nothing for what is passed over; none when
/// it is malformed.
#[must_use]
pub fn parse_copy(mut body: Bytes) -> Option<Option<Bytes>> {
    let kind = body.try_get_u8().ok()?;
    Some((kind == b'd').then_some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_is_the_archive_s() {
        let parsed = |body: &'static [u8]| parse_copy(Bytes::from_static(body));
        assert_eq!(parsed(b"dab"), Some(Some(Bytes::from_static(b"ab"))));
        assert_eq!(
            (parsed(b"nbase.tar\0\0"), parsed(b"p"), parsed(b"m")),
            (Some(None), Some(None), Some(None))
        );
        assert_eq!(parsed(b""), None);
    }
}
