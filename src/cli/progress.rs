//! What a person sees while it runs: a bar per node, lines where there is no terminal, or one JSON object a line.
//!
//! It also knows what every node is at, for whoever presses Ctrl-C twice.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::deploy::event::{Bytes, Event, State, Step};

use super::terminal::{complain, say};

/// Most bars at once: a terminal's height. Other nodes report by line.
const BARS_MAX: usize = 20;

/// Most nodes named in one answer to Ctrl-C.
const NAMED_MAX: usize = 10;

/// Shows events as they come.
pub struct Progress {
    json: bool,
    bars: Option<MultiProgress>,
    nodes: HashMap<String, ProgressBar>,
    at: BTreeMap<String, At>,
}

/// What a node is at.
struct At {
    step: Step,
    since: Instant,
    message: Option<String>,
}

impl Progress {
    /// Bars on a terminal, plain lines elsewhere, JSON if asked.
    pub fn new(json: bool) -> Self {
        let bars = (!json && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { json, bars, nodes: HashMap::new(), at: BTreeMap::new() }
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        self.note(event);
        if self.json {
            say(&serde_json::to_string(event).unwrap_or_default());
        } else if self.bars.is_none() {
            if event.state != State::Progress && event.state != State::Started {
                complain(&line(event));
            }
        } else {
            self.draw(event);
        }
    }

    /// Says something between the bars.
    pub fn tell(&self, text: &str) {
        match &self.bars {
            Some(bars) => _ = bars.println(text),
            None => complain(text),
        }
    }

    /// What every node is at that has not ended.
    pub fn under_way(&self) -> Vec<String> {
        let told = |(node, at): (&String, &At)| {
            let message = at.message.as_ref().map(|message| format!(", {message}")).unwrap_or_default();
            format!("{node}: {} since {} s{message}", at.step.name(), at.since.elapsed().as_secs())
        };
        let mut lines: Vec<String> = self.at.iter().take(NAMED_MAX).map(told).collect();
        if self.at.len() > NAMED_MAX {
            lines.push(format!("and {} more nodes", self.at.len() - NAMED_MAX));
        }
        lines
    }

    /// Leaves the terminal to what follows.
    pub fn finish(&mut self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    fn note(&mut self, event: &Event) {
        if event.step == Step::Result {
            self.at.remove(&event.node);
            return;
        }
        let at = self.at.entry(event.node.clone()).or_insert_with(|| At {
            step: event.step,
            since: Instant::now(),
            message: None,
        });
        if at.step != event.step {
            *at = At { step: event.step, since: Instant::now(), message: None };
        }
        if event.state == State::Progress && event.message.is_some() {
            at.message.clone_from(&event.message);
        }
    }

    fn draw(&mut self, event: &Event) {
        let Some(bars) = &self.bars else { return };
        if matches!(event.state, State::Failed | State::Retry) {
            let _ = bars.println(line(event));
        }
        if self.nodes.len() >= BARS_MAX && !self.nodes.contains_key(&event.node) {
            return;
        }
        let bar = self.nodes.entry(event.node.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(1));
            if let Ok(style) = ProgressStyle::with_template("{prefix:32!} {msg:40!} {wide_bar} {spinner}") {
                bar.set_style(style);
            }
            bar.set_prefix(event.node.clone());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        if let Some(bytes) = event.bytes {
            bar.set_length(bytes.total);
            bar.set_position(bytes.done);
        } else if let Some(percent) = event.percent {
            bar.set_length(100);
            bar.set_position(u64::from(percent));
        }
        bar.set_message(words(event));
        if event.step == Step::Result {
            bar.finish_with_message(if event.state == State::Done { "done" } else { "failed" });
            self.nodes.remove(&event.node);
        }
    }
}

/// What a bar says.
fn words(event: &Event) -> String {
    let step = event.step.name();
    let far = match (event.bytes, event.percent) {
        (Some(Bytes { done, .. }), _) => format!(" {}", HumanBytes(done)),
        (None, Some(percent)) => format!(" {percent} %"),
        (None, None) => String::new(),
    };
    match &event.message {
        Some(message) if event.state == State::Progress => format!("{step}{far} {message}"),
        _ => format!("{step}{far}"),
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
    let step = event.step.name();
    match &event.message {
        // Most failures name their node and step themselves.
        Some(message) if event.state == State::Failed && message.starts_with(&event.node) => {
            format!("{state}: {message}")
        }
        Some(message) => format!("{} {step} {state}: {message}", event.node),
        None => format!("{} {step} {state}", event.node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_known_until_it_ends() {
        let mut progress = Progress { json: false, bars: None, nodes: HashMap::new(), at: BTreeMap::new() };
        let event = |step, state, message: Option<&str>| Event {
            message: message.map(str::to_owned),
            ..Event::new(&"x".parse().unwrap(), "fd00::1", step, state)
        };
        progress.note(&event(Step::Install, State::Started, None));
        progress.note(&event(Step::Install, State::Progress, Some("7 s erasing")));
        assert_eq!(progress.under_way(), ["fd00::1: install since 0 s, 7 s erasing"]);
        progress.note(&event(Step::Stop, State::Started, None));
        assert_eq!(progress.under_way(), ["fd00::1: stop since 0 s"]);
        progress.note(&event(Step::Result, State::Done, None));
        assert!(progress.under_way().is_empty());
    }
}
