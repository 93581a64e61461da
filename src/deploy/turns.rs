//! Whose turn it is: groups and waves in order, clusters never twice at once, and an end when too many have failed.
//!
//! Pure bookkeeping without time and without tasks, so that every order of endings can be tested. It must never hand
//! a node out twice, nor lose one: what was not handed out is in [`Turns::left`].

use std::collections::{HashMap, VecDeque};

use crate::fleet::{Node, Options};

/// The nodes of one deployment, by their number in the fleet.
pub struct Turns {
    /// What is to be done, one stage after another; the first is under way.
    stages: VecDeque<VecDeque<usize>>,
    /// Handed out and not ended.
    running: Vec<usize>,
    exclusive: HashMap<usize, String>,
    parallel: usize,
    failures: u32,
    /// No new node begins once so many have failed.
    failures_max: Option<u32>,
    /// No new stage begins once so many have failed.
    stage_failures_max: Option<u32>,
}

impl Turns {
    /// Everybody waits.
    pub fn new(nodes: &[Node], options: &Options) -> Self {
        let exclusive =
            nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.exclusive.clone()?)));
        let failures_max = (options.failures_max > 0).then_some(options.failures_max);
        Self {
            stages: stages(nodes, options),
            running: Vec::new(),
            exclusive: exclusive.collect(),
            parallel: usize::from(options.parallel),
            failures: 0,
            failures_max,
            stage_failures_max: failures_max.or((!options.waves.is_empty()).then_some(1)),
        }
    }

    /// The next node that may begin now; none when all places are taken, when what comes next has to wait for one
    /// that runs, or when nothing more will begin.
    pub fn hand_out(&mut self) -> Option<usize> {
        if self.running.len() >= self.parallel || reached(self.failures, self.failures_max) {
            return None;
        }
        let stage = loop {
            let left = self.stages.len();
            let stage = self.stages.front_mut()?;
            if !stage.is_empty() {
                break stage;
            }
            if left == 1 || !self.running.is_empty() || reached(self.failures, self.stage_failures_max) {
                return None;
            }
            self.stages.pop_front();
        };
        let (exclusive, running) = (&self.exclusive, &self.running);
        let free = |index: &usize| {
            let name = exclusive.get(index);
            name.is_none() || !running.iter().any(|other| exclusive.get(other) == name)
        };
        let place = stage.iter().position(free)?;
        let index = stage.remove(place)?;
        self.running.push(index);
        Some(index)
    }

    /// Takes a node that has begun already, whatever has failed since; false when it is not waiting.
    pub fn take(&mut self, index: usize) -> bool {
        let waited = self.withdraw(index);
        if waited {
            self.running.push(index);
        }
        waited
    }

    /// A node that was handed out has ended.
    pub fn ended(&mut self, index: usize, failed: bool) {
        self.running.retain(|other| *other != index);
        self.failures += u32::from(failed);
    }

    /// Takes a node out that was not handed out yet; false when it was.
    pub fn withdraw(&mut self, index: usize) -> bool {
        let Some(stage) = self.stages.iter_mut().find(|stage| stage.contains(&index)) else { return false };
        stage.retain(|other| *other != index);
        true
    }

    /// The nodes that were never handed out.
    pub fn left(&self) -> Vec<usize> {
        self.stages.iter().flatten().copied().collect()
    }
}

fn reached(failures: u32, limit: Option<u32>) -> bool {
    limit.is_some_and(|limit| failures >= limit)
}

/// The fleet in the order of its groups, cut where a wave ends and where a group ends.
fn stages(nodes: &[Node], options: &Options) -> VecDeque<VecDeque<usize>> {
    let place = |node: &Node| {
        let named = |group: &String| options.order.iter().position(|other| other == group);
        node.group.as_ref().and_then(named).unwrap_or(options.order.len())
    };
    let mut ordered: Vec<(usize, usize)> =
        nodes.iter().enumerate().map(|(index, node)| (place(node), index)).collect();
    ordered.sort_unstable();
    let mut waves = options.waves.iter();
    let mut left = ordered.len();
    // Without waves, and after the last of them, everything that is left is one.
    let mut wave = |left| waves.next().map_or(left, |wave| wave.nodes(nodes.len(), left));
    let mut room = wave(left);
    let mut stages = VecDeque::from([VecDeque::new()]);
    let mut last = None;
    for (group, index) in ordered {
        if room == 0 || last.is_some_and(|last| last != group) {
            stages.push_back(VecDeque::new());
        }
        if room == 0 {
            room = wave(left).max(1);
        }
        if let Some(stage) = stages.back_mut() {
            stage.push_back(index);
        }
        (last, room, left) = (Some(group), room - 1, left - 1);
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fleet(groups: &[&str]) -> Vec<Node> {
        let node = |(index, group): (usize, &&str)| {
            let group = if group.is_empty() { String::new() } else { format!("group = {group:?}\n") };
            toml::from_str(&format!("address = \"fd00::{index:x}\"\nuser = \"root\"\n{group}")).unwrap()
        };
        groups.iter().enumerate().map(node).collect()
    }

    fn options(text: &str) -> Options {
        toml::from_str(text).unwrap()
    }

    /// Everything that begins now.
    fn begun(turns: &mut Turns) -> Vec<usize> {
        std::iter::from_fn(|| turns.hand_out()).collect()
    }

    #[test]
    fn first_one_then_a_tenth_then_the_rest() {
        let mut turns = Turns::new(&fleet(&[""; 20]), &options("waves = [1, \"10%\", \"rest\"]"));
        assert_eq!(begun(&mut turns), [0]);
        turns.ended(0, false);
        assert_eq!(begun(&mut turns), [1, 2]);
        turns.ended(1, false);
        assert!(begun(&mut turns).is_empty(), "the wave has not ended");
        turns.ended(2, false);
        assert_eq!(begun(&mut turns).len(), 17);
    }

    #[test]
    fn a_failed_wave_is_the_last_unless_failures_are_allowed() {
        for (text, goes_on) in [
            ("waves = [1]", false),
            ("waves = [1]\nfailures_max = 1", false),
            ("waves = [1]\nfailures_max = 2", true),
        ] {
            let mut turns = Turns::new(&fleet(&[""; 3]), &options(text));
            assert_eq!(begun(&mut turns), [0]);
            turns.ended(0, true);
            assert_eq!(!begun(&mut turns).is_empty(), goes_on, "{text}");
        }
    }

    #[test]
    fn failures_max_stops_new_nodes_only() {
        let mut turns = Turns::new(&fleet(&[""; 5]), &options("parallel = 2\nfailures_max = 1"));
        assert_eq!(begun(&mut turns), [0, 1]);
        turns.ended(0, true);
        assert!(begun(&mut turns).is_empty());
        turns.ended(1, false);
        assert!(begun(&mut turns).is_empty());
        assert_eq!(turns.left(), [2, 3, 4]);
    }

    #[test]
    fn groups_come_in_their_order_and_others_last() {
        let nodes = fleet(&["b", "", "a", "c", "a"]);
        let mut turns = Turns::new(&nodes, &options("order = [\"a\", \"b\"]"));
        assert_eq!(begun(&mut turns), [2, 4]);
        turns.ended(4, false);
        turns.ended(2, true);
        assert_eq!(begun(&mut turns), [0], "without waves and limit, a failure stops nothing");
        turns.ended(0, false);
        assert_eq!(begun(&mut turns), [1, 3]);
    }

    #[test]
    fn two_of_a_cluster_are_never_under_way_at_once() {
        let mut nodes = fleet(&[""; 4]);
        for index in [0, 2] {
            nodes[index].exclusive = Some("cluster".into());
        }
        let mut turns = Turns::new(&nodes, &Options::default());
        assert_eq!(begun(&mut turns), [0, 1, 3]);
        turns.ended(1, false);
        assert!(begun(&mut turns).is_empty());
        turns.ended(0, true);
        assert_eq!(begun(&mut turns), [2]);
    }

    #[test]
    fn a_withdrawn_node_never_begins() {
        let mut turns = Turns::new(&fleet(&[""; 3]), &options("parallel = 1"));
        assert_eq!(turns.hand_out(), Some(0));
        assert!(turns.withdraw(1) && !turns.withdraw(1) && !turns.withdraw(0));
        turns.ended(0, false);
        assert_eq!(begun(&mut turns), [2]);
    }

    #[test]
    fn what_had_begun_runs_whatever_has_failed_and_takes_its_place() {
        let mut nodes = fleet(&[""; 5]);
        for index in [1, 2] {
            nodes[index].exclusive = Some("cluster".into());
        }
        let mut turns = Turns::new(&nodes, &options("parallel = 2\nfailures_max = 1"));
        assert!(turns.withdraw(0));
        turns.ended(0, true);
        assert!(turns.take(1) && !turns.take(1) && !turns.take(0));
        assert!(begun(&mut turns).is_empty(), "one has failed");
        assert_eq!(turns.left(), [2, 3, 4]);
        let mut turns = Turns::new(&nodes, &options("parallel = 2"));
        assert!(turns.take(1));
        assert_eq!(begun(&mut turns), [0], "one place is taken");
        turns.ended(0, false);
        assert_eq!(begun(&mut turns), [3], "and so is the cluster");
    }

    proptest! {
        #[test]
        fn every_node_begins_once_or_is_left(
            nodes in prop::collection::vec((0_usize..4, 0_usize..3, any::<bool>()), 1..40),
            parallel in 1_u16..9,
            waves in prop::collection::vec(1_u32..5, 0..4),
            failures_max in 0_u32..4,
            picks in prop::collection::vec(any::<usize>(), 40),
        ) {
            let mut fleet = fleet(&nodes.iter().map(|(group, ..)| ["", "a", "b", "c"][*group]).collect::<Vec<_>>());
            for (node, (_, cluster, _)) in fleet.iter_mut().zip(&nodes) {
                node.exclusive = [None, Some("x"), Some("y")][*cluster].map(str::to_owned);
            }
            let options = Options {
                parallel,
                waves: waves.into_iter().map(crate::fleet::Wave::Nodes).collect(),
                order: vec!["a".into(), "b".into()],
                failures_max,
                ..Options::default()
            };
            let mut turns = Turns::new(&fleet, &options);
            let (mut running, mut seen, mut failures) = (Vec::new(), Vec::new(), 0);
            for pick in picks.into_iter().chain(std::iter::repeat(0)) {
                let begun = begun(&mut turns);
                seen.extend(&begun);
                running.extend(begun);
                prop_assert!(running.len() <= usize::from(parallel));
                if running.is_empty() {
                    break;
                }
                let index = running.remove(pick % running.len());
                let failed = nodes[index].2;
                failures += u32::from(failed);
                turns.ended(index, failed);
            }
            let mut all: Vec<usize> = seen.into_iter().chain(turns.left()).collect();
            prop_assert!(turns.left().is_empty() || failures > 0);
            all.sort_unstable();
            prop_assert_eq!(all, (0..nodes.len()).collect::<Vec<_>>());
        }
    }
}
