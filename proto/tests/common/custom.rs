//! A client that makes its own jobs, and the pool that judges them: SetCustomMiningJob of a template, the
//! request that comes out of the server, the promise that goes back in.

use std::sync::Arc;

use proto::job::{ActiveTemplate, Job};
use proto::message::SetCustomMiningJob;
use proto::mining::server::{CustomAccepted, Effect, Input};
use proto::mining::{CustomJob, CustomJobRequest, CustomRefusal, CustomRefused, DeclaredId, Worth};
use proto::template::{PrevHash, Template};
use proto::wire::{B064K, B0255, Seq0255U256};

use super::client::{Asked, Work};
use super::{JobBody, Link, Said};

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Custom {
    pub token: Vec<u8>,
    pub version: u32,
    pub script: Vec<u8>,
    pub sequence: u32,
    pub outputs: Vec<u8>,
    pub locktime: u32,
    pub path: Vec<[u8; 32]>,
    pub tip: PrevHash,
    /// Of which it is made; what it changes is changed above.
    pub template: Arc<Template>,
}

impl Custom {
    /// The pool's own job, asked for as the client's.
    pub fn of(active: &ActiveTemplate) -> Self {
        let parts = active.job.coinbase();
        let (sequence, rest) = parts.suffix.split_first_chunk().unwrap();
        let (outputs, locktime) = rest.split_last_chunk().unwrap();
        Self {
            token: vec![7; 16],
            version: active.job.version(),
            script: parts.prefix[42..].to_vec(),
            sequence: u32::from_le_bytes(*sequence),
            outputs: outputs.to_vec(),
            locktime: u32::from_le_bytes(*locktime),
            path: active.job.merkle_path().to_vec(),
            tip: active.tip,
            template: Arc::clone(active.job.template()),
        }
    }

    /// Another header space.
    pub fn numbered(&self, sequence: u32) -> Self {
        Self { sequence, ..self.clone() }
    }

    fn body(&self) -> JobBody {
        let script_sig = self.script.len() + 24;
        let version = self.template.coinbase_tx_version.to_le_bytes();
        let (sequence, locktime) = (self.sequence.to_le_bytes(), self.locktime.to_le_bytes());
        JobBody::Extended {
            prefix: [&version[..], &[1], &[0; 32], &[0xff; 4], &[script_sig as u8], &self.script]
                .concat(),
            suffix: [&sequence[..], &self.outputs, &locktime].concat(),
            path: self.path.clone(),
            rolling: true,
        }
    }
}

/// Pays a part of a million for a declaration of this number.
pub fn worth(number: u8, factor_ppm: u32) -> Worth {
    Worth { declared: Some(DeclaredId([number; 16])), factor_ppm }
}

impl Link {
    /// Asks for a job to be promised.
    pub fn ask(&mut self, channel: u32, request_id: u32, custom: &Custom) -> Vec<Said> {
        let asked = Asked {
            version: custom.version,
            body: custom.body(),
            prev_hash: custom.tip.hash,
            nbits: custom.tip.nbits,
            min_ntime: custom.tip.min_ntime,
        };
        self.client.ask(channel, request_id, asked);
        self.say(SetCustomMiningJob {
            channel_id: channel,
            request_id,
            mining_job_token: B0255::new(&custom.token).unwrap(),
            version: custom.version,
            prev_hash: custom.tip.hash,
            min_ntime: custom.tip.min_ntime,
            nbits: custom.tip.nbits,
            coinbase_tx_version: custom.template.coinbase_tx_version,
            coinbase_prefix: B0255::new(&custom.script).unwrap(),
            coinbase_tx_input_sequence: custom.sequence,
            coinbase_tx_outputs: B064K::new(&custom.outputs).unwrap(),
            coinbase_tx_locktime: custom.locktime,
            merkle_path: Seq0255U256::new(&custom.path).unwrap(),
        })
    }

    /// The requests that the pool is to judge.
    pub fn requests(&mut self) -> Vec<CustomJobRequest> {
        let is = |effect: &mut Effect| matches!(effect, Effect::CustomJob(_));
        let taken = self.effects.extract_if(.., is);
        let request = |effect| match effect {
            Effect::CustomJob(request) => *request,
            other => panic!("{other:?}"),
        };
        taken.map(request).collect()
    }

    pub fn verdict(
        &mut self,
        request: &CustomJobRequest,
        verdict: Result<Box<CustomJob>, (CustomRefusal, String)>,
    ) -> Vec<Said> {
        let CustomJobRequest { channel, request_id, .. } = *request;
        self.handle(Input::CustomJob { channel, request_id, verdict }).unwrap()
    }

    /// The pool finds it good.
    pub fn promise(
        &mut self,
        request: &CustomJobRequest,
        template: &Template,
        worth: Worth,
    ) -> Vec<Said> {
        let template = Template {
            version: request.version,
            coinbase_sequence: request.coinbase_sequence,
            merkle_path: request.merkle_path.clone(),
            ..template.clone()
        };
        let job = Job::from_parts(Arc::new(template), request.coinbase());
        let tip = PrevHash {
            hash: request.prev_hash,
            nbits: request.nbits,
            min_ntime: request.min_ntime,
        };
        self.verdict(request, Ok(Box::new(CustomJob { job, tip, worth })))
    }

    /// Asked for, promised, and known to the client.
    pub fn custom(&mut self, channel: u32, custom: &Custom, worth: Worth) -> Work {
        assert!(self.ask(channel, 1, custom).is_empty());
        let [request] = &self.requests()[..] else { panic!("one request is one question") };
        let said = self.promise(request, &custom.template, worth);
        assert!(matches!(said[..], [Said::CustomSuccess { request_id: 1, .. }]), "{said:?}");
        let member = if channel == 1 {
            *self.client.devices.keys().next().expect("a group of some")
        } else {
            channel
        };
        self.client.work(member).clone()
    }

    pub fn customs_accepted(&mut self) -> Vec<CustomAccepted> {
        let is = |effect: &mut Effect| matches!(effect, Effect::CustomAccepted(_));
        let taken = self.effects.extract_if(.., is);
        let accepted = |effect| match effect {
            Effect::CustomAccepted(accepted) => *accepted,
            other => panic!("{other:?}"),
        };
        taken.map(accepted).collect()
    }

    pub fn customs_refused(&mut self) -> Vec<CustomRefused> {
        let is = |effect: &mut Effect| matches!(effect, Effect::CustomRefused(_));
        let taken = self.effects.extract_if(.., is);
        let refused = |effect| match effect {
            Effect::CustomRefused(refused) => *refused,
            other => panic!("{other:?}"),
        };
        taken.map(refused).collect()
    }
}
