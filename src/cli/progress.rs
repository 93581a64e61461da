//! What a person sees: a bar per node while it runs, a table at the end; or one JSON object a line.
//!
//! The only place of the command line that writes to the terminal, and hears from it. A closed pipe is not an error.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::deploy::event::{Event, NodeResult, State, Step, Summary};
use crate::firmware::outcome::Outcome;
use crate::fleet::Fleet;
use crate::secret::Secret;
use crate::wire::inventory::Inventory;

/// Most bars at once: a terminal's height. Other nodes report by line.
const BARS_MAX: usize = 20;

/// A line on standard output.
pub fn say(line: &str) {
    // Flushed at each line: a reader on a pipe must see an event before the act it announces.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A line on standard error.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shows events as they come.
pub struct Progress {
    json: bool,
    bars: Option<MultiProgress>,
    nodes: HashMap<String, ProgressBar>,
}

impl Progress {
    /// Bars on a terminal, plain lines elsewhere, JSON if asked.
    pub fn new(json: bool) -> Self {
        let bars = (!json && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { json, bars, nodes: HashMap::new() }
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        if self.json {
            say(&serde_json::to_string(event).unwrap_or_default());
            return;
        }
        let Some(bars) = &self.bars else {
            if event.state != State::Progress && event.state != State::Started {
                complain(&line(event));
            }
            return;
        };
        if event.state == State::Failed {
            let _ = bars.println(line(event));
        }
        if self.nodes.len() >= BARS_MAX && !self.nodes.contains_key(&event.node) {
            return;
        }
        let bar = self.nodes.entry(event.node.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(1));
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:32!} {msg:20!} {wide_bar} {bytes:>10} {spinner}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(event.node.clone());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        if let Some(bytes) = event.bytes {
            bar.set_length(bytes.total);
            bar.set_position(bytes.done);
        }
        bar.set_message(event.step.name());
        if event.step == Step::Result {
            bar.finish_with_message(if event.state == State::Done { "done" } else { "failed" });
            self.nodes.remove(&event.node);
        }
    }

    /// Leaves the terminal to what follows.
    pub fn finish(&mut self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}

fn line(event: &Event) -> String {
    let state = match event.state {
        State::Started => "started",
        State::Progress => "…",
        State::Retry => "again",
        State::Done => "done",
        State::Failed => "FAILED",
        State::Undone => "undone",
    };
    match &event.message {
        Some(message) if event.state == State::Failed => format!("{} {state}: {message}", event.step.name()),
        Some(message) => format!("{} {} {state}: {message}", event.node, event.step.name()),
        None => format!("{} {} {state}", event.node, event.step.name()),
    }
}

/// The closing table.
pub fn table(summary: &Summary) {
    say(&format!("\ndeployment {}, baseline {}", summary.deployment, summary.baseline));
    for (address, node) in &summary.nodes {
        let result = match node.result {
            NodeResult::Running => "running",
            NodeResult::Done => "done",
            NodeResult::Failed => "FAILED",
            NodeResult::Cancelled => "cancelled",
            NodeResult::Skipped => "skipped",
        };
        say(&format!("{address:<32} {result:<10} {}", node.path.as_deref().unwrap_or("-")));
        if let Some(error) = &node.error {
            say(&format!("    {error}"));
        }
        for component in &node.components {
            let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".into());
            let (from, to) = (version(&component.from), version(&component.to));
            say(&format!("    {:<28} {from} -> {to}  {}", component.id, words(&component.outcome)));
        }
        for trace in &node.outstanding_traces {
            say(&format!("    STILL THERE: {trace} (run carena sweep when the node answers)"));
        }
    }
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Updated => "updated".into(),
        Outcome::UpdatedRebootNeeded => "updated, active after a reboot".into(),
        Outcome::Current => "current".into(),
        Outcome::NewerInstalled => "newer installed".into(),
        Outcome::NotApplicable(why) => format!("not applicable: {why}"),
        Outcome::Skipped(why) => format!("skipped: {why}"),
        Outcome::Failed(why) => format!("FAILED: {why}"),
        Outcome::Unverified(why) => format!("UNVERIFIED: {why}"),
    }
}

/// One node's inventory for a person.
pub fn inventory(address: &str, inventory: &Inventory) {
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "not known".into());
    say(&format!("{address}: {} ({}), {}", inventory.os.host, inventory.os.name, inventory.os.kernel));
    let dmi = &inventory.dmi;
    say(&format!("    {} {}, BIOS {}", known(&dmi.vendor), known(&dmi.product), known(&dmi.bios_version)));
    for port in &inventory.network {
        say(&format!(
            "    {:<12} {}  firmware {}",
            port.name,
            known(&port.driver),
            known(&port.firmware_version)
        ));
    }
    for disk in &inventory.disks {
        say(&format!(
            "    {:<12} {}  firmware {}",
            disk.name,
            known(&disk.model),
            known(&disk.firmware_version)
        ));
    }
    say(&format!("    {} PCI functions", inventory.pci.len()));
    for unknown in &inventory.unknown {
        say(&format!("    not known: {}: {}", unknown.what, unknown.why));
    }
}

/// Asks at the terminal for passwords that the fleet names nowhere. Without a terminal the node fails with a hint.
pub fn ask_passwords(fleet: &mut Fleet) {
    if !std::io::stdin().is_terminal() {
        return;
    }
    for node in &mut fleet.nodes {
        if node.password_file.is_none() && node.key_file.is_none() && node.password.is_none() {
            node.password = ask(&format!("Password of {} at {}: ", node.user, node.address));
        }
    }
}

/// Reads a line with the terminal's echo off.
fn ask(prompt: &str) -> Option<Secret> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).ok()?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).ok()?;
    let _ = write!(std::io::stderr(), "{prompt}");
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    let _ = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    complain("");
    read.ok()?;
    Some(Secret::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Returns at Ctrl-C or a polite request to end.
pub async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
