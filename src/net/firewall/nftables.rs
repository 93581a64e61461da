//! Rules into the kernel: nf_tables over netlink, in the form that `iptables` writes itself.
//!
//! So that `iptables-save` and `ip6tables-save` list them as an administrator expects, a port is compared alone and the
//! state of a connection is the compat match `conntrack`: a native set or `ct state` would make the table unreadable
//! to them. The rules of both tables are replaced in one batch: the kernel takes all of it or nothing, and the chains stay
//! where they are, so nothing is dropped between. It must never touch another table.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber,
    Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute,
    TableMessage, Verdict as Code, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::rules::{Family, Limit, Rule, Traffic, Verdict};

/// The table that `iptables` calls `filter`.
const TABLE: &str = "filter";

/// linux/netfilter.h.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// linux/netfilter/nfnetlink.h.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// IP protocol numbers.
const TCP: u8 = 6;
const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;

/// Bases of a payload expression: the network and the transport header.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// The kernel answers a batch at once.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Replaces chain INPUT of both families, atomically: what no rule fits is dropped, nothing is forwarded, everything may
/// go out. Blocks for as long as the kernel takes.
///
/// # Errors
/// What the kernel says; then what was there before still holds.
pub fn replace(chains: &[(Family, Vec<Rule>)]) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.push(0, control(ControlMessage::BatchBegin));
    for (family, rules) in chains {
        replace_table(&mut batch, *family, rules);
    }
    batch.push(0, control(ControlMessage::BatchEnd));
    batch.send()
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES),
        message,
    )
}

fn replace_table(batch: &mut Batch, family: Family, rules: &[Rule]) {
    let proto = match family {
        Family::V6 => NetfilterProtoFamily::IPv6,
        Family::V4 => NetfilterProtoFamily::IPv4,
    };
    let mut push = |flags: u16, message: NfTablesMessage| {
        batch.push(flags, NetfilterMessage::new(NetfilterHeader::new(proto, 0, 0), message));
    };
    let attributes = vec![TableAttribute::Name(TABLE.into())];
    push(NLM_F_CREATE, NfTablesMessage::NewTable(TableMessage { attributes }));
    for (name, hook, policy) in [
        ("INPUT", InetHookNumber::LocalIn, DROP),
        ("FORWARD", InetHookNumber::Forward, DROP),
        ("OUTPUT", InetHookNumber::LocalOut, ACCEPT),
    ] {
        let attributes = vec![
            ChainAttribute::Table(TABLE.into()),
            ChainAttribute::Name(name.into()),
            ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(0)]),
            ChainAttribute::Policy(policy),
            ChainAttribute::Type("filter".into()),
        ];
        push(NLM_F_CREATE, NfTablesMessage::NewChain(ChainMessage { attributes }));
        // All the rules of the chain.
        let attributes = vec![RuleAttribute::Table(TABLE.into()), RuleAttribute::Chain(name.into())];
        push(0, NfTablesMessage::DeleteRule(RuleMessage { attributes }));
    }
    for rule in rules {
        let mut attributes = vec![
            RuleAttribute::Table(TABLE.into()),
            RuleAttribute::Chain("INPUT".into()),
            RuleAttribute::Expressions(expressions(family, rule).into_iter().map(Into::into).collect()),
        ];
        attributes.extend(rule.comment.as_deref().map(comment));
        push(NLM_F_CREATE | NLM_F_APPEND, NfTablesMessage::NewRule(RuleMessage { attributes }));
    }
}

/// Messages that are taken together.
#[derive(Default)]
struct Batch(Vec<NetlinkMessage<NetfilterMessage>>);

impl Batch {
    fn push(&mut self, flags: u16, message: NetfilterMessage) {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        self.0.push(message);
    }

    /// Only the last message that is no frame asks for an answer; an error is told whether asked for or not.
    fn send(mut self) -> io::Result<()> {
        let last = self.0.len().saturating_sub(2);
        let mut bytes = Vec::new();
        for (at, message) in self.0.iter_mut().enumerate() {
            if at == last {
                message.header.flags |= NLM_F_ACK;
            }
            message.header.sequence_number = u32::try_from(at).map_err(io::Error::other)?;
            message.finalize();
            let begin = bytes.len();
            bytes.resize(begin + message.buffer_len(), 0);
            message.serialize(bytes.get_mut(begin..).unwrap_or_default());
        }
        let socket = open(bytes.len())?;
        if socket.send(&bytes, 0)? != bytes.len() {
            return Err(io::Error::other("the kernel took only a part of the batch"));
        }
        answer(&socket, u32::try_from(last).map_err(io::Error::other)?)
    }
}

fn open(bytes: usize) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let timeout = TimeVal::new(ANSWER_MAX.as_secs().cast_signed(), 0);
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &timeout)?;
    // A batch is one message to the socket: a large fleet's is larger than the default allows.
    setsockopt(&socket.as_fd(), sockopt::SndBufForce, &(bytes.saturating_mul(2).max(64 * 1024)))?;
    Ok(socket)
}

/// Waits for the answer to message `last`; the first error is everything's.
fn answer(socket: &Socket, last: u32) -> io::Result<()> {
    let mut failed = None;
    loop {
        let (bytes, _) = match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
            if let NetlinkPayload::Error(error) = &message.payload
                && let Some(code) = error.code
            {
                failed.get_or_insert_with(|| io::Error::from_raw_os_error(-code.get()));
            }
            if failed.is_some() || message.header.sequence_number == last {
                return failed.map_or(Ok(()), Err);
            }
            let length =
                usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn expressions(family: Family, rule: &Rule) -> Vec<Expressions> {
    let mut list = Vec::new();
    if let Some((address, length)) = rule.source {
        list.extend(source(address, length));
    }
    if let Some(interface) = &rule.interface {
        list.push(meta(MetaKey::Iifname));
        list.push(equals([interface.as_bytes(), &[0]].concat()));
    }
    match rule.traffic {
        Traffic::Any => {}
        Traffic::States(states) => list.push(connection_states(states)),
        Traffic::Icmp(kind) => {
            let protocol = if family == Family::V6 { ICMPV6 } else { ICMPV4 };
            list.extend([meta(MetaKey::L4Proto), equals(vec![protocol])]);
            list.extend([payload(TRANSPORT_HEADER, 0, 1), equals(vec![kind])]);
        }
        Traffic::Tcp(port) => {
            list.extend([meta(MetaKey::L4Proto), equals(vec![TCP])]);
            list.extend([payload(TRANSPORT_HEADER, 2, 2), equals(port.to_be_bytes().to_vec())]);
        }
    }
    list.extend(rule.limit.map(limit));
    // `iptables` counts at every rule; its own rules look no other way.
    list.push(other("counter", vec![number(1, 0_u64.to_be_bytes()), number(2, 0_u64.to_be_bytes())]));
    let code = match rule.verdict {
        Verdict::Accept => ACCEPT,
        Verdict::Drop => DROP,
    };
    let verdict = DataAttribute::Verdict(vec![VerdictAttribute::Code(Code::Other(code))]);
    let immediate = [Immediate::DestinationRegister(Register::Verdict), Immediate::Data(verdict)];
    list.push(Expressions::Immediate(immediate.into()));
    list
}

fn source(address: IpAddr, length: u8) -> Vec<Expressions> {
    let (offset, bytes) = match address {
        IpAddr::V6(address) => (8, address.octets().to_vec()),
        IpAddr::V4(address) => (12, address.octets().to_vec()),
    };
    if length == 0 {
        return Vec::new();
    }
    let size = u32::try_from(bytes.len()).unwrap_or(0);
    let mut list = vec![payload(NETWORK_HEADER, offset, size)];
    let mask: Vec<u8> = (0..size)
        .map(|at| {
            let left = u32::from(length).saturating_sub(at * 8).min(8);
            u8::MAX.checked_shl(8 - left).unwrap_or(0)
        })
        .collect();
    let network = bytes.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
    if mask.iter().any(|byte| *byte != u8::MAX) {
        list.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(size),
            Bitwise::Mask(DataAttribute::Value(mask.clone())),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ]));
    }
    list.push(equals(network));
    list
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)])
}

fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn equals(value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

fn number<const N: usize>(kind: u16, bytes: [u8; N]) -> DefaultNla {
    DefaultNla::new(kind, bytes.to_vec())
}

/// linux/netfilter/nf_tables.h, `nft_limit_attributes`; the unit is a second.
fn limit(limit: Limit) -> Expressions {
    let attributes = vec![
        number(1, u64::from(limit.per_s).to_be_bytes()),
        number(2, 1_u64.to_be_bytes()),
        number(3, limit.burst.to_be_bytes()),
        number(4, 0_u32.to_be_bytes()),
        number(5, 0_u32.to_be_bytes()),
    ];
    other("limit", attributes)
}

/// linux/netfilter/xt_conntrack.h, `xt_conntrack_mtinfo3`: 168 bytes, of which only the flags that say "by state" and
/// the states are set.
fn connection_states(states: u16) -> Expressions {
    const SIZE: usize = 168;
    const MATCH_FLAGS_AT: usize = 146;
    const STATE_MASK_AT: usize = 150;
    const BY_STATE: u16 = 1;
    let mut info = vec![0; SIZE];
    for (at, value) in [(MATCH_FLAGS_AT, BY_STATE), (STATE_MASK_AT, states)] {
        if let Some(field) = info.get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }
    let attributes = vec![
        DefaultNla::new(1, b"conntrack\0".to_vec()),
        number(2, 3_u32.to_be_bytes()),
        DefaultNla::new(3, info),
    ];
    other("match", attributes)
}

/// A comment as libnftnl keeps it: type 0, length, text, end.
fn comment(text: &str) -> RuleAttribute {
    let mut end = text.len().min(254);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    RuleAttribute::UserData([&[0, length], text.as_bytes(), &[0]].concat())
}
