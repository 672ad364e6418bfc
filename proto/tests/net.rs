//! The link on a real socket of the loopback: handshake, cancelled waits, the last message.

#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod link;

use std::future::Future;
use std::time::Duration;

use link::{NOW, authority, ephemeral, identity};
use proto::connection::Violation;
use proto::message::{CloseChannel, Message, Received, Reconnect};
use proto::net::{Link, LinkError};
use proto::noise::{AuthoritySecretKey, CertificateError, NoiseError};
use proto::wire::Str0255;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Duration::from_secs(20);
    runtime.block_on(async { tokio::time::timeout(deadline, test).await.expect("it hangs") })
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

async fn links() -> (Link, Link) {
    let (client, server) = sockets().await;
    let (identity, authority) = (identity(), authority().public());
    let (client, server) = tokio::join!(
        Link::connect(client, Some(&authority), ephemeral(3), NOW),
        Link::accept(server, &identity, ephemeral(5)),
    );
    (client.unwrap(), server.unwrap())
}

fn reconnect(host: &[u8]) -> Message<'_> {
    Reconnect { new_host: Str0255::new(host).unwrap(), new_port: 1 }.into()
}

/// The next message's name, and the bytes of its frame.
async fn next(link: &mut Link) -> Option<(&'static str, usize)> {
    loop {
        if let Some(frame) = link.connection().inbound.next_frame().unwrap() {
            let Received::Known(message, _) = frame.message().unwrap() else { panic!("unknown") };
            return Some((message.name(), frame.payload.len()));
        }
        if link.fill().await.unwrap() == 0 {
            return None;
        }
    }
}

#[test]
fn messages_cross_a_socket_both_ways() {
    run(async {
        let (mut client, mut server) = links().await;
        for _ in 0..2 {
            client.connection().outbound.send(&reconnect(b"elsewhere"));
            client.connection().outbound.send(&reconnect(b""));
            client.flush().await.unwrap();
            assert_eq!(next(&mut server).await, Some(("Reconnect", 12)));
            assert_eq!(next(&mut server).await, Some(("Reconnect", 3)));
            std::mem::swap(&mut client, &mut server);
        }
        drop(client);
        assert_eq!(next(&mut server).await, None, "the end of the stream is the end");
    });
}

#[test]
fn a_client_refuses_a_server_that_its_key_did_not_certify_g3() {
    run(async {
        let (client, server) = sockets().await;
        let (identity, other) = (identity(), AuthoritySecretKey::from_secret([1; 32]).unwrap());
        let pinned = other.public();
        let (client, _server) = tokio::join!(
            Link::connect(client, Some(&pinned), ephemeral(3), NOW),
            Link::accept(server, &identity, ephemeral(5)),
        );
        let refused = Violation::Noise(NoiseError::Certificate(CertificateError::Signature));
        assert!(matches!(client, Err(LinkError::Violation(violation)) if violation == refused));
    });
}

#[test]
fn a_plain_peer_on_the_encrypted_port_gets_nowhere_g1() {
    run(async {
        let (mut client, server) = sockets().await;
        // A SetupConnection in clear, long enough to be taken for act 1.
        client.write_all(&[0; 128]).await.unwrap();
        let identity = identity();
        let mut server = Link::accept(server, &identity, ephemeral(5)).await.unwrap();
        assert_eq!(server.fill().await.unwrap(), 64, "bytes behind act 1 are kept");
        let refused = server.connection().inbound.next_frame();
        assert_eq!(refused, Err(Violation::Noise(NoiseError::Decrypt)));
    });
}

#[test]
fn a_stream_that_ends_inside_a_handshake_is_an_error() {
    run(async {
        let (mut client, server) = sockets().await;
        client.write_all(&[0; 63]).await.unwrap();
        drop(client);
        let ended = Link::accept(server, &identity(), ephemeral(5)).await;
        assert!(matches!(ended, Err(LinkError::Io(_))));
    });
}

#[test]
fn a_flush_that_is_dropped_half_way_loses_and_repeats_nothing() {
    run(async {
        let (mut client, mut server) = links().await;
        client.connection().inbound.set_limit(1 << 20);
        // More than the kernel's buffers take while nobody reads.
        let count = 60_000;
        let host = [b'x'; 255];
        for _ in 0..count {
            server.connection().outbound.send(&reconnect(&host));
        }
        let all = server.connection().outbound.pending().len();
        let mut cancelled = 0;
        let mut got = 0;
        while got < count {
            let unwritten = !server.connection().outbound.pending().is_empty();
            tokio::select! {
                flushed = server.flush(), if unwritten => flushed.unwrap(),
                filled = client.fill() => {
                    assert_ne!(filled.unwrap(), 0);
                    cancelled += usize::from(!server.connection().outbound.pending().is_empty());
                }
            }
            while client.connection().inbound.next_frame().unwrap().is_some() {
                got += 1;
            }
        }
        assert!(cancelled > 10, "{all} bytes went at once, nothing was tested");
        assert_eq!(got, count);
        assert!(server.connection().outbound.pending().is_empty());
    });
}

#[test]
fn the_last_message_is_read_though_the_peer_was_still_talking_s8() {
    run(async {
        let (mut client, mut server) = links().await;
        // Unread bytes on the server's side: a plain close would reset the link.
        for _ in 0..100 {
            client.connection().outbound.send(&reconnect(b"chatter"));
        }
        client.flush().await.unwrap();
        let reason_code = Str0255::text("goodbye");
        server.connection().outbound.send(&CloseChannel { channel_id: 1, reason_code }.into());
        let (closed, ()) = tokio::join!(server.close_after_flush(), async {
            assert_eq!(next(&mut client).await, Some(("CloseChannel", 12)));
            assert_eq!(next(&mut client).await, None, "then the end");
            drop(client);
        });
        closed.unwrap();
    });
}

#[test]
fn a_peer_that_never_closes_is_waited_for_no_longer_than_the_deadline() {
    run(async {
        let (client, server) = links().await;
        let deadline = Duration::from_millis(50);
        assert!(tokio::time::timeout(deadline, server.close_after_flush()).await.is_err());
        drop(client);
    });
}

#[test]
fn an_eager_client_may_send_its_first_frame_in_pieces() {
    run(async {
        let (client, server) = sockets().await;
        let (mut reader, mut writer) = client.into_split();
        let identity = identity();
        let (initiator, act_one) = proto::noise::Initiator::new(ephemeral(3));
        writer.write_all(&act_one).await.unwrap();
        let mut server = Link::accept(server, &identity, ephemeral(5)).await.unwrap();
        let mut act_two = [0; 234];
        reader.read_exact(&mut act_two).await.unwrap();
        let transport = initiator.finish(&act_two, Some(&identity.authority), NOW).unwrap();
        let mut connection = proto::connection::Connection::new(transport);
        connection.outbound.send(&reconnect(b"host"));
        for byte in connection.outbound.pending() {
            assert_eq!(server.connection().inbound.next_frame(), Ok(None));
            writer.write_all(&[*byte]).await.unwrap();
            assert_eq!(server.fill().await.unwrap(), 1);
        }
        assert!(server.connection().inbound.next_frame().unwrap().is_some());
    });
}
