//! What `serve` tells init over the inherited socket: one JSON line a message.
//!
//! `serve` gets the socket's number with `--init-fd N`. It sends `Ready` once it accepts connections, and again
//! whenever its addresses change; `Stopping` when it was asked to end and nodes keep it waiting. Append-only, like every protocol here.

use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// The longest line init reads; a longer one is dropped.
pub const REPORT_BYTES_MAX: usize = 8192;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The console is reachable.
    Ready(Ready),
    /// It was asked to end, and waits.
    Stopping(Stopping),
}

/// What keeps `serve` from ending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// How many nodes are not yet as they were found.
    pub nodes: usize,
    /// The first of them.
    pub first: Vec<String>,
}

/// The most nodes that `Stopping` names, so that it fits a line.
pub const STOPPING_NAMES_MAX: usize = 8;

/// How to reach the console.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// One for each usable address.
    pub urls: Vec<String>,
    /// SHA-256 of the box's certificate, hexadecimal.
    pub fingerprint: String,
    /// What opens the console. Shown on the machine's own consoles and nowhere else.
    pub token: String,
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { urls, fingerprint, token: _ } = self;
        f.debug_struct("Ready").field("urls", urls).field("fingerprint", fingerprint).finish_non_exhaustive()
    }
}

impl Report {
    /// Sends one message, in one write.
    pub fn send(&self, mut socket: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        socket.write_all(&line)
    }

    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_and_reads_back() {
        let ready =
            Ready { urls: vec!["https://[::1]:63002".into()], fingerprint: "ab".into(), token: "t".into() };
        let mut line = Vec::new();
        Report::Ready(ready.clone()).send(&mut line).unwrap();
        assert_eq!(
            line,
            b"{\"ready\":{\"urls\":[\"https://[::1]:63002\"],\"fingerprint\":\"ab\",\"token\":\"t\"}}\n"
        );
        assert_eq!(Report::parse(&line).unwrap(), Report::Ready(ready));
    }

    #[test]
    fn the_token_is_not_in_debug_output() {
        let ready = Ready { urls: vec![], fingerprint: String::new(), token: "planted-secret".into() };
        assert!(!format!("{:?}", Report::Ready(ready)).contains("planted-secret"));
    }
}
