//! The door of JSON-RPC: Bitcoin Core's calls as far as `RpcNode` makes them, over plain HTTP on loopback,
//! let in by a cookie file, so that a pool runs on the embedded chain by the very path that it takes to a
//! real node. Started by `mod.rs`.
//!
//! Must never answer a call that it does not know as if it had done something.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use job_declarator::node::{Checked, Node, NodeError, NodeTemplate, Submitted, TemplateMark};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Door, Inner};

/// Questions at once, waiting long-polls among them.
const CALLS_MAX: usize = 64;
/// A head is the request line and some headers.
const HEAD_MAX: u64 = 16 * 1024;
/// A block in hex is 8 MB.
const BODY_MAX: usize = 9 * 1024 * 1024;
/// From accept to the whole question.
const QUESTION_MAX: Duration = Duration::from_secs(30);

/// Core's error codes that are answered here (its `rpc/protocol.h`).
mod code {
    pub(super) const METHOD_NOT_FOUND: i32 = -32601;
    pub(super) const INVALID_PARAMS: i32 = -32602;
    pub(super) const MISC: i32 = -1;
    pub(super) const INVALID_ADDRESS_OR_KEY: i32 = -5;
    pub(super) const DESERIALIZATION: i32 = -22;
}

/// A question that is answered with an error object.
type Refusal = (i32, String);

/// Where to ask and what lets in.
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) cookie_file: PathBuf,
}

/// Writes a new cookie into `folder`, binds, and serves until the runtime ends.
pub(super) async fn serve(
    inner: Arc<Inner>,
    address: SocketAddr,
    folder: &Path,
) -> Result<Listening> {
    let cookie_file = folder.join(".cookie");
    let cookie = write_cookie(&cookie_file).context("writing the cookie file")?;
    let authorization = Arc::new(format!("Basic {}", base64(cookie.as_bytes())));
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("the RPC port {address}"))?;
    let address = listener.local_addr().context("the RPC port")?;
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (inner, authorization) = (Arc::clone(&inner), Arc::clone(&authorization));
            tokio::spawn(async move {
                // Who asks wrongly is cut off; there is nobody else to tell.
                let _ = answer_one(&inner, stream, &authorization).await;
                drop(place);
            });
        }
    });
    Ok(Listening { address, cookie_file })
}

/// One question and its answer; then the connection ends.
async fn answer_one(inner: &Inner, stream: TcpStream, authorization: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufStream::new(stream);
    let asked = timeout(QUESTION_MAX, read_question(&mut stream, authorization)).await??;
    let (status, body) = match asked {
        None => ("401 Unauthorized", String::new()),
        Some(question) => {
            let id = question["id"].clone();
            let method = question["method"].as_str().unwrap_or_default();
            match answer(inner, method, &question["params"]).await {
                Ok(result) => {
                    ("200 OK", json!({ "result": result, "error": null, "id": id }).to_string())
                }
                Err((code, message)) => {
                    let error = json!({ "code": code, "message": message });
                    let body = json!({ "result": null, "error": error, "id": id }).to_string();
                    ("500 Internal Server Error", body)
                }
            }
        }
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// The question; `None` if it does not come with the cookie.
async fn read_question(
    stream: &mut BufStream<TcpStream>,
    authorization: &str,
) -> Result<Option<Value>> {
    let mut head = stream.take(HEAD_MAX);
    let (mut length, mut is_let_in) = (0, false);
    loop {
        let mut line = String::new();
        ensure!(head.read_line(&mut line).await? > 0, "no whole head");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse()?,
            "authorization" => is_let_in = value == authorization,
            "transfer-encoding" => bail!("only bodies of a known length are read"),
            _ => {}
        }
    }
    ensure!(length <= BODY_MAX, "a body of {length} bytes");
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if !is_let_in {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

async fn answer(inner: &Inner, method: &str, params: &Value) -> Result<Value, Refusal> {
    match method {
        "getblockchaininfo" => {
            let info = inner.chain.chain_info().await.map_err(fault)?;
            Ok(json!({
                "chain": info.network.to_core_arg(),
                "blocks": info.height,
                "headers": info.height,
                "bestblockhash": BlockHash::from_byte_array(info.tip).to_string(),
                "initialblockdownload": info.initial_block_download,
                "pruned": info.pruned,
            }))
        }
        "getbestblockhash" => {
            let info = inner.chain.chain_info().await.map_err(fault)?;
            Ok(BlockHash::from_byte_array(info.tip).to_string().into())
        }
        "getblocktemplate" => template(inner, &params[0]).await,
        "submitblock" => {
            let block = block_of(&params[0])?;
            match inner.submit(Door::Rpc, &block).await {
                Some(verdict) => Ok(core_word(&verdict)),
                None => Err((code::MISC, "the chain stopped".to_owned())),
            }
        }
        "getblockheader" => header(inner, params).await,
        _ => Err((code::METHOD_NOT_FOUND, format!("{method} is not served here"))),
    }
}

async fn template(inner: &Inner, request: &Value) -> Result<Value, Refusal> {
    if request["mode"] == "proposal" {
        let block = block_of(&request["data"])?;
        let checked = inner.chain.check_block(&block).await.map_err(fault)?;
        return Ok(match checked {
            Checked::Valid => Value::Null,
            Checked::NotOnTip(_) => "inconclusive-not-best-prevblk".into(),
            Checked::Invalid(reason) => reason.into(),
        });
    }
    let mark = request["longpollid"].as_str().map(|id| TemplateMark(id.to_owned()));
    let shown = inner.chain.next_template(mark.as_ref()).await.map_err(fault)?;
    template_json(&shown).map_err(|error| (code::MISC, format!("{error:#}")))
}

async fn header(inner: &Inner, params: &Value) -> Result<Value, Refusal> {
    let hash = params[0].as_str().and_then(|text| text.parse::<BlockHash>().ok());
    let hash = hash.ok_or_else(|| (code::INVALID_PARAMS, "blockhash must be 64 digits".into()))?;
    let height = inner.chain.height_of(hash.as_byte_array()).await.map_err(fault)?;
    let tip = inner.chain.chain_info().await.map_err(fault)?.height;
    let not_found = || (code::INVALID_ADDRESS_OR_KEY, "Block not found".to_owned());
    let height = height.ok_or_else(not_found)?;
    let confirmations = tip.saturating_sub(height) + 1;
    Ok(json!({ "hash": hash.to_string(), "confirmations": confirmations, "height": height }))
}

/// A template as Core writes it. Fees and sigops of single transactions are left out: the chain does not
/// tell them and nobody here reads them.
fn template_json(shown: &NodeTemplate) -> Result<Value> {
    let template = &shown.template;
    let mut transactions = Vec::with_capacity(template.known_transactions().len());
    for raw in template.known_transactions() {
        let transaction: bitcoin::Transaction =
            bitcoin::consensus::deserialize(raw).context("a transaction of our own")?;
        transactions.push(json!({
            "data": hex(raw),
            "txid": transaction.compute_txid().to_string(),
            "hash": transaction.compute_wtxid().to_string(),
            "depends": [],
            "weight": transaction.weight().to_wu(),
        }));
    }
    let target = bitcoin::Target::from_compact(bitcoin::CompactTarget::from_consensus(
        shown.prev_hash.nbits,
    ));
    let mut reply = json!({
        "capabilities": ["proposal"],
        "version": template.version,
        "rules": ["csv", "!segwit", "taproot"],
        "vbavailable": {},
        "vbrequired": 0,
        "previousblockhash": BlockHash::from_byte_array(shown.prev_hash.hash).to_string(),
        "transactions": transactions,
        "coinbaseaux": {},
        "coinbasevalue": template.coinbase_value_sats,
        "longpollid": shown.mark.0,
        "target": hex(&target.to_be_bytes()),
        "mintime": shown.earliest_ntime,
        "mutable": ["time", "transactions", "prevblock"],
        "noncerange": "00000000ffffffff",
        "sigoplimit": 80_000,
        "sizelimit": 4_000_000,
        "weightlimit": 4_000_000,
        "curtime": shown.prev_hash.min_ntime,
        "bits": format!("{:08x}", shown.prev_hash.nbits),
        "height": template.height,
    });
    if template.commits_to_witnesses {
        // Behind the value and the script's length, which is one byte for 38.
        let script = template.required_outputs.get(9..).context("a witness commitment")?;
        reply["default_witness_commitment"] = hex(script).into();
    }
    Ok(reply)
}

/// What `submitblock` answers.
fn core_word(verdict: &Submitted) -> Value {
    match verdict {
        Submitted::Accepted => Value::Null,
        Submitted::AlreadyKnown => "duplicate".into(),
        Submitted::Stale => "inconclusive".into(),
        Submitted::Rejected(reason) => reason.as_str().into(),
    }
}

fn block_of(data: &Value) -> Result<Vec<u8>, Refusal> {
    let undecodable = || (code::DESERIALIZATION, "Block decode failed".to_owned());
    data.as_str().and_then(from_hex).ok_or_else(undecodable)
}

fn fault(error: NodeError) -> Refusal {
    (code::MISC, error.to_string())
}

fn write_cookie(path: &Path) -> Result<String> {
    use std::io::Write;
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("randomness")?;
    let cookie = format!("__cookie__:{}", hex(&secret));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(cookie.as_bytes())?;
    Ok(cookie)
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

/// RFC 4648, padded: what HTTP's Basic scheme wants of the cookie.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| u32::from(chunk.get(at).copied().unwrap_or(0)));
        let word = a << 16 | b << 8 | c;
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let encoded = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(texts.map(|text| base64(text.as_bytes())), encoded);
    }

    #[test]
    fn hex_comes_back_and_what_is_none_does_not() {
        assert_eq!(from_hex(&hex(&[0, 0x1f, 0xff])), Some(vec![0, 0x1f, 0xff]));
        for wrong in ["0", "0g", "+1"] {
            assert_eq!(from_hex(wrong), None);
        }
    }
}
