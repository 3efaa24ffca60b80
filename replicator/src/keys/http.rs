//! One question by HTTP/1.1, over TLS or, to this machine, without; and its answer.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use runtime::task::Task;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::provider::{PATIENCE, ProviderError};
use crate::config::Server;

/// The longest answer, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

impl Server {
    /// What the server answers to a question, within [`PATIENCE`].
    pub(super) async fn ask(
        &self,
        question: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ProviderError> {
        match tokio::time::timeout(PATIENCE, self.ask_patiently(question)).await {
            Ok(answered) => answered,
            Err(_) => Err(self.silent(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    fn silent(&self, what: impl fmt::Display) -> ProviderError {
        ProviderError::Silent(format!("{self}: {what}"))
    }

    fn wrong(&self, what: impl fmt::Display) -> ProviderError {
        ProviderError::Wrong(format!("{self}: {what}"))
    }

    async fn ask_patiently(
        &self,
        question: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ProviderError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| self.silent(e))?;
        if !self.tls {
            return self.ask_over(stream, question).await;
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|e| self.wrong(e))?;
        let connector = TlsConnector::from(Arc::new(self.trust()?));
        let stream = connector.connect(name, stream).await.map_err(|e| self.silent(e))?;
        self.ask_over(stream, question).await
    }

    /// Whom the connection may be with: a certificate of the configured authorities.
    fn trust(&self) -> Result<ClientConfig, ProviderError> {
        let mut roots = RootCertStore::empty();
        let ca = self.ca.clone().unwrap_or_default();
        let unreadable = |e: String| self.wrong(format!("{}: {e}", ca.display()));
        for certificate in CertificateDer::pem_file_iter(&ca).map_err(|e| unreadable(e.to_string()))? {
            let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
            roots.add(certificate).map_err(|e| unreadable(e.to_string()))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| self.wrong(e))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    async fn ask_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        question: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ProviderError> {
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| self.silent(e))?;
        // It ends with this.
        let _connection = Task::spawn("a connection with a provider", async move { drop(connection.await) });
        let response = sender.send_request(question).await.map_err(|e| self.silent(e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|e| self.silent(e))?.to_bytes()))
    }
}
