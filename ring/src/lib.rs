//! Durable writes to several files by one thread: many are begun with one system call, and one more waits for
//! them.
//!
//! A write bypasses the page cache (`O_DIRECT`) and is on the disk when it is done (`RWF_DSYNC`), so it needs
//! no flush after it. The kernel does nothing here that could hold up the thread: a write that would have to
//! wait, on a disk that is frozen or a file that grows, goes on behind the thread's back, and the others go
//! on beside it.
//!
//! The one crate with `unsafe`: two lines of it, which give the kernel memory that it writes from. That
//! memory belongs to the [`Ring`] until the kernel is done with it, and for ever where the ring ends before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;

/// What direct writes begin and end at a multiple of. Disks have blocks of 512 or 4096 bytes.
pub const BLOCK_BYTES: usize = 4096;

/// `RWF_DSYNC` of `linux/fs.h`: on the disk when it is done.
const RWF_DSYNC: i32 = 2;

/// The answer that says that somebody has called [`Waker::wake`].
const WOKEN: u64 = u64::MAX;

/// How long it is waited for as many writes as are wanted once one of them is done, microseconds.
const TOGETHER_US: u32 = 500;

/// File systems on which a direct write keeps what is read through the page cache true, and which do not hold
/// up whoever begins one: ext4 and XFS.
const FILE_SYSTEMS: [i64; 2] = [0xEF53, 0x5846_5342];

/// Bytes in whole blocks, where the kernel takes them from. What the bytes do not fill of the last block is
/// zeroes.
#[derive(Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
    bytes: usize,
}

#[derive(Debug, Clone)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

impl Blocks {
    /// Puts these bytes in the place of what was here.
    pub fn fill<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        self.bytes = 0;
        for mut part in parts {
            while !part.is_empty() {
                let (index, at) = (self.bytes / BLOCK_BYTES, self.bytes % BLOCK_BYTES);
                if self.blocks.len() == index {
                    self.blocks.push(Block([0; BLOCK_BYTES]));
                }
                let (now, later) = part.split_at(part.len().min(BLOCK_BYTES - at));
                self.blocks[index].0[at..at + now.len()].copy_from_slice(now);
                self.bytes += now.len();
                part = later;
            }
        }
        let end = self.bytes % BLOCK_BYTES;
        self.blocks.truncate(self.bytes.div_ceil(BLOCK_BYTES));
        if end > 0
            && let Some(last) = self.blocks.last_mut()
        {
            last.0[end..].fill(0);
        }
    }

    /// The bytes in the last block where they do not fill it; none where they do.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        match self.bytes % BLOCK_BYTES {
            0 => &[],
            end => self.blocks.last().map_or(&[], |last| &last.0[..end]),
        }
    }

    /// The size of the blocks, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Whether nothing is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

/// Opens a file for direct writes; none where it lies on a file system of which nothing is known, or which
/// has none.
#[must_use]
pub fn open(path: &Path) -> Option<Arc<File>> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
    let kind = rustix::fs::fstatfs(&file).ok()?.f_type;
    FILE_SYSTEMS.contains(&kind).then(|| Arc::new(file))
}

/// A write.
#[derive(Debug)]
pub struct Write {
    /// The file, as [`open`] gave it.
    pub file: Arc<File>,
    /// What is written.
    pub blocks: Blocks,
    /// Where it is written: at a multiple of [`BLOCK_BYTES`].
    pub offset: u64,
}

/// A write that is over.
#[derive(Debug)]
pub struct Done {
    /// What it was begun with.
    pub token: u64,
    /// What was written.
    pub write: Write,
    /// Whether it is on the disk. Of one that failed nothing is known.
    pub result: io::Result<()>,
}

/// Writes under way. For one thread, the one that made it.
pub struct Ring {
    ring: IoUring,
    /// What the kernel reads from, by the number it was told.
    flights: Vec<Option<(u64, Write)>>,
    waker: Waker,
    /// The kernel says when somebody wakes.
    listening: bool,
}

/// Ends a [`Ring::wait`], from any thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Ends the present wait, or the next one where there is none.
    pub fn wake(&self) {
        // It can be full, and then the ring is woken already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl Ring {
    /// A ring for so many writes at a time.
    ///
    /// # Errors
    /// When the kernel has none, or does not let this process have one: containers often do not.
    pub fn new(writes_max: u32) -> io::Result<Ring> {
        let entries = (writes_max + 1).next_power_of_two();
        // By its own thread alone, and when that waits: nothing interrupts it.
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let waker = Waker(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?));
        let flights = (0..writes_max).map(|_| None).collect();
        Ok(Ring { ring, flights, waker, listening: false })
    }

    /// What ends a wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Begins a write at the next [`Ring::wait`]; gives it back when as many are under way as there may be.
    ///
    /// # Errors
    /// The write.
    pub fn begin(&mut self, token: u64, write: Write) -> Result<(), Write> {
        let Some(index) = self.flights.iter().position(Option::is_none) else { return Err(write) };
        let Ok(length) = u32::try_from(write.blocks.len()) else { return Err(write) };
        let entry =
            opcode::Write::new(Fd(write.file.as_raw_fd()), write.blocks.blocks.as_ptr().cast(), length);
        let entry = entry.offset(write.offset).rw_flags(RWF_DSYNC).build().user_data(index as u64);
        let (_, write) = self.flights[index].insert((token, write));
        debug_assert!(write.offset.is_multiple_of(BLOCK_BYTES as u64));
        // SAFETY: file and blocks lie in `flights` until the kernel's answer was seen, and are never freed if
        // it is not. Nothing changes the blocks there, and moving them does not move what they point to.
        #[allow(unsafe_code)]
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => Ok(()),
            // The kernel was not told of it.
            Err(_) => self.flights[index].take().map_or(Ok(()), |(_, write)| Err(write)),
        }
    }

    /// Begins what is to be begun and waits: for `wanted` writes, or a while after the first of them; for a
    /// waker; for `patience`. What is over is put into `done`.
    ///
    /// # Errors
    /// When the kernel refuses; what is under way stays so.
    pub fn wait(
        &mut self,
        wanted: usize,
        patience: Option<Duration>,
        done: &mut Vec<Done>,
    ) -> io::Result<()> {
        if !self.listening {
            let entry = opcode::PollAdd::new(Fd(self.waker.0.as_raw_fd()), 1).build().user_data(WOKEN);
            // SAFETY: this names no memory, and the descriptor lives as long as the ring.
            #[allow(unsafe_code)]
            let pushed = unsafe { self.ring.submission().push(&entry) };
            self.listening = pushed.is_ok();
        }
        let together = self.ring.params().is_feature_min_timeout();
        let patience = patience.unwrap_or(Duration::from_secs(3600));
        let time = Timespec::new().sec(patience.as_secs()).nsec(patience.subsec_nanos());
        let arguments = SubmitArgs::new().timespec(&time);
        let (wanted, arguments) = match together && wanted > 1 {
            true => (wanted, arguments.min_wait_usec(TOGETHER_US)),
            false => (1, arguments),
        };
        match self.ring.submitter().submit_with_args(wanted, &arguments) {
            Ok(_) => {}
            Err(e) if is_over(&e) => {}
            Err(e) => return Err(e),
        }
        for answer in self.ring.completion() {
            let index = answer.user_data();
            if index == WOKEN {
                self.listening = false;
                let _ = rustix::io::read(&*self.waker.0, &mut [0; 8]);
                continue;
            }
            let flight = usize::try_from(index).ok().and_then(|index| self.flights.get_mut(index)?.take());
            let Some((token, write)) = flight else { continue };
            let result = match usize::try_from(answer.result()) {
                Ok(written) if written == write.blocks.len() => Ok(()),
                Ok(_) => Err(io::Error::new(io::ErrorKind::WriteZero, "the disk took a part of a write")),
                Err(_) => Err(io::Error::from_raw_os_error(-answer.result())),
            };
            done.push(Done { token, write, result });
        }
        Ok(())
    }
}

/// Whether a wait is over without anything being wrong.
fn is_over(error: &io::Error) -> bool {
    let codes =
        [rustix::io::Errno::TIME, rustix::io::Errno::INTR, rustix::io::Errno::BUSY, rustix::io::Errno::AGAIN];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may go on reading what it was not heard to be done with.
        self.flights.drain(..).flatten().for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(parts: &[&[u8]]) -> Blocks {
        let mut blocks = Blocks::default();
        blocks.fill([[7; 3 * BLOCK_BYTES].as_slice()].into_iter());
        blocks.fill(parts.iter().copied());
        blocks
    }

    #[test]
    fn blocks_end_with_zeroes_and_know_what_is_not_whole() {
        let two = blocks(&[&[1; 4000], &[2; 200]]);
        assert_eq!((two.len(), two.rest()), (2 * BLOCK_BYTES, [2; 104].as_slice()));
        assert!(
            two.blocks[1].0[104..].iter().all(|byte| *byte == 0),
            "nothing is left of what was here before"
        );
        assert_eq!(two.blocks[0].0[3999..4001], [1, 2]);
        let whole = blocks(&[&[1; BLOCK_BYTES]]);
        assert_eq!((whole.len(), whole.rest().len()), (BLOCK_BYTES, 0));
        assert!(blocks(&[]).is_empty());
    }

    #[test]
    fn writes_are_told_apart_and_what_is_written_can_be_read() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let Ok(mut ring) = Ring::new(2) else { return eprintln!("this kernel lets nobody have a ring") };
        let paths = [directory.path().join("a"), directory.path().join("b")];
        for (token, path) in paths.iter().enumerate() {
            std::fs::write(path, vec![9; 4 * BLOCK_BYTES]).unwrap();
            let Some(file) = open(path) else { return eprintln!("no direct writes here") };
            let text = format!("file {token}");
            let write = Write { file, blocks: blocks(&[text.as_bytes()]), offset: BLOCK_BYTES as u64 };
            ring.begin(token as u64, write).unwrap();
        }
        let third =
            Write { file: Arc::new(File::open(&paths[0]).unwrap()), blocks: blocks(&[b"x"]), offset: 0 };
        assert!(ring.begin(2, third).is_err(), "there is room for two");
        let mut done = Vec::new();
        while done.len() < 2 {
            ring.wait(2, None, &mut done).unwrap();
        }
        done.sort_by_key(|done| done.token);
        for (token, done) in done.into_iter().enumerate() {
            assert_eq!(done.token, token as u64);
            done.result.unwrap();
            let bytes = std::fs::read(&paths[token]).unwrap();
            assert_eq!(bytes[BLOCK_BYTES - 1], 9);
            assert_eq!(&bytes[BLOCK_BYTES..BLOCK_BYTES + 7], format!("file {token}\0").as_bytes());
        }
        // A file that is open for reading alone takes none.
        let write =
            Write { file: Arc::new(File::open(&paths[0]).unwrap()), blocks: blocks(&[b"x"]), offset: 0 };
        ring.begin(7, write).unwrap();
        let mut done = Vec::new();
        ring.wait(1, None, &mut done).unwrap();
        assert!(done.pop().unwrap().result.is_err());
    }

    #[test]
    fn a_write_that_has_to_wait_holds_up_no_other() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let Ok(mut ring) = Ring::new(2) else { return eprintln!("this kernel lets nobody have a ring") };
        let path = directory.path().join("file");
        std::fs::write(&path, vec![9; BLOCK_BYTES]).unwrap();
        let Some(file) = open(&path) else { return eprintln!("no direct writes here") };
        // A pipe that nobody reads stands for a disk that is frozen.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while rustix::io::write(&writer, &[0; BLOCK_BYTES]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        let frozen = Arc::new(File::from(writer));
        ring.begin(0, Write { file: frozen, blocks: blocks(&[b"x"]), offset: 0 }).unwrap();
        ring.begin(1, Write { file, blocks: blocks(&[b"x"]), offset: 0 }).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            ring.wait(2, None, &mut done).unwrap();
        }
        assert_eq!((done.len(), done[0].token), (1, 1), "the other one is under way");
        done[0].result.as_ref().unwrap();
        drop(ring);
        drop(reader);
    }

    #[test]
    fn a_wait_ends_when_it_is_woken_and_when_its_time_is_over() {
        let Ok(mut ring) = Ring::new(1) else { return eprintln!("this kernel lets nobody have a ring") };
        let mut done = Vec::new();
        ring.wait(1, Some(Duration::from_millis(1)), &mut done).unwrap();
        for _ in 0..3 {
            ring.waker().wake();
            ring.wait(1, None, &mut done).unwrap();
        }
        assert!(done.is_empty());
    }
}
