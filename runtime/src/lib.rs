//! What runs has an owner, and what is read from the world is read in one place.
//!
//! - [`task`]: tasks and threads that end with the value that owns them; blocking calls.
//! - [`clock`]: the clocks, and which of them may decide what.
//! - [`private`]: files and directories that are their owner's alone.
//! - [`random`]: numbers that must not be guessed, or must not meet.
//!
//! Clippy (`clippy.toml`) refuses bare spawns, unbounded channels, clocks and dice everywhere else. This
//! crate decides nothing.

pub mod clock;
pub mod private;
pub mod random;
pub mod task;
