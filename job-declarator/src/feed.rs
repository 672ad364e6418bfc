//! The own node's templates, and whether it is there. One task, started by `run.rs`; it waits through every
//! absence of the node and says why in words.
//!
//! Must never hand on a template of another network than the owner's.

use std::sync::Arc;

use bitcoin::Network;
use proto::template::Transactions;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::unix_s;
use crate::limits::{NODE_ASKED_EVERY, NODE_PAUSE_FIRST, NODE_PAUSE_LAST, NODE_WAIT_SAID_EVERY};
use crate::node::shared::sharing;
use crate::node::{ChainInfo, Node, NodeError, NodeTemplate, TemplateMark};

/// What the node has, or that it has nothing.
#[derive(Debug)]
pub(crate) enum FromNode {
    /// Something newer.
    Template(Box<NodeTemplate>),
    /// Nothing, but it answers.
    Answers,
    /// It cannot be built upon.
    Away(String),
}

/// What is known of the node, for the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// What and where.
    pub name: String,
    /// Where it stands, once it has answered.
    pub chain: Option<ChainInfo>,
    /// When it answered last, unix seconds.
    pub answered_at: Option<u32>,
}

/// Tells the declarator's task of the node until `stop`.
pub(crate) fn spawn(
    node: Arc<dyn Node>,
    network: Network,
    core: mpsc::Sender<FromNode>,
    stop: CancellationToken,
) -> watch::Receiver<NodeFacts> {
    let (facts, seen) =
        watch::channel(NodeFacts { name: node.name(), chain: None, answered_at: None });
    let known = Transactions::default();
    let feed = Feed { node, network, core, facts, mark: None, known, heard: None, said: None };
    tokio::spawn(async move {
        stop.run_until_cancelled(feed.run()).await;
    });
    seen
}

struct Feed {
    node: Arc<dyn Node>,
    network: Network,
    core: mpsc::Sender<FromNode>,
    facts: watch::Sender<NodeFacts>,
    mark: Option<TemplateMark>,
    /// Transactions of the last template.
    known: Transactions,
    /// When it said last which chain it is on.
    heard: Option<Instant>,
    /// What was said last of its absence, and when.
    said: Option<(String, Instant)>,
}

impl Feed {
    async fn run(mut self) {
        let mut pause = NODE_PAUSE_FIRST;
        loop {
            match self.next().await {
                Ok(mut template) => {
                    template.template = sharing(&self.known, template.template);
                    self.known = template.template.transactions.clone().unwrap_or_default();
                    if self.said.take().is_some() {
                        info!(node = self.node.name(), "your node is ready");
                    }
                    pause = NODE_PAUSE_FIRST;
                    self.mark = Some(template.mark.clone());
                    if self.tell(FromNode::Template(Box::new(template))).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(why) => {
                    self.say(&why);
                    // One that was away may be on another chain: asked for what it has now.
                    self.mark = None;
                    if self.tell(FromNode::Away(why)).await.is_err() {
                        return;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(NODE_PAUSE_LAST);
        }
    }

    async fn tell(&self, said: FromNode) -> Result<(), ()> {
        self.core.send(said).await.map_err(drop)
    }

    /// A day of catching up should be seen to go on, and a new reason at once.
    fn say(&mut self, why: &str) {
        let again = self.said.as_ref().is_none_or(|(last, at)| {
            last.split(',').next() != why.split(',').next() || at.elapsed() >= NODE_WAIT_SAID_EVERY
        });
        if again {
            warn!(node = self.node.name(), why, "waiting for your node");
            self.said = Some((why.to_owned(), Instant::now()));
        }
    }

    /// The next template, with signs of life while there is none. Which chain it is of is asked for all the
    /// while, however fast templates come: another node may stand behind the same address.
    async fn next(&mut self) -> Result<NodeTemplate, String> {
        let is_due = self.heard.is_none_or(|heard| heard.elapsed() >= NODE_ASKED_EVERY);
        if self.mark.is_none() || is_due {
            let chain =
                self.node.chain_info().await.map_err(|error| in_words(&self.node.name(), error))?;
            self.hold_against_settings(chain)?;
        }
        let node = Arc::clone(&self.node);
        let mark = self.mark.clone();
        let asked = node.next_template(mark.as_ref());
        tokio::pin!(asked);
        loop {
            let due = self.heard.map_or_else(Instant::now, |heard| heard + NODE_ASKED_EVERY);
            let alive = async {
                sleep_until(due).await;
                node.chain_info().await
            };
            tokio::select! {
                answer = &mut asked => {
                    let template = answer.map_err(|error| in_words(&node.name(), error))?;
                    self.facts.send_modify(|facts| {
                        facts.answered_at = Some(unix_s());
                        if let Some(chain) = &mut facts.chain {
                            chain.height = template.template.height.saturating_sub(1);
                            chain.tip = template.prev_hash.hash;
                        }
                    });
                    return Ok(template);
                }
                chain = alive => {
                    // One that fails here is asked again in a while; its silence is what counts.
                    self.heard = Some(Instant::now());
                    if let Ok(chain) = chain {
                        self.hold_against_settings(chain)?;
                        let _ = self.tell(FromNode::Answers).await;
                    }
                }
            }
        }
    }

    fn hold_against_settings(&mut self, chain: ChainInfo) -> Result<(), String> {
        self.heard = Some(Instant::now());
        let (found, height, catches_up) =
            (chain.network, chain.height, chain.initial_block_download);
        self.facts.send_modify(|facts| {
            facts.name = self.node.name();
            facts.chain = Some(chain);
            facts.answered_at = Some(unix_s());
        });
        if found != self.network {
            let wanted = self.network;
            return Err(format!(
                "it is on {found} and your settings say {wanted}: change node.url or node.network"
            ));
        }
        if catches_up {
            return Err(format!("it is still catching up with the chain, at height {height}"));
        }
        Ok(())
    }
}

/// What a person can do about it. `name` says where the node is.
fn in_words(name: &str, error: NodeError) -> String {
    match error {
        NodeError::Unreachable(why) => {
            format!("no answer from {name} ({why}): is it running, with server=1?")
        }
        NodeError::Unauthorized => format!(
            "{error}: set node.cookie_file to the .cookie of your node's folder, or user and password_file"
        ),
        NodeError::Busy
        | NodeError::Cookie(_)
        | NodeError::NotReady(_)
        | NodeError::Nonsense { .. }
        | NodeError::Refused { .. } => error.to_string(),
    }
}

const _: () =
    assert!(NODE_ASKED_EVERY.as_millis() * 3 < crate::limits::NODE_SILENCE_MAX_MS as u128);
