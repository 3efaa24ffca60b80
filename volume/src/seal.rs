//! Seals records with AES-256-GCM, and opens them. No files, and no providers of keys: whoever opens the
//! volume gives the region's keys.
//!
//! ```text
//! region's key (256 bits, from its provider) ─ HKDF(run, segment) ─► data key ─ AES-256-GCM(count) ─► record
//! ```
//!
//! **No nonce is used twice**, whatever is cut off and written again. A run is one [`Sealer`], and so one
//! opening of the volume by one process; it draws 128 bits at random that name it, and they are in the salt
//! of each of its data keys. Its nonces are a count in memory that only rises, and no record is sealed with a
//! data key that was derived to open one: a process that comes back after a crash is another run.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use bytes::Bytes;
use proto::sealed::SEAL_BYTES;
use proto::{Batch, ClusterId, Lsn, SealedHead};
use zeroize::Zeroizing;

use crate::VolumeError;
use crate::segment::{self, RECORD_HEADER_BYTES};

pub use crate::key::KeyId;

/// The bytes of a region's key, and of a data key.
pub const KEY_BYTES: usize = 32;

/// How many data keys are kept ready for readers: each segment has one for each opening that wrote to it.
const READY_KEYS: usize = 16;

/// What data keys of redo are derived for, and what a record's tag begins to cover.
const REDO: &[u8] = b"replicator redo 1";

/// What data keys of files beside the volume are derived for, and what a file's tags begin to cover.
const FILES: &[u8] = b"replicator file 1";

/// A key of a region. Its bytes are never shown, and are overwritten when it is dropped.
#[derive(Clone)]
pub struct RegionKey {
    id: KeyId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
    /// As the provider wrapped it; empty where the provider holds the key itself.
    wrapped: Bytes,
}

impl RegionKey {
    /// The key of these bytes, and as its provider wrapped it, if it did.
    #[must_use]
    pub fn new(secret: Zeroizing<[u8; KEY_BYTES]>, wrapped: Bytes) -> RegionKey {
        let mut id = [0; 8];
        let derived = derive(&secret, &[], &[b"replicator key id 1"]);
        id.copy_from_slice(&derived[..8]);
        RegionKey { id: KeyId(u64::from_be_bytes(id)), secret, wrapped }
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Its bytes, for a file that its owner alone can read, and for the provider.
    #[must_use]
    pub fn secret(&self) -> &Zeroizing<[u8; KEY_BYTES]> {
        &self.secret
    }

    /// As its provider wrapped it; empty where it holds the key itself.
    #[must_use]
    pub fn wrapped(&self) -> &Bytes {
        &self.wrapped
    }
}

impl fmt::Debug for RegionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.id)
    }
}

/// The keys of a region, and the one that new segments are sealed with.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    keys: BTreeMap<KeyId, RegionKey>,
    active: Option<KeyId>,
}

impl Keys {
    /// These keys; new segments are sealed with the `active` one, if it is among them, and are in the clear
    /// otherwise.
    pub fn new(keys: impl IntoIterator<Item = RegionKey>, active: Option<KeyId>) -> Keys {
        let keys: BTreeMap<KeyId, RegionKey> = keys.into_iter().map(|key| (key.id, key)).collect();
        let active = active.filter(|id| keys.contains_key(id));
        Keys { keys, active }
    }

    /// The key that new segments are sealed with.
    #[must_use]
    pub fn active(&self) -> Option<KeyId> {
        self.active
    }

    /// The ids of all of them.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.keys().copied()
    }

    /// These, and those of `others` that are not among them.
    #[must_use]
    pub fn and(mut self, others: &Keys) -> Keys {
        for (id, key) in &others.keys {
            self.keys.entry(*id).or_insert_with(|| key.clone());
        }
        self
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: KeyId) -> Option<&RegionKey> {
        self.keys.get(&id)
    }
}

/// What a data key is for: the region's key, the run and the segment.
type Use = (KeyId, [u8; 16], Lsn);

/// Seals what one opening of a volume appends, and opens what any appended.
pub struct Sealer {
    cluster_id: ClusterId,
    run: [u8; 16],
    count: AtomicU64,
    keys: RwLock<Keys>,
    ready: Mutex<VecDeque<(Use, Arc<LessSafeKey>)>>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("active", &self.active()).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A sealer with these keys, that nothing was sealed by. `run` is drawn at random, each time.
    #[must_use]
    pub fn new(cluster_id: ClusterId, keys: Keys, run: [u8; 16]) -> Sealer {
        let (count, ready) = (AtomicU64::new(0), Mutex::default());
        Sealer { cluster_id, run, count, keys: RwLock::new(keys), ready }
    }

    /// Works with these keys from now on.
    pub fn renew(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        // A key that was taken away opens nothing any more.
        self.ready().clear();
    }

    /// Works with these keys from now on, and with those that it has: nothing that can be read now becomes
    /// unreadable.
    pub fn add(&self, keys: Keys) {
        let mut own = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        *own = keys.and(&own);
    }

    /// The key that new segments are sealed with, for what is kept beside the volume.
    #[must_use]
    pub fn active_key(&self) -> Option<RegionKey> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.active.and_then(|id| keys.get(id)).cloned()
    }

    /// The key that new segments are sealed with; none where they are in the clear.
    #[must_use]
    pub fn active(&self) -> Option<KeyId> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).active
    }

    /// Whether it has this key.
    #[must_use]
    pub fn has(&self, key: KeyId) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).keys.contains_key(&key)
    }

    /// A sealed record of `batch` in the segment that begins at `segment_lsn`, written while the volume was
    /// durable up to `durable_lsn`.
    ///
    /// # Errors
    /// When it does not have the key.
    pub fn seal(
        &self,
        key: KeyId,
        batch: &Batch,
        durable_lsn: Lsn,
        segment_lsn: Lsn,
    ) -> Result<Bytes, VolumeError> {
        let begin_lsn = batch.begin_lsn;
        let wrapped_key = match begin_lsn == segment_lsn {
            true => self.wrapped(key),
            false => Bytes::new(),
        };
        // No other process has this run, and this one never has the count again.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let clear = Batch { payload: Bytes::new(), redo_crc32c: 0, ..batch.clone() };
        let head = SealedHead { batch: clear, key: key.0, run: self.run, count, segment_lsn, wrapped_key };
        let encoded = head.encode();
        let data_key = self.data_key((key, self.run, segment_lsn), begin_lsn)?;
        let length = RECORD_HEADER_BYTES + 2 + encoded.len() + batch.payload.len() + SEAL_BYTES;
        let mut out = Vec::with_capacity(length);
        out.resize(RECORD_HEADER_BYTES, 0);
        // A head is far shorter than this: the wrapped key is bounded.
        out.extend_from_slice(&u16::try_from(encoded.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&encoded);
        let at = out.len();
        out.extend_from_slice(&batch.redo_crc32c.to_le_bytes());
        out.extend_from_slice(&batch.payload);
        let aad = self.covered(durable_lsn, &encoded);
        let tag = data_key
            .seal_in_place_separate_tag(nonce(count), Aad::from(aad), &mut out[at..])
            .map_err(|_| VolumeError::Sealing { begin_lsn })?;
        out.extend_from_slice(tag.as_ref());
        Ok(segment::finish_sealed(out, durable_lsn))
    }

    /// The batch in a sealed record that was checked, and that a segment begins with, or not; none where it
    /// is in the clear.
    ///
    /// # Errors
    /// When it does not have the key, or the record is not what was sealed, or not where.
    pub fn open(&self, record: &Bytes, begins_segment: bool) -> Result<Option<Batch>, VolumeError> {
        let Some(parts) = segment::sealed_parts(record) else { return Ok(None) };
        let head = SealedHead::decode(parts.head.clone(), parts.payload.clone())?;
        let (begin_lsn, segment_lsn) = (head.batch.begin_lsn, head.segment_lsn);
        let forged = || VolumeError::Forged { begin_lsn };
        // A segment begins where its first record does.
        if begins_segment != (begin_lsn == segment_lsn) {
            return Err(forged());
        }
        let data_key = self.data_key((KeyId(head.key), head.run, segment_lsn), begin_lsn)?;
        let mut bytes = parts.payload.to_vec();
        let aad = self.covered(parts.durable_lsn, &parts.head);
        let opened =
            data_key.open_in_place(nonce(head.count), Aad::from(aad), &mut bytes).map_err(|_| forged())?;
        let length = opened.len();
        let redo_crc32c = u32::from_le_bytes(*opened.first_chunk().ok_or_else(forged)?);
        bytes.truncate(length);
        let payload = Bytes::from(bytes).slice(4..);
        Ok(Some(Batch { payload, redo_crc32c, ..head.batch }))
    }

    /// Opens every record of a whole segment, which was checked against its checksums.
    ///
    /// # Errors
    /// As [`Sealer::open`].
    pub fn verify(&self, bytes: &Bytes) -> Result<(), VolumeError> {
        for record in segment::records(bytes) {
            self.open(&record.bytes, record.batch.begin_lsn == record.segment_lsn())?;
        }
        Ok(())
    }

    fn wrapped(&self, key: KeyId) -> Bytes {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.keys.get(&key).map(|key| key.wrapped.clone()).unwrap_or_default()
    }

    /// What a record's tag covers besides its redo: all that stands in the clear beside it.
    fn covered(&self, durable_lsn: Lsn, head: &[u8]) -> Vec<u8> {
        [REDO, &self.cluster_id.0, &durable_lsn.0.to_le_bytes(), head].concat()
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<(Use, Arc<LessSafeKey>)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn data_key(&self, of: Use, begin_lsn: Lsn) -> Result<Arc<LessSafeKey>, VolumeError> {
        let (key, run, segment_lsn) = of;
        if let Some((_, ready)) = self.ready().iter().find(|(other, _)| *other == of) {
            return Ok(ready.clone());
        }
        let no_key = || VolumeError::NoKey { key, begin_lsn };
        let derived = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let region = keys.keys.get(&key).ok_or_else(no_key)?;
            derive(&region.secret, &run, &[REDO, &self.cluster_id.0, &segment_lsn.0.to_le_bytes()])
        };
        let data_key = Arc::new(cipher(&derived).ok_or_else(no_key)?);
        let mut ready = self.ready();
        if ready.len() >= READY_KEYS {
            ready.pop_front();
        }
        ready.push_back((of, data_key.clone()));
        Ok(data_key)
    }
}

/// Seals the parts of one file beside the volume: each part once, under a key of the file's own.
pub struct FileSealer {
    key: LessSafeKey,
    named: Vec<u8>,
}

impl FileSealer {
    /// For the file that `salt`, drawn at random when it is begun, and `name` tell from every other. A file
    /// is written once: with a salt that was read from one, parts are opened only.
    #[must_use]
    pub fn new(region: &RegionKey, salt: [u8; 16], name: &str) -> Option<FileSealer> {
        let key = cipher(&derive(&region.secret, &salt, &[FILES, name.as_bytes()]))?;
        Some(FileSealer { key, named: [FILES, name.as_bytes()].concat() })
    }

    /// Seals part `number`, and puts its tag behind it.
    ///
    /// # Errors
    /// When it is longer than can be sealed.
    pub fn seal(&self, number: u64, last: bool, bytes: &mut Vec<u8>) -> Result<(), String> {
        let sealed = self.key.seal_in_place_append_tag(nonce(number), self.aad(last), bytes);
        sealed.map_err(|_| "it cannot be sealed".to_owned())
    }

    /// Opens part `number`.
    ///
    /// # Errors
    /// When it is not what was sealed as that part.
    pub fn open(&self, number: u64, last: bool, bytes: &mut Vec<u8>) -> Result<(), String> {
        let opened = self.key.open_in_place(nonce(number), self.aad(last), bytes).map(|opened| opened.len());
        let length = opened.map_err(|_| format!("part {number} is not what was sealed"))?;
        bytes.truncate(length);
        Ok(())
    }

    /// The last part says that it is the last.
    fn aad(&self, last: bool) -> Aad<Vec<u8>> {
        Aad::from([&self.named[..], &[u8::from(last)]].concat())
    }
}

impl fmt::Debug for FileSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSealer").finish_non_exhaustive()
    }
}

fn nonce(count: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// 256 bits of HKDF's output.
struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

fn derive(secret: &[u8; KEY_BYTES], salt: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut derived = Zeroizing::new([0; KEY_BYTES]);
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let filled = extracted.expand(info, KeyBytes).and_then(|out| out.fill(&mut derived[..]));
    // HKDF gives up to 255 times its hash's length, and this is once that.
    assert!(filled.is_ok(), "a key is as long as a hash");
    derived
}

fn cipher(key: &[u8; KEY_BYTES]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests;
