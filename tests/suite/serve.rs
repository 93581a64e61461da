//! A real `carena serve` in the lab's hub, asked by curl from beside it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::Lab;

/// For whatever happens at once on an idle machine.
const SOON: Duration = Duration::from_secs(90);

pub const URL: &str = "https://[fd00:ca::1]:63002";

pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The service; killed when dropped, like the lab around it.
pub struct Serve<'a> {
    lab: &'a Lab,
    child: Child,
    pub token: String,
    pub fingerprint: String,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// What a problem says.
    pub fn detail(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    pub id: Option<u64>,
    pub kind: String,
    pub data: Value,
}

impl Sent {
    pub fn is(&self, step: &str, state: &str) -> bool {
        self.data["step"] == step && self.data["state"] == state
    }
}

impl<'a> Serve<'a> {
    pub fn start(lab: &'a Lab) -> Self {
        static STARTS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = STARTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = lab.dir().join(format!("serve-{number}.log"));
        let output = std::fs::File::create(&log).unwrap();
        let mut command = lab.carena(&["serve"]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap();
        let said = |what: &str| {
            let text = std::fs::read_to_string(&log).unwrap();
            let whole = text.lines().filter(|_| text.ends_with('\n'));
            whole.filter_map(|line| line.strip_prefix(what)).next_back().map(|said| said.trim().to_owned())
        };
        let token = until("the token", || said("token "));
        let serve = Self { lab, child, token, fingerprint: said("certificate  sha256 ").unwrap() };
        until("/healthz", || (serve.ask("GET", "/healthz", "").status == 200).then_some(()));
        serve
    }

    /// The service itself, behind the programs that brought it into the hub.
    pub fn pid(&self) -> Pid {
        let mut pid = self.child.id();
        let child = |pid: u32| -> Option<u32> {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        };
        while let Some(child) = child(pid) {
            pid = child;
        }
        Pid::from_raw(pid.cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The exit code, once it has ended.
    pub fn wait(&mut self) -> Option<i32> {
        until("the end of serve", || self.child.try_wait().unwrap()).code()
    }

    fn curl(&self, path: &str, config: &str, arguments: &[&str]) -> Child {
        let mut curl = self.lab.hub_command("curl");
        curl.args(["--silent", "--insecure", "--no-buffer", "--max-time", "120", "--config", "-"])
            .args(arguments)
            .arg(format!("{URL}{path}"));
        let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // What is secret travels on its standard input.
        child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
        child
    }

    /// A request; `config` is curl's.
    pub fn ask(&self, method: &str, path: &str, config: &str) -> Answer {
        let curl = self.curl(path, &format!("request = \"{method}\"\n{config}"), &["--include"]);
        let text = String::from_utf8_lossy(&curl.wait_with_output().unwrap().stdout).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// The line of curl's configuration that opens the API.
    pub fn bearer(&self) -> String {
        format!("header = \"Authorization: Bearer {}\"\n", self.token)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &self.bearer())
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        let quoted = body.replace('\\', "\\\\").replace('"', "\\\"");
        let config = format!("header = \"Content-Type: application/json\"\ndata-binary = \"{quoted}\"\n");
        self.ask("POST", path, &(self.bearer() + &config))
    }

    /// A fleet of these nodes, with the operator's password.
    pub fn fleet(&self, nodes: &[usize]) -> Value {
        let password = std::fs::read_to_string(self.lab.dir().join("op.secret")).unwrap();
        let node = |k: &usize| {
            json!({"address": self.lab.node_address(*k), "user": "operator", "password": password.trim(),
                "privilege": "sudo"})
        };
        json!({"baseline": "demo@1", "nodes": nodes.iter().map(node).collect::<Vec<_>>()})
    }

    /// Starts a deployment; its path.
    pub fn deploy(&self, fleet: &Value) -> String {
        let answer = self.post("/api/v1/deployments", &fleet.to_string());
        assert_eq!(answer.status, 201, "{}", answer.body);
        let path = format!("/api/v1/deployments/{}", answer.json()["deployment"].as_str().unwrap());
        assert!(answer.head.contains(&format!("location: {path}\r\n")), "{}", answer.head);
        path
    }

    /// The events that a reader gets, as they come.
    pub fn watch(&self, query: &str, config: &str) -> mpsc::Receiver<Sent> {
        let mut curl = self.curl(&format!("/api/v1/events?{query}"), &(self.bearer() + config), &[]);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut next = Sent { id: None, kind: String::new(), data: Value::Null };
            for line in BufReader::new(curl.stdout.take().unwrap()).lines().map_while(Result::ok) {
                match line.split_once(": ") {
                    Some(("id", id)) => next.id = id.parse().ok(),
                    Some(("event", kind)) => next.kind = kind.to_owned(),
                    Some(("data", data)) => next.data = serde_json::from_str(data).unwrap(),
                    _ if line.is_empty() && next.data != Value::Null => {
                        let sent = Sent { id: None, kind: String::new(), data: Value::Null };
                        if sender.send(std::mem::replace(&mut next, sent)).is_err() {
                            break;
                        }
                    }
                    _ => {}
                }
            }
            let _ = curl.kill();
            let _ = curl.wait();
        });
        receiver
    }

    /// All that is sent about a deployment until its stream ends.
    pub fn all(&self, deployment: &str, config: &str) -> Vec<Sent> {
        self.watch(&format!("deployment={}", id(deployment)), config).iter().collect()
    }

    /// A file of the service's process.
    pub fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.pid()).into()
    }
}

impl Drop for Serve<'_> {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = kill(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// The id in a deployment's path.
pub fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// Waits for an event among those that come.
pub fn wait_for(events: &mpsc::Receiver<Sent>, step: &str, state: &str) -> Sent {
    until(&format!("{step} {state}"), || {
        let sent =
            events.recv_timeout(SOON).unwrap_or_else(|_| panic!("the stream ended before {step} {state}"));
        sent.is(step, state).then_some(sent)
    })
}
