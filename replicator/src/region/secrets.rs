//! The superuser's password: made once for the cluster, kept in every region in files of mode 0600.

use std::io;
use std::net::SocketAddr;

use postgres::sockets::SUPERUSER;

use crate::layout::{RegionLayout, write_durably};

/// Draws a password.
#[must_use]
pub fn draw() -> String {
    let bytes: [u8; 24] = runtime::random::draw();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Keeps the password, also in the form that libpq reads.
///
/// # Errors
/// When the files cannot be written.
pub fn keep(layout: &RegionLayout, password: &str, listen: SocketAddr) -> io::Result<()> {
    let line = format!("{}:{}:*:{SUPERUSER}:{password}\n", listen.ip(), listen.port());
    write_durably(&layout.passfile(), line.as_bytes())?;
    write_durably(&layout.password(), password.as_bytes())
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
