//! Verifying now and then, while the slave follows.

use std::sync::{Arc, Weak};
use std::time::Duration;

use replikv_core::ReplicaStore;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::run::Run;
use super::{Verification, VerifyError, VerifyOptions};
use crate::clock::unix_ms;
use crate::slave::Inner;

/// Verifies as the configuration says, until the slave is shut down or gone.
pub(in crate::slave) fn start<S: ReplicaStore>(runtime: &Handle, inner: &Arc<Inner<S>>) {
    if let Some(every) = inner.config.verify_every {
        let options = VerifyOptions::default()
            .max_differences(Verification::KEYS)
            .patience(every)
            .bytes_per_second(inner.config.verify_bytes_per_second);
        // Nobody is kept alive by being verified.
        runtime.spawn(run(Arc::downgrade(inner), inner.closing.clone(), every, options));
    }
}

async fn run<S: ReplicaStore>(
    inner: Weak<Inner<S>>,
    closing: CancellationToken,
    every: Duration,
    options: VerifyOptions,
) {
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            () = sleep(every) => {}
        }
        let Some(mut run) = inner.upgrade().map(|inner| Run::new(&inner, options.clone(), true)) else { return };
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            there = run.wait_for_master() => if !there {
                return;
            },
        }
        let began = unix_ms();
        let result = run.all().await;
        let Some(inner) = inner.upgrade().filter(|_| !matches!(result, Err(VerifyError::Closed))) else { return };
        let follower = &inner.config.name;
        if !run.report.is_equal() {
            tracing::warn!(
                target: "replikv::slave", %follower, different = run.report.different,
                "the slave does not hold what its master holds"
            );
        }
        if let Err(error) = &result {
            tracing::info!(
                target: "replikv::slave", %follower, error = %crate::error_chain(error),
                "verifying could not be finished"
            );
        }
        inner.verified(Verification::new(began, &run.report, result.err().as_ref()));
    }
}
