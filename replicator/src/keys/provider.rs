//! Who keeps a region's keys.
//!
//! A provider is asked when a daemon starts, and when a key is made; never for a commit. A running daemon has
//! its keys, and goes on without its provider.

use std::fmt;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use proto::sealed::WRAPPED_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use volume::seal::KEY_BYTES;
use zeroize::Zeroizing;

/// The bytes of a key.
pub type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// What a provider answers, sooner or later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// How long a provider may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How much of what a program says of its failure is passed on, bytes.
const SAID_BYTES_MAX: usize = 300;

/// What goes wrong with a provider.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It does not answer, or says that it cannot now.
    #[error("the provider of keys does not answer: {0}")]
    Silent(String),
    /// It answers something that is no key.
    #[error("the provider of keys: {0}")]
    Wrong(String),
}

/// Who keeps a region's keys.
pub trait Provider: Send + Sync + fmt::Debug {
    /// Its name, as the configuration has it.
    fn name(&self) -> &'static str;

    /// Whether what it keeps is wrapped: then anybody may have it, and segments have it as well.
    fn wraps(&self) -> bool;

    /// What is to be kept of a key.
    fn wrap<'a>(&'a self, secret: &'a Secret) -> Answer<'a, Zeroizing<Vec<u8>>>;

    /// The key of which this was kept.
    fn unwrap<'a>(&'a self, kept: &'a [u8]) -> Answer<'a, Secret>;
}

/// The file of keys has the keys themselves.
#[derive(Debug)]
pub struct OfFile;

impl Provider for OfFile {
    fn name(&self) -> &'static str {
        "file"
    }

    fn wraps(&self) -> bool {
        false
    }

    fn wrap<'a>(&'a self, secret: &'a Secret) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async { Ok(Zeroizing::new(secret.to_vec())) })
    }

    fn unwrap<'a>(&'a self, kept: &'a [u8]) -> Answer<'a, Secret> {
        Box::pin(async { secret(kept) })
    }
}

pub(super) fn secret(bytes: &[u8]) -> Result<Secret, ProviderError> {
    let mut secret = Secret::default();
    if bytes.len() != KEY_BYTES {
        return Err(ProviderError::Wrong(format!(
            "a key is {KEY_BYTES} bytes, and this one {}",
            bytes.len()
        )));
    }
    secret.copy_from_slice(bytes);
    Ok(secret)
}

/// Programs wrap and unwrap: from standard input to standard output, the key's 32 bytes as they are. They
/// have the daemon's environment.
#[derive(Debug)]
pub(super) struct OfCommand {
    pub(super) wrap: Vec<String>,
    pub(super) unwrap: Vec<String>,
}

impl Provider for OfCommand {
    fn name(&self) -> &'static str {
        "command"
    }

    fn wraps(&self) -> bool {
        true
    }

    fn wrap<'a>(&'a self, secret: &'a Secret) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move {
            let wrapped = run(&self.wrap, &secret[..]).await?;
            // Else it would lie in the clear in every segment.
            if wrapped.is_empty() || wrapped.windows(KEY_BYTES).any(|window| window == &secret[..]) {
                let program = self.wrap.first().cloned().unwrap_or_default();
                return Err(ProviderError::Wrong(format!(
                    "{program} does not wrap the key that it is given"
                )));
            }
            Ok(wrapped)
        })
    }

    fn unwrap<'a>(&'a self, kept: &'a [u8]) -> Answer<'a, Secret> {
        Box::pin(async move { secret(&run(&self.unwrap, kept).await?) })
    }
}

/// What a program prints that is given `input`; at most [`WRAPPED_BYTES_MAX`], within [`PATIENCE`].
async fn run(words: &[String], input: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
    let (program, arguments) =
        words.split_first().ok_or_else(|| ProviderError::Wrong("no program".into()))?;
    let silent = |what: String| ProviderError::Silent(format!("{program}: {what}"));
    let running = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let give = async {
            if let Some(mut stdin) = stdin {
                // One that fails before it reads says so by its status.
                let _ = stdin.write_all(input).await;
            }
        };
        let take = async {
            let mut printed = Zeroizing::new(Vec::with_capacity(2 * WRAPPED_BYTES_MAX));
            if let Some(stdout) = stdout {
                stdout.take(WRAPPED_BYTES_MAX as u64 + 1).read_to_end(&mut printed).await?;
            }
            Ok::<_, std::io::Error>(printed)
        };
        let hear = async {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                let _ = stderr.take(SAID_BYTES_MAX as u64).read_to_end(&mut said).await;
            }
            said
        };
        let ((), printed, said) = tokio::join!(give, take, hear);
        Ok::<_, std::io::Error>((printed?, said, child.wait().await?))
    };
    let ended = tokio::time::timeout(PATIENCE, running).await;
    let ended = ended.map_err(|_| silent(format!("it has not ended after {} s", PATIENCE.as_secs())))?;
    let (printed, said, status) = ended.map_err(|e| silent(e.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        return Err(silent(format!("{status}: {}", said.lines().next().unwrap_or("it says nothing"))));
    }
    if printed.len() > WRAPPED_BYTES_MAX {
        let what =
            format!("{program} prints more than the {WRAPPED_BYTES_MAX} bytes that a wrapped key may have");
        return Err(ProviderError::Wrong(what));
    }
    Ok(printed)
}
