//! AWS KMS as a provider of keys: it encrypts and decrypts what it is sent, with a key that never leaves it.
//! <https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html>; requests are signed as
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html> says.

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use proto::sealed::WRAPPED_BYTES_MAX;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::provider::{Answer, Provider, ProviderError, Secret, secret};
use crate::config::KmsConfig;
use crate::units::show_hex as hex;

/// AWS KMS.
#[derive(Debug)]
pub(super) struct OfKms(pub(super) KmsConfig);

impl Provider for OfKms {
    fn name(&self) -> &'static str {
        "aws-kms"
    }

    fn wraps(&self) -> bool {
        true
    }

    fn wrap<'a>(&'a self, secret: &'a Secret) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move {
            let plaintext = Zeroizing::new(BASE64_STANDARD.encode(&secret[..]));
            let question = json!({ "KeyId": self.0.key, "Plaintext": *plaintext });
            let wrapped = self.ask("Encrypt", "CiphertextBlob", &question).await?;
            match wrapped.len() <= WRAPPED_BYTES_MAX {
                true => Ok(wrapped),
                false => Err(self.wrong("its ciphertext is longer than any")),
            }
        })
    }

    fn unwrap<'a>(&'a self, kept: &'a [u8]) -> Answer<'a, Secret> {
        Box::pin(async move {
            // Which key it was is in the ciphertext; one of another key than this is refused.
            let question = json!({ "KeyId": self.0.key, "CiphertextBlob": BASE64_STANDARD.encode(kept) });
            secret(&self.ask("Decrypt", "Plaintext", &question).await?)
        })
    }
}

impl OfKms {
    fn wrong(&self, what: &str) -> ProviderError {
        ProviderError::Wrong(format!("AWS KMS at {}: {what}", self.0.server))
    }

    /// The bytes that the answer to `action` has as `field`.
    async fn ask(
        &self,
        action: &str,
        field: &str,
        question: &Value,
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let path = &self.0.credentials;
        // Whatever renews them writes them anew.
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|e| self.wrong(&format!("the credentials in {}: {e}", path.display())))?;
        let credentials = Credentials::parse(&text).ok_or_else(|| {
            self.wrong(&format!("{}: no [default] with a key's id and secret", path.display()))
        })?;
        let body = question.to_string();
        let now = DateTime::<Utc>::from_timestamp_micros(runtime::clock::wall_us()).unwrap_or_default();
        let target = format!("TrentService.{action}");
        let mut headers = vec![
            ("content-type", "application/x-amz-json-1.1".to_owned()),
            ("host", self.0.server.to_string()),
            ("x-amz-date", now.format("%Y%m%dT%H%M%SZ").to_string()),
            ("x-amz-target", target),
        ];
        if let Some(token) = &credentials.token {
            headers.insert(3, ("x-amz-security-token", token.to_string()));
        }
        let scope = Scope { region: &self.0.region, service: "kms" };
        let authorization = sign(&credentials, &scope, "POST", &headers, body.as_bytes());
        let mut request = Request::post("/").header("authorization", authorization);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let request =
            request.map_err(|_| self.wrong("the credentials have bytes that no header may have"))?;
        let (status, answer) = self.0.server.ask(request).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        if status != StatusCode::OK {
            let kind = answer["__type"].as_str().unwrap_or_default();
            let said = answer["message"].as_str().or(answer["Message"].as_str()).unwrap_or_default();
            let said: String = format!("{status}: {kind} {said}").chars().take(300).collect();
            // Throttled, credentials that ran out, a key that is disabled: all of that may be another moment.
            return Err(ProviderError::Silent(format!("AWS KMS at {}: {said}", self.0.server)));
        }
        let bytes = answer[field].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        bytes.map(Zeroizing::new).ok_or_else(|| self.wrong(&format!("its answer has no `{field}`")))
    }
}

/// Who asks, as AWS's shared file of credentials has it.
struct Credentials {
    id: String,
    secret: Zeroizing<String>,
    token: Option<Zeroizing<String>>,
}

impl Credentials {
    /// Those of `[default]`.
    fn parse(text: &str) -> Option<Credentials> {
        let mut values = [None, None, None];
        let names = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
        let mut is_default = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                is_default = line == "[default]";
            } else if let Some((name, value)) = line.split_once('=').filter(|_| is_default)
                && let Some(index) = names.iter().position(|known| *known == name.trim())
            {
                values[index] = Some(value.trim().to_owned());
            }
        }
        let [id, secret, token] = values;
        Some(Credentials { id: id?, secret: Zeroizing::new(secret?), token: token.map(Zeroizing::new) })
    }
}

/// What a signature is for besides the request.
struct Scope<'a> {
    region: &'a str,
    service: &'a str,
}

/// The `Authorization` of a request of `/` with these headers, which are in the order of their names and have
/// `x-amz-date` among them. Signature Version 4.
fn sign(
    credentials: &Credentials,
    scope: &Scope<'_>,
    method: &str,
    headers: &[(&str, String)],
    body: &[u8],
) -> String {
    let time = headers.iter().find(|(name, _)| *name == "x-amz-date").map_or("", |(_, value)| value);
    let date = time.get(..8).unwrap_or_default();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let request =
        format!("{method}\n/\n\n{lines}\n{names}\n{}", hex(digest::digest(&digest::SHA256, body).as_ref()));
    let scoped = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let hashed = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scoped}\n{hashed}");
    let first = Zeroizing::new(format!("AWS4{}", *credentials.secret));
    let mut key = Zeroizing::new(first.as_bytes().to_vec());
    for part in [date, scope.region, scope.service, "aws4_request"] {
        key = Zeroizing::new(tag(&key, part.as_bytes()));
    }
    let signature = hex(&tag(&key, text.as_bytes()));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scoped}, SignedHeaders={names}, Signature={signature}",
        credentials.id
    )
}

fn tag(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), bytes).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Server;

    fn credentials() -> Credentials {
        let text = "[other]\naws_access_key_id = no\n[default]\naws_access_key_id = AKIDEXAMPLE\n\
                    aws_secret_access_key=wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n";
        Credentials::parse(text).unwrap()
    }

    /// The requests `get-vanilla` and `post-vanilla` of AWS's own tests of signatures.
    #[test]
    fn requests_are_signed_as_aws_signs_them() {
        let scope = Scope { region: "us-east-1", service: "service" };
        let headers =
            [("host", "example.amazonaws.com".to_owned()), ("x-amz-date", "20150830T123600Z".to_owned())];
        for (method, signature) in [
            ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ] {
            assert_eq!(
                sign(&credentials(), &scope, method, &headers, b""),
                format!(
                    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=host;x-amz-date, Signature={signature}"
                )
            );
        }
        assert!(Credentials::parse("[other]\naws_access_key_id = a\naws_secret_access_key = b\n").is_none());
    }

    /// With an emulator of KMS: `REPLICATOR_TEST_KMS` is its port on this machine, and the id of a key in it.
    #[tokio::test]
    async fn an_emulator_wraps_and_unwraps_a_key() {
        let Some((port, key)) = std::env::var("REPLICATOR_TEST_KMS")
            .ok()
            .and_then(|said| said.split_once('/').map(|(port, key)| (port.to_owned(), key.to_owned())))
        else {
            return eprintln!("not run: REPLICATOR_TEST_KMS names no emulator, docs/TESTING.md has how");
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        std::fs::write(&path, "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = s\n")
            .unwrap();
        let server = Server { tls: false, host: "127.0.0.1".into(), port: port.parse().unwrap(), ca: None };
        let config = KmsConfig { server, region: "us-east-1".into(), key, credentials: path };
        let kms = OfKms(config.clone());
        let secret = Secret::new([7; 32]);
        let wrapped = kms.wrap(&secret).await.unwrap();
        assert!(!wrapped.windows(32).any(|window| window == &secret[..]));
        assert_eq!(kms.unwrap(&wrapped).await.unwrap(), secret);
        let other = OfKms(KmsConfig { key: "00000000-0000-0000-0000-000000000000".into(), ..config });
        let refused = other.wrap(&secret).await.unwrap_err();
        assert!(
            matches!(&refused, ProviderError::Silent(what) if what.contains("NotFoundException")),
            "{refused}"
        );
    }
}
