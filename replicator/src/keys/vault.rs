//! Vault's transit engine as a provider of keys: it encrypts and decrypts what it is sent, with a key that
//! never leaves it. <https://developer.hashicorp.com/vault/api-docs/secret/transit>

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use proto::sealed::WRAPPED_BYTES_MAX;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::provider::{Answer, Provider, ProviderError, Secret, secret};
use crate::config::VaultConfig;

/// Vault's transit engine.
#[derive(Debug)]
pub(super) struct OfVault(pub(super) VaultConfig);

impl Provider for OfVault {
    fn name(&self) -> &'static str {
        "vault"
    }

    fn wraps(&self) -> bool {
        true
    }

    fn wrap<'a>(&'a self, secret: &'a Secret) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move {
            let plaintext = Zeroizing::new(BASE64_STANDARD.encode(&secret[..]));
            let wrapped = self.ask("encrypt", "ciphertext", &json!({ "plaintext": *plaintext })).await?;
            // It says which of its key's versions it took: "vault:v1:…".
            match wrapped.starts_with("vault:v") && wrapped.len() <= WRAPPED_BYTES_MAX {
                true => Ok(Zeroizing::new(wrapped.as_bytes().to_vec())),
                false => Err(self.wrong("its ciphertext is none of the transit engine's")),
            }
        })
    }

    fn unwrap<'a>(&'a self, kept: &'a [u8]) -> Answer<'a, Secret> {
        Box::pin(async move {
            let ciphertext =
                std::str::from_utf8(kept).map_err(|_| self.wrong("what is kept is no ciphertext of it"))?;
            let plaintext = self.ask("decrypt", "plaintext", &json!({ "ciphertext": ciphertext })).await?;
            let bytes = BASE64_STANDARD.decode(&*plaintext).map(Zeroizing::new);
            secret(&bytes.map_err(|_| self.wrong("its plaintext is no base64"))?)
        })
    }
}

impl OfVault {
    fn place(&self) -> String {
        let VaultConfig { server, mount, key, .. } = &self.0;
        format!("Vault at {server}, key {mount}/{key}")
    }

    fn wrong(&self, what: &str) -> ProviderError {
        ProviderError::Wrong(format!("{}: {what}", self.place()))
    }

    /// What the answer to `action` has as `field`.
    async fn ask(
        &self,
        action: &str,
        field: &str,
        question: &Value,
    ) -> Result<Zeroizing<String>, ProviderError> {
        let VaultConfig { server, mount, key, token } = &self.0;
        // Whatever renews it writes it anew.
        let read = std::fs::read_to_string(token).map(Zeroizing::new);
        let token = read.map_err(|e| self.wrong(&format!("the token in {}: {e}", token.display())))?;
        let request = Request::post(format!("/v1/{mount}/{action}/{key}"))
            .header(HOST, server.to_string())
            .header("X-Vault-Token", token.trim())
            .header("X-Vault-Request", "true")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(question.to_string())))
            .map_err(|_| self.wrong("the token is none: it has bytes that no header may have"))?;
        let (status, answer) = server.ask(request).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        if status != StatusCode::OK {
            let errors = answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let said: String = errors.collect::<Vec<_>>().join("; ").chars().take(300).collect();
            // Sealed, standing by, a token that ran out: all of that may be another moment.
            return Err(ProviderError::Silent(format!("{}: {status}: {said}", self.place())));
        }
        match answer["data"][field].as_str() {
            Some(text) => Ok(Zeroizing::new(text.to_owned())),
            None => Err(self.wrong(&format!("its answer has no `{field}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::{Path as Place, State};
    use axum::http::HeaderMap;
    use axum::routing::post;
    use hyper_util::rt::TokioIo;
    use runtime::task::Task;

    use super::*;
    use crate::config::Server;

    /// What was asked: the path, the token, the body.
    type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

    /// A server that takes what Vault's documentation says of `transit/encrypt/:name` and
    /// `transit/decrypt/:name`, and refuses anything else as Vault does.
    async fn serve(asked: Asked) -> (u16, Task<()>) {
        let answer = |State(asked): State<Asked>,
                      Place((mount, action, key)): Place<(String, String, String)>,
                      headers: HeaderMap,
                      body: String| async move {
            let header =
                |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            let body: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
            let path = format!("{mount}/{action}/{key}");
            asked.lock().unwrap().push((path.clone(), header("X-Vault-Token"), body.clone()));
            if header("X-Vault-Token") != "s.good" || header("content-type") != "application/json" {
                return (StatusCode::FORBIDDEN, json!({ "errors": ["permission denied"] }).to_string());
            }
            let reply = match (path.as_str(), body["plaintext"].as_str(), body["ciphertext"].as_str()) {
                ("transit/encrypt/redo", Some(plain), None) => {
                    let turned: String = plain.chars().rev().collect();
                    json!({ "data": { "ciphertext": format!("vault:v1:{turned}"), "key_version": 1 } })
                }
                ("transit/decrypt/redo", None, Some(cipher)) => match cipher.strip_prefix("vault:v1:") {
                    Some(turned) => {
                        json!({ "data": { "plaintext": turned.chars().rev().collect::<String>() } })
                    }
                    None => {
                        return (
                            StatusCode::BAD_REQUEST,
                            json!({ "errors": ["invalid ciphertext"] }).to_string(),
                        );
                    }
                },
                _ => return (StatusCode::NOT_FOUND, json!({ "errors": [] }).to_string()),
            };
            (StatusCode::OK, reply.to_string())
        };
        let app = Router::new().route("/v1/{mount}/{action}/{key}", post(answer)).with_state(asked);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Task::spawn("a server like Vault", async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let service = hyper_util::service::TowerToHyperService::new(app.clone());
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.await;
            }
        });
        (port, serving)
    }

    fn vault(port: u16, token: &Path) -> OfVault {
        OfVault(VaultConfig {
            server: Server { tls: false, host: "127.0.0.1".into(), port, ca: None },
            mount: "transit".into(),
            key: "redo".into(),
            token: token.to_owned(),
        })
    }

    #[tokio::test]
    async fn a_key_is_wrapped_and_unwrapped_as_vault_documents_it() {
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "s.good\n").unwrap();
        let asked = Asked::default();
        let (port, _serving) = serve(asked.clone()).await;
        let vault = vault(port, &token);
        let secret = Secret::new([7; 32]);
        let wrapped = vault.wrap(&secret).await.unwrap();
        assert!(wrapped.starts_with(b"vault:v1:"));
        assert_eq!(vault.unwrap(&wrapped).await.unwrap(), secret);
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        let plain = BASE64_STANDARD.encode([7; 32]);
        let wrapped = String::from_utf8(wrapped.to_vec()).unwrap();
        let of = |path: &str, body: Value| (path.to_owned(), "s.good".to_owned(), body);
        assert_eq!(
            asked,
            [
                of("transit/encrypt/redo", json!({ "plaintext": plain })),
                of("transit/decrypt/redo", json!({ "ciphertext": wrapped })),
            ]
        );
        // What is no ciphertext of it, a token that ran out, and a server that is away: each says why.
        let refused = vault.unwrap(b"vault:v9:x").await.unwrap_err().to_string();
        assert!(refused.contains("400 Bad Request: invalid ciphertext"), "{refused}");
        std::fs::write(&token, "s.old").unwrap();
        let refused = vault.wrap(&secret).await.unwrap_err();
        assert!(
            matches!(&refused, ProviderError::Silent(what) if what.contains("permission denied")),
            "{refused}"
        );
        assert!(!refused.to_string().contains(&plain) && !refused.to_string().contains("s.old"));
        drop(_serving);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let free = listener.local_addr().unwrap().port();
        drop(listener);
        let server = Server { port: free, ..vault.0.server.clone() };
        let away = OfVault(VaultConfig { server, ..vault.0.clone() });
        assert!(matches!(away.wrap(&secret).await, Err(ProviderError::Silent(_))));
    }
}
