//! Has a secondary rewind: lends its pg_rewind a connection to the writer, over QUIC.
//!
//! A region that led before, or has other redo that was cut off, has nearly all of the data: pg_rewind there
//! finds in its redo which pages it changed alone, and reads those here. The region could as well be sent
//! everything: it is trusted with no more than that.

use std::io::Write;

use bytes::Bytes;
use postgres::backup::rewind::Listing;
use proto::Lsn;
use proto::messages::{MAX_STREAM_MESSAGE_BYTES, Rewind, RewindOpen, RewindVolume, Tablespace, open, rewind};
use runtime::task::blocking;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use transport::{Receiver, Sender, TransportError};

use super::Shipping;
use super::bring::{BringError, may_be_sent};
use super::machine::Input;
use crate::archive::COMPRESSION_LEVEL;

/// How much of the writer's answers is sent at once.
const PIECE_BYTES: usize = 256 * 1024;

impl Shipping {
    /// Has the region rewind its data; says what came of it.
    pub(super) async fn rewind(&mut self) -> Input {
        self.keep_redo();
        let rewound = self.lend_writer().await;
        self.in_place(rewound)
    }

    async fn lend_writer(&self) -> Result<(), BringError> {
        let writer = self.options.writer.clone();
        let looking = writer.clone();
        let looked = blocking("look at the writer's tablespaces", move || looking.tablespaces_in_use()).await;
        let (places, mut known) = looked.map_err(std::io::Error::other)??;
        known.extend(places.iter().map(|place| place.oid));
        let tablespaces =
            places.iter().map(|place| Tablespace { oid: place.oid, path: writer.told(place), bytes: 0 });
        let tablespaces = may_be_sent(tablespaces.collect())?;
        // PostgreSQL's control file names the writer's timeline only after a checkpoint.
        writer.checkpoint().await.map_err(|e| BringError::Useless(format!("CHECKPOINT: {e}")))?;
        let volume = &self.options.volume;
        let timeline = volume.bounds().timeline;
        let open = RewindOpen {
            system_id: self.options.system_id.0,
            epoch: self.options.epoch.0,
            timeline: timeline.0,
            history: volume.history(timeline).map(|h| h.content.into()).unwrap_or_default(),
            superuser_password: self.options.superuser_password()?,
            tablespaces,
        };
        let connection = self.connect().await?;
        let stream = connection.open_stream(&self.open(open::Purpose::Rewind(open))).await?;
        let (mut sender, mut receiver) = stream.split();
        let rewound_lsn = self.relay(&mut sender, &mut receiver, Listing::new(known)).await?;
        let (begin_lsn, timeline) = self.volume_begin(rewound_lsn).await?;
        if begin_lsn > rewound_lsn {
            let why = format!(
                "the rewound data need redo from {rewound_lsn} on, and it is kept from {begin_lsn} on"
            );
            return Err(BringError::Useless(why));
        }
        volume.set_need(self.target.name.as_str(), Some(begin_lsn));
        let begin = RewindVolume { begin_lsn: begin_lsn.0, timeline: timeline.0 };
        sender.send(&Rewind { body: Some(rewind::Body::Volume(begin)) }).await?;
        match next(&mut receiver).await? {
            None => {
                connection.close("the data are in place");
                Ok(())
            }
            Some(_) => Err(BringError::Useless("the region went on after its data were in place".into())),
        }
    }

    /// Carries what the region's pg_rewind asks to the writer, and the answers back; returns where the
    /// rewound data need redo from.
    async fn relay(
        &self,
        sender: &mut Sender,
        receiver: &mut Receiver,
        mut listing: Listing,
    ) -> Result<Lsn, BringError> {
        let mut writer: Option<UnixStream> = None;
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
        let mut answer = vec![0; PIECE_BYTES];
        let mut passed = Vec::with_capacity(PIECE_BYTES);
        loop {
            let answered = async {
                match &mut writer {
                    Some(writer) => writer.read(&mut answer).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                asked = next(receiver) => match asked? {
                    Some(rewind::Body::Data(asked)) => {
                        if writer.is_none() {
                            writer = Some(UnixStream::connect(self.options.writer.socket()).await?);
                        }
                        if let Some(writer) = &mut writer {
                            writer.write_all(&asked).await?;
                        }
                    }
                    Some(rewind::Body::RewoundLsn(lsn)) => return Ok(Lsn(lsn)),
                    Some(_) => {}
                    None => return Err(TransportError::Finished.into()),
                },
                answered = answered => match answered? {
                    // It has ended the connection; what that means over there, the region says.
                    0 => writer = None,
                    length => {
                        listing.pass(&answer[..length], &mut passed);
                        encoder.write_all(&passed)?;
                        passed.clear();
                        encoder.flush()?;
                        let data = Bytes::from(std::mem::take(encoder.get_mut()));
                        self.pace(data.len()).await;
                        sender.send(&Rewind { body: Some(rewind::Body::Data(data)) }).await?;
                    }
                },
            }
        }
    }
}

/// The region's next message; none when it has finished.
async fn next(receiver: &mut Receiver) -> Result<Option<rewind::Body>, BringError> {
    loop {
        match receiver.receive::<Rewind>(MAX_STREAM_MESSAGE_BYTES).await? {
            None => return Ok(None),
            Some(Rewind { body: Some(rewind::Body::Refusal(refusal)) }) => {
                return Err(BringError::Refused(refusal));
            }
            Some(Rewind { body: Some(body) }) => return Ok(Some(body)),
            // A newer version's message: nothing this one waits for.
            Some(Rewind { body: None }) => {}
        }
    }
}
