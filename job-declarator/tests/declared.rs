//! Claims about declared jobs: what is built is accepted, by the check and by the chain; whatever is
//! wrong with a declaration is refused by name, one step beyond each limit.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

mod common;
#[path = "common/declare.rs"]
mod declare;
#[path = "common/mutate.rs"]
mod mutate;

use std::collections::HashMap;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use common::{mine_job, payout_script};
use declare::{Desk, declaration, request};
use job_declarator::declared::{
    Body, BuiltJob, Coinbase, Outcome, Refusal, Rule, Transaction, check,
};
use job_declarator::limits::{BLOCK_TRANSACTIONS_MAX, MONEY_MAX_SATS, SUPPLIED_STRIPPED_MAX};
use job_declarator::node::{Checked, Node, Submitted};
use mutate::Random;
use proto::declare::{Declaration, DeclareRefusal};
use proto::limits::{COINBASE_OUTPUTS_MAX, EXTRANONCE_LEN};
use proto::mining::CustomRefusal;
use proto::template::write_compact_size;

/// An output: satoshi and script.
type Paid = (u64, Vec<u8>);

/// Outputs as a coinbase has them, count first.
fn outputs(list: &[Paid]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_compact_size(list.len() as u64, &mut bytes);
    for (sats, script) in list {
        bytes.extend_from_slice(&sats.to_le_bytes());
        write_compact_size(script.len() as u64, &mut bytes);
        bytes.extend_from_slice(script);
    }
    bytes
}

fn commitment(desk: &Desk) -> Paid {
    let required = &desk.shown.template.required_outputs;
    (0, required[9..].to_vec())
}

/// The declaration with a change to its coinbase's fields.
fn with_coinbase(desk: &Desk, change: impl FnOnce(&mut Coinbase)) -> Declaration {
    let mut built = desk.built();
    change(&mut built.coinbase);
    declaration(&built)
}

/// The declaration paying `paid`, and committing to its witnesses as it must.
fn paying(desk: &Desk, paid: &[Paid]) -> Declaration {
    let list = [paid, &[commitment(desk)]].concat();
    with_coinbase(desk, |coinbase| coinbase.outputs = outputs(&list))
}

/// A transaction that spends nothing of ours, with `outputs`, and a witness of `witness_len` bytes if any.
fn transaction(outputs: &[Vec<u8>], witness_len: Option<usize>) -> Transaction {
    let transaction = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn {
            previous_output: bitcoin::OutPoint {
                txid: bitcoin::Txid::from_byte_array([5; 32]),
                vout: 0,
            },
            witness: witness_len
                .map(|length| bitcoin::Witness::from_slice(&[vec![1; length]]))
                .unwrap_or_default(),
            ..bitcoin::TxIn::default()
        }],
        output: outputs
            .iter()
            .map(|script| bitcoin::TxOut {
                value: bitcoin::Amount::from_sat(1),
                script_pubkey: script.clone().into(),
            })
            .collect(),
    };
    Transaction::read(bitcoin::consensus::serialize(&transaction).into()).unwrap()
}

/// A desk whose miner declares just this transaction, committing to its witness if it has one.
async fn with_transaction(transaction: Transaction) -> (Desk, Declaration) {
    let mut desk = Desk::new(0).await;
    let mut built = desk.built();
    if transaction.has_witness() {
        let root = bitcoin::merkle_tree::calculate_root(
            [[0; 32], *transaction.wtxid()].map(bitcoin::Wtxid::from_byte_array).into_iter(),
        );
        let root = bitcoin::WitnessMerkleNode::from_raw_hash(root.unwrap().to_raw_hash());
        let hash = bitcoin::Block::compute_witness_commitment(&root, &[0; 32]);
        let script = [&[0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed][..], hash.as_ref()].concat();
        let sats = desk.shown.template.coinbase_value_sats;
        built.coinbase.outputs = outputs(&[(sats, payout_script()), (0, script)]);
        built.coinbase.has_witness = true;
    }
    built.wtxids = Some(vec![*transaction.wtxid()]);
    desk.known.insert(*transaction.wtxid(), transaction);
    let declaration = declaration(&built);
    (desk, declaration)
}

#[tokio::test]
async fn what_build_makes_check_accepts_and_the_chain_takes_js10() {
    for tx_count in [0, 1, 2, 7, 20] {
        let desk = Desk::new(tx_count).await;
        let job = desk.sound(&desk.declaration());
        let (template, tip) = (&desk.shown.template, &desk.shown.prev_hash);
        assert_eq!(job.job().merkle_path(), template.merkle_path);
        assert_eq!(job.value_sats(), template.coinbase_value_sats);
        assert_eq!(job.pool_sats(), job.value_sats());
        assert_eq!(job.fees_sats(), job.value_sats() - desk.context().subsidy_sats);
        assert_eq!((job.height(), job.prev_hash()), (template.height, &tip.hash));
        let checked = desk.chain.check_block(&job.proposal(tip).unwrap()).await.unwrap();
        assert_eq!(checked, Checked::Valid, "{tx_count}");
        // The pool can make the block of any share, without asking the miner.
        let block = mine_job(job.job(), tip, 77);
        assert_eq!(desk.chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
        // And so a job of the tip before is one no more.
        let checked = desk.chain.check_block(&job.proposal(tip).unwrap()).await.unwrap();
        assert!(matches!(checked, Checked::NotOnTip(_)), "{checked:?}");
    }
}

#[tokio::test]
async fn the_nodes_reason_is_passed_on_for_what_only_it_can_know_js10() {
    let desk = Desk::new(7).await;
    let proposed = |declaration: &Declaration| {
        desk.sound(declaration).proposal(&desk.shown.prev_hash).unwrap()
    };
    // A satoshi more than subsidy and fees.
    let sats = desk.shown.template.coinbase_value_sats + 1;
    let greedy = proposed(&paying(&desk, &[(sats, payout_script())]));
    let checked = desk.chain.check_block(&greedy).await.unwrap();
    assert!(matches!(&checked, Checked::Invalid(why) if why.starts_with("bad-cb-amount")));
    // The same coin twice: without a witness of its own, a transaction may be declared in two forms.
    let mut again: bitcoin::Transaction =
        bitcoin::consensus::deserialize(&desk.shown.template.known_transactions()[6]).unwrap();
    again.output[0].value -= bitcoin::Amount::from_sat(1);
    let again = Transaction::read(bitcoin::consensus::serialize(&again).into()).unwrap();
    let mut known = desk.known.clone();
    let mut built = desk.built();
    built.wtxids.as_mut().unwrap().push(*again.wtxid());
    known.insert(*again.wtxid(), again);
    commit(&mut built, desk.shown.template.coinbase_value_sats);
    let known = |wtxid: &[u8; 32]| known.get(wtxid).cloned();
    let checked = check(&declaration(&built), &desk.context(), &known, &|_| None).unwrap();
    let Outcome::Sound { job, .. } = checked else { panic!("{checked:?}") };
    let proposal = job.proposal(&desk.shown.prev_hash).unwrap();
    let checked = desk.chain.check_block(&proposal).await.unwrap();
    let is_spent = |why: &str| why.starts_with("bad-txns-inputs-missingorspent");
    assert!(matches!(&checked, Checked::Invalid(why) if is_spent(why)), "{checked:?}");
}

/// The commitment made to fit the built job's list.
fn commit(built: &mut BuiltJob, sats: u64) {
    let leaves = std::iter::once([0; 32]).chain(built.wtxids.iter().flatten().copied());
    let root =
        bitcoin::merkle_tree::calculate_root(leaves.map(bitcoin::Wtxid::from_byte_array)).unwrap();
    let root = bitcoin::WitnessMerkleNode::from_raw_hash(root.to_raw_hash());
    let hash = bitcoin::Block::compute_witness_commitment(&root, &[0; 32]);
    let script = [&[0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed][..], hash.as_ref()].concat();
    built.coinbase.outputs = outputs(&[(sats, payout_script()), (0, script)]);
}

#[tokio::test]
async fn unknown_transactions_are_asked_for_by_position_js5_js10() {
    let mut desk = Desk::new(7).await;
    let declared = desk.declaration();
    for lacking in [vec![0], vec![6], vec![0, 3, 6], (0..7).collect::<Vec<u16>>()] {
        let all = desk.known.clone();
        for position in &lacking {
            desk.known.remove(&declared.wtxids[usize::from(*position)]);
        }
        let Ok(Outcome::Missing(asked)) = desk.check(&declared) else { panic!("{lacking:?}") };
        assert_eq!(asked, lacking);
        let bytes = |position: &u16| {
            let bytes = &desk.shown.template.known_transactions()[usize::from(*position)];
            (*position, Arc::clone(bytes))
        };
        let answered =
            Declaration { supplied: asked.iter().map(bytes).collect(), ..declared.clone() };
        let Ok(Outcome::Sound { job, supplied }) = desk.check(&answered) else {
            panic!("{lacking:?}")
        };
        let kept: Vec<_> = supplied.iter().map(|one| *one.wtxid()).collect();
        let expected: Vec<_> =
            lacking.iter().map(|position| declared.wtxids[usize::from(*position)]).collect();
        assert_eq!(kept, expected, "for the library, once the node agreed");
        assert_eq!(job.job().merkle_path(), desk.shown.template.merkle_path);
        // One of those asked for did not come.
        let mut short = answered;
        let (position, _) = short.supplied.pop().unwrap();
        let Ok(Outcome::Missing(still)) = desk.check(&short) else { panic!("{lacking:?}") };
        assert_eq!(still, [position]);
        desk.known = all;
    }
}

#[tokio::test]
async fn only_the_declared_transaction_may_be_supplied_for_a_position_js10() {
    let mut desk = Desk::new(3).await;
    desk.known.clear();
    let raw: Vec<Arc<[u8]>> = desk.shown.template.known_transactions().to_vec();
    let supplying = |supplied: &[(u16, &[u8])]| {
        let supplied = supplied.iter().map(|(at, bytes)| (*at, Arc::from(*bytes))).collect();
        desk.refusal(&Declaration { supplied, ..desk.declaration() })
    };
    assert_eq!(supplying(&[(0, &raw[1])]), Refusal::OtherTransaction(0));
    assert_eq!(supplying(&[(0, &raw[0]), (1, &raw[2])]), Refusal::OtherTransaction(1));
    assert_eq!(supplying(&[(3, &raw[0])]), Refusal::OtherTransaction(3));
    assert_eq!(supplying(&[(u16::MAX, &raw[0])]), Refusal::OtherTransaction(u16::MAX));
    assert_eq!(supplying(&[(0, &raw[0]), (0, &raw[0])]), Refusal::SuppliedTwice);
    assert_eq!(supplying(&[(0, &[])]), Refusal::NotATransaction(0));
    let length = raw[0].len();
    assert_eq!(supplying(&[(0, &raw[0][..length - 1])]), Refusal::NotATransaction(0));
    assert_eq!(supplying(&[(0, &[&raw[0][..], &[0]].concat())]), Refusal::NotATransaction(0));
    let mut other = raw[0].to_vec();
    other[length - 10] ^= 1;
    assert_eq!(supplying(&[(0, &other)]), Refusal::OtherTransaction(0));
    for refusal in [supplying(&[(0, &[])]), supplying(&[(0, &other)])] {
        assert_eq!(refusal.declare(), DeclareRefusal::MissingTransactions);
    }
}

#[tokio::test]
async fn what_a_first_check_made_of_a_list_serves_the_second() {
    let desk = Desk::new(7).await;
    let declared = desk.declaration();
    let first = desk.sound(&declared);
    let body = first.body().unwrap();
    assert_eq!(*body.id(), Body::list_id(&declared.wtxids));
    let unknown = |_: &[u8; 32]| -> Option<Transaction> { panic!("nothing is looked up") };
    let same = |id: &[u8; 32]| (id == body.id()).then(|| Arc::clone(body));
    let checked = check(&declared, &desk.context(), &unknown, &same).unwrap();
    let Outcome::Sound { job, .. } = checked else { panic!("{checked:?}") };
    assert!(Arc::ptr_eq(job.body().unwrap(), body));
    assert_eq!(job.job().merkle_path(), first.job().merkle_path());
    // The coinbase is judged all the same, and so is its commitment.
    let mut wrong = declared.clone();
    let at = wrong.coinbase_suffix.len() - 4 - 34 - 1;
    wrong.coinbase_suffix[at] ^= 1;
    let refused = check(&wrong, &desk.context(), &unknown, &same).unwrap_err();
    assert_eq!(refused, Refusal::Commitment);
    // One that was checked at the same time takes it later, and is the same job.
    let mut other = desk.sound(&declared);
    let block = mine_job(other.job(), &desk.shown.prev_hash, 77);
    other.share(Arc::clone(body));
    assert!(Arc::ptr_eq(other.body().unwrap(), body));
    let transactions = other.job().template().transactions.as_ref().unwrap();
    assert!(Arc::ptr_eq(transactions, body.transactions()));
    assert_eq!(mine_job(other.job(), &desk.shown.prev_hash, 77), block);
    let stranger = Desk::new(8).await;
    other.share(Arc::clone(stranger.sound(&stranger.declaration()).body().unwrap()));
    assert!(Arc::ptr_eq(other.body().unwrap(), body), "another list");
    // A body of another list is not taken for it.
    let mut shorter = declared;
    shorter.wtxids.pop();
    let refused = check(&shorter, &desk.context(), &|_| None, &|_| Some(Arc::clone(body)));
    assert_eq!(refused.unwrap_err(), Refusal::Commitment);
}

#[tokio::test]
async fn a_coinbase_that_pays_the_pool_a_satoshi_less_is_refused_p63_js4() {
    let desk = Desk::new(2).await;
    let sats = desk.shown.template.coinbase_value_sats;
    let other = vec![0x51];
    let good: [&[Paid]; 4] = [
        &[(sats, payout_script())],
        // In any order, in parts, with outputs of nothing to anybody.
        &[(0, other.clone()), (sats - 1, payout_script()), (1, payout_script())],
        // Nobody has to claim all that there is: it is worth less (rule P64).
        &[(sats - 1, payout_script())],
        &[(1, payout_script())],
    ];
    for paid in good {
        let job = desk.sound(&paying(&desk, paid));
        assert_eq!(job.pool_sats(), paid.iter().map(|(sats, _)| sats).sum::<u64>());
    }
    let due = |paid, due| Refusal::Underpaid { script: hex::encode(payout_script()), paid, due };
    let bad: [(&[Paid], Refusal); 6] = [
        (&[(sats - 1, payout_script()), (1, other.clone())], due(sats - 1, sats)),
        (&[(0, payout_script()), (sats, other.clone())], due(0, sats)),
        (&[(sats, other.clone())], due(0, sats)),
        (&[(1, payout_script()), (sats - 1, other)], due(1, sats)),
        (&[(0, payout_script())], Refusal::NothingPaid),
        (&[], Refusal::NothingPaid),
    ];
    for (paid, refusal) in bad {
        assert_eq!(desk.refusal(&paying(&desk, paid)), refusal);
        assert_eq!(refusal.declare(), DeclareRefusal::InvalidCoinbaseOutputs);
        assert_eq!(refusal.custom(), CustomRefusal::InvalidCoinbaseOutputs);
    }
}

#[tokio::test]
async fn every_share_of_a_split_is_due_to_the_satoshi() {
    let mut desk = Desk::new(2).await;
    desk.rule = Rule::split(payout_script(), 1, vec![(vec![0x52], 1), (vec![0x53], 2)]);
    let due: Vec<Paid> = desk
        .rule
        .due(desk.shown.template.coinbase_value_sats)
        .map(|(script, sats)| (sats, script.to_vec()))
        .collect();
    let job = desk.sound(&paying(&desk, &due));
    assert_eq!(job.pool_sats(), job.value_sats());
    for (from, to) in [(0, 1), (1, 0), (2, 1)] {
        let mut moved = due.clone();
        moved[from].0 -= 1;
        moved[to].0 += 1;
        let refusal = desk.refusal(&paying(&desk, &moved));
        assert!(matches!(refusal, Refusal::Underpaid { .. }), "{refusal:?}");
    }
}

#[tokio::test]
async fn a_coinbase_for_another_height_is_for_another_tip_js10() {
    let desk = Desk::new(2).await;
    let expected = desk.shown.template.height;
    assert_eq!(expected, 121);
    let at = |push: &[u8]| {
        desk.refusal(&with_coinbase(&desk, |coinbase| {
            coinbase.script_sig_prefix.splice(..2, push.iter().copied());
        }))
    };
    for (push, found) in [
        (&[1, 120][..], 120),
        (&[1, 122], 122),
        (&[0x60], 16),
        (&[2, 0x79, 1], 0x179),
        (&[3, 0x40, 0xd1, 0x0c], 840_000),
    ] {
        let refusal = at(push);
        assert_eq!(refusal, Refusal::OtherHeight { found, expected });
        assert_eq!(refusal.declare(), DeclareRefusal::StaleChainTip);
    }
    // No height at all, or none as consensus writes it.
    for push in
        [&[][..], &[0], &[2, 121, 0], &[5, 121, 0, 0, 0, 0], &[0x4c, 1, 121], &[4, 0, 0, 0, 128]]
    {
        let refusal = at(push);
        assert_eq!(refusal, Refusal::NoHeight, "{push:?}");
        assert_eq!(refusal.declare(), DeclareRefusal::InvalidCoinbaseTxInput);
    }
}

#[tokio::test]
async fn script_sig_has_room_for_the_extranonce_and_a_hundred_bytes_js10() {
    let desk = Desk::new(2).await;
    let filled = |length: usize| {
        with_coinbase(&desk, |coinbase| {
            coinbase.script_sig_prefix.resize(length - EXTRANONCE_LEN, 0x61);
        })
    };
    let longest = desk.sound(&filled(100));
    let proposal = longest.proposal(&desk.shown.prev_hash).unwrap();
    assert_eq!(desk.chain.check_block(&proposal).await.unwrap(), Checked::Valid);
    assert_eq!(desk.refusal(&filled(101)), Refusal::ScriptSigLength(101));
    // The shortest is the height alone.
    let shortest = with_coinbase(&desk, |coinbase| coinbase.script_sig_prefix.truncate(2));
    desk.sound(&shortest);
}

#[tokio::test]
async fn the_extranonce_ends_script_sig_and_has_the_pools_length_js10() {
    let desk = Desk::new(2).await;
    let parts = |extranonce_len| {
        let mut built = desk.built();
        built.coinbase.script_sig_prefix.pop();
        let parts = built.coinbase.declared_parts(extranonce_len);
        Declaration {
            coinbase_prefix: parts.prefix,
            coinbase_suffix: parts.suffix,
            ..declaration(&built)
        }
    };
    desk.sound(&parts(EXTRANONCE_LEN));
    assert_eq!(desk.refusal(&parts(EXTRANONCE_LEN - 1)), Refusal::NoTransaction);
    assert_eq!(desk.refusal(&parts(EXTRANONCE_LEN + 1)), Refusal::NoTransaction);
    // A byte of scriptSig behind it.
    let mut behind = desk.declaration();
    behind.coinbase_prefix[43] += 1;
    behind.coinbase_suffix.insert(0, 0x61);
    assert_eq!(desk.refusal(&behind), Refusal::ExtranonceNotLast);
    // It begins one byte before the prefix ends.
    let mut before = desk.declaration();
    before.coinbase_prefix[43] -= 1;
    assert_eq!(desk.refusal(&before), Refusal::NoTransaction);
}

#[tokio::test]
async fn a_coinbase_has_one_input_that_names_no_transaction_js10() {
    let desk = Desk::new(2).await;
    for at in [7, 38, 39, 42] {
        let mut named = desk.declaration();
        named.coinbase_prefix[at] ^= 1;
        assert_eq!(desk.refusal(&named), Refusal::PreviousOutput, "byte {at}");
    }
    let mut two = desk.declaration();
    two.coinbase_prefix[6] = 2;
    two.coinbase_suffix.splice(4..4, [&[0; 36][..], &[0], &[0xff; 4]].concat());
    // A witness stack for the second.
    let witness = two.coinbase_suffix.len() - 4;
    two.coinbase_suffix.insert(witness, 0);
    assert_eq!(desk.refusal(&two), Refusal::InputCount(2));
    let mut none = desk.declaration();
    none.coinbase_prefix[6] = 0;
    assert_eq!(desk.refusal(&none), Refusal::NoTransaction);
}

#[tokio::test]
async fn a_wrong_or_missing_witness_commitment_is_refused_js10() {
    let desk = Desk::new(2).await;
    let sats = desk.shown.template.coinbase_value_sats;
    let (pool, (_, right)) = ((sats, payout_script()), commitment(&desk));
    let mut wrong = right.clone();
    wrong[37] ^= 1;
    let with = |list: &[Paid], has_witness| {
        with_coinbase(&desk, |coinbase| {
            coinbase.outputs = outputs(list);
            coinbase.has_witness = has_witness;
        })
    };
    desk.sound(&with(&[pool.clone(), (0, right.clone())], true));
    // The last one counts.
    desk.sound(&with(&[(0, wrong.clone()), (0, right.clone()), pool.clone()], true));
    let long = [&right[..], &[1, 2, 3]].concat();
    desk.sound(&with(&[pool.clone(), (0, long)], true));
    for (list, has_witness, refusal) in [
        (vec![pool.clone(), (0, wrong.clone())], true, Refusal::Commitment),
        (vec![pool.clone(), (0, right.clone()), (0, wrong)], true, Refusal::Commitment),
        (vec![pool.clone()], true, Refusal::NoCommitment),
        (vec![pool.clone(), (0, right[..37].to_vec())], true, Refusal::NoCommitment),
        (vec![pool.clone(), (0, right)], false, Refusal::ReservedValue),
        (vec![pool], false, Refusal::NoCommitment),
    ] {
        assert_eq!(desk.refusal(&with(&list, has_witness)), refusal);
        assert_eq!(refusal.declare(), DeclareRefusal::InvalidCoinbaseTx);
    }
    // Of another order of the same transactions.
    let mut swapped = desk.declaration();
    swapped.wtxids.swap(0, 1);
    assert_eq!(desk.refusal(&swapped), Refusal::Commitment);
    // A reserved value that our block would not carry.
    let mut reserved = desk.declaration();
    let at = reserved.coinbase_suffix.len() - 5;
    reserved.coinbase_suffix[at] = 1;
    assert_eq!(desk.refusal(&reserved), Refusal::ReservedValue);
}

#[tokio::test]
async fn a_coinbase_needs_no_witness_where_no_transaction_has_one_js10() {
    let empty = Desk::new(0).await;
    let declared = empty.declaration();
    assert!(declared.coinbase_prefix[4] == 1, "no marker");
    empty.sound(&declared);
    let (desk, declared) = with_transaction(transaction(&[vec![0x51]], None)).await;
    desk.sound(&declared);
    let (desk, mut declared) = with_transaction(transaction(&[vec![0x51]], Some(3))).await;
    desk.sound(&declared);
    let parts = empty.built().declared_parts();
    (declared.coinbase_prefix, declared.coinbase_suffix) = (parts.prefix, parts.suffix);
    assert_eq!(desk.refusal(&declared), Refusal::NoCommitment);
}

#[tokio::test]
async fn a_block_weighs_four_million_and_not_one_more_js10() {
    let of_witness = |length| transaction(&[vec![0x6a; 900_000]], Some(length));
    let (desk, declared) = with_transaction(of_witness(300_000)).await;
    let job = desk.sound(&declared);
    let proposal = job.proposal(&desk.shown.prev_hash).unwrap();
    let block: bitcoin::Block = bitcoin::consensus::deserialize(&proposal).unwrap();
    let left = 4_000_000 - block.weight().to_wu() as usize;
    let (desk, declared) = with_transaction(of_witness(300_000 + left)).await;
    desk.sound(&declared);
    let (desk, declared) = with_transaction(of_witness(300_001 + left)).await;
    assert_eq!(desk.refusal(&declared), Refusal::Weight(4_000_001));
    // Weighed before anything is read of what was supplied beyond it.
    let (desk, mut flood) = with_transaction(transaction(&[vec![0x51]], Some(2_100_000))).await;
    let heavy = Arc::clone(desk.known[&flood.wtxids[0]].bytes());
    flood.supplied = vec![(0, Arc::clone(&heavy)), (0, heavy)];
    assert!(matches!(desk.refusal(&flood), Refusal::Weight(_)));
}

#[tokio::test]
async fn what_is_supplied_has_a_hundred_thousand_bytes_without_witness_and_not_one_more_js10() {
    // 4 for the version, 41 for the input, 4 for the lock time, counts, value and the script's length.
    let beside = |script: usize| transaction(&[vec![0x6a; script]], None).bytes().len() - script;
    let fits = SUPPLIED_STRIPPED_MAX as usize - beside(90_000);
    for surplus in [0, 1] {
        let long = transaction(&[vec![0x6a; fits + surplus]], Some(300_000));
        let (desk, known) = with_transaction(long).await;
        desk.sound(&known);
        let mut supplied = known;
        let bytes = Arc::clone(desk.known[&supplied.wtxids[0]].bytes());
        supplied.supplied = vec![(0, bytes)];
        if surplus == 0 {
            desk.sound(&supplied);
        } else {
            let stripped = SUPPLIED_STRIPPED_MAX + 1;
            let refusal = Refusal::TransactionTooLong { position: 0, stripped };
            assert_eq!(desk.refusal(&supplied), refusal);
        }
    }
}

#[tokio::test]
async fn eighty_thousand_signature_operations_and_not_one_more_js10() {
    const OP_CHECKSIG: u8 = 0xac;
    const OP_CHECKMULTISIG: u8 = 0xae;
    let of_operations = |count| transaction(&[vec![OP_CHECKSIG; count]], None);
    let (desk, declared) = with_transaction(of_operations(20_000)).await;
    desk.sound(&declared);
    let (desk, declared) = with_transaction(of_operations(20_001)).await;
    assert_eq!(desk.refusal(&declared), Refusal::Sigops(80_004));
    let (desk, declared) =
        with_transaction(transaction(&[vec![OP_CHECKMULTISIG; 1_001]], None)).await;
    assert_eq!(desk.refusal(&declared), Refusal::Sigops(80_080));
    // An extranonce that is not pushed is run: each of its 24 bytes may be twenty operations.
    let unpushed = |count| async move {
        let (desk, mut declared) = with_transaction(of_operations(count)).await;
        let end = declared.coinbase_prefix.len() - 1;
        declared.coinbase_prefix[end] = 0x61;
        (desk, declared)
    };
    let (desk, declared) = unpushed(20_000 - 480).await;
    desk.sound(&declared);
    let (desk, declared) = unpushed(20_001 - 480).await;
    assert_eq!(desk.refusal(&declared), Refusal::Sigops(80_004));
}

#[tokio::test]
async fn lists_that_no_block_can_have_are_refused_at_once_js10() {
    let desk = Desk::new(0).await;
    let mut declared = desk.declaration();
    let numbered = |count: u32| {
        let of = |number: u32| {
            let mut wtxid = [9; 32];
            wtxid[..4].copy_from_slice(&number.to_le_bytes());
            wtxid
        };
        (0..count).map(of).collect::<Vec<_>>()
    };
    declared.wtxids = vec![[7; 32]; 65_535];
    assert_eq!(desk.refusal(&declared), Refusal::TooManyTransactions(65_535));
    declared.wtxids = numbered(65_535);
    assert_eq!(desk.refusal(&declared), Refusal::TooManyTransactions(65_535));
    let most = BLOCK_TRANSACTIONS_MAX as u32 - 1;
    declared.wtxids = numbered(most + 1);
    assert_eq!(desk.refusal(&declared), Refusal::TooManyTransactions(BLOCK_TRANSACTIONS_MAX));
    declared.wtxids = numbered(most);
    let Ok(Outcome::Missing(asked)) = desk.check(&declared) else { panic!("all are unknown") };
    assert_eq!(asked, (0..most as u16).collect::<Vec<_>>());
    declared.wtxids[16_000] = declared.wtxids[3];
    assert_eq!(desk.refusal(&declared), Refusal::Repeated(16_000));
}

#[tokio::test]
async fn there_is_no_second_coinbase_js10() {
    let desk = Desk::new(0).await;
    let built = desk.built();
    let parts = built.coinbase.parts(EXTRANONCE_LEN);
    let bytes = [&parts.prefix[..], &[3; EXTRANONCE_LEN], &parts.suffix].concat();
    let (desk, declared) = with_transaction(Transaction::read(bytes.into()).unwrap()).await;
    assert_eq!(desk.refusal(&declared), Refusal::CoinbaseInside(0));
}

#[tokio::test]
async fn sums_are_money_js10() {
    let desk = Desk::new(2).await;
    let pool = payout_script();
    desk.sound(&paying(&desk, &[(MONEY_MAX_SATS, pool.clone())]));
    for paid in [
        vec![(MONEY_MAX_SATS + 1, pool.clone())],
        vec![(MONEY_MAX_SATS, pool.clone()), (1, pool.clone())],
        vec![(u64::MAX, pool.clone()), (u64::MAX, pool.clone())],
        vec![(1 << 63, pool.clone()), (1 << 63, pool)],
    ] {
        assert_eq!(desk.refusal(&paying(&desk, &paid)), Refusal::Money);
    }
    // A block of the coinbase alone has no fees.
    let empty = Desk::new(0).await;
    let with = |sats| {
        with_coinbase(&empty, |coinbase| coinbase.outputs = outputs(&[(sats, payout_script())]))
    };
    let subsidy = empty.context().subsidy_sats;
    empty.sound(&with(subsidy));
    assert_eq!(empty.refusal(&with(subsidy + 1)), Refusal::Money);
}

#[tokio::test]
async fn outputs_are_as_long_as_a_job_needs_and_no_longer() {
    let desk = Desk::new(2).await;
    let sats = desk.shown.template.coinbase_value_sats;
    let (_, script) = commitment(&desk);
    // What stands besides: count, the pool's output, the commitment, and this one's value and length.
    let filler = COINBASE_OUTPUTS_MAX - 1 - (9 + 22) - (9 + script.len()) - (8 + 3);
    let with = |length| paying(&desk, &[(sats, payout_script()), (0, vec![0x6a; length])]);
    desk.sound(&with(filler));
    let refusal = desk.refusal(&with(filler + 1));
    assert!(matches!(refusal, Refusal::CoinbaseTooLong(_)), "{refusal:?}");
    let with_many = vec![(0, Vec::new()); 300];
    desk.sound(&paying(&desk, &[&[(sats, payout_script())][..], &with_many].concat()));
}

#[tokio::test]
async fn a_coinbase_is_final_at_its_height_js10() {
    let desk = Desk::new(2).await;
    let height = desk.shown.template.height;
    let with = |lock_time, sequence| {
        with_coinbase(&desk, |coinbase| {
            (coinbase.lock_time, coinbase.sequence) = (lock_time, sequence);
        })
    };
    // BIP54 will ask for the first of these.
    for (lock_time, sequence) in [(height - 1, 0), (0, 0), (height, u32::MAX), (u32::MAX, u32::MAX)]
    {
        desk.sound(&with(lock_time, sequence));
    }
    for lock_time in [height, 499_999_999, 500_000_000, u32::MAX] {
        assert_eq!(desk.refusal(&with(lock_time, u32::MAX - 1)), Refusal::LockTime(lock_time));
    }
}

#[tokio::test]
async fn no_rolled_bit_makes_the_version_one_of_no_block_js10() {
    let desk = Desk::new(2).await;
    let with = |version| Declaration { version, ..desk.declaration() };
    for version in [0x2000_0000, 0x3fff_ffe0, 4, 0x7fff_ffff, 0x1fff_ffe4] {
        desk.sound(&with(version));
    }
    for version in [3, 0, 0x1fff_ffe0, 0x1fff_ffe3, 0x8000_0000, 0xa000_0000, u32::MAX] {
        assert_eq!(desk.refusal(&with(version)), Refusal::Version(version));
    }
}

#[tokio::test]
async fn a_custom_job_is_the_declared_one_or_says_what_differs() {
    let desk = Desk::new(7).await;
    let job = desk.sound(&desk.declaration());
    let (tip, ntime) = (desk.shown.prev_hash, desk.ntime());
    let same = job.custom_job(&desk.request(), &tip, &ntime).unwrap();
    assert!(same.is_work_of(job.job()), "the very job, with its transactions");

    type Change = fn(&mut proto::mining::CustomJobRequest);
    let changes: [(CustomRefusal, Change); 15] = [
        (CustomRefusal::StaleChainTip, |request| request.prev_hash[0] ^= 1),
        (CustomRefusal::InvalidNbits, |request| request.nbits ^= 1),
        (CustomRefusal::InvalidVersion, |request| request.version ^= 0x20),
        (CustomRefusal::InvalidCoinbaseTxVersion, |request| request.coinbase_tx_version += 1),
        (CustomRefusal::InvalidCoinbasePrefix, |request| request.coinbase_prefix[5] ^= 1),
        (CustomRefusal::InvalidCoinbasePrefix, |request| request.coinbase_prefix.push(0)),
        (CustomRefusal::InvalidCoinbasePrefix, |request| request.coinbase_prefix.clear()),
        (CustomRefusal::InvalidCoinbaseSequence, |request| request.coinbase_sequence ^= 1),
        (CustomRefusal::InvalidCoinbaseOutputs, |request| request.outputs[1] ^= 1),
        (CustomRefusal::InvalidCoinbaseOutputs, |request| request.outputs.push(0)),
        (CustomRefusal::InvalidCoinbaseOutputs, |request| request.outputs.clear()),
        (CustomRefusal::InvalidCoinbaseLocktime, |request| request.locktime += 1),
        (CustomRefusal::InvalidMerklePath, |request| request.merkle_path[2][31] ^= 1),
        (CustomRefusal::InvalidMerklePath, |request| request.merkle_path.truncate(2)),
        (CustomRefusal::InvalidMerklePath, |request| request.merkle_path.push([0; 32])),
    ];
    for (at, (refusal, change)) in changes.into_iter().enumerate() {
        let mut request = desk.request();
        change(&mut request);
        let refused = job.custom_job(&request, &tip, &ntime).unwrap_err();
        assert_eq!(refused.custom(), refusal, "change {at}");
    }
    // Our node has gone on since the declaration was checked.
    let mut moved = (desk.request(), tip);
    moved.0.prev_hash = [4; 32];
    moved.1.hash = [4; 32];
    let refused = job.custom_job(&moved.0, &moved.1, &ntime).unwrap_err();
    assert_eq!(refused, Refusal::OtherTip);
}

#[tokio::test]
async fn a_custom_job_starts_when_a_block_may() {
    let desk = Desk::new(1).await;
    let job = desk.sound(&desk.declaration());
    let ntime = desk.ntime();
    let starting = |min_ntime| {
        let mut request = desk.request();
        request.min_ntime = min_ntime;
        job.custom_job(&request, &desk.shown.prev_hash, &ntime).map(drop)
    };
    // A miner's clock may be behind ours by as much as the chain allows.
    assert!(desk.shown.earliest_ntime < desk.shown.prev_hash.min_ntime);
    for good in [*ntime.start(), *ntime.end()] {
        assert_eq!(starting(good), Ok(()));
    }
    for bad in [0, *ntime.start() - 1, *ntime.end() + 1, u32::MAX] {
        let refused = starting(bad).unwrap_err();
        assert_eq!(refused.custom(), CustomRefusal::InvalidMinNtime);
    }
    // As the chain sees it, too.
    let header_at = |ntime| {
        let tip = proto::template::PrevHash { min_ntime: ntime, ..desk.shown.prev_hash };
        job.proposal(&tip).unwrap()
    };
    let at_start = desk.chain.check_block(&header_at(*ntime.start())).await.unwrap();
    assert_eq!(at_start, Checked::Valid);
    let before = desk.chain.check_block(&header_at(*ntime.start() - 1)).await.unwrap();
    assert!(matches!(before, Checked::Invalid(why) if why.starts_with("time-too-old")));
}

#[tokio::test]
async fn a_coinbase_only_job_is_judged_by_its_coinbase_p63() {
    use job_declarator::declared::coinbase_only;
    let desk = Desk::new(7).await;
    let ntime = desk.ntime();
    let judge = |change: &dyn Fn(&mut proto::mining::CustomJobRequest)| {
        let mut request = desk.request();
        change(&mut request);
        coinbase_only(&request, &desk.context(), &ntime)
    };
    let job = judge(&|_| {}).unwrap();
    assert!(job.body().is_none() && job.proposal(&desk.shown.prev_hash).is_none());
    assert_eq!(job.job().merkle_path(), desk.shown.template.merkle_path);
    assert_eq!(job.pool_sats(), desk.shown.template.coinbase_value_sats);
    let declared = desk.sound(&desk.declaration());
    let extranonce = [8; EXTRANONCE_LEN];
    assert_eq!(job.job().merkle_root(&extranonce), declared.job().merkle_root(&extranonce));

    assert!(judge(&|request| request.merkle_path = vec![[1; 32]; 20]).is_ok());
    assert!(judge(&|request| request.coinbase_prefix.resize(76, 0x61)).is_ok());
    assert!(judge(&|request| request.min_ntime = *ntime.end()).is_ok());
    type Change<'a> = &'a dyn Fn(&mut proto::mining::CustomJobRequest);
    let sats = desk.shown.template.coinbase_value_sats;
    let refused: [(CustomRefusal, Change<'_>); 13] = [
        (CustomRefusal::InvalidMerklePath, &|request| request.merkle_path = vec![[1; 32]; 21]),
        (CustomRefusal::InvalidCoinbasePrefix, &|request| request.coinbase_prefix.resize(77, 0x61)),
        (CustomRefusal::InvalidCoinbasePrefix, &|request| request.coinbase_prefix[1] += 1),
        (CustomRefusal::InvalidCoinbasePrefix, &|request| request.coinbase_prefix.clear()),
        (CustomRefusal::InvalidMinNtime, &|request| request.min_ntime = *ntime.end() + 1),
        (CustomRefusal::InvalidNbits, &|request| request.nbits -= 1),
        (CustomRefusal::StaleChainTip, &|request| request.prev_hash[31] ^= 1),
        (CustomRefusal::InvalidVersion, &|request| request.version = 2),
        (CustomRefusal::InvalidCoinbaseLocktime, &|request| {
            (request.locktime, request.coinbase_sequence) = (u32::MAX, 0);
        }),
        (CustomRefusal::InvalidCoinbaseOutputs, &|request| request.outputs = vec![0]),
        (CustomRefusal::InvalidCoinbaseOutputs, &|request| {
            request.outputs = outputs(&[(sats, vec![0x51])]);
        }),
        (CustomRefusal::InvalidCoinbaseOutputs, &|request| {
            request.outputs = outputs(&[(sats - 1, payout_script()), (1, vec![0x51])]);
        }),
        (CustomRefusal::InvalidCoinbaseOutputs, &|request| request.outputs.push(0)),
    ];
    for (at, (refusal, change)) in refused.into_iter().enumerate() {
        assert_eq!(judge(change).unwrap_err().custom(), refusal, "change {at}");
    }
}

#[tokio::test]
async fn an_undeclared_block_of_the_coinbase_alone_is_the_pools_to_make() {
    use job_declarator::declared::coinbase_only;
    let desk = Desk::new(0).await;
    let (ntime, tip) = (desk.ntime(), desk.shown.prev_hash);
    let subsidy = desk.context().subsidy_sats;
    let paying = |list: &[Paid]| {
        let mut request = request(&desk.built(), &desk.shown);
        request.outputs = outputs(list);
        coinbase_only(&request, &desk.context(), &ntime)
    };
    // SHA256d of 64 zero bytes: what a block without other transactions commits to.
    let commitment = |last: u8| {
        let mut hash = proto::template::sha256d(&[0; 64]);
        hash[31] ^= last;
        (0, [&[0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed][..], &hash].concat())
    };
    let pool = (subsidy, payout_script());
    let committing = paying(&[pool.clone(), commitment(0)]).unwrap();
    for job in [paying(std::slice::from_ref(&pool)).unwrap(), committing] {
        let checked = desk.chain.check_block(&job.proposal(&tip).unwrap()).await.unwrap();
        assert_eq!(checked, Checked::Valid);
    }
    let refused = paying(&[pool, commitment(1)]).unwrap_err();
    assert_eq!(refused.custom(), CustomRefusal::InvalidCoinbaseOutputs);
    assert_eq!(paying(&[(subsidy + 1, payout_script())]).unwrap_err(), Refusal::Money);
}

#[tokio::test]
async fn prefixes_of_any_length_are_refused_or_read_js10() {
    let desk = Desk::new(2).await;
    let declared = desk.declaration();
    let whole = [&declared.coinbase_prefix[..], &[0; 200]].concat();
    for fill in [0x00, 0x01, 0x18, 0xff] {
        for length in 0..=200 {
            let mut prefix = whole[..length].to_vec();
            let kept = length.min(declared.coinbase_prefix.len());
            prefix[kept..].fill(fill);
            let odd = Declaration { coinbase_prefix: prefix, ..declared.clone() };
            if length == declared.coinbase_prefix.len() {
                desk.sound(&odd);
            } else {
                desk.refusal(&odd);
            }
            let filled = Declaration { coinbase_prefix: vec![fill; length], ..declared.clone() };
            desk.refusal(&filled);
        }
    }
    // 43 bytes and no more were what another server reads without looking.
    for suffix in [&[][..], &[0], &[0xff; 3], &[0xff; 65_535]] {
        let odd = Declaration { coinbase_suffix: suffix.to_vec(), ..declared.clone() };
        desk.refusal(&odd);
    }
}

#[test]
fn a_transaction_is_read_as_the_bitcoin_crate_reads_it() {
    let mut random = Random(7);
    let mut seen = HashMap::new();
    for _ in 0..20_000 {
        let mut bytes = transaction(&[vec![0xac; 3], vec![]], Some(5)).bytes().to_vec();
        if random.below(3) == 0 {
            bytes = transaction(&[vec![0x51; 300]], None).bytes().to_vec();
        }
        for _ in 0..random.below(3) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, random.next() as u8),
                _ => bytes[at] ^= 1 << random.below(8),
            }
        }
        let ours = Transaction::read(bytes.clone().into());
        let theirs = bitcoin::consensus::deserialize::<bitcoin::Transaction>(&bytes).ok();
        let theirs = theirs.filter(|one| !one.input.is_empty() && !one.output.is_empty());
        assert_eq!(ours.is_some(), theirs.is_some(), "{}", hex::encode(&bytes));
        *seen.entry(ours.is_some()).or_insert(0) += 1;
        let Some((ours, theirs)) = ours.zip(theirs) else { continue };
        assert_eq!(*ours.txid(), theirs.compute_txid().to_byte_array());
        assert_eq!(*ours.wtxid(), theirs.compute_wtxid().to_byte_array());
        assert_eq!(u64::from(ours.weight()), theirs.weight().to_wu());
        assert_eq!(ours.sigop_cost() as usize, theirs.total_sigop_cost(|_| None));
        assert_eq!(ours.is_coinbase(), theirs.is_coinbase());
        let has_witness = theirs.input.iter().any(|input| !input.witness.is_empty());
        assert_eq!(ours.has_witness(), has_witness);
    }
    assert!(seen[&true] > 1_000 && seen[&false] > 1_000, "{seen:?}");
}

#[test]
fn a_count_that_announces_more_than_there_is_allocates_nothing() {
    // Version, and then four billion inputs, outputs, or witness items, in a few bytes.
    let huge = [0xfe, 0xff, 0xff, 0xff, 0xff];
    let input = [&[5; 36][..], &[0], &[0xff; 4]].concat();
    let output = [&[0; 8][..], &[0]].concat();
    for bytes in [
        [&[2, 0, 0, 0][..], &huge].concat(),
        [&[2, 0, 0, 0, 1][..], &input, &huge].concat(),
        [&[2, 0, 0, 0, 0, 1, 1][..], &input, &[1], &output, &huge].concat(),
        [&[2, 0, 0, 0, 0, 1, 1][..], &input, &[1], &output, &[1], &huge].concat(),
    ] {
        assert_eq!(Transaction::read(bytes.into()), None);
    }
}
