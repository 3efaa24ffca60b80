//! The keys that the region's redo is sealed with: another one is used once the file of keys has it.

use std::sync::Arc;
use std::time::Duration;

use transport::identity::digest;
use zeroize::Zeroizing;

use super::Region;
use crate::keys::{KeysError, Place, is_on};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

impl Region {
    /// Has the volume use other keys once the file has them, for ever. One that cannot be used is told once,
    /// and the volume goes on with the keys that it has.
    pub(super) async fn renew_keys(self: Arc<Self>) {
        let Some(sealer) = self.volume.sealer().filter(|_| is_on(&self.own)) else {
            return std::future::pending().await;
        };
        let place = Place::of(&self.own, &self.layout);
        let contents = || {
            let path = place.path().to_owned();
            // What is not there is empty.
            let read = move || digest(&Zeroizing::new(std::fs::read(path).unwrap_or_default()));
            runtime::task::blocking("look at the keys", read)
        };
        let (mut used, mut told) = (None, String::new());
        loop {
            let found = contents().await.ok();
            if found != used {
                let taken = async {
                    let ring = place.load()?;
                    let keys = place.open(&ring.unwrap_or_default()).await?;
                    keys.active().map(|_| keys).ok_or_else(|| KeysError::NoFile {
                        path: place.path().to_owned(),
                        region: self.own.name.to_string(),
                    })
                };
                match taken.await {
                    Ok(keys) => {
                        let before = sealer.active();
                        sealer.add(keys);
                        if let Some(now) = sealer.active().filter(|now| Some(*now) != before) {
                            tracing::info!(
                                "new segments of the volume are sealed with key {now}; older ones are read with theirs"
                            );
                        }
                        (used, told) = (found, String::new());
                    }
                    Err(e) if e.to_string() != told => {
                        told = e.to_string();
                        tracing::error!("{told}; the volume goes on with the keys that it has");
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
