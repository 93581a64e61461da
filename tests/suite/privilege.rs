//! Every way in and every way to root's rights that the issue names, on real servers: OpenSSH, dropbear, sudo, su and
//! PAM. What fails fails with its reason, after one try that PAM itself has counted.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::deployment::{deploy, kill, run};
use crate::lab::{Lab, difference};
use crate::operator::{Running, is};

/// PAM runs these at every authentication: what processes say of themselves at that moment, and each failure.
const PAM: &str = r#"
printf '#!/bin/sh\ncat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >> /run/pam-seen\n' > /usr/local/sbin/pam-seen
printf '#!/bin/sh\necho $PAM_SERVICE $PAM_USER >> /run/pam-failed\n' > /usr/local/sbin/pam-failed
chmod 755 /usr/local/sbin/pam-*; touch /run/pam-seen /run/pam-failed; chmod 666 /run/pam-*
cat > /etc/pam.d/common-auth <<E
auth optional pam_exec.so quiet seteuid /usr/local/sbin/pam-seen
auth [success=2 default=ignore] pam_unix.so
auth optional pam_exec.so quiet seteuid /usr/local/sbin/pam-failed
auth requisite pam_deny.so
auth required pam_permit.so
E
"#;

const SUDO: &str = "user = \"operator\"\npassword_file = \"op.secret\"\nprivilege = \"sudo\"";
const SUDO_BY_KEY: &str = "user = \"operator\"\nkey_file = \"id_ed25519\"\nprivilege = \"sudo\"";
const ROOT: &str = "user = \"root\"\nkey_file = \"id_ed25519\"";

/// One way in.
struct Way {
    what: &'static str,
    /// Shell that makes the node so.
    setup: &'static str,
    /// Lines of the fleet file.
    login: String,
    /// What the refusal says; none where it works.
    refusal: Option<&'static str>,
    /// Failures that PAM counted afterwards.
    failures: usize,
}

fn works(what: &'static str, setup: &'static str, login: impl Into<String>) -> Way {
    Way { what, setup, login: login.into(), refusal: None, failures: 0 }
}

fn refused(
    what: &'static str,
    setup: &'static str,
    login: impl Into<String>,
    refusal: &'static str,
    failures: usize,
) -> Way {
    Way { what, setup, login: login.into(), refusal: Some(refusal), failures }
}

const REQUIRETTY: &str = "echo 'Defaults:operator requiretty' >> /etc/sudoers.d/operator";
const TARGETPW: &str = "echo 'Defaults:operator targetpw' >> /etc/sudoers.d/operator";
const ONLY_ASKS: &str = "sed -i 's/^KbdInteractiveAuthentication.*/KbdInteractiveAuthentication yes/' /etc/ssh/sshd_config; printf 'AuthenticationMethods keyboard-interactive\\n' >> /etc/ssh/sshd_config; kill -HUP 1";
const KEY_THEN_PASSWORD: &str =
    "echo 'AuthenticationMethods publickey,password' >> /etc/ssh/sshd_config; kill -HUP 1";
const DROPBEAR: &str = "ip6tables -A INPUT -p tcp --dport 2222 -j ACCEPT
    mkdir -p /etc/dropbear; dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key >/dev/null 2>&1
    dropbear -p 2222 -P /run/dropbear.pid -r /etc/dropbear/dropbear_ed25519_host_key";

const DROPBEAR_REQUIRETTY: &str = "echo 'Defaults requiretty' >> /etc/sudoers.d/operator
    ip6tables -A INPUT -p tcp --dport 2222 -j ACCEPT
    mkdir -p /etc/dropbear; dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key >/dev/null 2>&1
    dropbear -p 2222 -P /run/dropbear.pid -r /etc/dropbear/dropbear_ed25519_host_key";

fn ways() -> Vec<Way> {
    let with = |login: &str, more: &str| format!("{login}\n{more}");
    let own = |login: &str, file: &str| with(login, &format!("privilege_password_file = \"{file}\""));
    let su = |file: &str| own("user = \"operator\"\npassword_file = \"op.secret\"\nprivilege = \"su\"", file);
    vec![
        works("a banner and a message of the day", "echo keep out > /etc/banner; echo hi > /etc/motd
            echo 'Banner /etc/banner' >> /etc/ssh/sshd_config; kill -HUP 1", ROOT),
        works("sudo without password", "echo 'operator ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/operator", SUDO_BY_KEY),
        works("sudo with password, and a lecture every time", "echo 'Defaults:operator lecture=always' >> /etc/sudoers.d/operator", SUDO),
        works("requiretty", REQUIRETTY, SUDO),
        works("requiretty without password", "printf 'operator ALL=(ALL) NOPASSWD: ALL\\nDefaults:operator requiretty\\n' > /etc/sudoers.d/operator", SUDO_BY_KEY),
        works("requiretty without use_pty", "printf 'Defaults !use_pty\\nDefaults requiretty\\n' >> /etc/sudoers.d/operator", SUDO),
        works("targetpw", TARGETPW, own(SUDO, "root.secret")),
        works("rootpw", "echo 'Defaults:operator rootpw' >> /etc/sudoers.d/operator", own(SUDO_BY_KEY, "root.secret")),
        works("an own prompt and a strange secure_path", "printf 'Defaults passprompt_override,passprompt=\"Password please: \"\\nDefaults secure_path=/opt\\n' >> /etc/sudoers.d/operator", SUDO),
        works("su", "true", su("root.secret")),
        works("su from tcsh to a root with fish", "usermod -s /usr/bin/tcsh operator; usermod -s /usr/bin/fish root", su("root.secret")),
        works("a key with passphrase", "true", "user = \"root\"\nkey_file = \"locked\"\nkey_passphrase_file = \"phrase\""),
        works("a key, then a password", KEY_THEN_PASSWORD, with(SUDO, "key_file = \"id_ed25519\"")),
        works("a password, then a key", "echo 'AuthenticationMethods password,publickey' >> /etc/ssh/sshd_config; kill -HUP 1", with(SUDO, "key_file = \"id_ed25519\"")),
        works("a key, then PAM's questions", "sed -i 's/^KbdInteractiveAuthentication.*/KbdInteractiveAuthentication yes/' /etc/ssh/sshd_config; printf 'AuthenticationMethods publickey,keyboard-interactive\\n' >> /etc/ssh/sshd_config; kill -HUP 1", with(SUDO, "key_file = \"id_ed25519\"")),
        works("PAM's questions only", ONLY_ASKS, SUDO),
        works("fish that greets", "usermod -s /usr/bin/fish operator; mkdir -p /home/operator/.config/fish
            echo 'echo Hello from fish' > /home/operator/.config/fish/config.fish; chown -R operator /home/operator/.config", SUDO),
        works("tcsh that greets", "usermod -s /usr/bin/tcsh operator; echo 'echo Hello' > /home/operator/.cshrc", SUDO),
        works("dash", "usermod -s /usr/bin/dash operator", SUDO),
        works("bash that greets and says goodbye", "echo 'echo Hello; trap \"echo bye\" EXIT' > /root/.bashrc", ROOT),
        works("dropbear as root", DROPBEAR, with(ROOT, "port = 2222")),
        works("dropbear with sudo on a terminal", DROPBEAR_REQUIRETTY, with(SUDO, "port = 2222")),
        works("no sftp, one session, no forwarding", "sed -i /Subsystem/d /etc/ssh/sshd_config
            printf 'MaxSessions 1\\nAllowTcpForwarding no\\nAllowStreamLocalForwarding no\\n' >> /etc/ssh/sshd_config; kill -HUP 1", SUDO),
        works("one session and requiretty", "echo 'Defaults requiretty' >> /etc/sudoers.d/operator
            echo 'MaxSessions 1' >> /etc/ssh/sshd_config; kill -HUP 1", SUDO),
        works("a forced terminal", "echo 'ForceCommand script -qec \"$SSH_ORIGINAL_COMMAND\" /dev/null' >> /etc/ssh/sshd_config; kill -HUP 1", ROOT),
        works("an empty PATH", "echo 'SetEnv PATH=' >> /etc/ssh/sshd_config; kill -HUP 1", SUDO),
        refused("a wrong password for sudo", "true", own(SUDO_BY_KEY, "wrong"), "sudo does not take the password of user operator", 1),
        refused("a wrong password for sudo on a terminal", REQUIRETTY, own(SUDO_BY_KEY, "wrong"), "sudo does not take the password of user operator", 1),
        refused("a wrong password for sudo where sessions know no signals", "echo 'ForceCommand exec sh -c \"$SSH_ORIGINAL_COMMAND\"' >> /etc/ssh/sshd_config; kill -HUP 1", own(SUDO_BY_KEY, "wrong"), "sudo does not take the password of user operator", 1),
        refused("a wrong password for sudo below dropbear", DROPBEAR, with(&own(SUDO_BY_KEY, "wrong"), "port = 2222"), "sudo does not take the password of user operator", 1),
        refused("targetpw and the login's password", TARGETPW, SUDO, "sudo asks user operator for the password of root, and none is given", 0),
        refused("no password for sudo", "true", SUDO_BY_KEY, "sudo asks user operator for the password of operator, and none is given", 0),
        refused("not in sudoers", "rm /etc/sudoers.d/operator", SUDO, "sudo refuses user operator: operator is not in the sudoers file", 0),
        refused("sudo for something else only", "echo 'operator ALL=(ALL) /bin/ls' > /etc/sudoers.d/operator", SUDO, "Sorry, user operator is not allowed to execute", 0),
        refused("no sudo at all", "rm /usr/bin/sudo", SUDO, "exec: sudo: not found", 0),
        refused("su with a wrong password", "true", su("wrong"), "su does not take the password of user root", 1),
        refused("su for the wheel only", "sed -i '1i auth required pam_wheel.so' /etc/pam.d/su", su("root.secret"), "su refuses user operator: su: Permission denied", 0),
        refused("not root", "true", "user = \"operator\"\nkey_file = \"id_ed25519\"", "user operator is not root", 0),
        refused("a password that has expired", "chage -d 0 operator", SUDO, "Password change required but no TTY available", 0),
        refused("a forced command", "echo 'ForceCommand echo backups only' >> /etc/ssh/sshd_config; kill -HUP 1", ROOT, "the server did not run our command but answered: \\\"backups only\\\"", 0),
        refused("no login shell", "usermod -s /usr/sbin/nologin operator", SUDO, "the server did not run our command but answered: \\\"This account is currently not available.\\\"", 0),
        refused("a wrong password", "true", "user = \"operator\"\npassword_file = \"wrong\"", "user operator was not let in", 1),
        refused("a wrong answer to PAM", ONLY_ASKS, "user = \"operator\"\npassword_file = \"wrong\"", "user operator was not let in", 1),
        refused("a key where a password is wanted too", KEY_THEN_PASSWORD, SUDO_BY_KEY, "user operator was not let in (it has accepted the key; the server would take: password)", 0),
        refused("a locked key", "true", "user = \"root\"\nkey_file = \"locked\"", "the private key is encrypted, and no passphrase is given", 0),
        refused("a wrong passphrase", "true", "user = \"root\"\nkey_file = \"locked\"\nkey_passphrase_file = \"wrong\"", "the passphrase does not open the private key", 0),
    ]
}

#[test]
fn every_way_in_leads_to_root_or_to_its_own_refusal_after_one_try() {
    let ways = ways();
    let lab = Lab::up(ways.len());
    std::fs::write(lab.dir().join("wrong"), "not the password\n").unwrap();
    std::fs::write(lab.dir().join("phrase"), "open sesame\n").unwrap();
    std::fs::copy(lab.dir().join("id_ed25519"), lab.dir().join("locked")).unwrap();
    let locked = std::process::Command::new("ssh-keygen")
        .args(["-q", "-p", "-N", "open sesame", "-f"])
        .arg(lab.dir().join("locked"))
        .status()
        .unwrap();
    assert!(locked.success());
    let mut text = String::from("baseline = \"demo\"\n");
    for (way, k) in ways.iter().zip(1..) {
        lab.on_node(k, &format!("{PAM}\n{}", way.setup));
        write!(text, "[[node]]\naddress = \"{}\"\n{}\n", lab.node_address(k), way.login).unwrap();
    }
    let fleet = lab.dir().join("ways.toml");
    std::fs::write(&fleet, text).unwrap();
    let before: Vec<_> = (1..=ways.len()).map(|k| lab.snapshot(k)).collect();

    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 253, "{}", done.all);
    let secrets: Vec<String> = ["op.secret", "root.secret"]
        .map(|file| std::fs::read_to_string(lab.dir().join(file)).unwrap().trim().to_owned())
        .into();
    let mut wrong = Vec::new();
    for (way, k) in ways.iter().zip(1..) {
        let node = done.node(&lab, k);
        let error = node["error"].as_str().unwrap_or_default();
        match way.refusal {
            None if node["result"] != "done" => wrong.push(format!("{}: {node}", way.what)),
            Some(refusal) if !error.contains(&refusal.replace("\\\"", "\"")) => {
                wrong.push(format!("{}: {node}", way.what));
            }
            _ => {}
        }
        let failed = lab.on_node(k, "cat /run/pam-failed");
        if failed.lines().count() != way.failures {
            wrong.push(format!("{}: PAM counted {failed:?}", way.what));
        }
        let seen = lab.on_node(k, "tr '\\0' ' ' < /run/pam-seen");
        if secrets.iter().any(|secret| seen.contains(secret)) || done.all.contains(&secrets[0]) {
            wrong.push(format!("{}: a password was seen", way.what));
        }
        lab.on_node(k, "rm -rf /var/lib/carena-demo");
        let left = difference(&before[k - 1], &lab.snapshot(k));
        if !left.is_empty() {
            wrong.push(format!("{}: something is left: {left}", way.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_sweep_with_a_password_that_is_no_longer_right_tries_it_once() {
    let lab = Lab::up(1);
    lab.on_node(1, PAM);
    let before = lab.snapshot(1);
    let fleet = lab.fleet(&[1], "demo", "");
    let mut child =
        lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let started = "\"step\":\"start\",\"state\":\"started\"";
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(started)));
    kill(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();

    lab.on_node(1, "cp -p /etc/shadow /root/shadow; echo operator:another | chpasswd; : > /run/pam-failed");
    // Also where it is told to wait for the node.
    let swept = run(&mut lab.carena(&["sweep", "--json", "--wait", "15"]));
    assert_eq!(swept.exit, 253, "{}", swept.all);
    assert!(swept.all.contains("user operator was not let in"), "{}", swept.all);
    assert_eq!(lab.on_node(1, "cat /run/pam-failed"), "sshd operator\n");

    lab.on_node(1, "cp -p /root/shadow /etc/shadow; rm /root/shadow");
    let swept = run(&mut lab.carena(&["sweep", "--json"]));
    assert_eq!(swept.exit, 0, "{}", swept.all);
    // chpasswd keeps a copy of its own.
    let left = difference(&before, &lab.snapshot(1));
    assert!(left.lines().all(|line| line.contains("/etc/shadow")), "{left}");
}

#[test]
fn a_box_that_dies_while_its_cable_is_pulled_leaves_nothing_and_no_root_shell() {
    let lab = Lab::up(1);
    let before = lab.snapshot(1);
    let fleet = lab.fleet(&[1], "demo", "lease_s = 10");
    Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
        if is(event, "open", "started") {
            // The node never hears that the connection has ended.
            lab.link(1, "down");
            running.signal(nix::sys::signal::Signal::SIGKILL);
        }
    });
    assert_ne!(lab.snapshot(1), before, "nothing was there that could be left");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let left = difference(&before, &lab.snapshot(1));
        if left.lines().all(|line| line.contains("/var/lib/carena-demo")) {
            return;
        }
        assert!(Instant::now() < end, "{left}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
