//! Numbers that must not be guessed, or must not meet. What decides takes a seeded generator as an argument
//! instead.

use rand::RngExt;
use rand::distr::{Distribution, StandardUniform};
use rand::seq::SliceRandom;

/// A number, or an array of bytes, drawn from the system's generator.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where it is drawn")]
pub fn draw<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rand::random()
}

/// A number below `end`; zero where that is zero.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where it is drawn")]
pub fn below(end: u64) -> u64 {
    rand::rng().random_range(0..end.max(1))
}

/// Puts `items` into an order that is drawn.
#[allow(clippy::disallowed_methods, reason = "this is where it is drawn")]
pub fn shuffle<T>(items: &mut [T]) {
    items.shuffle(&mut rand::rng());
}
