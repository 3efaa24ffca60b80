//! How a secondary gets data to go on with: a seed, or a rewind of what it has. What only it had is kept
//! aside first.
//!
//! While its data are being replaced the region has none, as far as its record goes: so when that is
//! interrupted, a seed is taken.

use std::fs::File;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postgres::backup::seed::{Coming, Progress, Seed};
use postgres::instance::{InstanceError, Stop};
use postgres::major::Major;
use postgres::sockets::REWIND_PORT;
use postgres::sockets::socket_path;
use postgres::wal::segment::SegmentSize;
use proto::messages::refusal::Kind as Refused;
use proto::messages::{Refusal, RewindOpen, SeedAnswer, SeedOpen};
use proto::{Epoch, Lsn, SystemId, Timeline, TimelineHistory};
use runtime::private;
use runtime::task::blocking;
use secondary::rewind::Tunnel;
use transport::Stream;

use super::follower::{FollowError, Follower};
use super::lost;
use crate::engine::LEFT_RUNNING;
use crate::events::Kind;
use crate::region_file::RegionState;
use crate::secrets::{self, Clients};

/// How long a standby that was killed may take to end its recovery, before its data are rewound.
const SETTLE: Duration = Duration::from_secs(60);

/// How far before the fork a checkpoint is looked for in the region's own redo. PostgreSQL writes one at the
/// latest after `max_wal_size`, 1 GiB.
const BEFORE_FORK_BYTES: u64 = 1 << 30;

impl Follower {
    /// Takes a seed of the primary.
    pub async fn seed(&self, open: SeedOpen, mut stream: Stream) {
        let Ok(_turn) = self.seeding.try_lock() else {
            let _ = stream.send(&SeedAnswer { refusal: Some(busy()), ..SeedAnswer::default() }).await;
            return stream.finish().await;
        };
        self.seed_total_bytes.store(open.total_bytes, Ordering::Relaxed);
        let size = crate::units::show_bytes(open.total_bytes);
        tracing::info!("receiving a seed of about {size}");
        let name = self.instance.options().name.clone();
        self.journal.note(
            Kind::SeedBegun,
            format!(
                "region {name}: a seed of about {size} is coming; its PostgreSQL starts once it is in place"
            ),
        );
        let answer = match Box::pin(self.take_seed(open, &mut stream)).await {
            Ok((consistent_lsn, progress)) => {
                tracing::info!(lsn = %consistent_lsn, "the seed is in place; it is consistent from {consistent_lsn} on");
                let there = match progress.kept_bytes() {
                    0 => String::new(),
                    kept => format!(
                        ", {} of its {} were there already",
                        crate::units::show_bytes(kept),
                        crate::units::show_bytes(progress.bytes())
                    ),
                };
                self.journal.note(
                    Kind::SeedOver,
                    format!("region {name}: the seed is in place{there}; redo up to {consistent_lsn} makes it consistent"),
                );
                SeedAnswer::default()
            }
            Err(e) => {
                tracing::error!("the seed failed: {e}");
                self.journal.note(
                    Kind::SeedFailed,
                    format!(
                        "region {name}: the seed failed, {e}; the primary sends another, without what is here of this one"
                    ),
                );
                SeedAnswer {
                    refusal: Some(Refusal::new(Refused::Failed, e.to_string())),
                    ..SeedAnswer::default()
                }
            }
        };
        self.seed_total_bytes.store(0, Ordering::Relaxed);
        let _ = stream.send(&answer).await;
        stream.finish().await;
    }

    async fn take_seed(
        &self,
        open: SeedOpen,
        stream: &mut Stream,
    ) -> Result<(Lsn, Arc<Progress>), FollowError> {
        let options = self.instance.options();
        let (data_dir, account) = (options.data_dir.clone(), options.account.clone());
        let (places, tablespaces) = (self.places.clone(), open.tablespaces.clone());
        let (system_id, total_bytes) = (SystemId(open.system_id), open.total_bytes);
        let takes_inventory = open.takes_inventory;
        let begin = move || {
            let places = places.of_seed(&tablespaces)?;
            let coming = Coming { system_id, total_bytes, takes_inventory, places };
            Ok::<_, FollowError>(Seed::begin(&data_dir, &account, coming)?)
        };
        let seed =
            blocking("begin a seed", begin).await.map_err(|e| FollowError::Blocking(e.to_string()))??;
        let progress = seed.progress();
        let consent =
            SeedAnswer { refusal: None, tells_inventory: takes_inventory, carries_tablespaces: true };
        stream.send(&consent).await.map_err(secondary::seed::SeedError::from)?;
        if takes_inventory {
            secondary::seed::tell_inventory(stream, &seed).await?;
        }
        let (unpacked, consistent_lsn) = secondary::seed::receive(stream, seed).await?;
        // A primary that did not say it before sends what nobody here can run.
        if let Some(why) = options.installations.lacks(unpacked.major().unwrap_or(Major(0))) {
            return Err(FollowError::OtherMajor(why));
        }
        let epoch = Epoch(open.epoch);
        self.leave_data(epoch, &parse(open.timeline, &open.history)?).await?;
        self.volume.reset(Lsn(open.volume_begin_lsn), Timeline(open.timeline)).await?;
        unpacked.install()?;
        self.take_data(epoch, SystemId(open.system_id), &open.superuser_password).await?;
        Ok((consistent_lsn, progress))
    }

    /// Rewinds the data of this region, with the primary's help, to where they parted from the primary's.
    pub async fn rewind(&self, open: RewindOpen, stream: Stream) {
        let mut tunnel = Tunnel::new(stream);
        let Ok(_turn) = self.seeding.try_lock() else {
            return tunnel.finish(Some(busy())).await;
        };
        tracing::info!("rewinding the data of this region, to follow epoch {}", open.epoch);
        let (name, epoch) = (self.instance.options().name.clone(), open.epoch);
        self.journal.note(
            Kind::RewindBegun,
            format!("region {name}: its data are being rewound to follow epoch {epoch}; what only it had is kept aside"),
        );
        let refusal = match self.take_rewind(open, &mut tunnel).await {
            Ok(begin_lsn) => {
                tracing::info!(lsn = %begin_lsn, "the data are rewound; they need redo from {begin_lsn} on");
                self.journal.note(
                    Kind::RewindOver,
                    format!("region {name}: its data are rewound; it follows with redo from {begin_lsn} on"),
                );
                None
            }
            Err(e) => {
                tracing::error!("{e}");
                self.journal.note(
                    Kind::RewindFailed,
                    format!("region {name}: not rewound, {e}; a seed is sent instead"),
                );
                // Tried again soon, with a seed.
                Some(Refusal::new(Refused::Busy, e.to_string()))
            }
        };
        let segments = self.layout.rewind();
        if let Err(e) = remove(&segments) {
            tracing::warn!("{}: {e}", segments.display());
        }
        tunnel.finish(refusal).await;
    }

    async fn take_rewind(&self, open: RewindOpen, tunnel: &mut Tunnel) -> Result<Lsn, FollowError> {
        let (epoch, history) = (Epoch(open.epoch), parse(open.timeline, &open.history)?);
        self.leave_data(epoch, &history).await?;
        if self.instance.is_promoted_by_another()? {
            return Err(FollowError::Rewind("its standby was promoted by somebody else (pg_promote)".into()));
        }
        self.instance.settle_standby(SETTLE).await?;
        // pg_rewind finds a place for each, and makes no link to where the primary's lies.
        let (places, tablespaces) = (self.places.clone(), open.tablespaces);
        let made = blocking("make the places of tablespaces", move || places.of_rewind(&tablespaces)).await;
        made.map_err(|e| FollowError::Blocking(e.to_string()))??;
        self.write_segments(&history).await?;
        self.run_pg_rewind(tunnel).await?;
        let rewound_lsn = self.instance.rewound()?;
        let (begin_lsn, timeline) = tunnel.rewound(rewound_lsn).await?;
        self.volume.reset(begin_lsn, timeline).await?;
        self.take_data(epoch, SystemId(open.system_id), &open.superuser_password).await?;
        Ok(rewound_lsn)
    }

    /// Redo for pg_rewind to read what PostgreSQL has removed by now: from before the last checkpoint that
    /// both have.
    async fn write_segments(&self, history: &TimelineHistory) -> Result<(), FollowError> {
        let directory = self.layout.rewind();
        let io = |source| InstanceError::Io { path: directory.display().to_string(), source };
        // Ours until all is written: nobody else can put anything in its place.
        remove(&directory).and_then(|()| private::make_directory(&directory)).map_err(io)?;
        let fork_lsn = lost::fork(&self.volume, history);
        let control = self.instance.control_data()?;
        let checkpoint_lsn = control.checkpoint_redo_lsn;
        let from_lsn = match checkpoint_lsn <= fork_lsn {
            true => checkpoint_lsn,
            false => Lsn(fork_lsn.0.saturating_sub(BEFORE_FORK_BYTES)),
        };
        lost::write_segments(&self.volume, from_lsn, &directory, control.segment_size).await?;
        let account = &self.instance.options().account;
        let give = || {
            for entry in std::fs::read_dir(&directory)? {
                account.own(File::open(entry?.path())?)?;
            }
            account.own(File::open(&directory)?)
        };
        Ok(give().map_err(io)?)
    }

    async fn run_pg_rewind(&self, tunnel: &mut Tunnel) -> Result<(), FollowError> {
        let command = self.instance.rewind(&self.layout.rewind())?;
        let listener = self.listen(REWIND_PORT)?;
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let cannot = |e: std::io::Error| FollowError::Rewind(format!("pg_rewind: {e}"));
        let running = command.spawn().map_err(cannot)?.wait_with_output();
        tokio::pin!(running);
        let (output, carried) = tokio::select! {
            carried = tunnel.carry(listener) => ((&mut running).await, carried),
            // It never connected.
            output = &mut running => (output, Ok(())),
        };
        let _ = std::fs::remove_file(socket_path(&self.instance.options().socket_dir, REWIND_PORT));
        carried?;
        succeeded(&output.map_err(cannot)?)
    }

    /// The region gives up the data it has; what only it has is kept aside. From here to
    /// [`Follower::take_data`] it has none.
    async fn leave_data(&self, epoch: Epoch, history: &TimelineHistory) -> Result<(), FollowError> {
        self.inbound.interrupt().await;
        self.still_led(epoch)?;
        // Where the data directory is gone nothing else says it.
        let segment_size = self.instance.control_data().map_or(SegmentSize::USUAL, |c| c.segment_size);
        lost::keep(&self.layout, &self.volume, history, epoch.0, segment_size).await?;
        // Recorded first, so that a stream that comes now is answered so, and then what still comes from an
        // older one is ended. Whoever shuts that primary out from here on is told that this region has no
        // data; who has done so before counts on them.
        self.while_led(epoch, RegionState::gives_data_up)?;
        self.inbound.interrupt().await;
        self.unfollow().await?;
        // A daemon that was killed may have left one running, which nobody here keeps.
        Ok(self.instance.stop(Stop::Immediate, LEFT_RUNNING).await?)
    }

    /// The region has data of `system_id`, and follows with them.
    async fn take_data(&self, epoch: Epoch, system_id: SystemId, password: &str) -> Result<(), FollowError> {
        let clients = Clients { owner: &self.owner, listen: self.instance.options().listen };
        secrets::keep(&self.layout, password, clients).map_err(FollowError::Secret)?;
        // Shut out meanwhile, that primary may not send the redo any more that makes the data consistent.
        self.while_led(epoch, |state| state.was_given(system_id))?;
        self.follow(system_id).await
    }

    fn still_led(&self, epoch: Epoch) -> Result<(), FollowError> {
        if self.record.get().is_led(epoch) { Ok(()) } else { Err(FollowError::Overtaken(epoch)) }
    }

    fn while_led(&self, epoch: Epoch, change: impl FnOnce(&mut RegionState)) -> Result<(), FollowError> {
        let led = self.record.change_while_led(epoch, change)?;
        if led { Ok(()) } else { Err(FollowError::Overtaken(epoch)) }
    }
}

/// Removes a directory, if it is there.
fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn busy() -> Refusal {
    Refusal::new(Refused::Busy, "this region's data are being replaced already")
}

fn parse(timeline: u32, history: &[u8]) -> Result<TimelineHistory, FollowError> {
    TimelineHistory::parse(Timeline(timeline), history).map_err(|e| FollowError::History(e.to_string()))
}

fn succeeded(output: &Output) -> Result<(), FollowError> {
    let said = [&output.stdout, &output.stderr]
        .map(|said| String::from_utf8_lossy(said).trim().to_owned())
        .join("\n");
    if output.status.success() {
        tracing::info!("{}", said.trim());
        return Ok(());
    }
    Err(FollowError::Rewind(said.trim().to_owned()))
}
