//! Works around sqlx 0.9.0, which leaves Nagle's algorithm on for TCP (sqlx issue 4335, fixed after 0.9.0).
//!
//! With it, the last part of a statement waits for the acknowledgement of the part before, which the server's side
//! delays for 40 ms: settling 512 messages took 52 ms, and takes 7 without. Remove this file with the release that
//! has the fix.

/// Sends without delay on this process's connections to a server's port. sqlx does not tell which of the process's
/// sockets is a connection's, so they are found by the port at their other end.
#[cfg(unix)]
pub(super) fn disable_delay(port: u16) {
    use std::os::fd::{BorrowedFd, RawFd};

    use socket2::SockRef;

    let Ok(open) = std::fs::read_dir("/dev/fd") else { return };
    let descriptors: Vec<RawFd> =
        open.flatten().filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    for descriptor in descriptors {
        // SAFETY: the number was open a moment ago. Were it closed or given to another file since, the two calls
        // below would fail, or find and set on another socket to the same server what is wanted for all of them;
        // neither reads, writes, duplicates nor closes it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let socket = SockRef::from(&borrowed);
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        if peer.is_some_and(|peer| peer.port() == port)
            && let Err(error) = socket.set_tcp_nodelay(true)
        {
            tracing::debug!(%error, "failed to send without delay; statements may be slow");
        }
    }
}

/// Sends without delay on this process's connections to a server's port: not possible here.
#[cfg(not(unix))]
pub(super) fn disable_delay(_port: u16) {}

#[cfg(all(test, unix))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn connections_to_the_port_send_without_delay() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let ours = TcpStream::connect(address).unwrap();
        let theirs = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        assert!(!ours.nodelay().unwrap());
        super::disable_delay(address.port());
        assert!(ours.nodelay().unwrap());
        assert!(!theirs.nodelay().unwrap());
    }
}
