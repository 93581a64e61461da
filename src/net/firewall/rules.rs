//! What the appliance's firewall lets in, as data: a policy and the nodes of running deployments become a list of rules.
//!
//! Default drop, in both families. What comes in is what answers us, what IPv6 itself needs (RFC 4890, section 4.4), and
//! new connections to the console's port: from the nodes of running deployments always, from everyone else (or from the
//! operator's prefixes only) at a limited rate. Nothing else is promised, so nothing else may be listed here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ICMPv6 that must not be dropped on its way to a host: errors, neighbour discovery and its inverse, secure neighbour
/// discovery, multicast listeners and routers (RFC 4890, sections 4.4.1 and 4.4.2). Redirects are local policy
/// (section 4.4.3) and stay out; answers to our own echo requests are of a known connection.
const ICMPV6_TYPES: [u8; 19] =
    [1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 141, 142, 143, 148, 149, 151, 152, 153];
const ICMPV6_ECHO_REQUEST: u8 = 128;

/// The errors of IPv4: destination unreachable, time exceeded, parameter problem (RFC 1812, section 4.3).
const ICMPV4_TYPES: [u8; 3] = [3, 11, 12];
/// The kernel takes one for a part of the connection that it is about.
const ICMPV4_REDIRECT: u8 = 5;
const ICMPV6_REDIRECT: u8 = 137;
const ICMPV4_ECHO_REQUEST: u8 = 8;

/// Echo requests answered a second: enough for monitoring a room by hand, too few to be a load.
const ECHO_LIMIT: Limit = Limit { per_s: 50, burst: 100 };

/// New connections a second to the console by others than nodes of running deployments.
const CONSOLE_LIMIT: Limit = Limit { per_s: 100, burst: 200 };

/// An address with the length of its prefix.
pub type Prefix = (IpAddr, u8);

/// Who may come in besides nodes of running deployments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The console's TCP port.
    pub port: u16,
    /// Where the console may be opened from; everywhere when that is not said.
    pub console_from: Option<Vec<Prefix>>,
}

/// A node that may come to the box's port while a deployment runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guest {
    /// Its address.
    pub address: IpAddr,
    /// The link it is on, for a link-local address.
    pub interface: Option<String>,
    /// The deployment's id; it stands in the rule's comment.
    pub deployment: String,
}

/// The nodes that are let in, and how often each was asked for.
pub type Guests = BTreeMap<Guest, usize>;

/// The two tables, `filter` of `ip6` and of `ip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `ip6`.
    V6,
    /// `ip`.
    V4,
}

impl Family {
    /// Whether an address is of it.
    pub fn has(self, address: IpAddr) -> bool {
        address.is_ipv6() == (self == Self::V6)
    }
}

/// What a rule is about, within what its addresses say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Everything.
    Any,
    /// Packets of connections in one of these states, as bits of `xt_conntrack`.
    States(u16),
    /// ICMP, or ICMPv6, of this type.
    Icmp(u8),
    /// TCP to this port.
    Tcp(u16),
}

/// Connections that the kernel knows, and what belongs to one.
pub const ESTABLISHED_OR_RELATED: u16 = 0b110;
/// Packets that belong to no connection and cannot begin one.
pub const INVALID: u16 = 0b1;

/// So many a second, and so many at once before that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Packets a second.
    pub per_s: u32,
    /// Packets at once.
    pub burst: u32,
}

/// What becomes of what a rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It comes in.
    Accept,
    /// It does not, and nobody is told.
    Drop,
}

/// One rule of chain INPUT; everything it names must fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The link it comes in by.
    pub interface: Option<String>,
    /// Where it comes from.
    pub source: Option<Prefix>,
    /// What it is.
    pub traffic: Traffic,
    /// As long as there are no more than these.
    pub limit: Option<Limit>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// For who reads the list.
    pub comment: Option<String>,
}

impl Rule {
    fn accept(traffic: Traffic) -> Self {
        Self { interface: None, source: None, traffic, limit: None, verdict: Verdict::Accept, comment: None }
    }
}

/// Chain INPUT of one family; what no rule fits is dropped.
pub fn input(family: Family, policy: &Policy, guests: &Guests) -> Vec<Rule> {
    let (types, echo, redirect): (&[u8], u8, u8) = match family {
        Family::V6 => (&ICMPV6_TYPES, ICMPV6_ECHO_REQUEST, ICMPV6_REDIRECT),
        Family::V4 => (&ICMPV4_TYPES, ICMPV4_ECHO_REQUEST, ICMPV4_REDIRECT),
    };
    let mut rules = vec![
        Rule { interface: Some("lo".into()), ..Rule::accept(Traffic::Any) },
        // Before what is established: that takes the second ping for a part of the first one.
        Rule { limit: Some(ECHO_LIMIT), ..Rule::accept(Traffic::Icmp(echo)) },
        Rule { verdict: Verdict::Drop, ..Rule::accept(Traffic::Icmp(echo)) },
        Rule { verdict: Verdict::Drop, ..Rule::accept(Traffic::Icmp(redirect)) },
        Rule::accept(Traffic::States(ESTABLISHED_OR_RELATED)),
    ];
    // Before INVALID: neighbour discovery is of no connection, and some of it the kernel calls invalid.
    rules.extend(types.iter().map(|kind| Rule::accept(Traffic::Icmp(*kind))));
    rules.push(Rule { verdict: Verdict::Drop, ..Rule::accept(Traffic::States(INVALID)) });
    let console = Rule::accept(Traffic::Tcp(policy.port));
    rules.extend(guests.keys().filter(|guest| family.has(guest.address)).map(|guest| Rule {
        interface: guest.interface.clone(),
        source: Some(host(guest.address)),
        comment: Some(format!("carena {}", guest.deployment)),
        ..console.clone()
    }));
    let console = Rule { limit: Some(CONSOLE_LIMIT), ..console };
    match &policy.console_from {
        None => rules.push(console),
        Some(prefixes) => {
            let prefixes = prefixes.iter().filter(|(address, _)| family.has(*address));
            rules.extend(prefixes.map(|prefix| Rule { source: Some(*prefix), ..console.clone() }));
        }
    }
    rules
}

fn host(address: IpAddr) -> Prefix {
    let bits = if address.is_ipv6() { Ipv6Addr::BITS } else { Ipv4Addr::BITS };
    (address, u8::try_from(bits).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(address: &str) -> Guest {
        Guest { address: address.parse().unwrap(), interface: None, deployment: "d".into() }
    }

    #[test]
    fn nodes_come_before_everyone_and_only_in_their_family() {
        let policy = Policy { port: 63002, console_from: None };
        let guests = Guests::from([(guest("fd00::2"), 1), (guest("192.0.2.2"), 2)]);
        let ports = |family| {
            let rules = input(family, &policy, &guests);
            let console = rules.into_iter().filter(|rule| rule.traffic == Traffic::Tcp(63002));
            console.map(|rule| (rule.source, rule.limit.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(ports(Family::V6), [(Some(("fd00::2".parse().unwrap(), 128)), false), (None, true)]);
        assert_eq!(ports(Family::V4), [(Some(("192.0.2.2".parse().unwrap(), 32)), false), (None, true)]);
    }

    #[test]
    fn a_console_for_some_is_for_nobody_else() {
        let prefix = ("fd00::".parse().unwrap(), 8);
        let policy = Policy { port: 63002, console_from: Some(vec![prefix]) };
        let sources = |family| {
            let rules = input(family, &policy, &Guests::new()).into_iter();
            rules
                .filter(|rule| matches!(rule.traffic, Traffic::Tcp(_)))
                .map(|rule| rule.source)
                .collect::<Vec<_>>()
        };
        assert_eq!(sources(Family::V6), [Some(prefix)]);
        assert_eq!(sources(Family::V4), []);
    }
}
