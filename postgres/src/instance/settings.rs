//! Which settings are ours.

/// Settings that the product gives a value of its own whatever `regions.toml` says.
pub const GIVEN_SETTINGS: &[&str] = &["wal_receiver_status_interval", "wal_retrieve_retry_interval"];

/// Settings of which more than the product needs may be asked for, and how much it needs.
pub const LEAST_SETTINGS: &[(&str, u64)] = &[("max_replication_slots", 20), ("max_wal_senders", 20)];

/// What redo must hold: all that replication needs, and for those who decode it more.
pub const WAL_LEVELS: &[&str] = &["replica", "logical"];

/// The value that a setting gets where the product needs at least `least`, and the user may have asked for
/// more.
pub(super) fn at_least(wanted: Option<&String>, least: u64) -> String {
    wanted.and_then(|value| value.parse().ok()).map_or(least, |value: u64| value.max(least)).to_string()
}

/// The `wal_level` that is asked for, if it is one of those that will do.
pub(super) fn wal_level(wanted: Option<&String>) -> &str {
    wanted.map(String::as_str).filter(|level| WAL_LEVELS.contains(level)).unwrap_or(WAL_LEVELS[0])
}

/// Settings that the product depends on; `regions.toml` may not change them.
pub const RESERVED_SETTINGS: &[&str] = &[
    "allow_in_place_tablespaces",
    "cluster_name",
    "data_directory",
    "data_sync_retry",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "idle_replication_slot_timeout",
    "ident_file",
    "ignore_checksum_failure",
    "listen_addresses",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    // A region that lags on purpose could not take over.
    "recovery_min_apply_delay",
    // A promotion would wait for it.
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "restore_command",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_permissions",
    "zero_damaged_pages",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_is_needed_is_honoured_and_less_is_not() {
        let text = |value: &str| Some(value.to_owned());
        for (wanted, given) in [(None, "20"), (text("10"), "20"), (text("40"), "40"), (text("x"), "20")] {
            assert_eq!(at_least(wanted.as_ref(), 20), given);
        }
        assert_eq!(
            (wal_level(text("logical").as_ref()), wal_level(text("minimal").as_ref())),
            ("logical", "replica")
        );
    }
}
