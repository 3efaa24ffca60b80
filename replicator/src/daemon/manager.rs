//! What a daemon tells the service manager that has started it, as systemd takes it: that it serves, how it
//! is, that it reads its file again or stops, and that it lives.
//!
//! Where none asks for that (`NOTIFY_SOCKET`), nothing is said. What cannot be said is not said again, and
//! holds nothing up.
//!
//! Source: `sd_notify(3)`.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How often a change of how the daemon is, is told.
const TELL: Duration = Duration::from_secs(1);

/// The longest status that is told, bytes: `systemctl status` shows it in one line.
const STATUS_BYTES_MAX: usize = 400;

const READY: &str = "READY=1";

/// Says something to whoever listens at `place`: never waiting, as whoever says it has work to do.
fn say_to(place: &OsStr, said: &str) -> io::Result<()> {
    let address = match place.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(said.as_bytes(), &address).map(drop)
}

fn say(lines: &[&str]) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else { return };
    if let Err(e) = say_to(&place, &lines.join("\n")) {
        tracing::debug!("the service manager was not told: {e}");
    }
}

/// Within what time signs of life are to come, where they are asked for, of the process `own`.
fn watched(within_us: Option<&str>, whose: Option<&str>, own: u32) -> Option<Duration> {
    let ours = whose.is_none_or(|whose| whose.parse() == Ok(own));
    let within_us: u64 = within_us.filter(|_| ours)?.parse().ok()?;
    (within_us > 0).then(|| Duration::from_micros(within_us))
}

/// Tells that the daemon serves, and from then on how it `is`, and that it lives: for ever. To be polled in
/// the task whose life that is: a task that waits where it may not, and so polls this no more, is no life,
/// and `is` looks at what the daemon's work takes locks on.
pub(crate) async fn tell(is: impl Fn() -> String) -> Infallible {
    let mut told = status(&is());
    say(&[READY, &told]);
    let variable = |name| std::env::var(name).ok();
    let (within_us, whose) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    let watched = watched(within_us.as_deref(), whose.as_deref(), std::process::id());
    let pause = pause(watched);
    loop {
        tokio::time::sleep(pause).await;
        let now = status(&is());
        if now != told {
            told = now;
            say(&[&told]);
        }
        if watched.is_some() {
            say(&["WATCHDOG=1"]);
        }
    }
}

/// Tells that the file is read again; [`serving`] tells that it was.
pub(crate) fn reloading() {
    say(&["RELOADING=1"]);
}

/// Tells that the daemon serves.
pub(crate) fn serving() {
    say(&[READY]);
}

/// Tells that the daemon stops, and `what` that waits for.
pub(crate) fn stopping(what: &str) {
    say(&["STOPPING=1", &status(what)]);
}

/// The pause between two signs of life: three come in the time in which one is to.
fn pause(watched: Option<Duration>) -> Duration {
    watched.map_or(TELL, |within| TELL.min(within / 3))
}

/// A status as the protocol takes it: one line, and not too long.
fn status(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.len() > STATUS_BYTES_MAX {
        true => format!("STATUS={}…", &line[..line.floor_char_boundary(STATUS_BYTES_MAX)]),
        false => format!("STATUS={line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(status("primary\nREADY=1\r\n"), "STATUS=primary READY=1", "nobody's words are an order");
        let long = status(&"é".repeat(1000));
        assert_eq!((long.len(), long.ends_with('…')), ("STATUS=".len() + STATUS_BYTES_MAX + 3, true));
        assert_eq!(status(""), "STATUS=");
    }

    #[test]
    fn three_signs_of_life_come_in_the_time_of_one() {
        assert_eq!(pause(None), TELL);
        assert_eq!(pause(Some(Duration::from_secs(60))), TELL);
        assert_eq!(pause(Some(Duration::from_millis(900))), Duration::from_millis(300));
    }

    #[test]
    fn signs_of_life_are_asked_of_this_process_alone() {
        let minute = Some(Duration::from_secs(60));
        assert_eq!(watched(Some("60000000"), Some("7"), 7), minute);
        assert_eq!(watched(Some("60000000"), None, 7), minute);
        for (within_us, whose) in [("60000000", Some("8")), ("0", None), ("soon", None), ("-1", None)] {
            assert_eq!(watched(Some(within_us), whose, 7), None, "{within_us}, {whose:?}");
        }
        assert_eq!(watched(None, Some("7"), 7), None);
    }

    #[test]
    fn what_is_said_arrives_and_a_manager_that_hears_nothing_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("notify");
        let manager = UnixDatagram::bind(&place).unwrap();
        say_to(place.as_os_str(), "READY=1").unwrap();
        let mut heard = [0; 64];
        let length = manager.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"READY=1");
        // Its queue is full after some: what comes then is not waited for.
        let full = (0..100_000).find_map(|_| say_to(place.as_os_str(), "WATCHDOG=1").err());
        assert_eq!(full.map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
        let name = format!("replicator-manager-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        say_to(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        assert_eq!(manager.recv(&mut heard).unwrap(), "STOPPING=1".len());
        assert!(say_to(OsStr::new("/nowhere/notify"), "READY=1").is_err());
    }
}
