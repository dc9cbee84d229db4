//! What sqlx 0.9.0 does not set on its TCP connections.
//!
//! It leaves Nagle's algorithm on (sqlx issue 4335, fixed after 0.9.0): the last part of a statement waits for the
//! acknowledgement of the part before, which the server's side delays for 40 ms. Settling 512 messages took 52 ms, and
//! takes 7 without.
//!
//! And it sets no limit to the silence of a server that is gone without a word, as after a failover or a cut cable: a
//! claim, a renewal or a settlement would stand for the quarter of an hour that TCP keeps trying.

use std::time::Duration;

/// Longest wait for the server's side to acknowledge what was sent.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);
/// Silence after which the server's side is asked whether it is still there, and between two such questions.
const PROBE: Duration = Duration::from_secs(5);

/// Sets up this process's connections to a server's port. sqlx does not tell which of the process's sockets is a
/// connection's, so they are found by the port at their other end.
#[cfg(unix)]
pub(super) fn tune(port: u16) {
    use std::os::fd::{BorrowedFd, RawFd};

    use socket2::SockRef;

    let Ok(open) = std::fs::read_dir("/dev/fd") else { return };
    let descriptors: Vec<RawFd> =
        open.flatten().filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    for descriptor in descriptors {
        // SAFETY: the number was open a moment ago. Were it closed or given to another file since, the calls below
        // would fail, or find and set on another socket to the same server what is wanted for all of them; none
        // reads, writes, duplicates nor closes it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let socket = SockRef::from(&borrowed);
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        if peer.is_some_and(|peer| peer.port() == port)
            && let Err(error) = set_up(&socket)
        {
            tracing::debug!(%error, "failed to set up a connection; statements may be slow, or stand for long");
        }
    }
}

#[cfg(unix)]
fn set_up(socket: &socket2::Socket) -> std::io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let probes = socket2::TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

/// Sets up connections: not possible here.
#[cfg(not(unix))]
pub(super) fn tune(_port: u16) {}

#[cfg(all(test, unix))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_to_the_port_send_without_delay_and_notice_silence() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let ours = TcpStream::connect(address).unwrap();
        let theirs = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        assert!(!ours.nodelay().unwrap());
        tune(address.port());
        assert!(ours.nodelay().unwrap());
        assert!(socket2::SockRef::from(&ours).keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket2::SockRef::from(&ours).tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
        assert!(!theirs.nodelay().unwrap());
    }
}
