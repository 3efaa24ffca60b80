//! What every daemon shares, a region's, a witness' and a zone's process: how it begins, and what it lets in.
//!
//! - [`enter`]: its directory, alone in it ([`lock`]), with the right certificate.
//! - [`renewal`]: another certificate is used while it works.
//! - [`tree`]: whether that directory is open to other accounts, which it may not be.
//! - [`authority`]: the one table of who may ask what of whom. It decides, and does nothing.
//! - [`message`]: which first messages no correct peer can send.
//! - [`serve`]: connections, streams, the first message of each with its deadline, and refusals.
//! - [`manager`]: what the service manager is told, such as systemd.
//!
//! It knows nothing of what a daemon does with a request that it lets in.

pub mod authority;
pub mod enter;
pub mod listen;
pub mod lock;
pub(crate) mod manager;
pub mod message;
pub mod renewal;
pub mod serve;
pub mod tree;
