//! A node that cannot be asked yet, because nobody knows how to log in to it: Bitcoin Core makes its cookie when
//! it starts, and a declarator may be there before. Called through `Node`; every call tries again to find what
//! is missing, and once it is found this is only a way to the real one.

use std::sync::{Arc, OnceLock};

use super::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
};

/// Makes the node, or says what is missing.
pub type MakeNode = Box<dyn Fn() -> Result<Arc<dyn Node>, String> + Send + Sync>;

/// See above.
pub struct LateNode {
    name: String,
    make: MakeNode,
    made: OnceLock<Arc<dyn Node>>,
}

impl LateNode {
    /// Called `name` until it is there.
    #[must_use]
    pub fn new(name: String, make: MakeNode) -> Self {
        Self { name, make, made: OnceLock::new() }
    }

    fn there(&self) -> Result<&Arc<dyn Node>, NodeError> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let made = (self.make)().map_err(NodeError::NotReady)?;
        Ok(self.made.get_or_init(|| made))
    }
}

impl Node for LateNode {
    fn name(&self) -> String {
        self.made.get().map_or_else(|| self.name.clone(), |made| made.name())
    }

    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        Box::pin(async { self.there()?.chain_info().await })
    }

    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        Box::pin(async move { self.there()?.next_template(after).await })
    }

    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        Box::pin(async move { self.there()?.submit_block(block).await })
    }

    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        Box::pin(async move { self.there()?.check_block(block).await })
    }

    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        Box::pin(async move { self.there()?.height_of(hash).await })
    }
}
