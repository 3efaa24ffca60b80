//! A wide-area network between network namespaces of this machine: delay, jitter, loss, reordering, rates
//! with bounded queues, cuts.
//!
//! Each place is a namespace with one TUN device, `10.77.PLACE.1`. What a place sends to another is read from
//! its device by this process, held for as long as the direction between them says, or lost, and written to
//! the other's device: any IPv4 packet, so UDP and TCP alike. One thread does all of it. It needs root's
//! right to make namespaces and devices (CAP_NET_ADMIN, CAP_SYS_ADMIN), and no kernel module but tun.

mod link;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, setns};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use runtime::clock::steady_us;
use runtime::task::Thread;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use self::link::Link;
pub use self::link::{Carried, Weather};

/// The name of each place's device.
const DEVICE: &str = "wan";

/// The largest packet between places, for `ip` and for us.
const MTU: &str = "1500";
const PACKET_BYTES_MAX: usize = 1500;

/// Packets on their way at once: 1 Gbit/s over 400 ms, doubled. More are dropped.
const ON_THE_WAY_MAX: usize = 1 << 16;

/// The kernel's queue before a device: what a burst holds while the thread waits for a processor.
const DEVICE_QUEUE: &str = "8192";

/// Packets read from one device in a row, and how long the thread sleeps at most.
const READS_IN_A_ROW: usize = 64;
const SLEEP_LONGEST_US: u64 = 5_000;

/// The network. Its namespaces go with it.
pub struct Wan {
    shared: Arc<Shared>,
    names: Vec<String>,
    thread: Option<Thread>,
}

struct Shared {
    /// By place of origin, then by place of destination.
    links: Mutex<Vec<Vec<Link>>>,
    end: AtomicBool,
}

/// A packet on its way; the earliest, then the first, is delivered first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due_us: u64,
    sequence: u64,
    to: usize,
    packet: Vec<u8>,
}

impl Wan {
    /// A network of so many places, at most 250; `seed` decides what is lost.
    ///
    /// # Errors
    /// When this process may not make namespaces or TUN devices, or `ip` is not installed.
    pub fn new(places: usize, seed: u64) -> Result<Wan> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            links: Mutex::new((0..places).map(|_| (0..places).map(|_| Link::default()).collect()).collect()),
            end: AtomicBool::new(false),
        });
        let mut wan = Wan { shared: shared.clone(), names: Vec::new(), thread: None };
        let mut devices = Vec::new();
        for place in 0..places {
            let name = format!("wan-{}-{number}-{place}", std::process::id());
            ip(&["netns", "add", &name])?;
            wan.names.push(name.clone());
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            devices.push(within(&name, device)??);
            ip(&["-n", &name, "addr", "add", &format!("{}/16", Wan::address(place)), "dev", DEVICE])?;
            ip(&["-n", &name, "link", "set", DEVICE, "up", "mtu", MTU, "txqueuelen", DEVICE_QUEUE])?;
        }
        let carrier = Carrier::new(shared, devices, SmallRng::seed_from_u64(seed));
        wan.thread = Some(Thread::spawn("wan", move || carrier.run())?);
        Ok(wan)
    }

    /// The address of a place.
    #[must_use]
    pub fn address(place: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, u8::try_from(place).unwrap_or(u8::MAX), 1)
    }

    /// The name of a place's namespace, for `ip netns exec`.
    #[must_use]
    pub fn namespace(&self, place: usize) -> &str {
        &self.names[place]
    }

    /// A command that runs in a place.
    #[must_use]
    pub fn command(&self, place: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace(place)]).arg(program);
        command
    }

    /// Does `work` on a thread of its own in a place: sockets that it opens belong there for good.
    ///
    /// # Errors
    /// When the place cannot be entered, or the work panics.
    pub fn within<T: Send + 'static>(
        &self,
        place: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        within(self.namespace(place), work)
    }

    /// Changes how one direction is.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Weather)) {
        change(&mut self.shared.lock()[from][to].weather);
    }

    /// Changes how all directions are.
    pub fn change_all(&self, change: impl Fn(&mut Weather)) {
        self.shared.lock().iter_mut().flatten().for_each(|link| change(&mut link.weather));
    }

    /// What one direction has carried.
    #[must_use]
    pub fn carried(&self, from: usize, to: usize) -> Carried {
        self.shared.lock()[from][to].carried
    }

    /// How long packets of one direction have waited for its rate, microseconds, sorted; begins anew.
    #[must_use]
    pub fn take_waits_us(&self, from: usize, to: usize) -> Vec<u64> {
        let mut waits: Vec<u64> = std::mem::take(&mut self.shared.lock()[from][to].waited_us).into();
        waits.sort_unstable();
        waits
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
        for name in &self.names {
            if let Err(e) = ip(&["netns", "del", name]) {
                eprintln!("wan: the namespace {name} is left behind: {e}");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: it reads packets, and delivers those that are due.
struct Carrier {
    shared: Arc<Shared>,
    devices: Vec<SyncDevice>,
    late: BinaryHeap<Reverse<Late>>,
    sequence: u64,
    dice: SmallRng,
}

impl Carrier {
    fn new(shared: Arc<Shared>, devices: Vec<SyncDevice>, dice: SmallRng) -> Carrier {
        Carrier { shared, devices, late: BinaryHeap::new(), sequence: 0, dice }
    }

    fn run(mut self) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !self.shared.end.load(Ordering::Relaxed) {
            self.wait();
            for from in 0..self.devices.len() {
                for _ in 0..READS_IN_A_ROW {
                    let Ok(length) = self.devices[from].recv(&mut buffer) else { break };
                    self.take(from, &buffer[..length]);
                }
            }
            self.deliver();
        }
    }

    /// Sleeps until there is a packet to read, or one is due.
    fn wait(&self) {
        let now_us = steady_us();
        let due_us = self.late.peek().map_or(u64::MAX, |Reverse(late)| late.due_us);
        let sleep_us = due_us.saturating_sub(now_us).min(SLEEP_LONGEST_US);
        let nanos = i64::try_from(sleep_us * 1000).unwrap_or(0);
        let mut devices: Vec<PollFd<'_>> = self
            .devices
            .iter()
            .map(|device| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN))
            .collect();
        // An interrupted wait is one that was short.
        let _ = poll(&mut devices, Some(&Timespec { tv_sec: 0, tv_nsec: nanos }));
    }

    fn take(&mut self, from: usize, packet: &[u8]) {
        // IPv4 to 10.77.PLACE.1; what else the kernel says on a new device is nobody's.
        let Some([10, 77, place, 1]) = packet.get(16..20).filter(|_| packet[0] >> 4 == 4) else { return };
        let to = usize::from(*place);
        if to >= self.devices.len() || self.late.len() >= ON_THE_WAY_MAX {
            return;
        }
        let due = self.shared.lock()[from][to].pass(steady_us(), packet.len() as u64, &mut self.dice);
        if let Some(due_us) = due {
            self.sequence += 1;
            self.late.push(Reverse(Late { due_us, sequence: self.sequence, to, packet: packet.to_vec() }));
        }
    }

    fn deliver(&mut self) {
        let now_us = steady_us();
        while self.late.peek().is_some_and(|Reverse(late)| late.due_us <= now_us) {
            let Some(Reverse(late)) = self.late.pop() else { return };
            // What the other side has no room for is lost.
            let _ = self.devices[late.to].send(&late.packet);
        }
    }
}

/// Makes the device; `ip` gives it its address.
fn device() -> Result<SyncDevice> {
    let device = DeviceBuilder::new().name(DEVICE).build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

/// Does `work` on a thread of its own in a namespace.
fn within<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    let (done, result) = std::sync::mpsc::sync_channel(1);
    let thread = Thread::spawn("namespace", move || {
        let entered = setns(file, CloneFlags::CLONE_NEWNET).map_err(Error::from);
        let _ = done.send(entered.map(|()| work()));
    })?;
    let result = result.recv().map_err(|_| Error::other("the work in a namespace panicked"));
    thread.join();
    result?
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(ErrorKind::PermissionDenied, format!("ip {}: {}", arguments.join(" "), text.trim())))
}
