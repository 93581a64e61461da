//! What a person reads at the end: the closing table of a deployment, and a node's inventory.

use crate::deploy::deployments::Intent;
use crate::deploy::event::{ComponentSummary, NodeResult, NodeSummary, Summary};
use crate::firmware::outcome::{Exit, Outcome};
use crate::wire::inventory::Inventory;

use super::terminal::say;

/// The closing table: every node, every component, what is still there, and what to do next.
pub fn closing(summary: &Summary, intent: Intent, exit: Exit) {
    let kind = match (&summary.retry_of, intent) {
        (_, Intent::DryRun) => ", dry run: nothing was installed".to_owned(),
        (Some(first), Intent::Install) => format!(", retry of {first}"),
        (None, Intent::Install) => String::new(),
    };
    say(&format!("\ndeployment {}, baseline {}{kind}", summary.deployment, summary.baseline));
    if let Some(signature) = &summary.signature {
        say(&format!("baseline {signature}"));
    }
    for (address, summary) in &summary.nodes {
        node(address, summary);
    }
    say(&format!("\n{} (exit code {})", totals(summary), exit as u8));
    let left = summary.nodes.iter().any(|(_, node)| !node.outstanding_traces.is_empty());
    if left {
        say("some nodes are not yet as they were found: carena sweep --wait 600");
    }
    if intent == Intent::Install && summary.nodes.iter().any(|(_, node)| node.result != NodeResult::Done) {
        say(&format!("to take up what is not done: carena deploy --retry {}", summary.deployment));
    }
}

fn node(address: &str, node: &NodeSummary) {
    say(&format!("{address:<32} {:<10} {}", word(node.result), node.path.as_deref().unwrap_or("-")));
    if let Some(error) = &node.error {
        say(&format!("    {error}"));
    }
    for component in &node.components {
        say(&format!("    {:<28} {}", component.id, words(component)));
    }
    for trace in &node.outstanding_traces {
        say(&format!("    STILL THERE: {trace}"));
    }
}

/// "12 nodes: 10 done, 1 failed, 1 skipped".
fn totals(summary: &Summary) -> String {
    use NodeResult::{Cancelled, Done, Failed, Running, Skipped};
    let count = |result| summary.nodes.iter().filter(|(_, node)| node.result == result).count();
    let parts = [Done, Failed, Cancelled, Skipped, Running].map(|result| (count(result), word(result)));
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let nodes = if summary.nodes.len() == 1 { "node" } else { "nodes" };
    format!("{} {nodes}: {}", summary.nodes.len(), parts.collect::<Vec<_>>().join(", "))
}

fn word(result: NodeResult) -> &'static str {
    match result {
        NodeResult::Running => "running",
        NodeResult::Done => "done",
        NodeResult::Failed => "FAILED",
        NodeResult::Cancelled => "cancelled",
        NodeResult::Skipped => "skipped",
    }
}

/// Versions where they say something, and how it ended.
fn words(component: &ComponentSummary) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".into());
    let (from, to) = (version(&component.from), version(&component.to));
    match &component.outcome {
        Outcome::Updated => format!("{from} -> {to}  updated"),
        Outcome::UpdatedRebootNeeded => format!("{from} -> {to}  updated, active after a reboot"),
        Outcome::UpdatedPowerCycleNeeded(why) => format!("{from} -> {to}  updated: {why}"),
        Outcome::UpdatedUnverified(why) => format!("{from} -> {to}  updated, unverified: {why}"),
        Outcome::CurrentUnverified(why) => format!("{from}  current, unverified: {why}"),
        Outcome::Current => format!("{from}  current"),
        Outcome::NewerInstalled => format!("{from}  newer installed"),
        Outcome::NotApplicable(why) => format!("not applicable: {why}"),
        Outcome::Skipped(why) => format!("{from}  skipped: {why}"),
        Outcome::WouldUpdate(why) => format!("{from}  would be updated: {why}"),
        Outcome::Failed(why) => format!("{from} -> {to}  FAILED: {why}"),
        Outcome::Unverified(why) => format!("{from} -> {to}  UNVERIFIED: {why}"),
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
    for controller in &inventory.storage {
        let (name, driver) = (&controller.name, known(&controller.driver));
        say(&format!("    {name:<12} {driver}  firmware {}", known(&controller.firmware_version)));
    }
    for entry in &inventory.esrt {
        say(&format!("    {:<12} {}  version {}", "UEFI", entry.guid, entry.version));
    }
    for device in &inventory.fwupd {
        let name = known(&device.name);
        say(&format!("    {:<12} {name}  version {}", "fwupd", known(&device.version)));
    }
    if let Some(bmc) = &inventory.bmc {
        say(&format!("    {:<12} firmware {}", "BMC", known(&bmc.firmware_version)));
    }
    if let Some(microcode) = &inventory.microcode {
        say(&format!("    {:<12} {microcode}", "microcode"));
    }
    say(&format!("    {} PCI functions", inventory.pci.len()));
    for unknown in &inventory.unknown {
        say(&format!("    not known: {}: {}", unknown.what, unknown.why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_count_what_there_is() {
        let node = |result| ("a".to_owned(), NodeSummary::new(result));
        let mut summary = Summary {
            deployment: "x".parse().unwrap(),
            retry_of: None,
            started: String::new(),
            ended: None,
            baseline: "demo 1".into(),
            manifest: None,
            signature: None,
            cancelled: false,
            nodes: vec![node(NodeResult::Done), node(NodeResult::Failed), node(NodeResult::Done)],
        };
        assert_eq!(totals(&summary), "3 nodes: 2 done, 1 FAILED");
        summary.nodes.truncate(1);
        assert_eq!(totals(&summary), "1 node: 1 done");
    }
}
