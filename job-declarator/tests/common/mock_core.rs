//! A node that answers JSON-RPC as the test says, also wrongly: plain HTTP on 127.0.0.1, a thread for
//! each connection. It ends with the test.

#![allow(unreachable_pub)] // a test's module

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// A question as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub method: String,
    pub params: Value,
    /// The decoded `user:password`.
    pub credentials: String,
}

impl Asked {
    /// The long-poll id of a `getblocktemplate`.
    pub fn long_poll_id(&self) -> Option<&str> {
        self.params[0]["longpollid"].as_str()
    }
}

/// What the node does.
pub enum Answer {
    Result(Value),
    /// As Core does: an error object with HTTP status 500.
    Error(i64, &'static str),
    /// No JSON, just a status.
    Status(u16),
    /// These bytes as they are, then the connection is closed.
    Raw(Vec<u8>),
    /// Nothing, until the other end gives up.
    Stall,
}

type Behaviour = dyn Fn(&Asked) -> Answer + Send + Sync;

pub struct MockCore {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl MockCore {
    pub fn start(behaviour: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (behaviour, log): (Arc<Behaviour>, _) = (Arc::new(behaviour), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (behaviour, log) = (Arc::clone(&behaviour), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &*behaviour, &log));
            }
        });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn count(&self, method: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method).count()
    }
}

/// A whole HTTP answer with this body.
pub fn http(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn serve(mut stream: TcpStream, behaviour: &Behaviour, log: &Mutex<Vec<Asked>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut credentials = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => credentials = decode_basic(value),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let question: Value = serde_json::from_slice(&body).ok()?;
    let asked = Asked {
        method: question["method"].as_str()?.to_owned(),
        params: question["params"].clone(),
        credentials,
    };
    log.lock().unwrap().push(asked.clone());
    let id = &question["id"];
    let bytes = match behaviour(&asked) {
        Answer::Result(result) => {
            http(200, &json!({"jsonrpc": "2.0", "result": result, "id": id}).to_string())
        }
        Answer::Error(code, message) => {
            let error = json!({"code": code, "message": message});
            http(500, &json!({"result": null, "error": error, "id": id}).to_string())
        }
        Answer::Status(status) => http(status, ""),
        Answer::Raw(bytes) => bytes,
        Answer::Stall => {
            // Ends when the asking side closes.
            stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
            let _ = reader.read(&mut [0]);
            return None;
        }
    };
    stream.write_all(&bytes).ok()
}

fn decode_basic(value: &str) -> String {
    let encoded = value.strip_prefix("Basic ").unwrap();
    let bytes = bitcoincore_rpc::jsonrpc::base64::decode(encoded).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A template as Core's `getblocktemplate` writes it.
pub fn template_json(shown: &job_declarator::node::NodeTemplate, long_poll_id: &str) -> Value {
    use bitcoin::hashes::Hash;
    let template = &shown.template;
    let transactions: Vec<Value> = template
        .known_transactions()
        .iter()
        .map(|raw| {
            let transaction: bitcoin::Transaction = bitcoin::consensus::deserialize(raw).unwrap();
            json!({
                "data": hex::encode(raw),
                "txid": transaction.compute_txid().to_string(),
                "hash": transaction.compute_wtxid().to_string(),
                "depends": [], "fee": 200, "sigops": 0, "weight": 381,
            })
        })
        .collect();
    let tip = bitcoin::BlockHash::from_byte_array(shown.prev_hash.hash).to_string();
    let mut reply = json!({
        "capabilities": ["proposal"],
        "version": template.version,
        "rules": ["csv", "!segwit", "taproot"],
        "vbavailable": {},
        "vbrequired": 0,
        "previousblockhash": tip,
        "transactions": transactions,
        "coinbaseaux": {},
        "coinbasevalue": template.coinbase_value_sats,
        "longpollid": long_poll_id,
        "target": "7fffff0000000000000000000000000000000000000000000000000000000000",
        "mintime": shown.earliest_ntime,
        "mutable": ["time", "transactions", "prevblock"],
        "noncerange": "00000000ffffffff",
        "sigoplimit": 80000,
        "sizelimit": 4000000,
        "weightlimit": 4000000,
        "curtime": shown.prev_hash.min_ntime,
        "bits": format!("{:08x}", shown.prev_hash.nbits),
        "height": template.height,
    });
    if template.commits_to_witnesses {
        reply["default_witness_commitment"] = hex::encode(&template.required_outputs[9..]).into();
    }
    reply
}
