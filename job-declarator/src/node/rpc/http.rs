//! One JSON-RPC question over HTTP, for `bitcoincore-rpc`'s client: `minreq` does the HTTP, this puts a
//! deadline and a bound around it, which jsonrpc's own transports lack. Called by `rpc.rs` on a blocking
//! thread; must never log or show an `Authorization` header.

use std::io::ErrorKind;
use std::time::Duration;

use bitcoincore_rpc::jsonrpc::client::Transport;
use bitcoincore_rpc::jsonrpc::{self, Request, Response, minreq};
use thiserror::Error;

use crate::limits::{RPC_ANSWER_LEN_MAX, RPC_HEADERS_LEN_MAX};

const NO_STATUS_LINE: &str = "Server did not provide a status line";

/// One connection's worth of questions; each opens and closes its own.
pub(super) struct Http {
    pub(super) url: String,
    /// Value of the `Authorization` header.
    pub(super) authorization: String,
    /// From connecting to the last byte. Whole seconds, at least one (`minreq` counts no finer).
    pub(super) deadline: Duration,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    #[error("{0}")]
    Unreachable(String),
    #[error("HTTP status {0}")]
    Status(i32),
    #[error("not an answer: {0}")]
    Malformed(String),
}

impl Http {
    fn post(&self, body: Vec<u8>) -> Result<Response, HttpError> {
        let request = minreq::post(&self.url)
            .with_timeout(self.deadline.as_secs().max(1))
            .with_header("Content-Type", "application/json")
            .with_header("Authorization", &self.authorization)
            .with_max_headers_size(RPC_HEADERS_LEN_MAX)
            .with_max_status_line_length(RPC_HEADERS_LEN_MAX)
            // A node redirects nobody, and a stranger must not be handed the header above.
            .with_follow_redirects(false)
            .with_body(body);
        let answer = request.send_lazy().map_err(error)?;
        let status = answer.status_code;
        // What `minreq` makes of a connection that is closed before the first byte.
        if status == 503 && answer.reason_phrase == NO_STATUS_LINE {
            return Err(HttpError::Unreachable("closed without an answer".to_owned()));
        }
        if matches!(status, 401 | 403) {
            return Err(HttpError::Status(status));
        }
        let mut bytes = Vec::new();
        for byte in answer {
            if bytes.len() == RPC_ANSWER_LEN_MAX {
                return Err(HttpError::Malformed(format!("above {RPC_ANSWER_LEN_MAX} bytes")));
            }
            bytes.push(byte.map_err(error)?.0);
        }
        // Core sends its error objects with status 500 or 404, other errors as plain text.
        serde_json::from_slice(&bytes).map_err(|malformed| {
            if status != 200 {
                HttpError::Status(status)
            } else if malformed.is_eof() {
                HttpError::Unreachable("closed in the middle of an answer".to_owned())
            } else {
                HttpError::Malformed(malformed.to_string())
            }
        })
    }
}

fn error(error: minreq::Error) -> HttpError {
    let minreq::Error::IoError(error) = error else {
        return HttpError::Malformed(error.to_string());
    };
    if error.kind() == ErrorKind::ConnectionRefused {
        return HttpError::Refused;
    }
    HttpError::Unreachable(error.to_string())
}

impl Transport for Http {
    fn send_request(&self, request: Request<'_>) -> Result<Response, jsonrpc::Error> {
        let body = serde_json::to_vec(&request)?;
        self.post(body).map_err(|error| jsonrpc::Error::Transport(Box::new(error)))
    }

    fn send_batch(&self, _: &[Request<'_>]) -> Result<Vec<Response>, jsonrpc::Error> {
        let error = HttpError::Malformed("nothing here asks in batches".to_owned());
        Err(jsonrpc::Error::Transport(Box::new(error)))
    }

    fn fmt_target(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}
