//! The appliance's own firewall in a network namespace, as Debian's iptables lists it and as a neighbour meets it.
//!
//! Needs root. Each test has namespaces of its own, which end with it.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use carena::net::firewall::Firewall;
use carena::net::firewall::rules::{Guest, Policy};
use nix::sched::{CloneFlags, unshare};

const PORT: u16 = 63002;
const DEPLOYMENT: &str = "0197a000-0000-7000-8000-000000000001";

/// Runs `test` on a thread with a network namespace of its own; what it starts is in there too.
fn in_namespace<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test())
        });
        running.join().unwrap()
    })
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    assert_eq!(said, "", "{program} {args:?} complains");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules of the table as `iptables-save` writes them: without its dates.
fn saved(program: &str) -> Vec<String> {
    let text = run(program, &["-t", "filter"]);
    text.lines().filter(|line| line.starts_with([':', '-'])).map(str::to_owned).collect()
}

fn policy() -> Policy {
    Policy { port: PORT, console_from: None }
}

fn guest(address: &str) -> Guest {
    let node: SocketAddr = address.parse().unwrap();
    Guest::at(node, DEPLOYMENT)
}

const CHAINS: [&str; 3] = [":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT ACCEPT [0:0]"];

fn expected_v6(nodes: &[String]) -> Vec<String> {
    let mut rules: Vec<String> = CHAINS.map(str::to_owned).to_vec();
    rules.push("-A INPUT -i lo -j ACCEPT".into());
    let echo = "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128";
    rules.push(format!("{echo} -m limit --limit 50/sec --limit-burst 100 -j ACCEPT"));
    rules.push(format!("{echo} -j DROP"));
    rules.push("-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 137 -j DROP".into());
    rules.push("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into());
    for kind in [1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 141, 142, 143, 148, 149, 151, 152, 153] {
        rules.push(format!("-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j ACCEPT"));
    }
    rules.push("-A INPUT -m conntrack --ctstate INVALID -j DROP".into());
    rules.extend_from_slice(nodes);
    rules.push(
        "-A INPUT -p tcp -m tcp --dport 63002 -m limit --limit 100/sec --limit-burst 200 -j ACCEPT".into(),
    );
    rules
}

fn expected_v4(nodes: &[String]) -> Vec<String> {
    let mut rules: Vec<String> = CHAINS.map(str::to_owned).to_vec();
    rules.push("-A INPUT -i lo -j ACCEPT".into());
    let echo = "-A INPUT -p icmp -m icmp --icmp-type 8";
    rules.push(format!("{echo} -m limit --limit 50/sec --limit-burst 100 -j ACCEPT"));
    rules.push(format!("{echo} -j DROP"));
    rules.push("-A INPUT -p icmp -m icmp --icmp-type 5 -j DROP".into());
    rules.push("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into());
    for kind in ["3", "11", "12"] {
        rules.push(format!("-A INPUT -p icmp -m icmp --icmp-type {kind} -j ACCEPT"));
    }
    rules.push("-A INPUT -m conntrack --ctstate INVALID -j DROP".into());
    rules.extend_from_slice(nodes);
    rules.push(
        "-A INPUT -p tcp -m tcp --dport 63002 -m limit --limit 100/sec --limit-burst 200 -j ACCEPT".into(),
    );
    rules
}

#[test]
fn iptables_lists_exactly_the_rules_and_the_nodes_of_running_deployments() {
    in_namespace(async || {
        // Another table of the same kernel is nobody's business here.
        run("nft", &["add", "table", "inet", "neighbour"]);
        let firewall = Firewall::raise(policy()).await;
        assert_eq!(saved("ip6tables-save"), expected_v6(&[]));
        assert_eq!(saved("iptables-save"), expected_v4(&[]));

        run("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]);
        run("ip", &["link", "set", "eth0", "up"]);
        let zone = run("sh", &["-c", "ip -o link show eth0 | cut -d: -f1"]).trim().to_owned();
        let one = firewall.admit(guest("[fd00:ca::11]:22")).await;
        let again = firewall.admit(guest("[fd00:ca::11]:22")).await;
        let v4 = firewall.admit(guest("192.0.2.7:22")).await;
        let local = firewall.admit(guest(&format!("[fe80::7%{zone}]:22"))).await;
        let from = |source: &str| {
            format!(
                "-A INPUT -s {source} -p tcp -m tcp --dport 63002 -m comment --comment \"carena {DEPLOYMENT}\" -j ACCEPT"
            )
        };
        let nodes = [from("fd00:ca::11/128"), from("fe80::7/128 -i eth0")];
        assert_eq!(saved("ip6tables-save"), expected_v6(&nodes));
        assert_eq!(saved("iptables-save"), expected_v4(&[from("192.0.2.7/32")]));

        drop((again, local, v4));
        // The next one that comes finds what went before taken away.
        let next = firewall.admit(guest("[fd00:ca::12]:22")).await;
        assert_eq!(saved("ip6tables-save"), expected_v6(&[from("fd00:ca::11/128"), from("fd00:ca::12/128")]));
        assert_eq!(saved("iptables-save"), expected_v4(&[]));

        // An administrator's tool can edit what we made.
        run("ip6tables", &["-A", "INPUT", "-p", "tcp", "--dport", "99", "-j", "ACCEPT"]);
        assert!(saved("ip6tables-save").contains(&"-A INPUT -p tcp -m tcp --dport 99 -j ACCEPT".to_owned()));
        assert!(run("nft", &["list", "tables"]).contains("table inet neighbour"));
        drop((one, next));
    });
}

#[test]
fn a_console_for_some_prefixes_is_listed_so() {
    in_namespace(async || {
        let prefixes = ["fd00:ca::", "fe80::", "10.16.0.0"].map(|prefix| prefix.parse().unwrap());
        let console_from = Some(prefixes.into_iter().zip([61, 10, 12]).collect());
        let _firewall = Firewall::raise(Policy { port: PORT, console_from }).await;
        let console = |program| {
            let rules = saved(program);
            rules.into_iter().filter(|rule| rule.contains("--dport")).collect::<Vec<_>>()
        };
        let from = |source: &str| {
            format!(
                "-A INPUT -s {source} -p tcp -m tcp --dport 63002 -m limit --limit 100/sec --limit-burst 200 -j ACCEPT"
            )
        };
        assert_eq!(console("ip6tables-save"), [from("fd00:ca::/61"), from("fe80::/10")]);
        assert_eq!(console("iptables-save"), [from("10.16.0.0/12")]);
    });
}

/// A wave of a large fleet is one batch, larger than a netlink socket takes by default.
#[test]
fn two_thousand_nodes_are_let_in_and_out() {
    in_namespace(async || {
        let firewall = Firewall::raise(policy()).await;
        let nodes = (0..2_000_u16).map(|at| {
            let address = Ipv6Addr::from_segments([0xfd00, 0xca, 0, 0, 0, 0, 1, at]);
            firewall.admit(Guest { address: address.into(), interface: None, deployment: DEPLOYMENT.into() })
        });
        let admitted = futures_util::future::join_all(nodes).await;
        let rules = || saved("ip6tables-save").iter().filter(|rule| rule.contains("--comment")).count();
        assert_eq!(rules(), 2_000);
        drop(admitted);
        let last = firewall.admit(guest("[fd00:ca::11]:22")).await;
        assert_eq!(rules(), 1);
        drop(last);
    });
}

/// What a neighbour meets: the console's port and pings, nothing else; what the box begins is answered.
#[test]
fn a_neighbour_reaches_the_console_and_nothing_else() {
    in_namespace(async || {
        // The neighbour's namespace is held by a process in it; our end of the cable stays here.
        let mut neighbour = Command::new("setpriv");
        neighbour.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
        let mut neighbour = neighbour.spawn().unwrap();
        let pid = neighbour.id().to_string();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{pid}/ns/net");
        super::boot::until("the neighbour's namespace", Duration::from_secs(10), || {
            std::fs::read_link(&theirs).is_ok_and(|link| link != own)
        });
        let there = |program: &str, args: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid, "-n", program]).args(args);
            command.output().unwrap()
        };
        run("ip", &["link", "add", "ct0", "type", "veth", "peer", "name", "ct1", "netns", &pid]);
        run("ip", &["addr", "add", "fd00:b0::5/64", "dev", "ct0", "nodad"]);
        run("ip", &["link", "set", "ct0", "up"]);
        let lines = "ip link set lo up; ip addr add fd00:b0::6/64 dev ct1 nodad; ip link set ct1 up";
        assert!(there("sh", &["-c", lines]).status.success());
        let _firewall = Firewall::raise(policy()).await;
        let console = TcpListener::bind(("::", PORT)).unwrap();
        let _other = TcpListener::bind("[::]:63003").unwrap();

        let ping = there("ping", &["-6", "-c", "1", "-W", "5", "fd00:b0::5"]);
        assert!(ping.status.success(), "{ping:?}");
        // Many of them are one connection to the kernel, and still no more than so many are answered.
        let flood = there("ping", &["-6", "-q", "-f", "-c", "1000", "-w", "5", "-i", "0", "fd00:b0::5"]);
        let said = String::from_utf8(flood.stdout).unwrap();
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "received,").unwrap();
        let answered: u32 = words[at - 1].parse().unwrap();
        assert!((50..=450).contains(&answered), "{said}");
        let connect = |port: u16| {
            let script = format!("exec 3<>/dev/tcp/fd00:b0::5/{port}");
            there("timeout", &["2", "bash", "-c", &script])
        };
        assert!(connect(PORT).status.success());
        console.accept().unwrap();
        // Dropped, not refused.
        assert_eq!(connect(63003).status.code(), Some(124));
        // What the box begins itself is answered: here with a refusal, by the neighbour's kernel.
        let answer = TcpStream::connect_timeout(&"[fd00:b0::6]:9".parse().unwrap(), Duration::from_secs(5));
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        neighbour.kill().unwrap();
        neighbour.wait().unwrap();
    });
}
