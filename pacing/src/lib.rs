//! A congestion controller for long, lossy links whose application seldom fills them.
//!
//! [`Controller`] is pure: it takes the time and an event, and returns a window. It has no clock, does no I/O
//! and draws no numbers. [`quinn`] puts it behind quinn-proto's trait. What it does and why is in
//! docs/PACING.md; the simulator in this crate's tests shows it.

mod arithmetic;
pub mod controller;
pub mod cubic;
pub mod memory;
mod model;
pub mod quinn;

pub use controller::{Controller, Decision, Event, Phase, Remembered};
pub use cubic::Cubic;
pub use memory::Memory;
