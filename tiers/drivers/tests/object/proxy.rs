//! A TCP proxy between a driver and an S3 server, which breaks what it is told to break.
//!
//! One request a connection: the head is read, a fault is looked for, and what is not broken goes to the server as it came (signatures
//! cover `Host` and the body, which stay) and back. std threads; a connection that is open when the test ends ends with it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is reset before the request arrives.
    Reset,
    /// Nothing is answered for so long; then the connection is closed.
    Stall(Duration),
    /// An answer of this status and `<Code>`, without asking the server.
    Answer(u16, &'static str),
    /// Half of the server's answer, then the end.
    Truncate,
    /// The server's answer, twice.
    Duplicate,
    /// The server does it, and its answer is lost.
    LoseAnswer,
    /// One byte of the answer's body is another.
    Flip,
}

struct Planned {
    matches: &'static str,
    fault: Fault,
    left: usize,
}

/// See the module's description.
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Mutex<Vec<Planned>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let proxy = Self {
            address: listener.local_addr().expect("bound"),
            plan: Arc::default(),
            seen: Arc::default(),
        };
        let (plan, seen) = (Arc::clone(&proxy.plan), Arc::clone(&proxy.seen));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (plan, seen) = (Arc::clone(&plan), Arc::clone(&seen));
                // An error ends the connection, as it would anywhere.
                std::thread::spawn(move || pass(client, upstream, &plan, &seen).ok());
            }
        });
        proxy
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks the next `times` requests whose first line contains `matches`.
    pub fn breaks(&self, matches: &'static str, fault: Fault, times: usize) {
        self.plan.lock().expect("no panic").push(Planned { matches, fault, left: times });
    }

    /// How many faults have not happened yet.
    pub fn left(&self) -> usize {
        self.plan.lock().expect("no panic").iter().map(|planned| planned.left).sum()
    }

    /// Nothing more is broken.
    pub fn heal(&self) {
        self.plan.lock().expect("no panic").clear();
    }

    /// How many requests came whose first line contains this.
    pub fn count(&self, part: &str) -> usize {
        self.seen.lock().expect("no panic").iter().filter(|line| line.contains(part)).count()
    }
}

fn pass(
    mut client: TcpStream,
    upstream: SocketAddr,
    plan: &Mutex<Vec<Planned>>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    let length = text
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0usize);
    seen.lock().expect("no panic").push(line.clone());
    let fault = plan.lock().expect("no panic").iter_mut().find_map(|planned| {
        (planned.left > 0 && line.contains(planned.matches)).then(|| {
            planned.left -= 1;
            planned.fault.clone()
        })
    });
    match &fault {
        // What was not read makes the kernel answer with a reset.
        Some(Fault::Reset) => return Ok(()),
        Some(Fault::Stall(time)) => {
            std::thread::sleep(*time);
            return Ok(());
        }
        _ => {}
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    if let Some(Fault::Answer(status, code)) = fault {
        let text = format!("<Error><Code>{code}</Code><Message>as the test says</Message></Error>");
        let length = text.len();
        write!(
            client,
            "HTTP/1.1 {status} No\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        )?;
        return client.shutdown(Shutdown::Write);
    }
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(&head[..head.len() - 2])?;
    server.write_all(b"Connection: close\r\n\r\n")?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    match fault {
        Some(Fault::LoseAnswer) => return Ok(()),
        Some(Fault::Truncate) => client.write_all(&answer[..answer.len() / 2])?,
        Some(Fault::Duplicate) => {
            client.write_all(&answer)?;
            client.write_all(&answer)?;
        }
        Some(Fault::Flip) => {
            let last = answer.len() - 1;
            answer[last] ^= 1;
            client.write_all(&answer)?;
        }
        _ => client.write_all(&answer)?,
    }
    client.shutdown(Shutdown::Write)
}
