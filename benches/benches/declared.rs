//! What the check of a declared job costs, of 4,000 transactions: with all of them known, with the list
//! checked before, and with none known and all supplied. Then the block that a node is asked about.
//! `cargo bench -p benches --bench declared`.

#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use job_declarator::declared::{
    Body, BuiltJob, Context, DeclaredJob, Outcome, Rule, Transaction, build, check,
};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{Node, NodeTemplate, subsidy_sats};
use proto::declare::Declaration;
use proto::limits::EXTRANONCE_LEN;
use proto::template::Output;
use proto::token::MiningJobToken;

/// Transactions of a full block's template, at the size of the embedded chain's.
const TRANSACTIONS: usize = 4_000;
/// A P2WPKH output's script.
const SCRIPT: [u8; 22] = {
    let mut script = [7; 22];
    script[0] = 0;
    script[1] = 20;
    script
};

fn shown() -> NodeTemplate {
    let options =
        EmbeddedOptions { tx_count: TRANSACTIONS, block_hashes: 2, ..EmbeddedOptions::default() };
    let chain = EmbeddedChain::new(options).expect("a chain in memory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(chain.next_template(None)).expect("a template")
}

fn built(shown: &NodeTemplate) -> BuiltJob {
    let sats = shown.template.coinbase_value_sats;
    let outputs = [Output { sats, script: SCRIPT.to_vec() }];
    build(&shown.template, &outputs, b"/bench/", EXTRANONCE_LEN).expect("a coinbase")
}

fn declaration(built: &BuiltJob) -> Declaration {
    let parts = built.declared_parts();
    Declaration {
        request_id: 1,
        token: MiningJobToken([1; 16]),
        version: built.version,
        coinbase_prefix: parts.prefix,
        coinbase_suffix: parts.suffix,
        wtxids: built.wtxids.clone().expect("a template with its transactions"),
        supplied: Vec::new(),
        was_asked: false,
    }
}

fn sound(outcome: Outcome) -> Box<DeclaredJob> {
    match outcome {
        Outcome::Sound { job, .. } => job,
        Outcome::Missing(_) => unreachable!("all are known or supplied"),
    }
}

fn checks(criterion: &mut Criterion) {
    let shown = shown();
    let raw = shown.template.known_transactions();
    let known: HashMap<[u8; 32], Transaction> = raw
        .iter()
        .map(|bytes| Transaction::read(Arc::clone(bytes)).expect("a transaction"))
        .map(|transaction| (*transaction.wtxid(), transaction))
        .collect();
    let rule = Rule::whole(SCRIPT.to_vec());
    let height = shown.template.height;
    let subsidy_sats = subsidy_sats(height, bitcoin::Network::Regtest);
    let context = Context { height, tip: shown.prev_hash, subsidy_sats, rule: &rule };
    let declared = declaration(&built(&shown));
    let find = |wtxid: &[u8; 32]| known.get(wtxid).cloned();
    let first = sound(check(&declared, &context, &find, &|_| None).expect("a sound job"));
    let body: &Arc<Body> = first.body().expect("it was declared in full");
    let supplied = raw.iter().enumerate().map(|(at, bytes)| (at as u16, Arc::clone(bytes)));
    let in_full = Declaration { supplied: supplied.collect(), ..declared.clone() };

    let mut group = criterion.benchmark_group("4,000 transactions");
    group.bench_function("all known", |bencher| {
        bencher.iter(|| check(black_box(&declared), &context, &find, &|_| None));
    });
    group.bench_function("the same list again", |bencher| {
        let same = |_: &[u8; 32]| Some(Arc::clone(body));
        bencher.iter(|| check(black_box(&declared), &context, &find, &same));
    });
    group.bench_function("all supplied", |bencher| {
        bencher.iter(|| check(black_box(&in_full), &context, &|_| None, &|_| None));
    });
    group.bench_function("proposal", |bencher| {
        bencher.iter(|| black_box(&first).proposal(&shown.prev_hash));
    });
    group.bench_function("build", |bencher| bencher.iter(|| built(black_box(&shown))));
    group.finish();
}

criterion_group!(benches, checks);
criterion_main!(benches);
