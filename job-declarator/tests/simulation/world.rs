//! One episode: a declarator, its pools, its node and its devices under one virtual clock, faults from a seed,
//! and what must hold after each step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use job_declarator::declarator::{
    Declarator, Effect, End, Input, Known, LinkId, Mode, Options, OutputLimit, PoolOptions,
    Published, ShareLoss, WHOLE_REWARD, of_suffix,
};
use job_declarator::limits::{
    POOL_RETRY_REFUSED_MS, POOL_RETURN_AFTER_MS, POOL_STAGGER_MS, SESSION_LINGER_MS,
    SESSION_SETUP_MAX_MS, SESSIONS_LINGERING_MAX,
};
use job_declarator::upstream::{Kind, Source};
use proto::extranonce::ExtranonceAllocator;
use proto::message::{FrameHeader, Message, setup_flags};
use proto::mining::{CreditGroup, CustomRefusal, Now};
use proto::share::Refusal;
use proto::target::Difficulty;

use super::calm::Calm;
use super::chain;
use super::house::Device;
use super::pool::{Answer, Health, Pool, decode, frames, script_of};

/// A frame takes at most so long, one way; a slow pool's so long on top.
const DELAY_MAX_MS: u64 = 300;
const SLOW_MS: u64 = 2_000;
/// Of a refused pool's pause the longest, a dial that fails first, setup, proof.
pub const BACK_WITHIN_MS: u64 = 90_000;
const _: () = assert!(
    POOL_RETRY_REFUSED_MS * 5 / 4 + POOL_RETURN_AFTER_MS + SESSION_SETUP_MAX_MS + POOL_STAGGER_MS
        < BACK_WITHIN_MS
);
/// What a black hole may cost where shares were answered before, each within half of it.
const BLACK_HOLE_MAX_MS: u64 = 15_000;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug)]
enum Event {
    ToPool(LinkId, Vec<u8>),
    ToHouse(LinkId, Vec<u8>),
    Up(LinkId),
    Down(LinkId, &'static str),
    Later(usize, Box<super::later::Later>),
    Block,
    PoolTip(usize, u64),
    NodeTip(u64),
    NodeWord,
    Refresh,
    Share,
    Devices,
    Fault,
    /// Of the fault of this number, if it is still the pool's newest.
    Heal(usize, u64),
    /// The node of an episode with a spared pool has its last tip.
    Stuck,
    NodeHeal,
    AllWell,
    /// All has been well for as long as the preferred pool may take to be back.
    Back,
}

/// Of the shares that are found when all has been well, some are to be credited within so long: a batch of ten.
const CREDITED_WITHIN_MS: u64 = 25_000;
/// For so long a node is behind, or away, with one good pool.
const STUCK_MS: u64 = 75_000;

struct Link {
    pool: usize,
    up: bool,
    /// Nothing of it is heard any more.
    hung: bool,
    to_pool_ms: u64,
    to_house_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Good,
    /// Fails each call.
    Fails,
    /// Says nothing.
    Stalls,
    /// Answers, and does not follow the chain.
    Behind,
}

#[derive(Default)]
struct SessionSeen {
    pool: usize,
    kind: Option<Kind>,
    dialled_ms: u64,
    submitted: u64,
    answered: u64,
    credited: u64,
    /// It answered a single share, so the next one is owed at once.
    is_prompt: bool,
    /// The first share that went into a black hole.
    swallowed_ms: Option<u64>,
    /// The same for declarations.
    has_declared: bool,
    declared_ms: Option<u64>,
    newest: HashMap<u32, u64>,
}

pub struct World {
    pub declarator: Declarator,
    pub now_ms: u64,
    random: Random,
    trace: bool,
    queue: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pools: Vec<Pool>,
    slow_ms: Vec<u64>,
    /// How many each pool had.
    faults: Vec<u64>,
    links: HashMap<LinkId, Link>,
    sessions: BTreeMap<u64, SessionSeen>,
    limits: Vec<OutputLimit>,
    tip: u64,
    calm: Calm,
    /// The node has no new tip from early on, and this pool no fault.
    spared: Option<usize>,
    node: Node,
    node_tip: u64,
    node_given: Option<u64>,
    next_template: u64,
    devices: Vec<Device>,
    extranonces: ExtranonceAllocator,
    published: Option<Published>,
    /// Shares in the order in which the declarator was told of them.
    order: HashMap<(u32, u32, u32, [u8; 16]), u64>,
    shares: u64,
    credited: Vec<u64>,
    well_ms: Option<u64>,
    ends_ms: u64,
    quick: bool,
    /// Waits until everything is well again.
    is_patient: bool,
    /// Of the preferred pool when it had to be back: acknowledged and promised.
    back: Option<(u64, u64)>,
    passes: u64,
    told: u64,
}

fn options_for(pools: &[Pool], limits: &[OutputLimit], mode: Mode, seed: u64) -> Options {
    let options = pools.iter().zip(limits).map(|(pool, limit)| PoolOptions {
        name: format!("pool {}", pool.at),
        address: "pool:3333".to_owned(),
        declare_address: pool.declares.then(|| "pool:3334".to_owned()),
        user: "alice.house".to_owned(),
        limit: limit.clone(),
    });
    Options {
        pools: options.collect(),
        payout_script: vec![0x52],
        tag: b"home".to_vec(),
        mode,
        refresh_ms: 10_000,
        seed,
    }
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let count = random.between(1, 3) as usize;
        let mut pools = Vec::new();
        for at in 0..count {
            let batch = if random.one_in(4) { 10 } else { 1 };
            let mut pool = Pool::new(at, !random.one_in(5), batch, 1);
            pool.rotates = random.one_in(5);
            pools.push(pool);
        }
        let limits: Vec<OutputLimit> = (0..count)
            .map(|at| OutputLimit {
                own: vec![0x52],
                known: [script_of(at), vec![0x53, at as u8]]
                    .map(|script| Known { script, share_max: WHOLE_REWARD })
                    .to_vec(),
                others_max_percent: 2,
                network: bitcoin::Network::Regtest,
            })
            .collect();
        let mode = if random.one_in(4) { Mode::CoinbaseOnly } else { Mode::FullTemplate };
        let options = options_for(&pools, &limits, mode, seed);
        let declarator = Declarator::new(options);
        // Most of the time that an episode takes is in waiting for the end.
        let is_patient = random.one_in(6);
        let mut faults_ms = random.between(8_000, 30_000);
        let spared = random.one_in(24).then(|| random.below(count as u64) as usize);
        if spared.is_some() {
            faults_ms += STUCK_MS;
        }
        let mut world = Self {
            declarator,
            now_ms: 0,
            quick: random.one_in(6),
            random,
            trace,
            queue: BTreeMap::new(),
            next_event: 0,
            slow_ms: vec![0; count],
            faults: vec![0; count],
            links: HashMap::new(),
            sessions: BTreeMap::new(),
            limits,
            tip: 1,
            calm: Calm::new(count),
            spared,
            node: Node::Good,
            node_tip: 1,
            node_given: None,
            next_template: 1,
            devices: Vec::new(),
            extranonces: ExtranonceAllocator::for_house(),
            published: None,
            order: HashMap::new(),
            shares: 0,
            credited: vec![0; count],
            well_ms: None,
            ends_ms: faults_ms + if is_patient { BACK_WITHIN_MS + CREDITED_WITHIN_MS } else { 0 },
            is_patient,
            back: None,
            pools,
            passes: 0,
            told: 0,
        };
        world.begin(faults_ms);
        world
    }

    fn begin(&mut self, faults_ms: u64) {
        if self.random.one_in(5) && self.spared.is_none() {
            self.node = Node::Fails;
            self.calm.node_ails();
            self.after(20_000, Event::NodeHeal);
        }
        if let Some(spared) = self.spared {
            let at_ms = self.random.between(2_000, 15_000);
            self.after(at_ms, Event::Stuck);
            for pool in (0..self.pools.len()).filter(|pool| *pool != spared) {
                if self.random.one_in(2) {
                    self.pools[pool].health = Health::Away;
                    self.calm.pool_ails(pool);
                }
            }
        }
        for (ms, event) in [
            (0, Event::NodeWord),
            (1, Event::NodeTip(1)),
            (50, Event::Devices),
            (500, Event::Share),
            (1_000, Event::Fault),
            (3_000, Event::Refresh),
            (5_000, Event::Block),
            (faults_ms, Event::AllWell),
            (faults_ms + BACK_WITHIN_MS, Event::Back),
        ] {
            self.after(ms, event);
        }
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, unix_s: chain::START_S + (self.now_ms / 1_000) as u32 }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now_ms + ms, event);
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.next_event += 1;
        self.queue.insert((ms, self.next_event), event);
    }

    fn log(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>7} {}", self.now_ms, what());
        }
    }

    /// Until the end, with everything held to what must hold.
    pub fn run(&mut self) {
        self.tell(Input::Time);
        while self.now_ms < self.ends_ms {
            let event_ms = self.queue.keys().next().map_or(u64::MAX, |(ms, _)| *ms);
            let own_ms = self.declarator.deadline_ms(self.now_ms).unwrap_or(u64::MAX);
            assert!(own_ms > self.now_ms, "a deadline that does not move");
            let pools_ms = self.pools.iter().map(Pool::deadline_ms).min().unwrap_or(u64::MAX);
            let next_ms = event_ms.min(own_ms).min(pools_ms.max(self.now_ms));
            assert!(next_ms >= self.now_ms);
            self.now_ms = next_ms;
            if event_ms == next_ms {
                let (_, event) = self.queue.pop_first().unwrap();
                self.happen(event);
            } else if own_ms == next_ms {
                self.passes += 1;
                self.tell(Input::Time);
            } else {
                for at in 0..self.pools.len() {
                    let now = self.now();
                    let answers = self.pools[at].pass(now);
                    self.answers(at, answers);
                }
            }
            self.check();
        }
        self.check_the_end();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToPool(link, bytes) => self.on_to_pool(link, &bytes),
            Event::ToHouse(link, bytes) => self.on_to_house(link, &bytes),
            Event::Up(link) => self.on_up(link),
            Event::Down(link, why) => self.on_down(link, why),
            Event::Later(pool, later) => {
                let now = self.now();
                let answers = match *later {
                    super::later::Later::Commit(id, committed) => {
                        self.pools[pool].committed(now, id, committed)
                    }
                    super::later::Later::Verdict(id, request) => {
                        self.pools[pool].judge(now, id, &request)
                    }
                };
                self.answers(pool, answers);
            }
            Event::Block => self.on_block(),
            Event::PoolTip(pool, tip) => {
                if tip >= self.pools[pool].tip {
                    let now = self.now();
                    let answers = self.pools[pool].move_to(now, tip);
                    self.answers(pool, answers);
                }
            }
            Event::NodeTip(tip) => {
                if self.node == Node::Good && tip > 0 {
                    self.node_tip = self.node_tip.max(tip);
                    self.give_template();
                }
            }
            Event::NodeWord => {
                self.after(if self.node == Node::Good { 5_000 } else { 1_000 }, Event::NodeWord);
                match self.node {
                    Node::Good | Node::Behind => self.tell(Input::NodeAnswers),
                    Node::Fails => self.tell(Input::NodeAway("refused".to_owned())),
                    Node::Stalls => {}
                }
            }
            Event::Refresh => {
                let most = if self.spared.is_some() { 8_000 } else { 20_000 };
                let pause = self.random.between(2_000, most);
                self.after(pause, Event::Refresh);
                if matches!(self.node, Node::Good | Node::Behind) {
                    for _ in 0..self.random.between(1, 3) {
                        self.give_template();
                    }
                }
                let pool = self.random.below(self.pools.len() as u64) as usize;
                let tip = self.pools[pool].tip;
                let now = self.now();
                let answers = self.pools[pool].move_to(now, tip);
                self.answers(pool, answers);
            }
            Event::Share => self.on_found(),
            Event::Devices => self.on_devices(),
            Event::Fault => self.on_fault(),
            Event::Heal(pool, fault) if self.faults[pool] == fault => self.heal(pool),
            Event::Heal(..) => {}
            Event::Stuck => self.on_stuck(),
            Event::NodeHeal => self.heal_node(),
            Event::AllWell => self.on_all_well(),
            Event::Back => self.on_back(),
        }
    }

    fn on_all_well(&mut self) {
        self.well_ms = Some(self.now_ms);
        for pool in 0..self.pools.len() {
            self.heal(pool);
        }
        self.heal_node();
        if self.devices.is_empty() {
            self.arrive();
        }
    }

    fn on_back(&mut self) {
        assert_eq!(self.declarator.using(), self.best(), "back with the preferred pool");
        let tally = &self.declarator.view(self.now_ms).pools[0].tally;
        self.back = Some((tally.acknowledged, tally.promised));
    }

    fn on_stuck(&mut self) {
        self.calm.node_ails();
        self.node = match self.random.below(6) {
            0 => Node::Fails,
            1 => Node::Stalls,
            _ => Node::Behind,
        };
        self.log(|| format!("node: {:?} from now on", self.node));
    }

    fn give_template(&mut self) {
        // One in four has nothing new in it.
        if !self.random.one_in(4) {
            self.next_template += 1;
        }
        self.node_given = Some(self.node_tip);
        let template = chain::node_template(self.node_tip, self.next_template);
        self.log(|| format!("node: template {} on {}", self.next_template, self.node_tip));
        self.tell(Input::Template(template));
    }

    fn heal_node(&mut self) {
        self.log(|| "node is well".to_owned());
        self.node = Node::Good;
        self.calm.node_is_well(self.now_ms);
        self.node_tip = self.tip;
        self.give_template();
    }

    fn heal(&mut self, pool: usize) {
        let was = std::mem::replace(&mut self.pools[pool].health, Health::Good);
        let was_slow = std::mem::take(&mut self.slow_ms[pool]) > 0;
        if was != Health::Good || was_slow {
            self.calm.pool_is_well(pool, self.now_ms);
        }
        if was != Health::Good {
            self.log(|| format!("pool {pool} is well"));
            self.pools[pool].bad_at_ms = self.now_ms;
        }
        // What was swallowed is lost: the host that came back knows no such connection, nor what it said meanwhile.
        if matches!(was, Health::BlackHole { .. } | Health::Stingy | Health::Greedy) {
            self.cut(pool);
        }
    }

    fn cut(&mut self, pool: usize) {
        let links: BTreeSet<LinkId> = self
            .links
            .iter()
            .filter(|(_, one)| one.pool == pool && !one.hung)
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            self.after(5, Event::Down(link, "reset"));
        }
    }

    fn on_block(&mut self) {
        let pause = match (self.well_ms.is_some(), self.quick) {
            (false, true) => self.random.between(50, 4_000),
            (false, false) => self.random.between(5_000, 40_000),
            (true, _) => self.random.between(15_000, 40_000),
        };
        self.after(pause, Event::Block);
        self.tip += 1;
        self.calm.chain_moved(self.now_ms);
        self.log(|| format!("tip {}", self.tip));
        for pool in 0..self.pools.len() {
            let delay = self.random.between(0, 700);
            self.after(delay, Event::PoolTip(pool, self.tip));
        }
        let delay = self.random.between(0, 1_500);
        self.after(delay, Event::NodeTip(self.tip));
    }

    fn arrive(&mut self) {
        let Some(published) = &self.published else { return };
        let name = format!("device{}", self.devices.len());
        let device = Device::new(self.now(), &name, &self.extranonces, published);
        self.devices.push(device);
        self.tell_fleet();
    }

    fn tell_fleet(&mut self) {
        let rate = self.devices.len() as f64 * 2.0;
        self.log(|| format!("fleet {rate}"));
        self.tell(Input::Fleet(rate));
    }

    fn on_devices(&mut self) {
        let pause = self.random.between(4_000, 40_000);
        self.after(if self.devices.is_empty() { 2_000 } else { pause }, Event::Devices);
        if self.devices.len() < 2 && !self.random.one_in(3) {
            self.arrive();
        } else if self.well_ms.is_none() && !self.devices.is_empty() {
            self.devices.pop();
            self.tell_fleet();
        }
    }

    fn on_found(&mut self) {
        let pause = match (self.well_ms, self.back, self.spared) {
            (_, Some(_), _) => 500,
            (Some(_), None, _) => 4_000,
            (None, None, Some(_)) => self.random.between(500, 3_000),
            (None, None, None) => self.random.between(50, 2_500),
        };
        self.after(pause, Event::Share);
        if self.devices.is_empty() {
            return;
        }
        let at = self.random.below(self.devices.len() as u64) as usize;
        let (now, late) = (self.now(), self.random.one_in(8));
        let groups = self.devices[at].find(now, late);
        self.credit(groups);
    }

    fn credit(&mut self, groups: Vec<CreditGroup>) {
        if groups.is_empty() {
            return;
        }
        for proof in groups.iter().flat_map(|group| &group.proofs) {
            self.shares += 1;
            let key = (proof.nonce, proof.ntime, proof.version, proof.rolled);
            assert!(self.order.insert(key, self.shares).is_none(), "a share twice");
        }
        self.tell(Input::Shares(groups));
    }

    fn on_fault(&mut self) {
        if self.well_ms.is_some() {
            return;
        }
        let pause = self.random.between(500, 12_000);
        self.after(pause, Event::Fault);
        let pool = self.random.below(self.pools.len() as u64) as usize;
        if self.spared == Some(pool) {
            return;
        }
        // A black hole that shows takes its time.
        if matches!(self.pools[pool].health, Health::BlackHole { .. }) && !self.random.one_in(6) {
            return;
        }
        self.faults[pool] += 1;
        let mut lasts = self.random.between(500, 30_000);
        let health = match self.random.below(20) {
            0 => Health::Away,
            1 => Health::BlackHole { mining: true, declare: true },
            2 => Health::BlackHole { mining: true, declare: false },
            3 => Health::BlackHole { mining: false, declare: true },
            4 => Health::RefusesSetup,
            5 => Health::RefusesChannel,
            6 => Health::RefusesDeclarations("invalid-job"),
            7 => Health::RefusesDeclarations("stale-chain-tip"),
            8 => Health::RefusesJobs(CustomRefusal::StaleChainTip),
            9 => Health::RefusesJobs(CustomRefusal::InvalidCoinbaseOutputs),
            10 => Health::RefusesShares,
            11 => Health::Violates,
            12 => Health::AsksBack,
            13 => Health::Greedy,
            14 => Health::Stingy,
            15 => Health::DropsDeclarers,
            16 => return self.on_node_fault(),
            17 => {
                self.log(|| format!("pool {pool} is slow"));
                self.slow_ms[pool] = SLOW_MS;
                self.calm.pool_ails(pool);
                return self.after(lasts, Event::Heal(pool, self.faults[pool]));
            }
            18 => {
                let ceiling = Difficulty::from_log2(-32 + self.random.below(2) as i16);
                self.log(|| format!("pool {pool}: ceiling {ceiling:?}"));
                let now = self.now();
                let answers = self.pools[pool].set_ceiling(now, ceiling);
                return self.answers(pool, answers);
            }
            _ => {
                self.log(|| format!("pool {pool} dies"));
                self.calm.pool_is_well(pool, self.now_ms);
                return self.cut(pool);
            }
        };
        self.heal(pool);
        if health == Health::Away {
            self.cut(pool);
        }
        if self.random.one_in(4) {
            lasts = 1_000_000;
        }
        self.log(|| format!("pool {pool}: {health:?} for {lasts}"));
        self.pools[pool].health = health;
        self.pools[pool].bad_at_ms = self.now_ms;
        self.calm.pool_ails(pool);
        self.after(lasts, Event::Heal(pool, self.faults[pool]));
    }

    fn on_node_fault(&mut self) {
        if self.spared.is_some() {
            return;
        }
        self.calm.node_ails();
        self.node = match self.random.below(3) {
            0 => Node::Fails,
            1 => Node::Stalls,
            _ => Node::Behind,
        };
        let lasts = self.random.between(500, 40_000);
        self.log(|| format!("node: {:?} for {lasts}", self.node));
        self.after(lasts, Event::NodeHeal);
    }

    // ---- links ----

    fn delay(&mut self, pool: usize) -> u64 {
        self.random.between(1, DELAY_MAX_MS) + self.slow_ms[pool]
    }

    fn on_up(&mut self, id: LinkId) {
        let link = self.links.get_mut(&id).unwrap();
        if !link.hung {
            link.up = true;
            self.tell(Input::LinkUp(id));
        }
    }

    fn on_down(&mut self, id: LinkId, why: &'static str) {
        let link = self.links.get_mut(&id).unwrap();
        if link.hung {
            return;
        }
        let pool = link.pool;
        if id.end == End::Mining {
            self.pools[pool].end(id.session);
        }
        let kind = self.sessions[&id.session].kind;
        let using = self.declarator.using();
        self.log(|| format!("{id:?} down: {why}"));
        let before = self.published.clone();
        self.tell(Input::LinkDown(id, why.to_owned()));
        assert!(self.links[&id].hung, "a lost link is hung up");
        let was_used = kind.is_some_and(|kind| using == Source::Pool { pool, kind });
        let is_left = self.declarator.using() != using;
        if is_left && was_used && self.node_given.is_some() {
            let after = self.published.as_ref().unwrap();
            let is_new =
                !before.is_some_and(|one| std::sync::Arc::ptr_eq(&one.active, &after.active));
            assert!(is_new, "a lost socket costs no time: there is other work at once");
        }
    }

    fn on_to_pool(&mut self, id: LinkId, bytes: &[u8]) {
        let pool = self.links[&id].pool;
        for (header, payload) in frames(bytes) {
            if self.links[&id].hung {
                return;
            }
            let (message, tlvs) = decode(header, payload);
            if let Message::SetupConnection(setup) = &message
                && id.end == End::Mining
            {
                let selects = setup.flags & setup_flags::REQUIRES_WORK_SELECTION != 0;
                let kind = if selects { Kind::Own } else { Kind::Theirs };
                self.sessions.get_mut(&id.session).unwrap().kind = Some(kind);
            }
            if matches!(message, Message::SubmitSharesExtended(_))
                && matches!(self.pools[pool].health, Health::BlackHole { mining: true, .. })
            {
                let now_ms = self.now_ms;
                let seen = self.sessions.get_mut(&id.session).unwrap();
                seen.swallowed_ms.get_or_insert(now_ms);
            }
            if matches!(message, Message::DeclareMiningJob(_))
                && matches!(self.pools[pool].health, Health::BlackHole { declare: true, .. })
            {
                let now_ms = self.now_ms;
                let seen = self.sessions.get_mut(&id.session).unwrap();
                seen.declared_ms.get_or_insert(now_ms);
            }
            let now = self.now();
            let answers = match id.end {
                End::Mining => self.pools[pool].hear_mining(now, id.session, message, tlvs),
                End::Declare => self.pools[pool].hear_declare(id.session, message),
            };
            self.answers_on(pool, id.end, answers);
        }
    }

    fn answers(&mut self, pool: usize, answers: Vec<Answer>) {
        self.answers_on(pool, End::Mining, answers);
    }

    fn answers_on(&mut self, pool: usize, end: End, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Say(session, bytes) => {
                    let health = self.pools[pool].health;
                    let is_lost = match end {
                        End::Mining => matches!(health, Health::BlackHole { mining: true, .. }),
                        End::Declare => matches!(health, Health::BlackHole { declare: true, .. }),
                    };
                    let delay = self.delay(pool);
                    let id = LinkId { session, end };
                    let Some(link) = self.links.get_mut(&id).filter(|_| !is_lost) else { continue };
                    link.to_house_ms = link.to_house_ms.max(self.now_ms + delay);
                    let at_ms = link.to_house_ms;
                    self.at(at_ms, Event::ToHouse(id, bytes));
                }
                Answer::Drop(session) => {
                    self.after(5, Event::Down(LinkId { session, end }, "dropped"));
                }
                Answer::Commit(id, committed) => {
                    let later = super::later::Later::Commit(id, committed);
                    let stored_ms = self.now_ms + self.random.between(0, 50);
                    let stored_ms = stored_ms.max(self.pools[pool].stored_ms);
                    self.pools[pool].stored_ms = stored_ms;
                    self.at(stored_ms, Event::Later(pool, Box::new(later)));
                }
                Answer::Verdict(id, request) => {
                    let later = super::later::Later::Verdict(id, request);
                    let delay = self.random.between(0, 400);
                    self.after(delay, Event::Later(pool, Box::new(later)));
                }
            }
        }
    }

    fn on_to_house(&mut self, id: LinkId, bytes: &[u8]) {
        for (header, payload) in frames(bytes) {
            if self.links[&id].hung {
                return;
            }
            self.count_answer(id, header, payload);
            self.tell(Input::Frame(id, header, payload));
        }
    }

    fn count_answer(&mut self, id: LinkId, header: FrameHeader, payload: &[u8]) {
        let (message, _) = decode(header, payload);
        self.log(|| format!("< {id:?} {}", message.name()));
        let seen = self.sessions.get_mut(&id.session).unwrap();
        match message {
            Message::SubmitSharesSuccess(success) => {
                let count = u64::from(success.new_submits_accepted_count);
                seen.answered += count;
                seen.credited += count;
                self.credited[seen.pool] += count;
                seen.is_prompt |= count == 1;
            }
            Message::SubmitSharesError(_) => seen.answered += 1,
            Message::DeclareMiningJobSuccess(_) => seen.has_declared = true,
            _ => {}
        }
    }

    // ---- the declarator ----

    fn tell(&mut self, input: Input<'_>) {
        let groups = match &input {
            Input::Shares(groups) => groups.iter().map(|group| group.proofs.len()).sum(),
            _ => 0,
        };
        let mut out = Vec::new();
        let now = self.now();
        self.declarator.handle(now, input, &mut out);
        // Each share of a batch and each that waited is a frame; everything else is a handful.
        let frames = out.iter().filter(|one| matches!(one, Effect::Send(..))).count();
        assert!(out.len() - frames <= 16 && frames <= 600 + groups, "{} effects", out.len());
        let has_hung = out.iter().any(|one| matches!(one, Effect::Hang(_)));
        let mut credits = Vec::new();
        for effect in out {
            self.carry_out(effect, &mut credits);
        }
        self.told += 1;
        // A step of eight, and each that ends a session: looking at everything is most of the work.
        if has_hung || self.told.is_multiple_of(8) {
            self.check_tally();
        }
        for groups in credits {
            self.credit(groups);
        }
    }

    fn carry_out(&mut self, effect: Effect, credits: &mut Vec<Vec<CreditGroup>>) {
        match effect {
            Effect::Dial { link, pool, .. } => {
                self.log(|| format!("dial {link:?} of pool {pool}"));
                let seen = self.sessions.entry(link.session).or_default();
                (seen.pool, seen.dialled_ms) = (pool, self.now_ms);
                let known = Link { pool, up: false, hung: false, to_pool_ms: 0, to_house_ms: 0 };
                assert!(self.links.insert(link, known).is_none(), "a link's name is used twice");
                let delay = self.delay(pool);
                match self.pools[pool].health {
                    Health::Away => self.after(delay, Event::Down(link, "refused")),
                    Health::BlackHole { mining, declare } if mining && declare => {}
                    _ => self.after(delay, Event::Up(link)),
                }
            }
            Effect::Send(id, bytes) => self.on_sent(id, bytes),
            Effect::Hang(id) => {
                self.log(|| format!("hang up {id:?}"));
                let link = self.links.get_mut(&id).unwrap();
                assert!(!link.hung, "hung up twice");
                link.hung = true;
                let pool = link.pool;
                if id.end == End::Mining {
                    self.pools[pool].end(id.session);
                    self.sessions.remove(&id.session);
                }
            }
            Effect::Publish(published) => {
                self.check_outputs(&published);
                self.published = Some(published.clone());
                let now = self.now();
                for device in &mut self.devices {
                    credits.push(device.publish(now, &published));
                }
            }
            Effect::Note(note) => {
                self.log(|| format!("{note:?}"));
            }
        }
    }

    fn on_sent(&mut self, id: LinkId, bytes: Vec<u8>) {
        let link = &self.links[&id];
        assert!(link.up && !link.hung, "a frame for a link that is not there: {id:?}");
        let pool = link.pool;
        for (header, payload) in frames(&bytes) {
            let (message, _) = decode(header, payload);
            self.log(|| format!("> {id:?} {}", message.name()));
            if let Message::SubmitSharesExtended(share) = message {
                let extranonce = share.extranonce.as_slice();
                let mut rolled = [0; 16];
                rolled.copy_from_slice(&extranonce[extranonce.len() - 16..]);
                let place = self.order[&(share.nonce, share.ntime, share.version, rolled)];
                let seen = self.sessions.get_mut(&id.session).unwrap();
                seen.submitted += 1;
                let newest = seen.newest.entry(share.job_id).or_default();
                assert!(place > *newest, "shares of a job change their order");
                *newest = place;
            }
        }
        let delay = self.delay(pool);
        let link = self.links.get_mut(&id).unwrap();
        link.to_pool_ms = link.to_pool_ms.max(self.now_ms + delay);
        let at_ms = link.to_pool_ms;
        self.at(at_ms, Event::ToPool(id, bytes));
    }

    // ---- what must hold ----

    fn check_outputs(&self, published: &Published) {
        let outputs = of_suffix(&published.active.job.coinbase().suffix).unwrap();
        // Each pool knows its own script alone.
        let is_within = self.limits.iter().any(|limit| limit.judge(&outputs).is_ok());
        assert!(is_within, "beyond the owner's limit: {outputs:?}");
    }

    fn check_tally(&mut self) {
        let view = self.declarator.view(self.now_ms);
        self.calm.see_tally(&view, self.now_ms);
        if self.node_given.is_some() {
            let source = view.work.as_ref().map(|work| work.source);
            assert_eq!(source, Some(view.using), "work of whom it is for");
        }
        let mut taken = view.tally.solo_shares + view.tally.forgotten;
        for (at, pool) in view.pools.iter().enumerate() {
            let tally = &pool.tally;
            let unanswered = tally.lost.get(&ShareLoss::Unanswered).copied().unwrap_or(0);
            taken += tally.below + tally.waiting + tally.sent + tally.lost_in_all() - unanswered;
            let sessions = self.sessions.values().filter(|seen| seen.pool == at);
            let outstanding: u64 = sessions.map(|seen| seen.submitted - seen.answered).sum();
            let answered = tally.acknowledged + tally.refused_in_all() + unanswered;
            assert_eq!(tally.sent, answered + outstanding, "pool {at}: {tally:?}");
            assert_eq!(tally.acknowledged, self.credited[at], "what pool {at} credits is counted");
        }
        assert_eq!(view.tally.shares, self.shares);
        assert_eq!(taken, self.shares, "every share is counted once: {view:?}");
    }

    fn check(&mut self) {
        let using = self.declarator.using();
        // Work on the newest tip that its source gave, always.
        if let (Source::Solo | Source::Pool { kind: Kind::Own, .. }, Some(given)) =
            (using, self.node_given)
        {
            let published = self.published.as_ref().expect("a template is work at once");
            let tip = published.active.tip.hash;
            assert_eq!(tip, chain::tip_of(given).hash, "work on the node's newest tip");
        }
        if let Source::Pool { pool, kind: Kind::Theirs } = using {
            let of = &self.pools[pool];
            let settled_ms = 4 * (DELAY_MAX_MS + SLOW_MS);
            let is_good = of.health == Health::Good && of.bad_at_ms + settled_ms < self.now_ms;
            if is_good && of.tip_at_ms + settled_ms < self.now_ms {
                let tip = self.published.as_ref().unwrap().active.tip.hash;
                assert_eq!(tip, chain::tip_of(of.tip).hash, "work on the pool's tip");
            }
        }
        self.calm.see_source(using, self.now_ms);
        if let Some(published) = &self.published {
            let health = match using {
                Source::Pool { pool, .. } => self.pools[pool].health,
                Source::Solo => Health::Good,
            };
            let is_silent = matches!(health, Health::BlackHole { .. });
            let tip = chain::number_of(&published.active.tip.hash);
            self.calm.see_tip(tip, is_silent, self.now_ms);
        }
        for pool in &self.pools {
            // Of a tip that our node alone has still, a pool may have forgotten the jobs.
            let is_wrong = |one: &Refusal| *one != Refusal::InvalidJobId || self.spared.is_none();
            let wronged = pool.wronged.iter().any(is_wrong);
            assert!(!wronged, "pool {}: good shares, {:?}", pool.at, pool.wronged);
        }
        self.check_sessions(using);
    }

    fn check_sessions(&self, using: Source) {
        let most = 2 * self.pools.len() + SESSIONS_LINGERING_MAX;
        assert!(self.sessions.len() <= most, "{} sessions", self.sessions.len());
        let mut newest: HashMap<(usize, Kind), u64> = HashMap::new();
        for seen in self.sessions.values() {
            let Some(kind) = seen.kind else { continue };
            let of = (seen.pool, kind);
            if newest.insert(of, seen.dialled_ms).is_some() {
                // The older one lingers.
                assert!(
                    self.now_ms <= seen.dialled_ms + SESSION_LINGER_MS,
                    "two sessions of {of:?}"
                );
            }
            let swallowed_ms = seen.swallowed_ms.filter(|_| seen.is_prompt);
            let declared_ms = seen.declared_ms.filter(|_| seen.has_declared);
            let Source::Pool { pool, kind } = using else { continue };
            let since_ms = swallowed_ms.into_iter().chain(declared_ms).min();
            if let Some(since_ms) = since_ms.filter(|_| of == (pool, kind)) {
                assert!(
                    self.now_ms <= since_ms + BLACK_HOLE_MAX_MS,
                    "still at the black hole of pool {pool}"
                );
            }
        }
    }

    fn best(&self) -> Source {
        let kind = if self.pools[0].declares { Kind::Own } else { Kind::Theirs };
        Source::Pool { pool: 0, kind }
    }

    fn check_the_end(&mut self) {
        self.check_tally();
        if self.is_patient {
            assert_eq!(self.declarator.using(), self.best(), "with the preferred pool");
            let view = self.declarator.view(self.now_ms);
            let tally = &view.pools[0].tally;
            let (acknowledged, promised) = self.back.expect("all has been well for long enough");
            assert!(tally.acknowledged > acknowledged, "and it credits shares: {tally:?}");
            let is_promised = promised > 0 || !self.pools[0].declares;
            assert!(is_promised, "of the owner's own jobs: {tally:?}");
        }
        let open = self.links.values().filter(|link| !link.hung).count();
        assert!(open <= 2 * self.pools.len() + 2 * SESSIONS_LINGERING_MAX, "{open} links");
        // A deadline a second for the fleet, and a few for what happens.
        assert!(self.passes < 4 * self.now_ms / 1_000, "{} deadlines", self.passes);
    }
}
