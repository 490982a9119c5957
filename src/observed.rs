//! What the internal listener shows of the data plane, and the reload it may ask for: the root knows both planes, so
//! that they need not know each other.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use furt_control_plane::{
    listener::{Observer, ReloadDone},
    refusal::{Code, Fault, Refusal},
};
use furt_data_plane::{explain::explain, metrics::DataPlaneCollector, worker::Shared};
use furt_proto::{time::unix_ms_now, v1};
use tracing::error;

use crate::{config::Finding, reload::Reload};

/// The data plane of this process.
pub(crate) struct Observed {
    shared: Arc<Shared>,
    metrics: prometheus_client::registry::Registry,
    reload: Arc<Reload>,
}

impl Observed {
    pub(crate) fn new(shared: Arc<Shared>, reload: Arc<Reload>) -> Self {
        let mut metrics = prometheus_client::registry::Registry::default();
        metrics.register_collector(Box::new(DataPlaneCollector(shared.clone())));
        Self { shared, metrics, reload }
    }
}

impl Observer for Observed {
    fn health(&self, full: bool) -> Bytes {
        self.shared.health(&self.shared.current.load(), full)
    }

    fn live(&self) -> bool {
        true
    }

    fn ready(&self) -> bool {
        self.shared.is_ready()
    }

    fn explain(&self, request: &v1::ExplainRequest) -> Result<v1::ExplainResponse, String> {
        Ok(explain(&self.shared.current.load(), request, self.shared.clock.now(), unix_ms_now() / 1000))
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadDone, Refusal>> + Send>> {
        let reload = self.reload.clone();
        Box::pin(async move { reload.reload().await.map_err(refused) })
    }

    fn metrics(&self, out: &mut String) {
        let begin = out.len();
        if let Err(error) = prometheus_client::encoding::prometheus_text::encode(out, &self.metrics) {
            // Half a family would make the whole page unreadable.
            out.truncate(begin);
            error!(%error, "cannot write the data plane's metrics");
        }
    }
}

/// Each finding as a fault whose field says where.
fn refused(findings: Vec<Finding>) -> Refusal {
    let fault = |finding: Finding| {
        let line = finding.line.map(|line| format!(":{line}")).unwrap_or_default();
        let key = if finding.key.is_empty() { String::new() } else { format!(": {}", finding.key) };
        Fault::new(format!("{}{line}{key}", finding.file), Code::Validation, finding.message)
    };
    findings.into_iter().map(fault).collect::<Vec<_>>().into()
}
