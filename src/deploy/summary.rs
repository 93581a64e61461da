//! From outcomes to the exit code, which is HP SUM's.

use crate::firmware::outcome::{Exit, Outcome};

use super::event::{NodeResult, NodeSummary, Summary};

impl Outcome {
    /// Whether the component did not end as it should.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unverified(_))
    }

    /// Whether something was installed, or would be.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Updated | Self::UpdatedRebootNeeded | Self::WouldUpdate(_))
    }
}

impl Summary {
    /// A node's part.
    pub fn node_mut(&mut self, index: usize) -> Option<&mut NodeSummary> {
        self.nodes.get_mut(index).map(|(_, node)| node)
    }

    /// The exit code of the deployment as it stands.
    pub fn exit(&self) -> Exit {
        let nodes = || self.nodes.iter().map(|(_, node)| node);
        let outcomes = || nodes().flat_map(|node| &node.components).map(|component| &component.outcome);
        let unwell =
            |node: &NodeSummary| node.result != NodeResult::Done || !node.outstanding_traces.is_empty();
        if nodes().any(unwell) || outcomes().any(Outcome::is_failure) {
            Exit::Failed
        } else if outcomes().any(|outcome| *outcome == Outcome::UpdatedRebootNeeded) {
            Exit::RebootNeeded
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
}
