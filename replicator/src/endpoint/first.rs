//! What a client says first: whether it wants encryption, and in the name of the server that it asks for, the
//! position that what it reads has to show at least.
//!
//! A session is between the client and PostgreSQL, and the endpoint reads nothing of it. The name of the
//! server stands before it, in the clear, as TLS has it: `0-16b3748.after.replicator` asks for a PostgreSQL
//! that has applied all redo up to 0/16B3748.

use std::io;
use std::time::Duration;

use proto::Lsn;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_rustls::rustls::server::Acceptor;

/// How long a client may take to say its first words; PostgreSQL gives it as long by default.
pub(super) const FIRST_WORDS: Duration = Duration::from_secs(60);

/// By this a client asks for TLS: the length of the message, and the code.
pub(super) const ASKS_FOR_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// By this for GSSAPI's encryption.
const ASKS_FOR_GSSAPI: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// What answers that it can have TLS, and that it cannot have what it has asked for.
pub(super) const ENCRYPTED: u8 = b'S';
pub(super) const REFUSED: u8 = b'N';

/// The first byte of a client that does not ask, and begins with TLS at once: that of a handshake's record.
pub(super) const HANDSHAKE: u8 = 22;

/// The most of a handshake that is read before PostgreSQL reads it, bytes: a record's limit, and some.
const HELLO_BYTES_MAX: usize = 20 << 10;

/// The second part of the name of a server that shows a position at least.
const AFTER: &str = "after";

/// The domain of servers that are asked for by a position. PostgreSQL's certificates have it.
pub const AFTER_DOMAIN: &str = "after.replicator";

/// The name of a server that shows at least `lsn`.
#[must_use]
pub fn name_after(lsn: Lsn) -> String {
    format!("{}.{AFTER_DOMAIN}", lsn.to_string().replace('/', "-").to_ascii_lowercase())
}

/// The position that a server of this name shows at least; none where the name does not ask for one.
///
/// # Errors
/// Where it asks for one that cannot be read.
pub(super) fn position_in(name: &str) -> Result<Option<Lsn>, String> {
    let mut parts = name.split('.');
    let (Some(position), Some(AFTER)) = (parts.next(), parts.next()) else { return Ok(None) };
    match position.replacen('-', "/", 1).parse() {
        Ok(lsn) => Ok(Some(lsn)),
        Err(_) => Err(format!(
            "the name {name} asks for a position, and '{position}' is none: 0/16B3748 is written 0-16b3748"
        )),
    }
}

/// How a client begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// It asks for TLS, and waits for the answer.
    AsksForTls,
    /// It asks for GSSAPI's encryption, and waits for the answer.
    AsksForGssapi,
    /// With a handshake of TLS.
    WithTls,
    /// With what is for PostgreSQL alone.
    Otherwise,
}

impl Begins {
    /// Whether it says nothing more before it has an answer.
    pub(super) fn waits_for_answer(self) -> bool {
        matches!(self, Begins::AsksForTls | Begins::AsksForGssapi)
    }
}

/// Reads how a client begins, and keeps what it has `said`.
///
/// # Errors
/// When it has gone.
pub(super) async fn begins(client: &mut (impl AsyncRead + Unpin), said: &mut Vec<u8>) -> io::Result<Begins> {
    while said.len() < ASKS_FOR_TLS.len() && said.first() != Some(&HANDSHAKE) {
        more(client, said).await?;
    }
    Ok(match said.first() {
        Some(&HANDSHAKE) => Begins::WithTls,
        // Whoever says more at once has not waited for the answer: PostgreSQL says what it thinks of that.
        _ if *said == ASKS_FOR_TLS => Begins::AsksForTls,
        _ if *said == ASKS_FOR_GSSAPI => Begins::AsksForGssapi,
        _ => Begins::Otherwise,
    })
}

/// Reads the first message of a client's handshake, of which it may have `said` something already, and
/// returns the name of the server that it asks for. A handshake that is none is PostgreSQL's to answer.
///
/// # Errors
/// When it has gone.
pub(super) async fn server_name(
    client: &mut (impl AsyncRead + Unpin),
    said: &mut Vec<u8>,
) -> io::Result<Option<String>> {
    let (mut acceptor, mut read) = (Acceptor::default(), 0);
    loop {
        let mut unread = said.get(read..).unwrap_or_default();
        while !unread.is_empty() {
            read += acceptor.read_tls(&mut unread)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted.client_hello().server_name().map(str::to_owned)),
            Ok(None) if said.len() < HELLO_BYTES_MAX => more(client, said).await?,
            Ok(None) | Err(_) if names_after(said) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a position that cannot be read"));
            }
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

/// Whether a handshake that cannot be read may name a position all the same: then nothing is better than what
/// is too old.
fn names_after(said: &[u8]) -> bool {
    let name = format!(".{AFTER}.");
    said.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name.as_bytes()))
}

async fn more(client: &mut (impl AsyncRead + Unpin), said: &mut Vec<u8>) -> io::Result<()> {
    match client.read_buf(said).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    #[test]
    fn a_position_is_in_the_name() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(name_after(lsn), "16-b374d848.after.replicator");
        assert_eq!(position_in(&name_after(lsn)), Ok(Some(lsn)));
        assert_eq!(position_in("16-B374D848.after.db.example"), Ok(Some(lsn)), "a domain of one's own");
        for other in ["localhost", "after", "after.replicator", "db.example", "a.b.after", ""] {
            assert_eq!(position_in(other), Ok(None), "{other}");
        }
        for wrong in ["0.after.replicator", "0-x.after.replicator", "1-2-3.after.replicator", ".after.x"] {
            assert!(position_in(wrong).is_err(), "{wrong}");
        }
    }

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut said = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut said).unwrap();
        said
    }

    #[tokio::test]
    async fn a_name_is_read_however_it_comes() {
        let whole = hello("0-16b3748.after.replicator");
        for first in [0, 1, 5, whole.len() - 1, whole.len()] {
            let (mut said, mut rest) = (whole[..first].to_vec(), &whole[first..]);
            let name = server_name(&mut rest, &mut said).await.unwrap();
            assert_eq!(name.as_deref(), Some("0-16b3748.after.replicator"));
            assert_eq!(said, whole, "PostgreSQL is to read it, too");
        }
        let mut noise = vec![HANDSHAKE; 64];
        assert_eq!(server_name(&mut &noise.clone()[..], &mut noise).await.unwrap(), None);
        // One that cannot be read, and may name a position, is not taken for one that names none.
        let mut torn = whole.clone();
        torn[6] ^= 0xff;
        assert!(server_name(&mut &[][..], &mut torn).await.is_err());
        let mut begun = whole[..9].to_vec();
        assert!(server_name(&mut &[][..], &mut begun).await.is_err(), "it has gone");
    }

    #[tokio::test]
    async fn a_client_that_waits_for_an_answer_is_known() {
        let startup = [0, 0, 0, 9, 0, 3, 0, 0, 0];
        let eager = [&ASKS_FOR_TLS[..], &[HANDSHAKE]].concat();
        for (whole, how) in [
            (&ASKS_FOR_TLS[..], Begins::AsksForTls),
            (&ASKS_FOR_GSSAPI[..], Begins::AsksForGssapi),
            (&[HANDSHAKE][..], Begins::WithTls),
            (&startup[..], Begins::Otherwise),
            (&eager[..], Begins::Otherwise),
        ] {
            let mut said = Vec::new();
            assert_eq!(begins(&mut &whole[..], &mut said).await.unwrap(), how);
            assert_eq!(said, whole);
        }
    }
}
