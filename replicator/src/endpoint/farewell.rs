//! What a client is told that is turned away, as PostgreSQL tells it: in the clear, or encrypted where the
//! client insists on that, by the certificate of the region's PostgreSQL.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::first::HANDSHAKE;

/// How long a client may take to say its first words, which must be read before it hears why.
const FIRST_WORDS: Duration = Duration::from_secs(2);

/// The first words of a client that are read, bytes: PostgreSQL takes no more.
const FIRST_WORDS_BYTES: u64 = 10_000;

/// The code by which a client asks for TLS.
const TLS: u32 = 80_877_103;

/// The code by which a client asks for GSSAPI's encryption.
const GSSAPI: u32 = 80_877_104;

/// What a client says first.
enum First {
    /// It wants TLS, and is to be told that it can have it.
    Encrypt,
    /// It begins a session, with a message of so many bytes in all.
    Startup(u32),
}

/// Tells `client`, which has `said` so much already, these `words`, an error as PostgreSQL sends it, and lets
/// it go. `certificate` is the directory of that by which clients know the region's PostgreSQL; without one
/// nothing is encrypted.
pub(super) async fn tell(client: TcpStream, said: Vec<u8>, words: &[u8], certificate: &Path) {
    // It may have gone, which is all that was wanted of it.
    let _ = tokio::time::timeout(FIRST_WORDS, speak(client, said, words, certificate)).await;
}

async fn speak(mut client: TcpStream, mut said: Vec<u8>, words: &[u8], certificate: &Path) -> io::Result<()> {
    let acceptor = acceptor(certificate);
    if said.is_empty() && client.read_buf(&mut said).await? == 0 {
        return Ok(());
    }
    let first = [said.first().copied().unwrap_or_default()];
    let (reading, writing) = client.split();
    let mut client = tokio::io::join(io::Cursor::new(said).chain(reading), writing);
    let asks = match first[0] {
        HANDSHAKE => First::Encrypt,
        _ => first_word(&mut client, acceptor.is_some()).await?,
    };
    match (asks, acceptor) {
        (First::Startup(length), _) => answer(&mut client, length, words).await,
        (First::Encrypt, Some(acceptor)) => {
            if first[0] != HANDSHAKE {
                client.write_all(b"S").await?;
            }
            let mut client = acceptor.accept(client).await?;
            match first_word(&mut client, false).await? {
                First::Startup(length) => answer(&mut client, length, words).await,
                First::Encrypt => Ok(()),
            }
        }
        (First::Encrypt, None) => Ok(()),
    }
}

/// Reads up to the client's first word that is to be answered. One that asks for encryption that is not there
/// hears so; whoever does not insist goes on.
async fn first_word(client: &mut (impl AsyncRead + AsyncWrite + Unpin), encrypts: bool) -> io::Result<First> {
    loop {
        let (length, code) = (client.read_u32().await?, client.read_u32().await?);
        match code {
            TLS if encrypts => return Ok(First::Encrypt),
            TLS | GSSAPI => client.write_all(b"N").await?,
            _ => return Ok(First::Startup(length)),
        }
    }
}

/// Reads the rest of a message of `length` bytes, as what lies unread when a connection is closed takes the
/// answer with it, and answers.
async fn answer(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    length: u32,
    words: &[u8],
) -> io::Result<()> {
    let rest = u64::from(length).saturating_sub(8).min(FIRST_WORDS_BYTES);
    let mut unread = Vec::new();
    (&mut *client).take(rest).read_to_end(&mut unread).await?;
    client.write_all(words).await?;
    client.shutdown().await
}

/// Encrypts with the certificate in `directory`; none where that has none.
fn acceptor(directory: &Path) -> Option<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(directory.join("cert.pem")).ok()?;
    let chain = certificates.collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).ok()?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let mut config = versions.with_no_client_auth().with_single_cert(chain, key).ok()?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Some(TlsAcceptor::from(Arc::new(config)))
}
