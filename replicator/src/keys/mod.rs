//! The keys that a region's redo is sealed with at rest: the file that has them, and who may open it.
//!
//! The file is text, mode 0600: each key with its id, when it was made, and what its provider keeps of it;
//! and which of them new segments are sealed with. Keys are only ever added to it.

mod http;
mod kms;
pub mod provider;
mod ring;
mod vault;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::Uid;
use proto::ClusterId;
use runtime::private;
use tokio_util::sync::CancellationToken;
use volume::copy::{directory_of, keys_in};
use volume::quorum::CopyId;
use volume::seal::{KeyId, Keys, RegionKey, Sealer};

use crate::config::{KeyProvider, RegionConfig};
use crate::layout::RegionLayout;
use kms::OfKms;
use provider::{OfCommand, OfFile, Provider, ProviderError, Secret};
pub use ring::{Entry, Ring};
use vault::OfVault;

/// How often a provider that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Why a region's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// There is none.
    #[error(
        "{path}: there is no file of keys, and the configuration wants redo sealed. Put back the one that there was, or, for a \
         region whose redo was never sealed, make one: replicator keys rotate --region {region}"
    )]
    NoFile {
        /// Where it should be.
        path: PathBuf,
        /// Whose.
        region: String,
    },
    /// It is not what it should be.
    #[error("{path}: {what}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Segments need a key that it does not have.
    #[error(
        "segments of the volume are sealed with key {key}, which is not in {path}: put back the file that has it. The volume is not \
         opened, and nothing is changed"
    )]
    Missing {
        /// Which.
        key: KeyId,
        /// The file.
        path: PathBuf,
    },
    /// Somebody else is changing it.
    #[error("{path}: another command is changing it; try again")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The configuration wants no redo sealed.
    #[error(
        "redo of {region} is not sealed: `encryption` in regions.toml turns that on, see \"Redo at rest\" in docs/SECURITY.md"
    )]
    Off {
        /// Whose.
        region: String,
    },
    /// See [`ProviderError`].
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The provider that the configuration names; none where redo is in the clear.
fn provider_of(config: &KeyProvider) -> Option<Box<dyn Provider>> {
    match config {
        KeyProvider::Off => None,
        KeyProvider::File => Some(Box::new(OfFile)),
        KeyProvider::Command { wrap, unwrap } => {
            Some(Box::new(OfCommand { wrap: wrap.clone(), unwrap: unwrap.clone() }))
        }
        KeyProvider::Vault(config) => Some(Box::new(OfVault(config.clone()))),
        KeyProvider::Kms(config) => Some(Box::new(OfKms(config.clone()))),
    }
}

/// Where a region's keys are, and who keeps them.
#[derive(Debug)]
pub struct Place {
    region: String,
    path: PathBuf,
    provider: Option<Box<dyn Provider>>,
}

impl Place {
    /// As the configuration says.
    #[must_use]
    pub fn of(own: &RegionConfig, places: &RegionLayout) -> Place {
        let encryption = own.encryption.as_ref();
        let path = encryption.and_then(|encryption| encryption.file.clone());
        Place {
            region: own.name.to_string(),
            path: path.unwrap_or_else(|| places.keys()),
            provider: encryption.and_then(|encryption| provider_of(&encryption.provider)),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self) -> impl Fn(io::Error) -> KeysError + use<> {
        let path = self.path.clone();
        move |source| KeysError::Io { path: path.clone(), source }
    }

    fn unusable(&self, what: impl Into<String>) -> KeysError {
        KeysError::Unusable { path: self.path.clone(), what: what.into() }
    }

    /// What the file has; none where there is none.
    ///
    /// # Errors
    /// When it cannot be read, others may read it, or it is not what it should be.
    pub fn load(&self) -> Result<Option<Ring>, KeysError> {
        let metadata = match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            found => found.map_err(self.io())?,
        };
        if metadata.mode() & 0o077 != 0 {
            let path = self.path.display();
            return Err(self.unusable(format!(
                "other accounts may use it, its mode is {:04o}; to mend it: chmod 0600 {path}",
                metadata.mode() & 0o7777
            )));
        }
        let text = std::fs::read_to_string(&self.path).map(zeroize::Zeroizing::new).map_err(self.io())?;
        Ring::parse(&text).map(Some).map_err(|what| self.unusable(what))
    }

    /// The keys of a ring, each as its provider unwraps it.
    ///
    /// # Errors
    /// When a provider does not answer, or a key is not the one that it is said to be.
    pub async fn open(&self, ring: &Ring) -> Result<Keys, KeysError> {
        let mut keys = Vec::new();
        for entry in ring.entries() {
            let key = self.open_one(entry).await?;
            if key.id() != entry.id {
                return Err(self.unusable(format!(
                    "what is kept as key {} is key {}: the line was changed",
                    entry.id,
                    key.id()
                )));
            }
            keys.push(key);
        }
        Ok(Keys::new(keys, self.provider.as_ref().and(ring.active())))
    }

    async fn open_one(&self, entry: &Entry) -> Result<RegionKey, KeysError> {
        if entry.provider == OfFile.name() {
            return Ok(RegionKey::new(OfFile.unwrap(&entry.kept).await?, Bytes::new()));
        }
        match self.provider.as_deref().filter(|provider| provider.name() == entry.provider) {
            Some(provider) => {
                let secret = provider.unwrap(&entry.kept).await?;
                Ok(RegionKey::new(secret, Bytes::copy_from_slice(&entry.kept)))
            }
            None => Err(self.unusable(format!(
                "key {} is of provider \"{}\", which `encryption` in regions.toml must name to have it opened",
                entry.id, entry.provider
            ))),
        }
    }

    /// Makes a key, which new segments are sealed with from then on, and the file, where there is none.
    ///
    /// # Errors
    /// When the provider does not answer, or the file cannot be written.
    pub async fn rotate(&self) -> Result<KeyId, KeysError> {
        let Some(provider) = self.provider.as_deref() else {
            return Err(KeysError::Off { region: self.region.clone() });
        };
        self.own_directory()?;
        let mut lock = self.path.as_os_str().to_owned();
        lock.push(".lock");
        let lock =
            private::options().write(true).create(true).truncate(false).open(&lock).map_err(self.io())?;
        lock.try_lock().map_err(|_| KeysError::Busy { path: self.path.clone() })?;
        let mut ring = self.load()?.unwrap_or_default();
        let mut secret = Secret::default();
        let drawn = aws_lc_rs::rand::fill(&mut secret[..]);
        drawn.map_err(|_| self.unusable("the system gives no random bytes"))?;
        let kept = provider.wrap(&secret).await?;
        // What cannot be had back is not used.
        if provider.unwrap(&kept).await? != secret {
            let what = format!("provider \"{}\" unwraps another key than it wrapped", provider.name());
            return Err(ProviderError::Wrong(what).into());
        }
        let id = RegionKey::new(secret, Bytes::new()).id();
        ring.add(Entry { id, made_us: runtime::clock::wall_us(), provider: provider.name().into(), kept });
        ring.activate(id);
        self.save(&ring)?;
        Ok(id)
    }

    fn save(&self, ring: &Ring) -> Result<(), KeysError> {
        private::replace(&self.path, ring.text().as_bytes()).map_err(self.io())
    }

    /// What is written there is to be the daemon's: as root, in another account's directory, it would not be.
    fn own_directory(&self) -> Result<(), KeysError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let owner = std::fs::metadata(directory).map_err(self.io())?.uid();
        match owner == Uid::effective().as_raw() {
            true => Ok(()),
            false => Err(self.unusable(format!(
                "its directory belongs to the user id {owner}; run this as that user, as the daemon does"
            ))),
        }
    }

    /// The sealer of a region's daemon that starts: with all keys that the volume's copies here need.
    async fn sealer(
        &self,
        places: &RegionLayout,
        cluster_id: ClusterId,
    ) -> Result<Option<Arc<Sealer>>, KeysError> {
        let needed = needed(places).map_err(self.io())?;
        let found = self.load()?;
        if found.is_none() && self.provider.is_none() && needed.is_empty() {
            return Ok(None);
        }
        let mut ring = found.unwrap_or_default();
        let known = ring.entries().len();
        for (key, wrapped) in needed {
            if ring.has(key) {
                continue;
            }
            // A key that is wrapped lies in the segments as well, and its provider alone opens it.
            let kept = zeroize::Zeroizing::new(wrapped.to_vec());
            let provider = self.provider.as_deref().filter(|provider| provider.wraps() && !kept.is_empty());
            let missing = || KeysError::Missing { key, path: self.path.clone() };
            let provider = provider.ok_or_else(missing)?;
            let made_us = runtime::clock::wall_us();
            ring.add(Entry { id: key, made_us, provider: provider.name().into(), kept });
        }
        if self.provider.is_some() && ring.active().is_none() && ring.entries().is_empty() {
            return Err(KeysError::NoFile { path: self.path.clone(), region: self.region.clone() });
        }
        let keys = self.open(&ring).await?;
        if self.provider.is_some() && keys.active().is_none() {
            return Err(self.unusable(format!(
                "it does not say which key is used for new redo; make one: replicator keys rotate --region {}",
                self.region
            )));
        }
        if ring.entries().len() > known {
            tracing::warn!("{}: keys were missing, and are taken from the segments", self.path.display());
            self.save(&ring)?;
        }
        Ok(Some(Arc::new(Sealer::new(cluster_id, keys, runtime::random::draw()))))
    }
}

/// The keys that the segments of the copies here are sealed with, as they lie there.
fn needed(places: &RegionLayout) -> io::Result<BTreeMap<KeyId, Bytes>> {
    let mut needed: BTreeMap<KeyId, Bytes> = BTreeMap::new();
    for copy in CopyId::all() {
        for (key, wrapped) in keys_in(&directory_of(&places.volume(), copy))? {
            let known = needed.entry(key).or_default();
            if known.is_empty() {
                *known = wrapped;
            }
        }
    }
    Ok(needed)
}

/// The sealer of a region's daemon that starts; an inner none where nothing is sealed. While its provider
/// does not answer, it is asked again and again, and the volume is not opened; none when `stop` comes first.
///
/// # Errors
/// When there is something to be done first, which the error says.
pub async fn start(
    own: &RegionConfig,
    places: &RegionLayout,
    cluster_id: ClusterId,
    stop: &CancellationToken,
) -> Result<Option<Option<Arc<Sealer>>>, KeysError> {
    let place = Place::of(own, places);
    let mut said = String::new();
    loop {
        let silent = match place.sealer(places, cluster_id).await {
            Err(KeysError::Provider(silent @ ProviderError::Silent(_))) => silent.to_string(),
            done => return done.map(Some),
        };
        if silent != said {
            tracing::error!(
                "{silent}; the volume is not opened without its keys. The provider is asked again every {} s",
                AGAIN.as_secs()
            );
            said = silent;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Makes the first key of a region that has none, where its redo is to be sealed and no segment is yet.
///
/// # Errors
/// As [`Place::rotate`].
pub async fn make_first(own: &RegionConfig, places: &RegionLayout) -> Result<(), KeysError> {
    let place = Place::of(own, places);
    let is_new = place.load()?.is_none() && needed(places).map_err(place.io())?.is_empty();
    if place.provider.is_some() && is_new {
        place.rotate().await?;
    }
    Ok(())
}

/// Whether redo is to be sealed.
#[must_use]
pub fn is_on(own: &RegionConfig) -> bool {
    own.encryption.as_ref().is_some_and(|encryption| encryption.provider != KeyProvider::Off)
}

#[cfg(test)]
mod tests;
