//! The clocks of this crate: which one each decision goes by.
//!
//! A lease goes by [`boottime_us`], as a machine that was suspended has no lease left. Waiting goes by
//! [`steady_us`]. What is displayed, and the age of commits, goes by [`now_us`], which people and time
//! servers set.

pub(crate) use runtime::clock::{boottime_us, steady_us, wall_us as now_us};
