//! A rehearsal's sessions, brought to the writer's own socket.

use proto::Lsn;
use proto::messages::refusal::Kind;
use proto::messages::{Refusal, SessionReady};
use tokio::net::UnixStream;
use transport::{Stream, TransportError};

use super::Region;
use crate::endpoint::{relay, tunnel};

/// The most sessions of rehearsals at once: two rehearsals', with two for each database and one to look on.
pub(super) const SESSIONS_MAX: usize = 2 * (2 * crate::drill::moment::DATABASES_MAX + 1);

impl Region {
    /// Brings a session of an operator's rehearsal to the writer, where this region leads.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) async fn bring_rehearsal(&self, mut stream: Stream) -> Result<(), TransportError> {
        let place = self.rehearsing.try_acquire();
        let begun = match &place {
            Err(_) => Err(format!("it has {SESSIONS_MAX} sessions of rehearsals already")),
            Ok(_) if self.owner.cluster().leader().is_none() => {
                Err(format!("region {} does not lead", self.own.name))
            }
            Ok(_) => {
                let connected = UnixStream::connect(self.instance.socket()).await;
                connected.map_err(|e| format!("the writer's socket: {e}"))
            }
        };
        let writer = match begun {
            Ok(writer) => writer,
            Err(why) => {
                stream
                    .send(&SessionReady {
                        refusal: Some(Refusal::new(Kind::Busy, why)),
                        ..SessionReady::default()
                    })
                    .await?;
                stream.finish().await;
                return Ok(());
            }
        };
        let (mut sender, mut receiver) = tunnel::begin(stream, Lsn::ZERO).await?;
        let (from, to) = writer.into_split();
        // However it ends, both ends know what that means.
        let _ = tokio::try_join!(relay::up(from, &mut sender), relay::down(&mut receiver, to));
        Ok(())
    }
}
