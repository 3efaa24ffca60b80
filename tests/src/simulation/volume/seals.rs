//! Sealed redo: which nonces were used for what, and whether everything opens.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::ClusterId;
use volume::copy::Stored;
use volume::seal::{KEY_BYTES, Keys, RegionKey, Sealer};
use volume::segment::{Found, read_record};

/// What was sealed, whether it became durable or not.
#[derive(Debug, Default)]
pub struct Seals {
    /// The record of each nonce: of a run, a segment's data key, and a count.
    records: BTreeMap<([u8; 16], u64, u64), Bytes>,
}

const CLUSTER: ClusterId = ClusterId([9; 16]);

fn keys(active: u64) -> Keys {
    let key = |byte| RegionKey::new([byte; KEY_BYTES].into(), Bytes::new());
    let keys = [key(1), key(2)];
    // A third of the openings writes new segments in the clear.
    let active = usize::try_from(active % 3).ok().and_then(|index| keys.get(index)).map(RegionKey::id);
    Keys::new(keys, active)
}

impl Seals {
    /// A daemon's sealer; `writer` is drawn for each start.
    pub fn sealer(writer: u64) -> Arc<Sealer> {
        let mut run = [0; 16];
        run[..8].copy_from_slice(&writer.to_be_bytes());
        Arc::new(Sealer::new(CLUSTER, keys(writer), run))
    }

    /// A record is appended: its nonce is none of another's.
    pub fn check_nonce(&mut self, stored: &Stored) -> Result<(), String> {
        let Found::Record(record) = read_record(&stored.record) else {
            return Err("a record is appended that is none".into());
        };
        let Some(sealed) = record.sealed else { return Ok(()) };
        let nonce = (sealed.run, sealed.segment_lsn.0, sealed.count);
        let other = self.records.entry(nonce).or_insert_with(|| stored.record.clone());
        match *other == stored.record {
            true => Ok(()),
            false => {
                Err(format!("two records are sealed with the nonce {} of {:?}", sealed.count, sealed.run))
            }
        }
    }

    /// A record on a disk opens in its place, and to what was appended there.
    pub fn check_opens(&self, stored: &Stored) -> Result<(), String> {
        let at = stored.batch.begin_lsn;
        let Found::Record(record) = read_record(&stored.record) else {
            return Err(format!("at {at} is a record that is none"));
        };
        let opened =
            Seals::sealer(0).open(&record.bytes, stored.begins_segment).map_err(|e| e.to_string())?;
        let opened = opened.unwrap_or(record.batch);
        match opened == stored.batch {
            true => Ok(()),
            false => Err(format!("at {at} {opened:?} is sealed, and {:?} was appended", stored.batch)),
        }
    }
}
