//! `[encryption]`, and `encryption` of a region.

use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeTable;

use crate::config::model::{EncryptionConfig, KeyProvider, KmsConfig, Server, VaultConfig};
use crate::config::read::Reader;

const PROVIDER: &str = "\"file\" (a file has the keys), \"vault\" or \"aws-kms\" (that wraps them), \"command\" (programs do), or \"off\" (new redo is in the clear)";

/// The keys that go with provider "command".
const OF_COMMAND: [&str; 2] = ["wrap", "unwrap"];

/// The keys that go with provider "vault".
const OF_VAULT: [&str; 5] = ["address", "mount", "key", "token", "ca"];

/// The keys that go with provider "aws-kms".
const OF_KMS: [&str; 5] = ["aws_region", "key", "credentials", "ca", "address"];

impl Reader {
    /// What `table` says under `encryption`; the keys of a region may lie elsewhere than in its directory.
    pub(super) fn encryption(&mut self, table: &DeTable<'_>, of_region: bool) -> Option<EncryptionConfig> {
        let (value, table) = self.section(table, "encryption")?;
        let all: BTreeSet<&str> = [&OF_COMMAND[..], &OF_VAULT, &OF_KMS].concat().into_iter().collect();
        let mut known = vec!["provider"];
        known.extend(of_region.then_some("file"));
        known.extend(&all);
        self.known_keys(table, &known);
        let file = self.optional(table, "file", "the path of the file of keys, absolute", |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        });
        if !table.contains_key("provider") {
            return self.mistake(value.span(), format!("`encryption` lacks `provider`: {PROVIDER}"));
        }
        let name = self.optional(table, "provider", PROVIDER, |text| {
            ["off", "file", "command", "vault", "aws-kms"].into_iter().find(|name| *name == text)
        })?;
        let own: &[&str] = match name {
            "command" => &OF_COMMAND,
            "vault" => &OF_VAULT,
            "aws-kms" => &OF_KMS,
            _ => &[],
        };
        for key in all.iter().filter(|key| !own.contains(key)) {
            if let Some(at) = table.get(*key).map(Spanned::span) {
                let what = format!("`{key}` does not go with provider \"{name}\"");
                let _: Option<()> = self.mistake(at, what);
            }
        }
        let wanted = |keys: &[&str]| keys.iter().all(|key| table.contains_key(*key));
        let provider = match name {
            "command" if !wanted(&OF_COMMAND) => {
                let what = "provider \"command\" wants `wrap` and `unwrap`: each a program and its arguments, which turns what it reads \
                            into what it prints";
                return self.mistake(value.span(), what);
            }
            "command" => {
                let (wrap, unwrap) = (self.program(table, "wrap"), self.program(table, "unwrap"));
                KeyProvider::Command { wrap: wrap?, unwrap: unwrap? }
            }
            "vault" if !wanted(&["address", "key", "token"]) => {
                let what = "provider \"vault\" wants `address`, `key` (of the transit engine) and `token` (a file that has it)";
                return self.mistake(value.span(), what);
            }
            "vault" => KeyProvider::Vault(self.vault(table)?),
            "aws-kms" if !wanted(&["aws_region", "key", "credentials"]) => {
                let what = "provider \"aws-kms\" wants `aws_region`, `key` (an id, an ARN or an alias) and `credentials` (AWS's shared file of them)";
                return self.mistake(value.span(), what);
            }
            "aws-kms" => KeyProvider::Kms(self.kms(table)?),
            "file" => KeyProvider::File,
            _ => KeyProvider::Off,
        };
        Some(EncryptionConfig { provider, file })
    }

    fn vault(&mut self, table: &DeTable<'_>) -> Option<VaultConfig> {
        let server = self.server(table, None);
        let mount = self.optional(table, "mount", NAME, parse_name);
        let key = self.optional(table, "key", NAME, parse_name);
        let token = self.optional(table, "token", PATH, parse_path);
        let mount = mount.unwrap_or_else(|| "transit".into());
        Some(VaultConfig { server: server?, mount, key: key?, token: token? })
    }

    fn kms(&mut self, table: &DeTable<'_>) -> Option<KmsConfig> {
        let region =
            self.optional(table, "aws_region", "AWS's name of a region, such as \"eu-west-1\"", parse_name);
        let what = "the key's id, its ARN or an alias of it";
        let key = self.optional(table, "key", what, |text| (!text.is_empty()).then(|| text.to_owned()));
        let credentials = self.optional(table, "credentials", PATH, parse_path);
        let region = region?;
        let server = self.server(table, Some(format!("kms.{region}.amazonaws.com")));
        Some(KmsConfig { server: server?, region, key: key?, credentials: credentials? })
    }

    /// Where a provider is: at `address`, or at `usual`.
    fn server(&mut self, table: &DeTable<'_>, usual: Option<String>) -> Option<Server> {
        let what = "a URL, such as \"https://vault.example.org:8200\"; without TLS only of this machine, \"http://127.0.0.1:8200\"";
        let ca = self.optional(table, "ca", PATH, parse_path);
        let place = match usual {
            Some(host) if !table.contains_key("address") => Some((true, host, 443)),
            _ => self.optional(table, "address", what, parse_address_of_server),
        };
        let (tls, host, port) = place?;
        if tls && !table.contains_key("ca") {
            let at = table.get("address").or_else(|| table.get("provider")).map_or(0..0, Spanned::span);
            let what = "TLS wants `ca`: the file of authorities that the certificate may be of, such as /etc/ssl/certs/ca-certificates.crt";
            return self.mistake(at, what);
        }
        Some(Server { tls, host, port, ca })
    }

    fn program(&mut self, table: &DeTable<'_>, key: &str) -> Option<Vec<String>> {
        let value = table.get(key)?;
        let words = value.get_ref().as_array().and_then(|words| {
            words.iter().map(|word| word.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        match words.filter(|words| words.first().is_some_and(|program| program.starts_with('/'))) {
            Some(words) => Some(words),
            None => {
                let what = format!(
                    "`{key}` is a program by its absolute path, and its arguments: [\"/usr/bin/age\", \"-d\"]"
                );
                self.mistake(value.span(), what)
            }
        }
    }
}

const NAME: &str = "letters, digits, '-' and '_'";

const PATH: &str = "the path of a file, absolute";

fn parse_path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute())
}

/// Letters, digits and what else needs no escape in a URL.
fn parse_name(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (!text.is_empty() && text.bytes().all(allowed)).then(|| text.to_owned())
}

/// Whether it is over TLS, the host, and the port. Secrets go in the clear to this machine only.
fn parse_address_of_server(text: &str) -> Option<(bool, String, u16)> {
    let (scheme, rest) = text.trim_end_matches('/').split_once("://")?;
    let (host, port) = rest.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let is_host = !host.is_empty() && host.bytes().all(allowed);
    let here = host == "localhost" || host.starts_with("127.");
    match scheme {
        "https" if is_host => Some((true, host.to_owned(), port)),
        "http" if is_host && here => Some((false, host.to_owned(), port)),
        _ => None,
    }
}
