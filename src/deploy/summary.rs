//! From outcomes to the exit code, which is HP SUM's, and the summary as programs read it.

use serde::Serialize;

use crate::firmware::outcome::{Exit, Outcome};

use super::event::{NodeResult, NodeSummary, Summary};

/// A summary with its exit code: the one shape that the command line's last line and the API share.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// The deployment.
    pub summary: &'a Summary,
    /// The exit code; none while it runs.
    pub exit: Option<u8>,
}

/// How many nodes stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Wait or are under way.
    pub running: usize,
    /// Ended well.
    pub done: usize,
    /// Ended badly.
    pub failed: usize,
    /// Were cancelled.
    pub cancelled: usize,
    /// Were never begun.
    pub skipped: usize,
}

/// Nodes as a JSON object by address. A list of pairs keeps the fleet's order in memory; an object with that order is
/// what a reader looks things up in.
pub mod by_address {
    use std::fmt;

    use serde::de::{MapAccess, Visitor};
    use serde::{Deserializer, Serializer};

    use super::NodeSummary;

    type Nodes = Vec<(String, NodeSummary)>;

    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(nodes: &Nodes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(nodes.iter().map(|(address, node)| (address, node)))
    }

    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nodes, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Nodes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("nodes by address")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Nodes, A::Error> {
                let mut nodes = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    nodes.push(entry);
                }
                Ok(nodes)
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl Outcome {
    /// Whether the component did not end as it should. What its maker gives no way to read back is no failure: no later
    /// deployment could do better.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unverified(_))
    }

    /// Whether something was installed, or would be.
    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Updated
                | Self::UpdatedRebootNeeded
                | Self::UpdatedPowerCycleNeeded(_)
                | Self::UpdatedUnverified(_)
                | Self::WouldUpdate(_)
        )
    }

    fn waits_for_a_start(&self) -> bool {
        matches!(self, Self::UpdatedRebootNeeded | Self::UpdatedPowerCycleNeeded(_))
    }
}

impl Summary {
    /// A node's part.
    pub fn node_mut(&mut self, index: usize) -> Option<&mut NodeSummary> {
        self.nodes.get_mut(index).map(|(_, node)| node)
    }

    /// How many nodes stand where.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (_, node) in &self.nodes {
            *match node.result {
                NodeResult::Running => &mut counts.running,
                NodeResult::Done => &mut counts.done,
                NodeResult::Failed => &mut counts.failed,
                NodeResult::Cancelled => &mut counts.cancelled,
                NodeResult::Skipped => &mut counts.skipped,
            } += 1;
        }
        counts
    }

    /// With its exit code, once it has ended.
    pub fn report(&self) -> Report<'_> {
        Report { summary: self, exit: self.ended.is_some().then(|| self.exit() as u8) }
    }

    /// The exit code of the deployment as it stands.
    pub fn exit(&self) -> Exit {
        let nodes = || self.nodes.iter().map(|(_, node)| node);
        let outcomes = || nodes().flat_map(|node| &node.components).map(|component| &component.outcome);
        let unwell =
            |node: &NodeSummary| node.result != NodeResult::Done || !node.outstanding_traces.is_empty();
        if nodes().any(unwell) || outcomes().any(Outcome::is_failure) {
            Exit::Failed
        } else if outcomes().any(Outcome::waits_for_a_start) {
            Exit::RebootNeeded
        } else if outcomes().any(|outcome| matches!(outcome, Outcome::Skipped(_))) {
            // A dependency that is not met: not done, and not because nothing was needed.
            Exit::Failed
        } else if outcomes().any(Outcome::is_change) {
            Exit::Done
        } else {
            Exit::NothingNeeded
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::event::ComponentSummary;

    fn exit(result: NodeResult, outcomes: &[Outcome], traces: &[&str]) -> Exit {
        let component = |outcome: &Outcome| ComponentSummary {
            id: "bios".parse().unwrap(),
            from: None,
            to: None,
            log: None,
            outcome: outcome.clone(),
        };
        let node = NodeSummary {
            result,
            path: None,
            path_why: None,
            error: None,
            components: outcomes.iter().map(component).collect(),
            outstanding_traces: traces.iter().map(|&trace| trace.to_owned()).collect(),
        };
        Summary {
            deployment: "x".parse().unwrap(),
            retry_of: None,
            started: String::new(),
            ended: None,
            baseline: "demo".into(),
            manifest: None,
            signature: None,
            cancelled: false,
            nodes: vec![("fd00::1".into(), node)],
        }
        .exit()
    }

    #[test]
    fn exit_codes_are_hp_sums() {
        use NodeResult::{Cancelled, Done};
        assert_eq!(exit(Done, &[Outcome::Updated, Outcome::Current], &[]), Exit::Done);
        assert_eq!(exit(Done, &[Outcome::Updated, Outcome::UpdatedRebootNeeded], &[]), Exit::RebootNeeded);
        assert_eq!(
            exit(Done, &[Outcome::Current, Outcome::NotApplicable("os".into())], &[]),
            Exit::NothingNeeded
        );
        assert_eq!(exit(Done, &[Outcome::Current, Outcome::WouldUpdate("1".into())], &[]), Exit::Done);
        assert_eq!(exit(Done, &[Outcome::Updated, Outcome::Failed("x".into())], &[]), Exit::Failed);
        assert_eq!(exit(Done, &[Outcome::Unverified("x".into())], &[]), Exit::Failed);
        let why = || "nothing tells its version".to_owned();
        assert_eq!(exit(Done, &[Outcome::UpdatedUnverified(why())], &[]), Exit::Done);
        assert_eq!(exit(Done, &[Outcome::CurrentUnverified(why())], &[]), Exit::NothingNeeded);
        assert_eq!(exit(Done, &[Outcome::UpdatedPowerCycleNeeded(why())], &[]), Exit::RebootNeeded);
        assert_eq!(exit(Done, &[Outcome::Current, Outcome::Skipped("needs x".into())], &[]), Exit::Failed);
        assert_eq!(exit(Done, &[Outcome::Updated], &["engine files"]), Exit::Failed);
        assert_eq!(exit(Cancelled, &[], &[]), Exit::Failed);
    }

    #[test]
    fn an_outcome_reads_as_the_contract_says() {
        let component = ComponentSummary {
            id: "bios".parse().unwrap(),
            from: Some("1".into()),
            to: Some("2".into()),
            log: None,
            outcome: Outcome::UpdatedRebootNeeded,
        };
        let json = serde_json::to_value(&component).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"id": "bios", "from": "1", "to": "2", "outcome": "updated-reboot-needed"})
        );
        assert_eq!(serde_json::from_value::<ComponentSummary>(json).unwrap(), component);
    }

    #[test]
    fn nodes_are_an_object_in_the_fleets_order() {
        let node = NodeSummary {
            result: NodeResult::Running,
            path: None,
            path_why: None,
            error: None,
            components: Vec::new(),
            outstanding_traces: Vec::new(),
        };
        let summary = Summary {
            deployment: "x".parse().unwrap(),
            retry_of: None,
            started: String::new(),
            ended: None,
            baseline: "demo".into(),
            manifest: None,
            signature: None,
            cancelled: false,
            nodes: vec![("b".into(), node.clone()), ("a".into(), node)],
        };
        let text = serde_json::to_string(&summary.report()).unwrap();
        assert!(text.find("\"b\":{").unwrap() < text.find("\"a\":{").unwrap(), "{text}");
        assert!(text.ends_with("\"exit\":null}"), "{text}");
        let read: Summary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
        assert_eq!(read, summary);
        assert_eq!(summary.counts(), Counts { running: 2, ..Counts::default() });
    }
}
