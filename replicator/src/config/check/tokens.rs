//! `token_roles`: the roles that come in with a token alone.

use std::collections::BTreeSet;

use postgres::instance::OWN_ENCRYPTION;
use postgres::sockets::SUPERUSER;
use toml::de::DeTable;
use transport::token;

use super::cluster::is_role;
use crate::config::model::Config;
use crate::config::read::{Reader, Value};

/// The most of them: each is two lines of what PostgreSQL looks through for each client.
const ROLES_MAX: usize = 50;

/// Settings by which a server knows clients' certificates: with `token_roles` they are ours.
const CLIENTS_CERTIFICATES: [&str; 3] = ["ssl_ca_file", "ssl_crl_dir", "ssl_crl_file"];

impl Reader {
    /// The list itself.
    pub(super) fn token_roles(&mut self, value: &Value<'_>) -> BTreeSet<String> {
        const WANTED: &str = "`token_roles` is a list of roles that log in with a token alone, such as [\"app\"]; the superuser is none of them";
        let roles = self.lines(value, WANTED, |role| is_role(role) && role != SUPERUSER);
        if roles.len() > ROLES_MAX {
            let _: Option<()> = self.mistake(
                value.span(),
                format!("`token_roles` has {}; {ROLES_MAX} are the most", roles.len()),
            );
        }
        roles.into_iter().collect()
    }

    /// Whether the rest of the file goes with it.
    pub(super) fn tokens(&mut self, table: &DeTable<'_>, config: &Config) {
        let section = table.get("postgresql").and_then(|value| value.get_ref().as_table());
        let Some(value) = section.and_then(|section| section.get("token_roles")) else { return };
        if config.token_roles.is_empty() {
            return;
        }
        let ours = |name: &&str| OWN_ENCRYPTION.contains(name) || CLIENTS_CERTIFICATES.contains(name);
        let regions = config.regions.iter().flat_map(|region| region.settings.keys());
        let set = config.settings.keys().chain(regions).map(String::as_str).find(ours);
        if let Some(name) = set {
            let what = format!(
                "tokens are client certificates of the cluster's authority, and `settings` has {name} of your own: one of both has to go"
            );
            let _: Option<()> = self.mistake(value.span(), what);
        }
        let denied = config.denied.iter().filter(|mark| token::is_serial(mark)).count();
        if denied > token::DENIED_MAX {
            let what = format!(
                "`denied` has {denied} tokens, and PostgreSQL takes {}: take out those that have ended, or the role out of `token_roles`",
                token::DENIED_MAX
            );
            let _: Option<()> = self.mistake(value.span(), what);
        }
    }
}
