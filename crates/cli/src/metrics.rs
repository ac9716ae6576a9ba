//! `GET /metrics`, in the text format of Prometheus.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use replikv::metrics::{ALL, MetricKind, describe};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// How many are answered at once. More wait their turn.
const CONNECTIONS: usize = 16;
/// How long a client may take, for its question and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest question.
const MAX_HEAD: usize = 8 << 10;
/// What was recorded is put into buckets as often, whether anybody asks or not.
const UPKEEP: Duration = Duration::from_secs(5);
/// Gauges that nobody sets any more, those of slaves that are gone, are left out after so long.
const FORGET: Duration = Duration::from_secs(600);

/// Installs the recorder of this process. Nodes that are opened from now on tell it what they do.
pub(crate) fn install() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(FORGET));
    for metric in ALL {
        if let MetricKind::Histogram { buckets } = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
        }
    }
    let handle = builder.install_recorder().context("metrics cannot be recorded")?;
    describe();
    Ok(handle)
}

/// Answers for as long as it is polled. No client can make it end, or hold up another for longer than its time.
pub(crate) async fn serve(listener: TcpListener, metrics: PrometheusHandle) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let upkeep = async {
        loop {
            sleep(UPKEEP).await;
            metrics.run_upkeep();
        }
    };
    let accept = async {
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Usually it is file descriptors that are missing.
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                // A client that is too slow, or gone, has no answer.
                drop(timeout(PATIENCE, answer(stream, &metrics)).await);
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = upkeep => {}
        () = accept => {}
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, metrics: &PrometheusHandle) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !ends_head(&head) && head.len() <= MAX_HEAD {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    stream.write_all(respond(&head, || metrics.render()).as_bytes()).await?;
    stream.shutdown().await
}

fn ends_head(head: &[u8]) -> bool {
    head.windows(4).any(|window| window == b"\r\n\r\n") || head.windows(2).any(|window| window == b"\n\n")
}

fn respond(head: &[u8], metrics: impl FnOnce() -> String) -> String {
    if !ends_head(head) {
        return response("431 Request Header Fields Too Large", "the question is too long\n", true);
    }
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let words: Vec<_> = std::str::from_utf8(line).unwrap_or_default().split(' ').collect();
    let [method, target, version] = words[..] else {
        return response("400 Bad Request", "this is no HTTP\n", true);
    };
    if !version.starts_with("HTTP/1.") {
        return response("400 Bad Request", "HTTP/1.1 is spoken here\n", true);
    }
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET", "/metrics") => response("200 OK", &metrics(), true),
        ("HEAD", "/metrics") => response("200 OK", &metrics(), false),
        (_, "/metrics") => response("405 Method Not Allowed\r\nAllow: GET, HEAD", "GET is answered here\n", true),
        _ => response("404 Not Found", "only /metrics is here\n", method != "HEAD"),
    }
}

fn response(status: &str, body: &str, with_body: bool) -> String {
    let length = body.len();
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: impl AsRef<[u8]>) -> String {
        let response = respond(head.as_ref(), || "figures".into());
        response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).map(String::from).unwrap_or_default()
    }

    #[test]
    fn one_path_is_answered_and_the_rest_is_refused() {
        for (line, code) in [
            ("GET /metrics HTTP/1.1", "200"),
            ("GET /metrics?name=x HTTP/1.0", "200"),
            ("HEAD /metrics HTTP/1.1", "200"),
            ("POST /metrics HTTP/1.1", "405"),
            ("GET / HTTP/1.1", "404"),
            ("GET /metrics/ HTTP/1.1", "404"),
            ("GET /etc/passwd HTTP/1.1", "404"),
            ("GET /metrics HTTP/2", "400"),
            ("GET  /metrics HTTP/1.1", "400"),
            ("\u{1}", "400"),
            ("", "400"),
        ] {
            assert_eq!(status(format!("{line}\r\nHost: here\r\n\r\n")), code, "{line:?}");
        }
        assert_eq!(status(b"\xff\xfe\r\n\r\n"), "400");
        assert_eq!(status([b'a'; MAX_HEAD + 1]), "431");
    }

    #[test]
    fn a_head_tells_the_length_and_has_no_body() {
        let get = respond(b"GET /metrics HTTP/1.1\r\n\r\n", || "figures".into());
        let head = respond(b"HEAD /metrics HTTP/1.1\r\n\r\n", || "figures".into());
        assert!(get.contains("Content-Length: 7\r\n") && get.ends_with("\r\n\r\nfigures"), "{get}");
        assert_eq!(get.strip_suffix("figures"), Some(&head[..]));
    }
}
