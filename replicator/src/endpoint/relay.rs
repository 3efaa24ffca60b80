//! Passes a session's bytes to and fro, as they are.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use transport::{Receiver, Sender, TransportError};

/// What is read from a client at once, bytes.
const READ_BYTES: usize = 16 * 1024;

/// The other end of a session.
#[derive(Debug)]
pub enum Far {
    /// A PostgreSQL on this machine.
    Near(TcpStream),
    /// One in another region, by a stream of its daemon's.
    Stream(Sender, Receiver),
}

impl Far {
    /// Says `bytes` before the session begins.
    ///
    /// # Errors
    /// When it has gone.
    pub async fn say(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Far::Near(postgres) => postgres.write_all(&bytes).await,
            Far::Stream(sender, _) => sender.write(bytes.into()).await.map_err(lost),
        }
    }

    /// Asks with `bytes`, to which one byte is the answer.
    ///
    /// # Errors
    /// When it has gone, or says something else.
    pub async fn ask(&mut self, bytes: Vec<u8>) -> io::Result<u8> {
        self.say(bytes).await?;
        match self {
            Far::Near(postgres) => postgres.read_u8().await,
            Far::Stream(_, receiver) => match receiver.read().await.map_err(lost)?.as_deref() {
                Some([answer]) => Ok(*answer),
                _ => Err(io::ErrorKind::InvalidData.into()),
            },
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// One of its ends has ended it.
    Over,
    /// It was cut off.
    Cut,
}

/// Passes bytes between `client` and `far` until either end has ended, or `cut` is cancelled.
pub async fn pass(mut client: TcpStream, far: Far, cut: &CancellationToken) -> Ended {
    tokio::select! {
        biased;
        () = cut.cancelled() => Ended::Cut,
        () = async {
            // However a session ends, PostgreSQL and the client each know what that means.
            let _ = match far {
                Far::Near(mut postgres) => copy_bidirectional(&mut client, &mut postgres).await.map(drop),
                Far::Stream(sender, receiver) => over_stream(client, sender, receiver).await,
            };
        } => Ended::Over,
    }
}

/// As [`pass`], where the client's end is a stream, too.
pub async fn between((sender, receiver): (Sender, Receiver), far: Far, cut: &CancellationToken) -> Ended {
    match far {
        Far::Near(postgres) => pass(postgres, Far::Stream(sender, receiver), cut).await,
        Far::Stream(far_sender, far_receiver) => tokio::select! {
            biased;
            () = cut.cancelled() => Ended::Cut,
            _ = async { tokio::try_join!(across(receiver, far_sender), across(far_receiver, sender)) } => Ended::Over,
        },
    }
}

/// Passes bytes from one stream to another until they end.
async fn across(mut from: Receiver, mut to: Sender) -> io::Result<()> {
    while let Some(said) = from.read().await.map_err(lost)? {
        to.write(said).await.map_err(lost)?;
    }
    to.finish().await;
    Ok(())
}

/// As `copy_bidirectional`, where one end is a stream. An end that finishes its half is heard to the end of
/// the other; an end that fails ends both.
async fn over_stream(client: TcpStream, mut sender: Sender, mut receiver: Receiver) -> io::Result<()> {
    let (from_client, to_client) = client.into_split();
    tokio::try_join!(up(from_client, &mut sender), down(&mut receiver, to_client)).map(drop)
}

/// Passes bytes to a stream until they end; then the stream is finished.
///
/// # Errors
/// When an end fails.
pub async fn up(mut from: impl AsyncRead + Unpin, sender: &mut Sender) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.reserve(READ_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            break;
        }
        // Its own allocation, so that little that is said keeps little memory.
        let said = Bytes::copy_from_slice(&buffer);
        buffer.clear();
        sender.write(said).await.map_err(lost)?;
    }
    sender.finish().await;
    Ok(())
}

/// Passes a stream's bytes on until it ends; then that half is closed.
///
/// # Errors
/// When an end fails.
pub async fn down(receiver: &mut Receiver, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(said) = receiver.read().await.map_err(lost)? {
        to.write_all(&said).await?;
    }
    to.shutdown().await
}

fn lost(e: TransportError) -> io::Error {
    io::Error::other(e.to_string())
}
