//! PostgreSQL's log does not grow for ever: it is looked at once a second.

use std::sync::Arc;

use super::Region;
use crate::logs::put_postgres_aside;

impl Region {
    /// Puts PostgreSQL's log aside whenever it is as large as the configuration in force says, for ever.
    pub(super) async fn put_logs_aside(self: Arc<Self>) {
        put_postgres_aside(&self.instance, || self.in_force().logs).await;
    }
}
