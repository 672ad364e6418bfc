//! A port for pages, bounded in connections, in their time and in a request's head. The pool's `api.rs` and
//! the declarator's `status.rs` hand it their routes.
//!
//! Must never wait on a client longer than the bounds say, nor keep a health check out.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::door::cannot_bind;
use crate::limits::{
    ACCEPT_PAUSE, HTTP_CONNECTIONS_MAX, HTTP_HEAD_MAX, HTTP_IDLE_MAX, PAGE_TIME_MAX,
};

/// Binds the port; says so if others than this machine can reach it.
///
/// # Errors
/// The system's, with the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| cannot_bind("http.address", address, &error))?;
    let bound = listener.local_addr()?;
    if bound.ip().is_loopback() {
        info!(address = %bound, "http");
    } else {
        warn!(address = %bound, "http is reachable from other machines and asks for no password");
    }
    Ok(listener)
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, pages: Router, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut open = VecDeque::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    make_room(&mut open);
                    open.push_back(tasks.spawn(one(stream, pages.clone(), stop.clone())));
                }
                Err(error) => {
                    warn!(%error, "http accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // Whoever keeps a connection open does not keep the program from going: the rest is dropped.
    let _ = timeout(PAGE_TIME_MAX, async { while tasks.join_next().await.is_some() {} }).await;
}

/// A place for one more: at the bound the connection that is open the longest is closed.
fn make_room(open: &mut VecDeque<AbortHandle>) {
    open.retain(|task| !task.is_finished());
    if open.len() >= HTTP_CONNECTIONS_MAX
        && let Some(longest) = open.pop_front()
    {
        longest.abort();
    }
}

/// One connection: page after page until the client has had enough, is idle too long, or we stop.
async fn one(stream: TcpStream, pages: Router, stop: CancellationToken) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_IDLE_MAX)
        .max_buf_size(HTTP_HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    let mut serving = pin!(serving);
    // What goes wrong on a connection is its client's to know.
    tokio::select! {
        _ = &mut serving => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// For `middleware::from_fn`: one of the pages that are made now, or "busy".
pub async fn in_slot(slots: Arc<Semaphore>, page: Request, next: Next) -> Response {
    match slots.try_acquire() {
        Ok(_slot) => next.run(page).await,
        Err(_) => Problem(StatusCode::SERVICE_UNAVAILABLE, "busy").into_response(),
    }
}

/// For `middleware::from_fn`: any request is answered in time, and never taken for what it is not.
pub async fn in_time(page: Request, next: Next) -> Response {
    let mut response = timeout(PAGE_TIME_MAX, next.run(page)).await.unwrap_or_else(|_| {
        Problem(StatusCode::SERVICE_UNAVAILABLE, "took longer than a second").into_response()
    });
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A refusal as JSON: `{"error": "..."}`.
#[derive(Debug)]
pub struct Problem(pub StatusCode, pub &'static str);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}
