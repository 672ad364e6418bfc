//! The transactions that a declared job may name without sending them: those of the pool's own templates
//! of this tip and the last, and those of approved declarations while these live. A task that owns the
//! table; `checks` asks it and feeds it, and it follows the templates by itself. Started by `run`.
//!
//! Must never hold what no check has passed: a transaction comes in with a template of our node or with a
//! declaration that the node approved. Declarers who have the same transactions share them one by one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use job_declarator::declared::{Body, Transaction};
use proto::declare::Declaration;
use proto::template::Transactions;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::limits::{
    LIBRARY_ASKS_MAX, LIBRARY_BODIES_MAX, LIBRARY_TEMPLATES_MAX, LIBRARY_TRANSACTIONS_MAX,
};
use crate::metrics::Metrics;
use crate::templates::Published;
use crate::turns::Name;

/// What is known of a declaration's transactions.
#[derive(Debug, Default)]
pub struct Known {
    /// All of them, from an approved declaration of the same list.
    pub same: Option<Arc<Body>>,
    /// By wtxid, as far as they are known; empty where `same` has them.
    pub by_wtxid: HashMap<[u8; 32], Transaction>,
    /// Those of the known that no template of ours holds: declarations alone keep them here.
    pub loose: Arc<[Loose]>,
}

/// The wtxid of a transaction and its length: what whoever keeps it is charged for.
pub type Loose = (Name, usize);

/// Where transactions are looked up. A clone leads to the same library.
#[derive(Clone)]
pub struct LibraryHandle {
    queue: mpsc::Sender<Ask>,
    /// How many declarers there are.
    readers: Arc<watch::Sender<usize>>,
    /// Whether the present template's transactions are in.
    is_stocked: watch::Receiver<bool>,
}

/// A declarer who may look transactions up, until it is dropped.
#[derive(Debug)]
pub struct Reader(Arc<watch::Sender<usize>>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.send_modify(|readers| *readers -= 1);
    }
}

enum Ask {
    LookUp {
        declaration: Box<Declaration>,
        answer: oneshot::Sender<(Box<Declaration>, Known)>,
    },
    Keep {
        body: Arc<Body>,
        supplied: Vec<Transaction>,
        loose: Arc<[Loose]>,
        answer: oneshot::Sender<Arc<Body>>,
    },
    Template {
        prev_hash: [u8; 32],
        transactions: Vec<Transaction>,
    },
}

impl LibraryHandle {
    /// Templates are read while there is somebody for whom. Waits for the present one, if he is the first.
    pub async fn enter(&self) -> Reader {
        self.readers.send_modify(|readers| *readers += 1);
        let reader = Reader(Arc::clone(&self.readers));
        // A library that has ended stocks nothing; nor is anything declared then.
        let _ = self.is_stocked.clone().wait_for(|is_stocked| *is_stocked).await;
        reader
    }

    /// The declaration back, with those of its transactions that are known. `None`: the pool is going down.
    pub async fn look_up(
        &self,
        declaration: Box<Declaration>,
    ) -> Option<(Box<Declaration>, Known)> {
        let (answer, found) = oneshot::channel();
        self.queue.send(Ask::LookUp { declaration, answer }).await.ok()?;
        found.await.ok()
    }

    /// Takes in what an approved declaration has, what of it was new, and what of it no template of ours
    /// holds. All stay as long as somebody else holds them. Of equal lists the first stands for all, also
    /// of those that were checked at the same time: it is what comes back. `None`: the pool is going down.
    pub async fn keep(
        &self,
        body: Arc<Body>,
        supplied: Vec<Transaction>,
        loose: Arc<[Loose]>,
    ) -> Option<Arc<Body>> {
        let (answer, kept) = oneshot::channel();
        self.queue.send(Ask::Keep { body, supplied, loose, answer }).await.ok()?;
        kept.await.ok()
    }
}

/// Starts the library; it ends with `stop`.
pub fn spawn(
    templates: watch::Receiver<Published>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> LibraryHandle {
    let (queue, mut asks) = mpsc::channel(LIBRARY_ASKS_MAX);
    let (readers, entered) = watch::channel(0);
    let (stocked, is_stocked) = watch::channel(false);
    let follower = Follower { templates, entered, stocked, queue: queue.clone() };
    tokio::spawn(stop.clone().run_until_cancelled_owned(follower.run()));
    let handle = LibraryHandle { queue, readers: Arc::new(readers), is_stocked };
    tokio::spawn(async move {
        let mut library = Library::default();
        while let Some(Some(ask)) = stop.run_until_cancelled(asks.recv()).await {
            library.take(ask);
            metrics.library_holds(library.by_wtxid.len());
        }
    });
    handle
}

/// Reads every new template's transactions while there is a declarer, apart from everybody's work: four
/// thousand are some ten milliseconds of hashing.
struct Follower {
    templates: watch::Receiver<Published>,
    entered: watch::Receiver<usize>,
    stocked: watch::Sender<bool>,
    queue: mpsc::Sender<Ask>,
}

impl Follower {
    async fn run(mut self) {
        let mut last: Option<Transactions> = None;
        loop {
            if self.entered.wait_for(|readers| *readers > 0).await.is_err() {
                return;
            }
            let Published { active, .. } = self.templates.borrow_and_update().clone();
            let (prev_hash, new) = (active.tip.hash, active.job.template().transactions.clone());
            let is_last =
                |new: &Transactions| last.as_ref().is_some_and(|last| Arc::ptr_eq(last, new));
            if let Some(new) = new.filter(|new| !is_last(new)) {
                last = Some(Arc::clone(&new));
                if self.read(prev_hash, new).await.is_none() {
                    return;
                }
            }
            self.stocked.send_replace(true);
            let mut gone = self.entered.clone();
            tokio::select! {
                biased;
                // The next to come waits for what is mined then.
                _ = gone.wait_for(|readers| *readers == 0) => {
                    self.stocked.send_replace(false);
                }
                changed = self.templates.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// `None`: the library has ended.
    async fn read(&self, prev_hash: [u8; 32], new: Transactions) -> Option<()> {
        let read = move || new.iter().cloned().filter_map(Transaction::read).collect();
        match tokio::task::spawn_blocking(read).await {
            Ok(transactions) => {
                let template = Ask::Template { prev_hash, transactions };
                self.queue.send(template).await.ok()
            }
            Err(error) => {
                warn!(%error, "a template's transactions were not read");
                Some(())
            }
        }
    }
}

/// The table, pure.
#[derive(Default)]
struct Library {
    by_wtxid: HashMap<[u8; 32], Shelved>,
    /// By the hash of their lists of wtxids.
    bodies: HashMap<[u8; 32], Listed>,
    /// What holds the templates' transactions, the newest last: of this tip and the one before.
    templates: VecDeque<Shelf>,
}

struct Shelved {
    transaction: Transaction,
    /// Templates of ours that hold it.
    templates: u32,
}

struct Listed {
    body: Weak<Body>,
    loose: Arc<[Loose]>,
}

/// One template.
struct Shelf {
    prev_hash: [u8; 32],
    transactions: Vec<([u8; 32], Arc<[u8]>)>,
}

impl Library {
    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::LookUp { declaration, answer } => {
                let known = self.known(&declaration.wtxids);
                // Who asked may be gone.
                let _ = answer.send((declaration, known));
            }
            Ask::Keep { body, supplied, loose, answer } => {
                self.make_room_for(supplied.len());
                for transaction in supplied {
                    self.shelve(transaction);
                }
                // Who asked may be gone.
                let _ = answer.send(self.keep(body, loose));
            }
            Ask::Template { prev_hash, transactions } => self.add_template(prev_hash, transactions),
        }
    }

    /// The body as the library has it.
    fn keep(&mut self, body: Arc<Body>, loose: Arc<[Loose]>) -> Arc<Body> {
        if let Some(first) = self.bodies.get(body.id()).and_then(|listed| listed.body.upgrade()) {
            return first;
        }
        if self.bodies.len() >= LIBRARY_BODIES_MAX {
            self.bodies.retain(|_, listed| listed.body.strong_count() > 0);
        }
        self.bodies.insert(*body.id(), Listed { body: Arc::downgrade(&body), loose });
        body
    }

    fn known(&self, wtxids: &[[u8; 32]]) -> Known {
        let listed = self.bodies.get(&Body::list_id(wtxids));
        if let Some((same, listed)) = listed.and_then(|one| Some((one.body.upgrade()?, one))) {
            let loose = Arc::clone(&listed.loose);
            return Known { same: Some(same), by_wtxid: HashMap::new(), loose };
        }
        let (mut by_wtxid, mut loose) = (HashMap::new(), Vec::new());
        for (wtxid, known) in wtxids.iter().filter_map(|wtxid| self.by_wtxid.get_key_value(wtxid)) {
            let first = by_wtxid.insert(*wtxid, known.transaction.clone()).is_none();
            if known.templates == 0 && first {
                loose.push((*wtxid, known.transaction.bytes().len()));
            }
        }
        Known { same: None, by_wtxid, loose: loose.into() }
    }

    /// Once for many: a look at everything is not for each of them.
    fn make_room_for(&mut self, more: usize) {
        if self.by_wtxid.len() + more > LIBRARY_TRANSACTIONS_MAX {
            self.sweep();
        }
    }

    /// The transaction as the library has it: the first copy that came stands for all. `None` where there
    /// is no place for another.
    fn shelve(&mut self, transaction: Transaction) -> Option<&mut Shelved> {
        let is_full = self.by_wtxid.len() >= LIBRARY_TRANSACTIONS_MAX;
        match self.by_wtxid.entry(*transaction.wtxid()) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(_) if is_full => None,
            Entry::Vacant(free) => Some(free.insert(Shelved { transaction, templates: 0 })),
        }
    }

    fn add_template(&mut self, prev_hash: [u8; 32], transactions: Vec<Transaction>) {
        self.make_room_for(transactions.len());
        let mut shelf = Shelf { prev_hash, transactions: Vec::with_capacity(transactions.len()) };
        for transaction in transactions {
            let Some(shelved) = self.shelve(transaction) else { continue };
            shelved.templates += 1;
            let bytes = Arc::clone(shelved.transaction.bytes());
            shelf.transactions.push((*shelved.transaction.wtxid(), bytes));
        }
        if self.templates.back().is_some_and(|shelf| shelf.prev_hash != prev_hash) {
            // A new tip: of the one before its last template stays.
            while self.templates.len() > 1 {
                self.take_down();
            }
        }
        if self.templates.len() >= LIBRARY_TEMPLATES_MAX {
            self.take_down();
        }
        self.templates.push_back(shelf);
        self.sweep();
    }

    /// The oldest template goes.
    fn take_down(&mut self) {
        for (wtxid, _) in self.templates.pop_front().into_iter().flat_map(|old| old.transactions) {
            if let Some(shelved) = self.by_wtxid.get_mut(&wtxid) {
                shelved.templates -= 1;
            }
        }
    }

    /// What nobody but the library holds goes.
    fn sweep(&mut self) {
        self.by_wtxid.retain(|_, known| Arc::strong_count(known.transaction.bytes()) > 1);
        self.bodies.retain(|_, listed| listed.body.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{Amount, ScriptBuf, TxIn, TxOut};

    fn transaction(number: u64) -> Transaction {
        let transaction = bitcoin::Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn::default()],
            output: vec![TxOut {
                value: Amount::from_sat(number),
                script_pubkey: ScriptBuf::new(),
            }],
        };
        Transaction::read(bitcoin::consensus::serialize(&transaction).into()).unwrap()
    }

    fn knows(library: &Library, number: u64) -> bool {
        library.known(&[*transaction(number).wtxid()]).by_wtxid.len() == 1
    }

    #[test]
    fn a_transaction_stays_as_long_as_somebody_holds_it() {
        let mut library = Library::default();
        let held = Arc::clone(library.shelve(transaction(1)).unwrap().transaction.bytes());
        library.sweep();
        assert!(knows(&library, 1) && !knows(&library, 2));
        drop(held);
        library.sweep();
        assert!(!knows(&library, 1));
    }

    #[test]
    fn the_first_copy_of_a_transaction_stands_for_all() {
        let mut library = Library::default();
        let mut shelved =
            || Arc::clone(library.shelve(transaction(1)).unwrap().transaction.bytes());
        let (first, second) = (shelved(), shelved());
        assert!(Arc::ptr_eq(&first, &second));
        let found = library.known(&[*transaction(1).wtxid()]);
        let found = found.by_wtxid.into_values().next().unwrap();
        assert!(Arc::ptr_eq(&first, found.bytes()));
    }

    #[test]
    fn of_the_last_tip_its_last_template_stays_and_of_this_one_the_newest() {
        let mut library = Library::default();
        let (old, tip, next) = ([1; 32], [2; 32], [3; 32]);
        library.add_template(old, vec![transaction(1)]);
        library.add_template(tip, vec![transaction(2)]);
        library.add_template(tip, vec![transaction(3), transaction(4)]);
        assert!((1..=4).all(|number| knows(&library, number)));
        library.add_template(next, vec![transaction(4)]);
        assert!(
            !knows(&library, 1) && !knows(&library, 2),
            "of two tips ago, or replaced on the last"
        );
        assert!(knows(&library, 3) && knows(&library, 4));
        for number in 0..LIBRARY_TEMPLATES_MAX as u64 {
            library.add_template(next, vec![transaction(100 + number)]);
        }
        assert_eq!(library.templates.len(), LIBRARY_TEMPLATES_MAX);
        assert!(!knows(&library, 3) && !knows(&library, 4), "beyond what is kept");
        assert!(knows(&library, 100) && knows(&library, 99 + LIBRARY_TEMPLATES_MAX as u64));
    }
    #[test]
    fn what_no_template_of_ours_holds_is_charged_to_whoever_keeps_it() {
        let mut library = Library::default();
        let (tip, next, third) = ([1; 32], [2; 32], [3; 32]);
        library.add_template(tip, vec![transaction(1)]);
        let held: Vec<_> = [1, 2]
            .map(|number| {
                Arc::clone(library.shelve(transaction(number)).unwrap().transaction.bytes())
            })
            .into();
        let list = [*transaction(1).wtxid(), *transaction(2).wtxid()];
        let second = (list[1], held[1].len());
        assert_eq!(*library.known(&list).loose, [second]);
        // The template of two tips ago is gone; a declaration alone holds its transaction now.
        library.add_template(next, vec![]);
        assert_eq!(*library.known(&list).loose, [second]);
        library.add_template(third, vec![]);
        assert_eq!(*library.known(&list).loose, [(list[0], held[0].len()), second]);
        assert_eq!(library.known(&[list[1], list[1]]).loose.len(), 1, "named twice, held once");
    }
}
