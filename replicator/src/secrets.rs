//! The superuser's password, one for the cluster, and the token of a region's page: kept in files of mode
//! 0600. That of the role that applications use is derived from it, so that a region that has the one has
//! the other, and both turn over at once.
//!
//! While it is given another one, that lies beside it as the next: see `region/password.rs`.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::hmac;
use postgres::instance::Owner;
use postgres::sockets::SUPERUSER;

use crate::layout::{RegionLayout, write_durably};
use crate::units::show_hex;

/// Files are written by one at a time: they are made aside under one name.
static WRITING: Mutex<()> = Mutex::new(());

/// Draws a password.
#[must_use]
pub fn draw() -> String {
    let bytes: [u8; 24] = runtime::random::draw();
    show_hex(&bytes)
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

/// The password of the role `owner`, from the superuser's: nobody finds that one by it.
#[must_use]
pub fn of_owner(superusers: &str, owner: &str) -> String {
    if owner == SUPERUSER {
        return superusers.to_owned();
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, superusers.as_bytes());
    let derived = hmac::sign(&key, format!("replicator role {owner}").as_bytes());
    show_hex(&derived.as_ref()[..24])
}

/// The role that applications use, where it is not the superuser.
#[must_use]
pub fn owner(name: &str, superusers: &str) -> Option<Owner> {
    (name != SUPERUSER).then(|| Owner { name: name.to_owned(), password: of_owner(superusers, name) })
}

/// Whose password is kept where, beside the superuser's.
#[derive(Debug, Clone, Copy)]
pub struct Clients<'a> {
    /// The role that applications use.
    pub owner: &'a str,
    /// Where they reach PostgreSQL.
    pub listen: SocketAddr,
}

/// Keeps the superuser's password, and those of both in the form that libpq reads.
///
/// # Errors
/// When the files cannot be written.
pub fn keep(layout: &RegionLayout, password: &str, clients: Clients<'_>) -> io::Result<()> {
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let Clients { owner, listen } = clients;
    // libpq tells a colon that is part of an address by a backslash.
    let host = listen.ip().to_string().replace(':', "\\:");
    let line = |role: &str| format!("{host}:{}:*:{role}:{}\n", listen.port(), of_owner(password, role));
    let owners = if owner == SUPERUSER { String::new() } else { line(owner) };
    write_durably(&layout.passfile(), (line(SUPERUSER) + &owners).as_bytes())?;
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
pub fn take_next(layout: &RegionLayout, clients: Clients<'_>) -> io::Result<()> {
    // Somebody else may have done it just now.
    let Some(next) = next(layout) else { return Ok(()) };
    keep(layout, &next, clients)?;
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

/// A connection string for the PostgreSQL at `address`, for `role` and the database of that name.
#[must_use]
pub fn url(address: SocketAddr, role: &str, password: Option<&str>) -> String {
    match password {
        Some(password) => format!("postgresql://{role}:{password}@{address}/{role}"),
        None => format!("postgresql://{role}@{address}/{role}"),
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
    fn the_owners_password_hangs_on_the_superusers_and_does_not_show_it() {
        let one = of_owner("secret", "app");
        assert_eq!((one.len(), &one), (48, &of_owner("secret", "app")));
        assert!(one != of_owner("other", "app") && one != of_owner("secret", "web"));
        assert_eq!(of_owner("secret", "postgres"), "secret");
    }

    #[test]
    fn a_passfile_tells_an_address_of_colons() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned()).region(&"a".parse().unwrap());
        std::fs::create_dir_all(layout.directory()).unwrap();
        keep(&layout, "p", Clients { owner: "postgres", listen: "[::1]:5".parse().unwrap() }).unwrap();
        assert_eq!(std::fs::read_to_string(layout.passfile()).unwrap(), "\\:\\:1:5:*:postgres:p\n");
    }

    #[test]
    fn the_next_password_takes_the_place_of_the_one_that_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned()).region(&"a".parse().unwrap());
        std::fs::create_dir_all(layout.directory()).unwrap();
        let listen = Clients { owner: "app", listen: "127.0.0.1:5".parse().unwrap() };
        keep(&layout, "old", listen).unwrap();
        assert_eq!(next(&layout), None);
        take_next(&layout, listen).unwrap();
        assert_eq!(load(&layout).unwrap(), "old");
        keep_next(&layout, "new").unwrap();
        assert_eq!((load(&layout).unwrap(), next(&layout)), ("old".into(), Some("new".into())));
        take_next(&layout, listen).unwrap();
        assert_eq!((load(&layout).unwrap(), next(&layout)), ("new".into(), None));
        let line = std::fs::read_to_string(layout.passfile()).unwrap();
        let owners = of_owner("new", "app");
        assert_eq!(line, format!("127.0.0.1:5:*:postgres:new\n127.0.0.1:5:*:app:{owners}\n"));
        for path in [layout.password(), layout.passfile()] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
