//! One link to a pool: dialled, shaken hands on with the pool's key pinned, then bytes both ways. Spawned by
//! `run.rs` for each link that the declarator asks for; what is said on it is the declarator's business.
//!
//! Must never go on with a peer that is not certified by the key in the owner's settings.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use proto::connection::Connection;
use proto::limits::{DECLARE_SERVER_PAYLOAD_MAX, MINING_SERVER_PAYLOAD_MAX};
use proto::message::FrameHeader;
use proto::net::{Link, LinkError};
use proto::noise::AuthorityPublicKey;
use rustix::net::sockopt;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clock::unix_s;
use crate::declarator::{End, LinkId};
use crate::keys::ephemeral;
use crate::limits::{
    LINK_ADDRESSES_MAX, LINK_ASKED_EVERY, LINK_ASKED_TIMES, LINK_CONNECT_MAX, LINK_FLUSH_MAX,
    LINK_NEXT_ADDRESS, LINK_QUIET, LINK_TAKEN_WITHIN_MS, LINK_WRITE_STALL,
};

/// What a link tells the declarator's task.
#[derive(Debug)]
pub(crate) enum FromLink {
    /// Hands are shaken.
    Up(LinkId),
    /// A frame, in clear.
    Frame(LinkId, FrameHeader, Vec<u8>),
    /// It could not be made or has ended, with why.
    Down(LinkId, String),
    /// The pool does not take what it is sent.
    Stalled(LinkId),
}

/// Where a link leads.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) link: LinkId,
    /// `host:port`.
    pub(crate) address: String,
    /// The pool's.
    pub(crate) authority: AuthorityPublicKey,
    /// The address is not of the owner's settings: the pool asked for it.
    pub(crate) is_asked_for: bool,
}

/// Until the link ends or `frames` does, which is how it is hung up.
pub(crate) async fn run(
    goal: Goal,
    mut frames: mpsc::Receiver<Vec<u8>>,
    core: mpsc::Sender<FromLink>,
) {
    let id = goal.link;
    let said = match serve(&goal, &mut frames, &core).await {
        Ok(()) => return,
        Err(Ended::Stalled) => FromLink::Stalled(id),
        Err(Ended::Down(why)) => FromLink::Down(id, why),
    };
    // The declarator's task may have ended.
    let _ = core.send(said).await;
}

enum Ended {
    Down(String),
    Stalled,
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Self {
        Self::Down(format!("the connection was lost: {error}"))
    }
}

async fn serve(
    goal: &Goal,
    frames: &mut mpsc::Receiver<Vec<u8>>,
    core: &mpsc::Sender<FromLink>,
) -> Result<(), Ended> {
    let mut link = tokio::select! {
        link = connect(goal) => link.map_err(Ended::Down)?,
        // Hung up before it was up. Nothing is said on a link that is not.
        _ = frames.recv() => return Ok(()),
    };
    link.connection().inbound.set_limit(match goal.link.end {
        End::Mining => MINING_SERVER_PAYLOAD_MAX,
        End::Declare => DECLARE_SERVER_PAYLOAD_MAX,
    });
    let hung_up = |_| Ended::Down("the program is stopping".to_owned());
    core.send(FromLink::Up(goal.link)).await.map_err(hung_up)?;
    loop {
        let Connection { inbound, .. } = link.connection();
        if let Some(frame) = inbound.next_frame().map_err(LinkError::from)? {
            let said = FromLink::Frame(goal.link, frame.header, frame.payload.to_vec());
            core.send(said).await.map_err(hung_up)?;
            continue;
        }
        tokio::select! {
            biased;
            said = frames.recv() => {
                let Some(said) = said else { return Ok(()) };
                link.connection().outbound.send_frames(&said);
                while let Ok(more) = frames.try_recv() {
                    link.connection().outbound.send_frames(&more);
                }
                flush(&mut link).await?;
            }
            filled = link.fill() => {
                if filled? == 0 {
                    return Err(Ended::Down("the pool closed the connection".to_owned()));
                }
            }
        }
    }
}

async fn connect(goal: &Goal) -> Result<Link, String> {
    let Goal { address, authority, .. } = goal;
    let within = |what: &'static str, limit: Duration| {
        move |_| format!("no {what} within {} s from {address}", limit.as_secs())
    };
    let stream = timeout(LINK_CONNECT_MAX, dial(goal)).await;
    let stream = stream.map_err(within("connection", LINK_CONNECT_MAX))?;
    let stream = stream.and_then(|stream| watch_over(&stream).map(|()| stream));
    let stream = stream.map_err(|error| format!("no connection to {address}: {error}"))?;
    let ephemeral = ephemeral().map_err(|error| error.to_string())?;
    let shaken = Link::connect(stream, Some(authority), ephemeral, unix_s());
    let shaken = timeout(LINK_CONNECT_MAX, shaken).await;
    let shaken = shaken.map_err(within("handshake", LINK_CONNECT_MAX))?;
    shaken.map_err(|error| match error {
        LinkError::Violation(why) => format!(
            "the handshake with {address} failed: {why}. Is its authority_key the one that the pool shows?"
        ),
        LinkError::Io(error) => format!("the handshake with {address} failed: {error}"),
    })
}

async fn dial(goal: &Goal) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = lookup_host(&goal.address).await?.collect();
    if !goal.is_asked_for {
        return first_of(found).await;
    }
    // Nobody outside has a say in what is dialled at home.
    let not_followed =
        || io::Error::other("the pool asks for an address in your own network: not followed");
    if found.iter().any(|address| is_at_home(address.ip())) {
        return Err(not_followed());
    }
    let stream = first_of(found).await?;
    if is_next_door(stream.local_addr()?.ip(), stream.peer_addr()?.ip()) {
        return Err(not_followed());
    }
    Ok(stream)
}

/// A connection to the first of these that answers, each begun a moment after the one before (RFC 8305):
/// where one family of addresses is broken, the other may not be.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = addresses.into_iter().take(LINK_ADDRESSES_MAX);
    let mut tries = JoinSet::new();
    let mut failed = io::Error::other("its name has no address");
    loop {
        if let Some(address) = left.next() {
            tries.spawn(TcpStream::connect(address));
        }
        let patience = if left.len() > 0 { LINK_NEXT_ADDRESS } else { LINK_CONNECT_MAX };
        match timeout(patience, tries.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => failed = error,
            Ok(Some(Err(error))) => failed = io::Error::other(error),
            Ok(None) => return Err(failed),
            Err(_) => {}
        }
    }
}

/// Has the system end a connection by which nothing comes back any more.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, LINK_QUIET)?;
    sockopt::set_tcp_keepintvl(stream, LINK_ASKED_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, LINK_ASKED_TIMES)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, LINK_TAKEN_WITHIN_MS)?;
    Ok(())
}

fn is_at_home(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_at_home_v4(v4),
        IpAddr::V6(v6) => {
            let [first, second, third, .., high, low] = v6.segments();
            let within = |high: u16, low: u16| {
                is_at_home_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
            };
            v6.is_unique_local()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                // Site-local once, NAT64 and 6to4.
                || first & 0xffc0 == 0xfec0
                || ((first, second) == (0x64, 0xff9b) && within(high, low))
                || (first == 0x2002 && within(second, third))
        }
    }
}

fn is_at_home_v4(v4: Ipv4Addr) -> bool {
    let [first, second, ..] = v4.octets();
    // What carriers and overlay networks share among many houses.
    let is_shared = first == 100 && second & 0xc0 == 64;
    v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || is_shared
}

/// A house's addresses of the internet's own have the first half in common.
fn is_next_door(ours: IpAddr, theirs: IpAddr) -> bool {
    match (ours, theirs) {
        (IpAddr::V6(ours), IpAddr::V6(theirs)) => ours.segments()[..4] == theirs.segments()[..4],
        (ours, theirs) => ours == theirs,
    }
}

async fn flush(link: &mut Link) -> Result<(), Ended> {
    let written = async {
        while timeout(LINK_WRITE_STALL, link.write_some()).await.map_err(|_| Ended::Stalled)?? {}
        Ok(())
    };
    timeout(LINK_FLUSH_MAX, written).await.map_err(|_| Ended::Stalled)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_at_home_is_known_in_each_of_its_forms() {
        let home = [
            "192.168.1.1",
            "10.9.8.7",
            "172.16.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00::1",
            "::",
            "::ffff:192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "fec0::1",
            "64:ff9b::c0a8:101",
            "2002:c0a8:101::1",
        ];
        for address in home {
            assert!(is_at_home(address.parse().unwrap()), "{address}");
        }
        let elsewhere = [
            "1.1.1.1",
            "172.32.0.1",
            "2001:db8::1",
            "::ffff:1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ];
        for address in elsewhere {
            assert!(!is_at_home(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn of_the_same_house_is_who_has_the_same_half_of_an_address() {
        let is =
            |ours: &str, theirs: &str| is_next_door(ours.parse().unwrap(), theirs.parse().unwrap());
        assert!(is("2001:db8:1:2::3", "2001:db8:1:2:ffff::4"));
        assert!(!is("2001:db8:1:2::3", "2001:db8:1:3::3"));
        assert!(is("1.2.3.4", "1.2.3.4") && !is("1.2.3.4", "1.2.3.5"));
    }

    #[tokio::test]
    async fn a_way_by_which_nothing_comes_back_is_known_within_a_quarter_of_a_minute() {
        let pool = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(pool.local_addr().unwrap()).await.unwrap();
        watch_over(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        let (quiet, every) =
            (sockopt::tcp_keepidle(&stream).unwrap(), sockopt::tcp_keepintvl(&stream).unwrap());
        let known_after = quiet + every * sockopt::tcp_keepcnt(&stream).unwrap();
        assert!(known_after <= Duration::from_secs(15), "{known_after:?}");
        assert!(sockopt::tcp_user_timeout(&stream).unwrap() <= 15_000);
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_keeps_nobody_from_the_next() {
        // Takes no more connections than wait already, so that one more hears nothing at all.
        let deaf = tokio::net::TcpSocket::new_v4().unwrap();
        deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let deaf = deaf.listen(1).unwrap();
        let mut waiting = Vec::new();
        let within = Duration::from_millis(300);
        while let Ok(Ok(one)) =
            timeout(within, TcpStream::connect(deaf.local_addr().unwrap())).await
        {
            waiting.push(one);
        }
        let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = good.local_addr().unwrap();
        let addresses = vec![deaf.local_addr().unwrap(), good];
        assert_eq!(first_of(addresses).await.unwrap().peer_addr().unwrap(), good);

        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(first_of(vec![refused, good]).await.unwrap().peer_addr().unwrap(), good);
        let error = first_of(vec![refused, refused]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(first_of(Vec::new()).await.is_err());
    }
}
