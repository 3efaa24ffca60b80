//! The superuser's password, one for the cluster, and the token of a region's page: kept in files of mode
//! 0600.
//!
//! While it is given another one, that lies beside it as the next: see `region/password.rs`.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use postgres::sockets::SUPERUSER;

use crate::layout::{RegionLayout, write_durably};

/// Files are written by one at a time: they are made aside under one name.
static WRITING: Mutex<()> = Mutex::new(());

/// Draws a password.
#[must_use]
pub fn draw() -> String {
    let bytes: [u8; 24] = runtime::random::draw();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What the region's page asks of those who are not on this machine; drawn when it is first needed.
///
/// # Errors
/// When it cannot be read, or kept.
pub fn page_token(layout: &RegionLayout) -> io::Result<String> {
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    match std::fs::read_to_string(layout.page_token()) {
        Ok(token) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let token = draw();
    write_durably(&layout.page_token(), token.as_bytes())?;
    Ok(token)
}

/// Keeps the password, also in the form that libpq reads.
///
/// # Errors
/// When the files cannot be written.
pub fn keep(layout: &RegionLayout, password: &str, listen: SocketAddr) -> io::Result<()> {
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let line = format!("{}:{}:*:{SUPERUSER}:{password}\n", listen.ip(), listen.port());
    write_durably(&layout.passfile(), line.as_bytes())?;
    write_durably(&layout.password(), password.as_bytes())
}

/// Keeps what is to be the password next, instead of an earlier such.
///
/// # Errors
/// When the file cannot be written.
pub fn keep_next(layout: &RegionLayout, password: &str) -> io::Result<()> {
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    write_durably(&layout.next_password(), password.as_bytes())
}

/// What is to be the password next.
#[must_use]
pub fn next(layout: &RegionLayout) -> Option<String> {
    let next = std::fs::read_to_string(layout.next_password()).ok()?;
    Some(next.trim().to_owned()).filter(|next| !next.is_empty())
}

/// Makes the next password, if there is still one, the one that is kept. Interrupted, it can be done again.
///
/// # Errors
/// When files cannot be written.
pub fn take_next(layout: &RegionLayout, listen: SocketAddr) -> io::Result<()> {
    // Somebody else may have done it just now.
    let Some(next) = next(layout) else { return Ok(()) };
    keep(layout, &next, listen)?;
    match std::fs::remove_file(layout.next_password()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The password kept.
///
/// # Errors
/// When there is none.
pub fn load(layout: &RegionLayout) -> io::Result<String> {
    Ok(std::fs::read_to_string(layout.password())?.trim().to_owned())
}

/// A connection string for the PostgreSQL at `address`.
#[must_use]
pub fn url(address: SocketAddr, password: Option<&str>) -> String {
    match password {
        Some(password) => format!("postgresql://{SUPERUSER}:{password}@{address}/postgres"),
        None => format!("postgresql://{SUPERUSER}@{address}/postgres"),
    }
}

/// What a connection string says where the server proves who it is, by a certificate of the cluster's.
pub const VERIFIES: &str = "sslmode=verify-full";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_next_password_takes_the_place_of_the_one_that_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned()).region(&"a".parse().unwrap());
        std::fs::create_dir_all(layout.directory()).unwrap();
        let listen: SocketAddr = "127.0.0.1:5".parse().unwrap();
        keep(&layout, "old", listen).unwrap();
        assert_eq!(next(&layout), None);
        take_next(&layout, listen).unwrap();
        assert_eq!(load(&layout).unwrap(), "old");
        keep_next(&layout, "new").unwrap();
        assert_eq!((load(&layout).unwrap(), next(&layout)), ("old".into(), Some("new".into())));
        take_next(&layout, listen).unwrap();
        assert_eq!((load(&layout).unwrap(), next(&layout)), ("new".into(), None));
        let line = std::fs::read_to_string(layout.passfile()).unwrap();
        assert_eq!(line, "127.0.0.1:5:*:postgres:new\n");
        for path in [layout.password(), layout.passfile()] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
