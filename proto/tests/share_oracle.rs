//! The same share gets the same verdict as from SRI's server channels (`channels_sv2` 8.0.0), alone and among
//! others of one read, by every kernel of this CPU. Both sides hold the same jobs, fed from what our server
//! puts on the wire; shares are made at random around every edge. Where the verdicts may differ, `AGREED`
//! says so and names the rule that justifies ours: any other difference fails.

// A test that meets the unexpected panics, also in its helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use binary_sv2::{Sv2OptionOwned, U256Owned};
use bitcoin::hashes::Hash;
use channels_sv2::chain_tip::ChainTip;
use channels_sv2::extranonce_manager::ExtranonceAllocator;
use channels_sv2::server::extended::ExtendedChannel;
use channels_sv2::server::jobs::extended::ExtendedJob;
use channels_sv2::server::jobs::factory::JobFactory;
use channels_sv2::server::share_accounting::{ShareValidationError, ShareValidationResult};
use channels_sv2::server::standard::StandardChannel;
use mining_sv2::{NewExtendedMiningJobOwned, SubmitSharesExtendedOwned, SubmitSharesStandardOwned};
use proptest::prelude::*;
use template_distribution_sv2::{NewTemplateOwned, SetNewPrevHashOwned};

use common::{
    Chain, HARD_NBITS, JobBody, Link, REGTEST_NBITS, Random, START_S, Said, Share, easy_policy,
};
use proto::extranonce::ExtranoncePrefix;
use proto::job::{Job, JobId};
use proto::limits::{EXTRANONCE_LEN, EXTRANONCE_ROLLABLE_LEN, STALE_JOBS_MAX};
use proto::message::setup_flags::REQUIRES_WORK_SELECTION;
use proto::message::{Message, Received, Tlvs};
use proto::mining::Kind;
use proto::mining::server::Policy;
use proto::sha256::Kernel;
use proto::share::{Claim, FrozenJob, Refusal, Submitted, hash_with};
use proto::target::{Difficulty, Target};
use proto::template::{Output, PrevHash, Template};
use proto::wire::B032;

/// Two and a half of the widest kernel's lanes.
const BURST_MAX: usize = 40;

/// What a side says of a share: nothing, or a code.
type Verdict = Option<String>;

/// A difference that we want.
struct Agreed {
    ours: Option<&'static str>,
    theirs: &'static [Option<&'static str>],
    /// Why ours is right.
    rule: &'static str,
    /// Whether this share is such a case.
    applies: fn(&Case) -> bool,
}

/// A share and what is known of it besides.
#[derive(Debug)]
struct Case {
    share: Share,
    /// Of the job it names, if that is on the present tip.
    min_ntime: Option<u32>,
    /// Seconds since that job was sent.
    elapsed: u32,
    /// Names a job of an earlier tip.
    stale: bool,
    /// Of an earlier tip, and not one of the last jobs that were said on it.
    long_over: bool,
    /// Names the job that waits for the next tip.
    early: bool,
    /// Its header was too new for us when it came before; SRI took it then.
    was_too_new: bool,
}

const AGREED: [Agreed; 6] = [
    Agreed {
        ours: Some("invalid-ntime"),
        theirs: &[Some("invalid-share")],
        rule: "D.10: a code that says what is wrong",
        applies: |_| true,
    },
    Agreed {
        ours: Some("invalid-ntime"),
        theirs: &[
            None,
            Some("invalid-non-rollable-version-bit"),
            Some("difficulty-too-low"),
            Some("duplicate-share"),
        ],
        rule: "P42, E36: no further ahead than time went by and 600 s; SRI has no clock, takes 7,200",
        applies: |case| {
            case.min_ntime.is_some_and(|min| case.share.ntime > min + case.elapsed + 600)
        },
    },
    Agreed {
        ours: None,
        theirs: &[Some("duplicate-share")],
        rule: "P42, E36: the same header once time has gone by",
        applies: |case| case.was_too_new,
    },
    Agreed {
        ours: Some("stale-share"),
        theirs: &[Some("invalid-job-id")],
        rule: "P26, P27: a job of an earlier tip is stale; SRI forgets all but the last tip's",
        applies: |case| case.stale,
    },
    Agreed {
        ours: None,
        theirs: &[Some("invalid-job-id")],
        rule: "P53: a client may know of the next tip before us; its share waits",
        applies: |case| case.early,
    },
    Agreed {
        ours: Some("invalid-job-id"),
        theirs: &[Some("stale-share")],
        rule: "P47: of a tip that ended, `STALE_JOBS_MAX` jobs are known; SRI keeps all of the last one's",
        applies: |case| case.long_over,
    },
];

fn same(ours: &Verdict, theirs: &Verdict, case: &Case) -> bool {
    ours == theirs
        || AGREED.iter().any(|agreed| {
            !agreed.rule.is_empty()
                && agreed.ours == ours.as_deref()
                && agreed.theirs.contains(&theirs.as_deref())
                && (agreed.applies)(case)
        })
}

/// The code by which a share was refused.
fn code_of(answers: &[Said], share: &Share) -> Verdict {
    answers.iter().find_map(|said| match said {
        Said::Refused { channel, sequence, code } => {
            ((*channel, *sequence) == (share.channel, share.sequence)).then(|| code.clone())
        }
        _ => None,
    })
}

/// Whatever job they name: under one tip two jobs of one template make the same header.
fn same_header(a: &Share, b: &Share) -> bool {
    let named = Share { job: b.job, sequence: b.sequence, ..a.clone() };
    named == *b
}

/// SRI's side of the two channels.
struct Theirs {
    standard: StandardChannel,
    extended: ExtendedChannel,
}

impl Theirs {
    fn new(standard_prefix: &[u8], extended_prefix: &[u8], target: Target) -> Self {
        let mut allocator =
            ExtranonceAllocator::new(extended_prefix[..7].to_vec(), EXTRANONCE_LEN as u8, 256)
                .unwrap();
        let first = allocator.allocate_standard().unwrap();
        let second = allocator.allocate_extended(EXTRANONCE_ROLLABLE_LEN).unwrap();
        assert_eq!(first.as_bytes(), standard_prefix);
        assert_eq!(second.as_bytes(), extended_prefix);
        let (name, tag) = ("alice".to_string(), "pool".to_string());
        let any = bitcoin::Target::from_le_bytes([0xff; 32]);
        let mut standard = StandardChannel::new_for_pool(
            2,
            name.clone(),
            first,
            any,
            1e12,
            10,
            6.0,
            tag.clone(),
            None,
        )
        .unwrap();
        let mut extended =
            ExtendedChannel::new_for_pool(3, name, second, any, 1e12, true, 16, 10, 6.0, tag, None)
                .unwrap();
        let target = bitcoin::Target::from_le_bytes(target.to_le_bytes());
        standard.set_target(target).unwrap();
        extended.set_target(target).unwrap();
        Self { standard, extended }
    }

    fn hear_job(&mut self, kind: Kind, id: u32, min_ntime: Option<u32>, job: &Job) {
        let job = sri_job(id, min_ntime, job);
        match kind {
            Kind::Standard => self.standard.on_group_channel_job(job).unwrap(),
            Kind::Extended => self.extended.on_group_channel_job(job).unwrap(),
        }
    }

    fn hear_prev_hash(&mut self, kind: Kind, said: &Said) {
        let Said::PrevHash { job, prev_hash, min_ntime, nbits, .. } = said else { return };
        let message = SetNewPrevHashOwned {
            template_id: u64::from(*job),
            prev_hash: (*prev_hash).into(),
            header_timestamp: *min_ntime,
            n_bits: *nbits,
            target: [0xff; 32].into(),
        };
        match kind {
            Kind::Standard => self.standard.on_set_new_prev_hash(message).unwrap(),
            Kind::Extended => self.extended.on_set_new_prev_hash(message).unwrap(),
        }
    }

    /// The header's hash, or a code.
    fn judge(&mut self, share: &Share) -> Result<[u8; 32], String> {
        let answer = match &share.rolled {
            None => self.standard.validate_share(SubmitSharesStandardOwned {
                channel_id: share.channel,
                sequence_number: share.sequence,
                job_id: share.job,
                nonce: share.nonce,
                ntime: share.ntime,
                version: share.version,
            }),
            Some(rolled) => self.extended.validate_share(SubmitSharesExtendedOwned {
                channel_id: share.channel,
                sequence_number: share.sequence,
                job_id: share.job,
                nonce: share.nonce,
                ntime: share.ntime,
                version: share.version,
                extranonce: rolled.clone().try_into().unwrap(),
            }),
        };
        match answer {
            Ok(
                ShareValidationResult::Valid(hash) | ShareValidationResult::BlockFound(hash, ..),
            ) => Ok(hash.to_byte_array()),
            Err(
                ShareValidationError::Invalid(code)
                | ShareValidationError::Stale(code)
                | ShareValidationError::InvalidJobId(code)
                | ShareValidationError::DoesNotMeetTarget(code)
                | ShareValidationError::VersionRollingNotAllowed(code)
                | ShareValidationError::DuplicateShare(code)
                | ShareValidationError::BadExtranonceSize(code),
            ) => Err(code.to_string()),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn sri_template(template_id: u64, future_template: bool, template: &Template) -> NewTemplateOwned {
    let path: Vec<U256Owned> = template.merkle_path.iter().map(|node| (*node).into()).collect();
    NewTemplateOwned {
        template_id,
        future_template,
        version: template.version,
        coinbase_tx_version: template.coinbase_tx_version,
        coinbase_prefix: template.script_sig_prefix.clone().try_into().unwrap(),
        coinbase_tx_input_sequence: template.coinbase_sequence,
        coinbase_tx_value_remaining: template.coinbase_value_sats,
        coinbase_tx_outputs_count: template.required_outputs_count,
        coinbase_tx_outputs: template.required_outputs.clone().try_into().unwrap(),
        coinbase_tx_locktime: template.coinbase_locktime,
        merkle_path: path.try_into().unwrap(),
    }
}

/// Our job as SRI's channels hold one. Its "template id" is the job id, which is unique.
fn sri_job(id: u32, min_ntime: Option<u32>, job: &Job) -> ExtendedJob {
    let template = sri_template(u64::from(id), min_ntime.is_none(), job.template());
    let message = NewExtendedMiningJobOwned {
        channel_id: 1,
        job_id: id,
        min_ntime: Sv2OptionOwned::new(min_ntime),
        version: job.version(),
        version_rolling_allowed: true,
        merkle_path: template.merkle_path.clone(),
        coinbase_tx_prefix: job.coinbase().prefix.clone().try_into().unwrap(),
        coinbase_tx_suffix: job.coinbase().suffix.clone().try_into().unwrap(),
    };
    let (prefix, suffix) = (job.coinbase().prefix.clone(), job.coinbase().suffix.clone());
    ExtendedJob::from_template(template, Vec::new(), Vec::new(), prefix, suffix, message).unwrap()
}

/// A job as a channel was given it, put together from what was said.
struct Given {
    job: Job,
    tip: PrevHash,
    network_target: Target,
    difficulty: Difficulty,
    since: u32,
    prefix: ExtranoncePrefix,
    merkle_root: Option<[u8; 32]>,
}

impl Given {
    fn frozen(&self) -> FrozenJob<'_> {
        FrozenJob {
            job: &self.job,
            tip: &self.tip,
            network_target: &self.network_target,
            difficulty: self.difficulty,
            target: self.difficulty.target(),
            min_ntime: self.tip.min_ntime,
            since: self.since,
            prefix: self.prefix,
            merkle_root: self.merkle_root,
            version_rolling: true,
        }
    }
}

fn claim(share: &Share) -> Claim {
    Claim {
        job: JobId(share.job),
        nonce: share.nonce,
        ntime: share.ntime,
        version: share.version,
        rolled: share.rolled.as_ref().map(|rolled| B032::new(rolled).unwrap()),
    }
}

/// A share of a live job, as SRI judged it.
struct Judged {
    case: Case,
    given: Given,
    theirs: Result<[u8; 32], String>,
}

/// Both sides of one connection with a standard and an extended channel.
struct Twins {
    chain: Chain,
    link: Link,
    theirs: Theirs,
    standard: u32,
    extended: u32,
    floor: Difficulty,
    sequence: u32,
    jobs: HashMap<u32, Job>,
    /// Hashes that are credited.
    credited: HashSet<[u8; 32]>,
    /// Every job id that was live once, with when it was sent.
    ids: Vec<(u32, u32)>,
    stale: HashSet<u32>,
    shown: Vec<Share>,
    too_new: Vec<Share>,
}

impl Twins {
    fn new(nbits: u32, floor: i16) -> Self {
        let chain = Chain::new(nbits);
        let floor = Difficulty::from_log2(floor);
        let policy = Policy { floor, ..easy_policy() };
        let mut link = Link::with(policy, 0, chain.active());
        let first = link.open(Kind::Standard, 0.0, [0xff; 32]);
        let second = link.open(Kind::Extended, 0.0, [0xff; 32]);
        let (standard, extended) = (2, 3);
        let prefix = |channel| link.client.device(channel).prefix.clone();
        let theirs = Theirs::new(&prefix(standard), &prefix(extended), floor.target());
        let mut twins = Self {
            chain,
            link,
            theirs,
            standard,
            extended,
            floor,
            sequence: 0,
            jobs: HashMap::new(),
            credited: HashSet::new(),
            ids: Vec::new(),
            stale: HashSet::new(),
            shown: Vec::new(),
            too_new: Vec::new(),
        };
        twins.pass_on(&first);
        twins.pass_on(&second);
        twins
    }

    fn pass_on(&mut self, said: &[Said]) {
        for one in said {
            match one {
                Said::Job { channel, job, min_ntime, body, .. } => {
                    let ours = self.job_with(*job, body);
                    for kind in self.kinds(*channel) {
                        self.theirs.hear_job(kind, *job, *min_ntime, &ours);
                    }
                    self.jobs.insert(*job, ours);
                    if min_ntime.is_some() {
                        self.ids.push((*job, self.link.now.unix_s));
                    }
                }
                Said::PrevHash { channel, job, .. } => {
                    for kind in self.kinds(*channel) {
                        self.theirs.hear_prev_hash(kind, one);
                    }
                    // Each channel has its own first job; what was live before is stale for both.
                    if *channel != self.extended || self.ids.len() > 1 {
                        self.stale.extend(self.ids.iter().map(|(id, _)| id));
                    }
                    self.ids.push((*job, self.link.now.unix_s));
                    self.stale.remove(job);
                }
                Said::Opened { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn kinds(&self, channel: u32) -> Vec<Kind> {
        match channel {
            1 => vec![Kind::Standard, Kind::Extended],
            id if id == self.standard => vec![Kind::Standard],
            _ => vec![Kind::Extended],
        }
    }

    /// Which of our jobs a frame carried, as it carried it.
    fn job_with(&self, id: u32, body: &JobBody) -> Job {
        let active = self.chain.active();
        let prefix = &self.link.client.device(self.standard).prefix;
        let standard: [u8; EXTRANONCE_LEN] = prefix.as_slice().try_into().unwrap();
        let is = |job: &Job| match body {
            JobBody::Standard { merkle_root } => job.merkle_root(&standard) == *merkle_root,
            JobBody::Extended { prefix, suffix, .. } => {
                let coinbase = job.coinbase();
                (prefix, suffix) == (&coinbase.prefix, &coinbase.suffix)
            }
        };
        let plain = [active.job.clone(), active.next.clone().unwrap()];
        let numbered = plain.each_ref().map(|job| job.numbered(JobId(id)));
        plain.into_iter().chain(numbered).find(is).expect("one of these")
    }

    /// How many jobs that are stale by now were said after this stale one.
    fn jobs_over_since(&self, job: u32) -> usize {
        if !self.stale.contains(&job) {
            return 0;
        }
        let after = self.ids.iter().rev().take_while(|(id, _)| *id != job);
        after.filter(|(id, _)| self.stale.contains(id)).count()
    }

    /// What both sides say of shares that one read brings.
    fn compare(&mut self, mut shares: Vec<Share>) -> Result<(), TestCaseError> {
        for share in &mut shares {
            // Their answers are told apart by it, also where one is shown again.
            self.sequence += 1;
            share.sequence = self.sequence;
        }
        let answers = self.link.submit_together(&shares);
        let mut on_live_jobs = Vec::new();
        for share in shares {
            let ours = code_of(&answers, &share);
            let case = self.case(share);
            let theirs = self.theirs.judge(&case.share);
            let code = theirs.clone().err();
            prop_assert!(same(&ours, &code, &case), "ours {ours:?} theirs {theirs:?}: {case:?}");
            if ours.as_deref() == Some("invalid-ntime") {
                self.too_new.push(case.share.clone());
            }
            self.shown.push(case.share.clone());
            // One that was replaced too often is not known any more, whatever its tip.
            if ours.as_deref() != Some("invalid-job-id")
                && let Some(given) = self.given(&case.share)
            {
                on_live_jobs.push(Judged { case, given, theirs });
            }
        }
        self.compare_kernels(&on_live_jobs)
    }

    fn case(&self, share: Share) -> Case {
        let works = &self.link.client.device(share.channel).works;
        let work = works.iter().find(|work| work.job == share.job);
        let sent = self.sent(share.job);
        Case {
            min_ntime: work.map(|work| work.min_ntime),
            elapsed: self.link.now.unix_s - sent.unwrap_or(START_S),
            stale: work.is_none() && self.stale.contains(&share.job),
            long_over: self.jobs_over_since(share.job) >= STALE_JOBS_MAX,
            early: self.link.client.ahead(share.channel) == Some(share.job),
            was_too_new: self.too_new.iter().any(|known| same_header(known, &share)),
            share,
        }
    }

    fn sent(&self, job: u32) -> Option<u32> {
        self.ids.iter().rfind(|(id, _)| *id == job).map(|(_, sent)| *sent)
    }

    /// The job that a share names, if it is one on the present tip.
    fn given(&self, share: &Share) -> Option<Given> {
        let device = self.link.client.device(share.channel);
        let work = device.works.iter().find(|work| work.job == share.job)?;
        let job = self.jobs[&share.job].clone();
        let prefix = ExtranoncePrefix::from_bytes(device.prefix[..8].try_into().unwrap());
        let (hash, nbits, min_ntime) = (work.prev_hash, work.nbits, work.min_ntime);
        Some(Given {
            tip: PrevHash { hash, nbits, min_ntime },
            network_target: Target::from_compact(nbits),
            difficulty: self.floor,
            since: self.sent(share.job)?,
            merkle_root: match device.kind {
                Kind::Standard => Some(job.merkle_root(&prefix.standard())),
                Kind::Extended => None,
            },
            prefix,
            job,
        })
    }

    /// The same once more by every kernel of this CPU: the same verdicts, and where SRI took one, its hash.
    fn compare_kernels(&mut self, burst: &[Judged]) -> Result<(), TestCaseError> {
        let clock = self.link.now.unix_s;
        let jobs: Vec<FrozenJob<'_>> = burst.iter().map(|judged| judged.given.frozen()).collect();
        let before = std::mem::take(&mut self.credited);
        for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
            let mut credited = before.clone();
            let headed = burst.iter().zip(&jobs);
            let mut shares: Vec<Result<Submitted<'_>, Refusal>> = headed
                .map(|(judged, job)| Submitted::new(job, &claim(&judged.case.share)))
                .collect();
            let mut found: Vec<_> = shares.iter_mut().filter_map(|one| one.as_mut().ok()).collect();
            hash_with(kernel, &mut found);
            for (Judged { case, theirs, .. }, share) in burst.iter().zip(shares) {
                let ours = share.and_then(|share| share.verdict(clock).outcome);
                let ours = ours.map(|proof| proof.hash);
                if let (Ok(ours), Ok(theirs)) = (&ours, theirs) {
                    prop_assert_eq!(ours, theirs, "hashes by {:?}: {:?}", kernel, case);
                }
                let refusal = match ours {
                    Ok(hash) => (!credited.insert(hash)).then_some(Refusal::DuplicateShare),
                    Err(refusal) => Some(refusal),
                };
                let code = refusal.map(|refusal| refusal.code().to_string());
                let agree = same(&code, &theirs.clone().err(), case);
                prop_assert!(agree, "{kernel:?} {code:?} theirs {theirs:?}: {case:?}");
            }
            self.credited = credited;
        }
        Ok(())
    }

    fn share(&mut self, plan: &Plan) -> Share {
        let channel = if plan.standard { self.standard } else { self.extended };
        let works = self.link.client.device(channel).works.clone();
        // Mostly the newest, often one of the past, now and then one that is no more or never was.
        let work = match plan.job {
            0..=4 => works.last().unwrap(),
            _ => &works[plan.pick % works.len()],
        };
        let mut share = self.link.client.share_on(channel, work);
        let elapsed = self.link.now.unix_s - START_S;
        let shift =
            [0, 0, 0, 1, 599, 600, 601, 7_199, 7_200, 7_201, elapsed, elapsed + 600, elapsed + 601];
        share.ntime += shift[plan.ntime % shift.len()];
        match plan.job {
            8 => share.job = self.ids[plan.pick % self.ids.len()].0,
            9 => share.job = self.link.client.ahead(channel).unwrap_or(0) + plan.pick as u32 % 2,
            _ => {}
        }
        match plan.spoil {
            0 => share.version ^= 1 << (plan.pick % 32),
            1 => share.ntime = work.min_ntime - 1,
            2 => share.ntime = plan.pick as u32,
            3 if !plan.standard => {
                let wrong = [0, 15, 17, 32][plan.pick % 4];
                share.rolled = Some(vec![plan.pick as u8; wrong]);
            }
            4..=9 if !plan.standard => share.rolled = Some(vec![plan.pick as u8; 16]),
            _ => {}
        }
        share
    }

    /// Shares by their plans; some say one of those before them again.
    fn burst(&mut self, plans: &[Plan]) -> Vec<Share> {
        let mut shares: Vec<Share> = Vec::new();
        for plan in plans {
            let again = plan.pick.is_multiple_of(8) && !shares.is_empty();
            shares.push(match again {
                true => shares[plan.pick / 8 % shares.len()].clone(),
                false => self.share(plan),
            });
        }
        shares
    }

    /// Time goes by, and what the server says meanwhile is heard when it says it.
    fn wait(&mut self, ms: u64) {
        let end = self.link.now.mono_ms + ms;
        while self.link.now.mono_ms < end {
            let until = self.link.server.deadline_ms().clamp(self.link.now.mono_ms, end);
            let said = self.link.pass(until - self.link.now.mono_ms);
            let jobs: Vec<Said> = said.into_iter().filter(|one| one.code().is_none()).collect();
            self.pass_on(&jobs);
        }
    }
}

/// What proptest chooses of a share.
#[derive(Debug, Clone)]
struct Plan {
    standard: bool,
    job: u8,
    ntime: usize,
    spoil: u8,
    pick: usize,
}

#[derive(Debug, Clone)]
enum Step {
    Fuller,
    Advance,
    Reorganise,
    Wait(u64),
    Submit(Plan),
    /// In one read.
    Burst(Vec<Plan>),
    Replay(usize),
    /// The same header under another job's name.
    Rename(usize, usize),
}

fn plan() -> impl Strategy<Value = Plan> {
    (any::<bool>(), 0u8..10, 0usize..40, 0u8..16, any::<u16>()).prop_map(
        |(standard, job, ntime, spoil, pick)| Plan {
            standard,
            job,
            ntime,
            spoil,
            pick: usize::from(pick),
        },
    )
}

/// On anything, or what fills a kernel's lanes: all of one channel and on its newest job.
fn burst() -> impl Strategy<Value = Vec<Plan>> {
    let alike = |(standard, mut plans): (bool, Vec<Plan>)| {
        plans.iter_mut().for_each(|plan| (plan.standard, plan.job) = (standard, 0));
        plans
    };
    let plans = || proptest::collection::vec(plan(), 2..=BURST_MAX);
    prop_oneof![plans(), (any::<bool>(), plans()).prop_map(alike)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Fuller),
        1 => Just(Step::Advance),
        1 => Just(Step::Reorganise),
        2 => (0u64..90_000).prop_map(Step::Wait),
        20 => plan().prop_map(Step::Submit),
        4 => burst().prop_map(Step::Burst),
        3 => any::<usize>().prop_map(Step::Replay),
        3 => (any::<usize>(), any::<usize>()).prop_map(|(at, job)| Step::Rename(at, job)),
    ];
    proptest::collection::vec(step, 1..80)
}

fn run(mut twins: Twins, steps: &[Step]) -> Result<(), TestCaseError> {
    for step in steps {
        match step {
            Step::Fuller => {
                let said = twins.link.template(twins.chain.fuller());
                twins.pass_on(&said);
            }
            Step::Advance | Step::Reorganise => {
                let active = match step {
                    Step::Advance => twins.chain.advance_at(twins.link.now.unix_s),
                    _ => twins.chain.reorganise(),
                };
                let said = twins.link.template(active);
                let (answers, said): (Vec<Said>, Vec<Said>) =
                    said.into_iter().partition(|one| one.code().is_some());
                // Early shares are judged by the tip that they waited for; SRI refused them at once.
                prop_assert!(answers.len() <= twins.shown.len());
                twins.pass_on(&said);
                // What was shown early may count from here on; SRI never saw it.
                twins.shown.clear();
            }
            Step::Wait(ms) => twins.wait(*ms),
            Step::Submit(plan) => {
                let share = twins.share(plan);
                twins.compare(vec![share])?;
            }
            Step::Burst(plans) => {
                let shares = twins.burst(plans);
                twins.compare(shares)?;
            }
            Step::Replay(at) if !twins.shown.is_empty() => {
                let share = twins.shown[at % twins.shown.len()].clone();
                twins.compare(vec![share])?;
            }
            Step::Rename(at, job) if !twins.shown.is_empty() => {
                let mut share = twins.shown[at % twins.shown.len()].clone();
                let works = &twins.link.client.device(share.channel).works;
                share.job = works[job % works.len()].job;
                twins.compare(vec![share])?;
            }
            Step::Replay(_) | Step::Rename(..) => {}
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_share_gets_the_same_verdict_as_from_sri(
        steps in steps(), blocks: bool, floor in -32i16..=-30,
    ) {
        let nbits = if blocks { REGTEST_NBITS } else { HARD_NBITS };
        run(Twins::new(nbits, floor), &steps)?;
    }
}

#[test]
fn a_burst_of_any_length_gets_sris_verdicts_from_every_kernel() {
    for standard in [true, false] {
        let mut twins = Twins::new(HARD_NBITS, -31);
        let mut random = Random::new(u64::from(standard));
        for length in 1..=BURST_MAX {
            let plans = (0..length).map(|_| Plan {
                standard,
                job: 0,
                ntime: random.below(40) as usize,
                spoil: random.below(16) as u8,
                pick: random.below(1 << 16) as usize,
            });
            let plans: Vec<Plan> = plans.collect();
            let shares = twins.burst(&plans);
            twins.compare(shares).unwrap();
        }
        // Of 820 half meet the target, some that do are spoilt, and some are shown twice.
        let credited = twins.credited.len();
        assert!((150..400).contains(&credited), "{credited}");
    }
}

#[test]
fn our_coinbase_is_the_one_that_sri_makes_of_the_same_template() {
    let chain = Chain::new(HARD_NBITS);
    let active = chain.active();
    let template = active.job.template();
    let outputs = [
        Output { sats: 300_000_000, script: [&[0, 20][..], &[7; 20]].concat() },
        Output { sats: 12_500_000, script: [&[0x51, 32][..], &[8; 32]].concat() },
    ];
    let ours = template.coinbase(&outputs, b"Sv2/pool//").unwrap();
    let rewards = outputs
        .iter()
        .map(|output| bitcoin::TxOut {
            value: bitcoin::Amount::from_sat(output.sats),
            script_pubkey: output.script.clone().into(),
        })
        .collect();
    let mut factory = JobFactory::new(true, Some("pool".to_string()), None);
    let theirs = factory
        .new_extended_job(
            2,
            None,
            vec![1; 8],
            sri_template(1, true, template),
            rewards,
            EXTRANONCE_LEN,
        )
        .unwrap();
    assert_eq!(ours.prefix, theirs.get_coinbase_tx_prefix_without_bip141());
    assert_eq!(ours.suffix, theirs.get_coinbase_tx_suffix_without_bip141());
    let extranonce = [9; EXTRANONCE_LEN];
    let in_block = [
        theirs.get_coinbase_tx_prefix_with_bip141(),
        extranonce.to_vec(),
        theirs.get_coinbase_tx_suffix_with_bip141(),
    ]
    .concat();
    assert_eq!(ours.with_witness(&extranonce, true), in_block);
    let transaction: bitcoin::Transaction = bitcoin::consensus::deserialize(&in_block).unwrap();
    let job = Job::new(Arc::clone(template), &outputs, b"Sv2/pool//").unwrap();
    let txid = transaction.compute_txid().to_byte_array();
    let root = proto::template::merkle_root(txid, job.merkle_path());
    assert_eq!(job.merkle_root(&extranonce), root);
}

#[test]
fn the_custom_job_that_sris_declarator_asks_for_is_the_one_that_sris_pool_would_give() {
    let chain = Chain::new(HARD_NBITS);
    let active = chain.active();
    let template = active.job.template();
    let reward = bitcoin::TxOut {
        value: bitcoin::Amount::from_sat(template.coinbase_value_sats),
        script_pubkey: [&[0, 20][..], &[7; 20]].concat().into(),
    };
    let mut link = Link::with(easy_policy(), REQUIRES_WORK_SELECTION, chain.active());
    let channel = link.open_at_floor(Kind::Extended);
    let mut factory =
        JobFactory::new(true, Some("pool".to_string()), Some("a miner at home".to_string()));
    let tip = active.tip;
    let asked = factory
        .new_custom_job(
            channel,
            1,
            vec![7; 16].try_into().unwrap(),
            ChainTip::new(tip.hash.into(), tip.nbits, tip.min_ntime),
            sri_template(1, false, template),
            vec![reward],
            EXTRANONCE_LEN,
        )
        .unwrap();
    // Far more than the eight bytes that the text allows.
    assert!(asked.coinbase_prefix.as_bytes().len() > 24);

    let payload = binary_sv2::to_bytes(asked.clone()).unwrap();
    let message = Message::decode(0, 0x22, &payload).unwrap();
    let Received::Known(message, Tlvs::NONE) = message else { panic!("{message:?}") };
    assert!(link.say(message).is_empty());
    let request = link.requests().pop().expect("it is the pool's to judge");
    let ours = request.coinbase();

    let prefix = link.client.device(channel).prefix.clone();
    let theirs = factory.new_extended_job_from_custom_job(asked, prefix, EXTRANONCE_LEN).unwrap();
    assert_eq!(ours.prefix, theirs.get_coinbase_tx_prefix_without_bip141());
    assert_eq!(ours.suffix, theirs.get_coinbase_tx_suffix_without_bip141());
    let extranonce = [9; EXTRANONCE_LEN];
    let in_block = [
        theirs.get_coinbase_tx_prefix_with_bip141(),
        extranonce.to_vec(),
        theirs.get_coinbase_tx_suffix_with_bip141(),
    ]
    .concat();
    assert_eq!(ours.with_witness(&extranonce, true), in_block);
}
