//! The receiver of the alerts: a small HTTP/1.1 server on the loopback that remembers what it was sent.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Header that carries the message's id.
const MESSAGE_ID: &str = "laneway-message-id";

/// Longest body that is taken, in bytes.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// Longest line of a request's head, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// One POST that was answered with success.
#[derive(Debug, Clone)]
struct Alert {
    message_id: String,
    flight_id: Option<i64>,
}

/// What was received.
#[derive(Debug, Default)]
pub struct Received {
    /// Requests accepted.
    pub posts: usize,
    /// Distinct message ids.
    pub ids: usize,
    /// Flights that the alerts are about.
    pub flights: BTreeSet<i64>,
    /// Requests refused, because they were no alert.
    pub refused: usize,
}

impl Received {
    /// Alerts received more than once.
    pub fn duplicates(&self) -> usize {
        self.posts - self.ids
    }
}

#[derive(Default)]
struct Record {
    alerts: Vec<Alert>,
    refused: usize,
}

/// A running receiver. Its threads end with the process.
pub struct Receiver {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
}

impl Receiver {
    /// Listens on a free port of the loopback.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not listen for the alerts")?;
        let address = listener.local_addr()?;
        let record = Arc::new(Mutex::new(Record::default()));
        let shared = record.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let record = shared.clone();
                // A connection that breaks is the sender's to mend: what it was not answered, it sends again.
                thread::spawn(move || drop(serve(&stream, &record)));
            }
        });
        Ok(Self { address, record })
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was received until now.
    pub fn received(&self) -> Received {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        Received {
            posts: record.alerts.len(),
            ids: record.alerts.iter().map(|alert| &alert.message_id).collect::<BTreeSet<_>>().len(),
            flights: record.alerts.iter().filter_map(|alert| alert.flight_id).collect(),
            refused: record.refused,
        }
    }
}

/// Serves one connection until the client closes it.
fn serve(stream: &TcpStream, record: &Mutex<Record>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let alert = request.alert();
        let accepted = alert.is_some();
        {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            match alert {
                Some(alert) => record.alerts.push(alert),
                None => record.refused += 1,
            }
        }
        let status = if accepted { "204 No Content" } else { "400 Bad Request\r\ncontent-length: 0" };
        let mut stream = stream;
        stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes())?;
    }
    Ok(())
}

#[derive(Debug)]
struct Request {
    method: String,
    message_id: Option<String>,
    body: Vec<u8>,
}

impl Request {
    /// The alert in it; `None` if it is none.
    fn alert(self) -> Option<Alert> {
        if self.method != "POST" {
            return None;
        }
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        Some(Alert { message_id: self.message_id?, flight_id: body["flight_id"].as_i64() })
    }
}

/// Reads a request. `None` if the client closed the connection instead.
fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let Some(first) = read_line(reader)? else { return Ok(None) };
    let method = first.split(' ').next().unwrap_or_default().to_owned();
    let (mut length, mut chunked, mut message_id) = (0, false, None);
    loop {
        let line = read_line(reader)?.context("the head of a request is cut off")?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').context("a header has no colon")?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse()?,
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            MESSAGE_ID => message_id = Some(value.to_owned()),
            _ => {}
        }
    }
    let body = if chunked { read_chunks(reader)? } else { read_exactly(reader, length)? };
    Ok(Some(Request { method, message_id, body }))
}

fn read_chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = read_line(reader)?.context("a body is cut off")?;
        let size = u64::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        if size == 0 {
            // Trailers, which end with an empty line.
            while !read_line(reader)?.context("a body is cut off")?.is_empty() {}
            return Ok(body);
        }
        body.extend(read_exactly(reader, size)?);
        if body.len() as u64 > BODY_BYTES_MAX {
            bail!("a body is too large");
        }
        read_line(reader)?;
    }
}

fn read_exactly(reader: &mut impl BufRead, length: u64) -> Result<Vec<u8>> {
    if length > BODY_BYTES_MAX {
        bail!("a body of {length} bytes is too large");
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if (body.len() as u64) < length {
        bail!("a body is cut off");
    }
    Ok(body)
}

/// Reads a line without its end. `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    if reader.take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    match line.strip_suffix('\n') {
        Some(text) => Ok(Some(text.trim_end_matches('\r').to_owned())),
        None => bail!("a line is cut off or too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(receiver: &Receiver, request: &str) -> String {
        let mut stream = TcpStream::connect(receiver.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn ids_and_duplicates_are_counted_on_one_connection() {
        let receiver = Receiver::start().unwrap();
        let alert = |id: &str, flight: u32| {
            let body = format!("{{\"flight_id\":{flight}}}");
            format!(
                "POST /alerts HTTP/1.1\r\nLaneway-Message-Id: {id}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let answer = exchange(&receiver, &[alert("a", 1), alert("b", 2), alert("a", 1)].concat());
        assert_eq!(answer.matches("204").count(), 3);
        let received = receiver.received();
        assert_eq!((received.posts, received.ids, received.duplicates()), (3, 2, 1));
        assert_eq!(received.flights, BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_chunked_body_is_read() {
        let receiver = Receiver::start().unwrap();
        let request = "POST / HTTP/1.1\r\nlaneway-message-id: a\r\ntransfer-encoding: chunked\r\n\r\n\
            8\r\n{\"flight\r\n7\r\n_id\":7}\r\n0\r\n\r\n";
        assert!(exchange(&receiver, request).contains("204"));
        assert_eq!(receiver.received().flights, BTreeSet::from([7]));
    }

    #[test]
    fn what_is_no_alert_is_refused() {
        let receiver = Receiver::start().unwrap();
        assert!(exchange(&receiver, "GET / HTTP/1.1\r\n\r\n").contains("400"));
        assert!(exchange(&receiver, "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}").contains("400"), "no id");
        let received = receiver.received();
        assert_eq!((received.posts, received.refused), (0, 2));
    }
}
