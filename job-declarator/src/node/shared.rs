//! Transactions that two templates of one node have in common, held once: a node says them anew with every
//! template, megabytes each time, and the jobs of half an hour are kept. Called by who keeps many (`feed.rs`).

use std::collections::HashSet;
use std::sync::Arc;

use proto::template::{Template, Transactions};

/// `template` with those of its transactions that `before` has, too, taken from there.
#[must_use]
pub fn sharing(before: &Transactions, template: Arc<Template>) -> Arc<Template> {
    let Some(transactions) = &template.transactions else { return template };
    let known: HashSet<&Arc<[u8]>> = before.iter().collect();
    let shared = transactions.iter().map(|one| Arc::clone(known.get(one).unwrap_or(&one)));
    let shared = Some(Arc::new(shared.collect()));
    Arc::new(Template { transactions: shared, ..Template::clone(&template) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::assemble::coinbase_only;
    use proto::template::TemplateId;

    fn template(transactions: &[&[u8]]) -> Arc<Template> {
        let all: Vec<Arc<[u8]>> = transactions.iter().map(|bytes| Arc::from(*bytes)).collect();
        let mut template = coinbase_only(TemplateId(1), 5, 1, 50);
        template.transactions = Some(Arc::new(all));
        Arc::new(template)
    }

    #[test]
    fn what_two_templates_have_in_common_is_held_once() {
        let before = template(&[b"one", b"two"]);
        let before = before.transactions.as_ref().unwrap();
        let next = template(&[b"two", b"three", b"one"]);
        let shared = sharing(before, Arc::clone(&next));
        assert_eq!(shared, next, "nothing but where the bytes are is another");
        let shared = shared.transactions.as_ref().unwrap();
        assert!(Arc::ptr_eq(&shared[0], &before[1]) && Arc::ptr_eq(&shared[2], &before[0]));
        assert_eq!(Arc::strong_count(&shared[1]), 2, "the new one is its own template's");
    }
}
