//! A collector: an OTLP server in this process, that keeps what it is sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::metrics::v1 as metrics;
use opentelemetry_proto::tonic::collector::trace::v1 as traces;
use opentelemetry_proto::tonic::trace::v1::Span;
use runtime::task::Task;
use tonic::{Request, Response, Status};

/// What the collector was sent.
#[derive(Debug, Clone, Default)]
pub struct Collector {
    /// The names of the metrics.
    pub names: Arc<Mutex<BTreeSet<String>>>,
    /// The spans.
    pub spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl metrics::metrics_service_server::MetricsService for Collector {
    async fn export(
        &self,
        request: Request<metrics::ExportMetricsServiceRequest>,
    ) -> Result<Response<metrics::ExportMetricsServiceResponse>, Status> {
        let scopes = request.into_inner().resource_metrics.into_iter().flat_map(|of| of.scope_metrics);
        let names = scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name);
        self.names.lock().unwrap().extend(names);
        Ok(Response::new(metrics::ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl traces::trace_service_server::TraceService for Collector {
    async fn export(
        &self,
        request: Request<traces::ExportTraceServiceRequest>,
    ) -> Result<Response<traces::ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|of| of.scope_spans);
        self.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(traces::ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Takes what is sent to `port`, until the task is dropped.
    pub fn serve(&self, port: u16) -> Task<()> {
        let server = tonic::transport::Server::builder()
            .add_service(metrics::metrics_service_server::MetricsServiceServer::new(self.clone()))
            .add_service(traces::trace_service_server::TraceServiceServer::new(self.clone()));
        Task::spawn("an OTLP server", async move {
            server.serve(([127, 0, 0, 1], port).into()).await.unwrap();
        })
    }
}
