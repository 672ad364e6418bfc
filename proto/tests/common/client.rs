//! A mining client that believes what it is told, and fails where a real one would: the device rules
//! and the client's half of the job rules, checked on every frame of every test.

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::job::HeaderFields;
use proto::limits::VERSION_ROLLING_MASK;
use proto::message::{Message, SubmitSharesExtended, SubmitSharesStandard, setup_flags};
use proto::mining::Kind;
use proto::target::Target;
use proto::wire::B032;

use super::said::{JobBody, Said};

/// A share in the making: what a submit message will say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub channel: u32,
    pub sequence: u32,
    pub job: u32,
    pub nonce: u32,
    pub ntime: u32,
    pub version: u32,
    /// `None` on a standard channel.
    pub rolled: Option<Vec<u8>>,
}

impl Share {
    /// What says it.
    pub fn message(&self) -> Message<'_> {
        let Self { channel, sequence, job, nonce, ntime, version, .. } = *self;
        match &self.rolled {
            Some(rolled) => SubmitSharesExtended {
                channel_id: channel,
                sequence_number: sequence,
                job_id: job,
                nonce,
                ntime,
                version,
                extranonce: B032::new(rolled).unwrap(),
            }
            .into(),
            None => SubmitSharesStandard {
                channel_id: channel,
                sequence_number: sequence,
                job_id: job,
                nonce,
                ntime,
                version,
            }
            .into(),
        }
    }
}

/// A job that can be hashed.
#[derive(Debug, Clone)]
pub struct Work {
    pub job: u32,
    pub version: u32,
    pub body: JobBody,
    pub prev_hash: [u8; 32],
    pub nbits: u32,
    pub min_ntime: u32,
    /// The target in force when the job was sent or activated (rule P41).
    pub target: Target,
}

impl Work {
    /// Whether headers of one are headers of the other.
    pub fn is_work_of(&self, other: &Self) -> bool {
        (self.prev_hash, self.nbits, &self.body) == (other.prev_hash, other.nbits, &other.body)
            && (self.version ^ other.version) & !VERSION_ROLLING_MASK == 0
    }
}

#[derive(Debug, Clone)]
struct Ahead {
    version: u32,
    body: JobBody,
}

/// A job of the client's own that it asked the pool to promise.
#[derive(Debug, Clone)]
pub struct Asked {
    pub version: u32,
    pub body: JobBody,
    pub prev_hash: [u8; 32],
    pub nbits: u32,
    pub min_ntime: u32,
}

/// One channel as the client knows it.
#[derive(Debug)]
pub struct Device {
    pub kind: Kind,
    pub prefix: Vec<u8>,
    pub rollable: usize,
    pub target: Target,
    /// The easiest target the client can take.
    pub limit: Target,
    ahead: BTreeMap<u32, Ahead>,
    /// Jobs under the present tip, newest last.
    pub works: Vec<Work>,
    ids_used: HashSet<u32>,
    contents: HashSet<(u32, u32, JobBody)>,
    heard: usize,
    /// A SetTarget came and no job behind it yet.
    wants_job: bool,
    /// The targets of the client's own jobs under the present tip: one for each header space.
    spaces: HashMap<(u32, JobBody), Target>,
}

#[derive(Debug)]
pub struct Client {
    flags: u32,
    group: Option<u32>,
    /// SRI's proxy keeps the group's future jobs apart from its channels' (channels_sv2
    /// `GroupChannel`): a tip told to the group must name one of these.
    group_ahead: HashSet<u32>,
    channel_ids_used: HashSet<u32>,
    pub devices: BTreeMap<u32, Device>,
    /// By channel and request id.
    asked: HashMap<(u32, u32), Asked>,
    sequence: u32,
    nonce: u32,
}

impl Client {
    pub fn new(flags: u32) -> Self {
        Self {
            flags,
            group: None,
            group_ahead: HashSet::new(),
            channel_ids_used: HashSet::new(),
            devices: BTreeMap::new(),
            asked: HashMap::new(),
            sequence: 0,
            nonce: 0,
        }
    }

    /// The client's own word on the easiest target it can take.
    pub fn limit(&mut self, channel: u32, limit: Target) {
        if let Some(device) = self.devices.get_mut(&channel) {
            device.limit = limit;
        }
    }

    /// The client closed a channel, or with its group's id all of them.
    pub fn forget(&mut self, channel: u32) {
        if Some(channel) == self.group {
            self.devices.clear();
        }
        self.devices.remove(&channel);
    }

    /// Everything that one input made the server say.
    pub fn hear_all(&mut self, said: &[Said]) {
        for one in said {
            self.hear(one);
        }
        if self.selects_work() {
            return;
        }
        for (id, device) in &self.devices {
            assert!(!device.wants_job, "channel {id}: SetTarget without a fresh job behind it");
        }
    }

    pub fn selects_work(&self) -> bool {
        self.flags & setup_flags::REQUIRES_WORK_SELECTION != 0
    }

    /// The client asks for a job of its own.
    pub fn ask(&mut self, channel: u32, request_id: u32, asked: Asked) {
        self.asked.insert((channel, request_id), asked);
    }

    fn hear(&mut self, said: &Said) {
        let is_job = matches!(said, Said::Job { .. } | Said::PrevHash { .. });
        assert!(!is_job || !self.selects_work(), "a job for who makes his own: {said:?}");
        match said {
            Said::CustomSuccess { channel, request_id, job } => {
                let asked = self.asked.remove(&(*channel, *request_id));
                let asked = asked.expect("rule P62: a promise for a job that was asked for");
                for id in self.members(*channel) {
                    self.hear_promise(id, *job, &asked);
                }
            }
            Said::Opened { channel, .. } => self.hear_opened(*channel, said),
            Said::Job { channel, .. } => {
                for id in self.members(*channel) {
                    self.hear_job(id, said);
                }
            }
            Said::PrevHash { channel, job, .. } => {
                if Some(*channel) == self.group {
                    assert!(
                        self.group_ahead.contains(job),
                        "job {job} was never sent to the group: SRI's proxy would leave the pool"
                    );
                    self.group_ahead.clear();
                }
                for id in self.members(*channel) {
                    self.hear_prev_hash(id, said);
                }
            }
            Said::Target { channel, target } => {
                let device = self.devices.get_mut(channel).expect("SetTarget to an open channel");
                assert!(*target <= device.limit, "rule P16: above the client's limit");
                assert!(!target.is_zero());
                device.target = *target;
                device.wants_job = true;
            }
            Said::Accepted { channel, count, .. } => {
                assert!(
                    self.devices.contains_key(channel),
                    "rule P13: Success on a closed channel"
                );
                assert!(*count > 0);
            }
            Said::OpenError { .. }
            | Said::UpdateError { .. }
            | Said::Refused { .. }
            | Said::CustomError { .. } => {}
        }
    }

    /// The channels that a message to `channel` reaches.
    fn members(&self, channel: u32) -> Vec<u32> {
        if Some(channel) == self.group {
            assert_eq!(
                self.flags & setup_flags::REQUIRES_STANDARD_JOBS,
                0,
                "rule P11: a group frame to a client that takes standard jobs only"
            );
            return self.devices.keys().copied().collect();
        }
        assert!(self.devices.contains_key(&channel), "rule P13: {channel} is not open");
        vec![channel]
    }

    fn hear_opened(&mut self, channel: u32, said: &Said) {
        let Said::Opened { kind, target, prefix, rollable, group, .. } = said else { return };
        assert_ne!(channel, *group, "rule P7");
        assert!(self.channel_ids_used.insert(channel), "rules P7, P12: id {channel} twice");
        assert!(self.group.is_none_or(|known| known == *group));
        self.group = Some(*group);
        assert!(!target.is_zero());
        self.devices.insert(
            channel,
            Device {
                kind: *kind,
                prefix: prefix.clone(),
                rollable: *rollable,
                target: *target,
                limit: Target::MAX,
                ahead: BTreeMap::new(),
                works: Vec::new(),
                ids_used: HashSet::new(),
                contents: HashSet::new(),
                heard: 0,
                wants_job: false,
                spaces: HashMap::new(),
            },
        );
    }

    fn hear_promise(&mut self, id: u32, job: u32, asked: &Asked) {
        let device = self.devices.get_mut(&id).expect("members are open");
        assert_eq!(device.kind, Kind::Extended, "rule P61");
        assert!(device.ids_used.insert(job), "rule P23: job id {job} twice on channel {id}");
        let tip = (asked.prev_hash, asked.nbits);
        if device.works.last().is_some_and(|work| (work.prev_hash, work.nbits) != tip) {
            device.works.clear();
            device.spaces.clear();
        }
        // The target in force now, or the one that the same work has already.
        let space = (asked.version & !VERSION_ROLLING_MASK, asked.body.clone());
        let target = *device.spaces.entry(space).or_insert(device.target);
        device.works.push(Work {
            job,
            version: asked.version,
            body: asked.body.clone(),
            prev_hash: asked.prev_hash,
            nbits: asked.nbits,
            min_ntime: asked.min_ntime,
            target,
        });
    }

    fn hear_job(&mut self, id: u32, said: &Said) {
        let Said::Job { channel, job, min_ntime, version, body, .. } = said else { return };
        let to_group = Some(*channel) == self.group;
        if to_group && min_ntime.is_none() {
            self.group_ahead.insert(*job);
        }
        let device = self.devices.get_mut(&id).expect("members are open");
        let fits = match (device.kind, body) {
            (Kind::Standard, JobBody::Standard { .. })
            | (Kind::Extended, JobBody::Extended { .. }) => true,
            (Kind::Standard, JobBody::Extended { .. }) => to_group,
            (Kind::Extended, JobBody::Standard { .. }) => false,
        };
        assert!(fits, "rule P22: the wrong kind of job for channel {id}");
        assert!(device.ids_used.insert(*job), "rule P23: job id {job} twice on channel {id}");
        if device.heard < 2 {
            assert_eq!(
                (device.heard, *min_ntime),
                (0, None),
                "rules P20, P21: the first two words"
            );
        }
        device.heard += 1;
        device.wants_job = false;
        let Some(min_ntime) = *min_ntime else {
            device.ahead.insert(*job, Ahead { version: *version, body: body.clone() });
            return;
        };
        assert_ne!(min_ntime, 0, "firmware takes min_ntime 0 for a future job");
        let tip = device.works.last().expect("a job to start at once comes after a tip").clone();
        assert!(
            device.contents.insert((min_ntime, *version, body.clone())),
            "channel {id} was given the same work twice"
        );
        device.works.push(Work {
            job: *job,
            version: *version,
            body: body.clone(),
            min_ntime,
            target: device.target,
            ..tip
        });
    }

    fn hear_prev_hash(&mut self, id: u32, said: &Said) {
        let Said::PrevHash { job, prev_hash, min_ntime, nbits, .. } = said else { return };
        let device = self.devices.get_mut(&id).expect("members are open");
        assert_ne!(device.heard, 0, "rules P20, P21: a job first");
        device.heard += 1;
        let ahead = device.ahead.remove(job).unwrap_or_else(|| {
            panic!("rule P24: channel {id} was never sent job {job} as a future one")
        });
        let is_news = |work: &Work| (work.prev_hash, work.nbits) != (*prev_hash, *nbits);
        assert!(device.works.last().is_none_or(is_news), "a tip that is no news");
        device.ahead.clear();
        device.works.clear();
        device.contents.clear();
        device.contents.insert((*min_ntime, ahead.version, ahead.body.clone()));
        device.works.push(Work {
            job: *job,
            version: ahead.version,
            body: ahead.body,
            prev_hash: *prev_hash,
            nbits: *nbits,
            min_ntime: *min_ntime,
            target: device.target,
        });
    }

    pub fn device(&self, channel: u32) -> &Device {
        &self.devices[&channel]
    }

    /// The channel's newest job.
    pub fn work(&self, channel: u32) -> &Work {
        self.devices[&channel].works.last().expect("an opened channel has work")
    }

    /// The id of a job that waits for its tip.
    pub fn ahead(&self, channel: u32) -> Option<u32> {
        self.devices[&channel].ahead.keys().copied().last()
    }

    /// An unchecked share on `work`; each call takes another nonce.
    pub fn share_on(&mut self, channel: u32, work: &Work) -> Share {
        self.sequence += 1;
        self.nonce += 1;
        let device = &self.devices[&channel];
        Share {
            channel,
            sequence: self.sequence,
            job: work.job,
            nonce: self.nonce,
            ntime: work.min_ntime,
            version: work.version,
            rolled: match device.kind {
                Kind::Standard => None,
                Kind::Extended => Some(vec![0x5a; device.rollable]),
            },
        }
    }

    /// A share of the newest job that meets its target.
    pub fn good_share(&mut self, channel: u32) -> Share {
        let work = self.work(channel).clone();
        self.good_share_on(channel, &work)
    }

    /// A share that meets the target of `work`, by what `work` says the header is.
    pub fn good_share_on(&mut self, channel: u32, work: &Work) -> Share {
        self.grind(channel, work, |hash| work.target.is_met_by(hash))
    }

    /// The first share on `work` whose hash is `wanted`.
    pub fn grind(
        &mut self,
        channel: u32,
        work: &Work,
        wanted: impl Fn(&[u8; 32]) -> bool,
    ) -> Share {
        let mut share = self.share_on(channel, work);
        let mut header = self.header(work, &share);
        while !wanted(&header.hash()) {
            self.nonce += 1;
            header.nonce = self.nonce;
        }
        share.nonce = header.nonce;
        share
    }

    /// The header that a share claims, from the wire alone.
    pub fn header(&self, work: &Work, share: &Share) -> HeaderFields {
        HeaderFields {
            version: share.version,
            prev_hash: work.prev_hash,
            merkle_root: self.merkle_root(work, share),
            ntime: share.ntime,
            nbits: work.nbits,
            nonce: share.nonce,
        }
    }

    pub fn hash(&self, work: &Work, share: &Share) -> [u8; 32] {
        self.header(work, share).hash()
    }

    fn merkle_root(&self, work: &Work, share: &Share) -> [u8; 32] {
        let prefix = &self.devices[&share.channel].prefix;
        let rolled = share.rolled.as_deref().unwrap_or(&[]);
        work.body.merkle_root(&[prefix, rolled].concat())
    }
}
