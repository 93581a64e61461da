//! The console and the API from outside: who gets an answer, what a deployment looks like, and that its nodes are left
//! as they were found whatever happens to `serve`.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use carena::console::routes::{Access, ROUTES};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::serve::{Serve, URL, id, until, wait_for};

/// Makes the demonstration's installer wait on this node, until it is let go.
const HOLD: &str = "mkdir -p /var/lib/carena-demo && mkfifo /var/lib/carena-demo/firmware.bin.new";
const LET_GO: &str = "timeout 60 cat /var/lib/carena-demo/firmware.bin.new";

/// What is on a node, but for the demonstration's own.
fn kept(lab: &Lab, k: usize) -> String {
    let lines = lab.snapshot(k);
    lines
        .lines()
        .filter(|line| !line.contains("/var/lib/carena-demo"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// A path of the table with something in its parameters.
fn filled(path: &str) -> String {
    let path = path.replace("{id}", "x").replace("{name}", "main.js");
    path.replace("{node}", "fd00::1").replace("{component}", "y")
}

#[test]
fn a_box_without_a_command_line_is_told_whose_baselines_it_trusts() {
    let lab = Lab::up(1);
    let serve = Serve::start(&lab);
    let key = "RWTX7wk9WnujUTl4hBXqfIBkFM1Hg3APt967aNjufhmzz8MxV0orQI5i";
    let file = lab.dir().join("state/trust/51A37B5A3D09EFD7.pub");
    let add = |key: &str| serve.post("/api/v1/trust", &serde_json::json!({ "key": key }).to_string());
    for rubbish in ["", "RW", "/etc/passwd", file.to_str().unwrap()] {
        let refused = add(rubbish);
        assert_eq!(refused.status, 422, "{rubbish}: {}", refused.body);
    }
    assert_eq!((add(key).status, add(key).status), (201, 200));
    assert!(std::fs::read_to_string(&file).unwrap().ends_with(&format!("{key}\n")));
    let keys = serve.get("/api/v1/trust").json()["keys"].clone();
    assert_eq!((keys.as_array().unwrap().len(), &keys[0]["public"]), (1, &key.into()), "{keys}");
    let remove = || serve.ask("DELETE", "/api/v1/trust/51a37b5a3d09efd7", &serve.bearer()).status;
    assert_eq!((remove(), remove()), (204, 404));
    assert!(!file.exists());
}

#[test]
fn nothing_but_healthz_answers_without_the_token() {
    let lab = Lab::up(1);
    let serve = Serve::start(&lab);
    let wrong = "header = \"Authorization: Bearer wrong\"\n";
    let form = "data = \"token=wrong\"\n";
    std::thread::scope(|scope| {
        for route in ROUTES {
            let (serve, path) = (&serve, filled(route.path));
            scope.spawn(move || {
                let expected = if route.access == Access::Open { 200 } else { 401 };
                for config in ["", wrong, "header = \"Cookie: __Host-carena=wrong\"\n"] {
                    let form = if route.access == Access::SignIn { form } else { "" };
                    let answer = serve.ask(route.method, &path, &format!("{config}{form}"));
                    assert_eq!(answer.status, expected, "{} {path} with {config:?}", route.method);
                    assert_eq!(
                        answer.head.contains("www-authenticate: bearer"),
                        expected == 401 && form.is_empty()
                    );
                }
                // A stream of events has no end of its own.
                let open = serve.ask(route.method, &path, &format!("max-time = 5\n{}", serve.bearer()));
                let expected = if route.access == Access::SignIn { 400 } else { open.status };
                assert!(
                    open.status == expected && ![0, 401, 403].contains(&open.status),
                    "{path}: {}",
                    open.status
                );
                for header in [
                    "content-security-policy: default-src 'self'",
                    "x-content-type-options: nosniff",
                    "frame-ancestors 'none'",
                    "referrer-policy: no-referrer",
                    "cache-control: no-",
                ] {
                    assert!(open.head.contains(header), "{path}: {header} in {}", open.head);
                }
                assert!(!open.head.contains("unsafe-inline"));
            });
        }
    });
    for (method, path) in [("GET", "/nothing"), ("PUT", "/healthz"), ("POST", "/"), ("GET", "/healthz/")] {
        assert_eq!(serve.ask(method, path, "").status, 401, "{method} {path}");
    }
    let page = serve.ask("GET", "/", "header = \"Accept-Language: es\"\n");
    assert!(page.body.contains("Iniciar sesión") && !page.body.contains("<script"), "{}", page.body);

    // A session opens what the token opens, but changes things only from our own page.
    let signed_in = serve.ask("POST", "/session", &format!("data = \"token={}\"\n", serve.token));
    assert_eq!(signed_in.status, 303, "{}", signed_in.head);
    let cookie = signed_in.head.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
    let cookie = cookie.replace("__host-", "__Host-");
    let with = |method: &str, path: &str, more: &str| {
        serve.ask(method, path, &format!("header = \"Cookie: {cookie}\"\n{more}")).status
    };
    assert_eq!(with("GET", "/api/v1/deployments", ""), 200);
    let cancel = "/api/v1/deployments/x/cancel";
    assert_eq!(with("POST", cancel, ""), 403);
    assert_eq!(with("POST", cancel, "header = \"Origin: https://evil.example\"\n"), 403);
    assert_eq!(with("POST", cancel, "header = \"Sec-Fetch-Site: same-site\"\n"), 403);
    assert_eq!(with("POST", cancel, &format!("header = \"Origin: {URL}\"\n")), 404);
    assert_eq!(with("DELETE", "/session", &format!("header = \"Origin: {URL}\"\n")), 204);
    assert_eq!(with("GET", "/api/v1/deployments", ""), 401);
}

#[test]
fn tls_is_1_3_alone_with_the_certificate_that_was_shown() {
    let lab = Lab::up(1);
    let serve = Serve::start(&lab);
    let openssl = |arguments: &[&str]| {
        let mut command = lab.hub_command("openssl");
        command.args(["s_client", "-connect", "[fd00:ca::1]:63002"]).args(arguments);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (connected, said) = openssl(&["-showcerts"]);
    assert!(connected && said.contains("TLSv1.3"), "{said}");
    let certificate = lab.dir().join("shown.pem");
    std::fs::write(&certificate, &said).unwrap();
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).trim().ends_with(&format!("={}", serve.fingerprint)));
    let (connected, said) = openssl(&["-tls1_2"]);
    assert!(!connected, "{said}");
}

#[test]
fn what_is_wrong_is_told_as_the_command_line_tells_it() {
    let lab = Lab::up(1);
    let serve = Serve::start(&lab);
    let deployments = "/api/v1/deployments";
    let refused = |body: &str, status: u16| {
        let answer = serve.post(deployments, body);
        assert_eq!(answer.status, status, "{}", answer.body);
        answer.detail()
    };
    let node = r#""nodes": [{"address": "fd00:ca::11", "user": "root", "password": "x"}]"#;
    let cases = [
        ("{", 400, "at line 1 column 1"),
        ("[]", 422, "request: invalid"),
        (r#"{"baseline": "demo"}"#, 422, "no node is named"),
        (&format!(r#"{{"baseline": "demo", "basline": 1, {node}}}"#), 422, "unknown field `basline`"),
        (&format!(r#"{{"baseline": "demo", "dry_run": "yes", {node}}}"#), 422, "dry_run is true or false"),
        (&format!(r#"{{"baseline": "demo", "options": {{"lease_s": 1}}, {node}}}"#), 422, "lease_s = 1"),
        (
            r#"{"baseline": "demo", "nodes": [{"address": "fd00::1", "user": "u", "password": 271828}]}"#,
            422,
            "text",
        ),
        (
            r#"{"baseline": "demo", "nodes": [{"address": "a", "user": "u", "key_file": "/x"}]}"#,
            422,
            "cannot name files",
        ),
        // Directories of the box are not the caller's.
        (&format!(r#"{{"baseline": "..", {node}}}"#), 422, "there is no baseline \"..\""),
        (&format!(r#"{{"baseline": "demo@2", {node}}}"#), 422, "there is no baseline \"demo@2\""),
    ];
    for (body, status, said) in cases {
        let detail = refused(body, status);
        assert!(detail.contains(said) && detail.contains('(') && !detail.contains("271828"), "{detail}");
    }
    let unknown = refused(&format!(r#"{{"baseline": "nope", {node}}}"#), 422);
    let mut command = lab.hub_command(env!("CARGO_BIN_EXE_carena"));
    command.arg("deploy").arg(lab.fleet(&[1], "nope", "")).arg("--state").arg(lab.dir().join("other"));
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told.trim(), format!("carena: {unknown}"));

    for path in [format!("{deployments}/nope"), format!("{deployments}/a'b/inventory")] {
        let answer = serve.get(&path);
        assert_eq!(
            (answer.status, answer.detail().contains("there is no deployment")),
            (404, true),
            "{path}"
        );
    }
    let answer = serve.post(&format!("{deployments}/nope/cancel"), "");
    assert_eq!((answer.status, answer.detail().contains("\"nope\"")), (404, true));
    assert_eq!(serve.get("/api/v1/events?deployment=nope").status, 404);
    assert_eq!(serve.get("/api/v1/events?after=x").status, 400);
    assert_eq!(serve.get("/assets/nothing.js").status, 404);
    let answer = serve.ask("PUT", deployments, &serve.bearer());
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get,head,post"), "{}", answer.head);
    // Answered before the body is read: over HTTP/2 curl may then drop the answer's.
    let plain = serve.ask("POST", deployments, &(serve.bearer() + "http1.1\ndata = \"{}\"\n"));
    assert_eq!((plain.status, plain.detail().contains("Content-Type")), (415, true));

    // A fleet of the largest size fits; what is larger is refused, told beforehand or not.
    let large = lab.dir().join("large.json");
    let nodes: Vec<_> = (0..10_000)
        .map(|n| serde_json::json!({"address": format!("fd00:1234:5678:9abc:def0:1234:5678:{n:04x}"), "port": 65535,
            "access": "ssh", "user": "u".repeat(32), "password": "p".repeat(128), "privilege": "sudo",
            "host_key": format!("SHA256:{}", "k".repeat(43))}))
        .collect();
    let largest = serde_json::json!({"baseline": "nope", "nodes": nodes}).to_string();
    std::fs::write(&large, &largest).unwrap();
    let send = |more: &str| {
        let config = format!(
            "header = \"Content-Type: application/json\"\ndata-binary = \"@{}\"\n{more}",
            large.display()
        );
        serve.ask("POST", deployments, &(serve.bearer() + &config))
    };
    assert_eq!(send("").status, 422, "{} bytes", largest.len());
    std::fs::write(&large, " ".repeat((8 << 20) + 1)).unwrap();
    for version in ["http1.1\n", "http2\n"] {
        for told in ["", "header = \"Transfer-Encoding: chunked\"\n"] {
            let answer = send(&format!("{version}{told}"));
            let text = format!("{}\n{}", answer.head, answer.body);
            assert!(
                text.contains("413") && text.contains("application/problem+json"),
                "{version}{told}: {text}"
            );
            // Over HTTP/2 curl may still be sending when the answer comes, and then drops its body.
            let whole = version.starts_with("http2") || text.contains("at most 8388608 bytes");
            assert!(whole, "{version}{told}: {text}");
        }
    }
}

#[test]
fn a_deployment_is_started_watched_to_its_end_and_leaves_its_nodes_as_found() {
    let lab = Lab::up(2);
    let before = [kept(&lab, 1), kept(&lab, 2)];
    let serve = Serve::start(&lab);
    let every = serve.watch("", "");
    // Not in the order of the alphabet: the order is the fleet's.
    let deployment = serve.deploy(&serve.fleet(&[2, 1]));
    let all = serve.all(&deployment, "");
    let (last, events) = all.split_last().unwrap();
    assert!(events.iter().any(|sent| sent.is("result", "done")), "{events:?}");
    let ids: Vec<_> = events.iter().map(|sent| sent.id.unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
    assert!(events.iter().all(|sent| sent.kind.is_empty() && sent.data["sequence"] == sent.id.unwrap()));
    assert_eq!((last.kind.as_str(), last.id, &last.data["exit"]), ("summary", None, &Value::from(0)));

    // The same to whoever asks, in the shape of the command line.
    let answer = serve.get(&deployment);
    assert_eq!(answer.json(), last.data);
    let summary = &last.data["summary"];
    assert_eq!(summary["deployment"], id(&deployment));
    for k in [1, 2] {
        let node = &summary["nodes"][lab.node_address(k)];
        assert_eq!((&node["result"], &node["path"]), (&"done".into(), &"direct".into()), "{summary}");
        assert_eq!(node["components"][0]["outcome"], "updated", "{summary}");
        assert_eq!(node["components"][0]["to"], "1.2.0", "{summary}");
        assert_eq!(node["outstanding_traces"], serde_json::json!([]), "{summary}");
    }
    assert!(
        answer.body.find("fd00:ca::12").unwrap() < answer.body.find("fd00:ca::11").unwrap(),
        "{}",
        answer.body
    );
    assert_eq!([kept(&lab, 1), kept(&lab, 2)], before);
    let inventory = serve.get(&format!("{deployment}/inventory")).json();
    assert_eq!(inventory.as_object().unwrap().len(), 2, "{inventory}");
    let demo = serve.get("/api/v1/baselines").json()["baselines"][0].clone();
    assert_eq!(
        (&demo["name"], &demo["signature"]["state"]),
        (&"demo@1".into(), &"built-in".into()),
        "{demo}"
    );

    // Read on from anywhere: every event once, in order, by header or by query.
    for cut in [0, 1, ids.len() / 2, ids.len() - 1] {
        let header = format!("header = \"Last-Event-ID: {}\"\n", ids[cut]);
        assert_eq!(serve.all(&deployment, &header), all[cut + 1..], "after {}", ids[cut]);
    }
    let after = format!("deployment={}&after={}", id(&deployment), ids[2]);
    assert_eq!(serve.watch(&after, "").iter().collect::<Vec<_>>(), all[3..]);
    // Numbers of an earlier process: told, and all there is comes.
    let strange = serve.all(&deployment, "header = \"Last-Event-ID: 999999\"\n");
    assert_eq!((strange[0].kind.as_str(), &strange[0].data["after"]), ("gap", &Value::from(999_999)));
    assert_eq!(strange[1..], all);

    // Who read everything while it happened has the same events.
    let live: Vec<_> = every.iter().filter(|sent| sent.id.is_some()).take(events.len()).collect();
    assert_eq!(live, events);

    // A second time nothing is needed; the list has the newest first.
    let again = serve.deploy(&serve.fleet(&[1]));
    assert_eq!(serve.all(&again, "").last().unwrap().data["exit"], 3);
    let list = serve.get("/api/v1/deployments").json();
    let listed: Vec<_> =
        list["deployments"].as_array().unwrap().iter().map(|one| &one["deployment"]).collect();
    assert_eq!(listed, [id(&again), id(&deployment)]);
    assert_eq!(list["deployments"][1]["nodes"]["done"], 2);

    let mut dry = serve.fleet(&[1]);
    dry["dry_run"] = true.into();
    lab.on_node(1, "rm -r /var/lib/carena-demo");
    let dry = serve.deploy(&dry);
    serve.all(&dry, "");
    assert_eq!(lab.on_node(1, "ls /var/lib/carena-demo 2>/dev/null | wc -l"), "0\n");
}

#[test]
fn a_cancel_waits_for_the_flash_and_no_secret_is_anywhere() {
    let lab = Lab::up(2);
    let before = [kept(&lab, 1), kept(&lab, 2)];
    // Where a systemd host has its journal, the test listens.
    let journal = UnixDatagram::bind(lab.dir().join("journal")).unwrap();
    let logged = Arc::new(Mutex::new(Vec::new()));
    std::thread::spawn({
        let logged = logged.clone();
        move || {
            let mut datagram = vec![0; 1 << 20];
            while let Ok(length) = journal.recv(&mut datagram) {
                logged.lock().unwrap().extend_from_slice(&datagram[..length]);
            }
        }
    });
    let bind = format!(
        "mount -t tmpfs tmpfs /run/systemd && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket && \
         mount --bind {}/journal /run/systemd/journal/socket",
        lab.dir().display()
    );
    lab.on_node(1, HOLD);
    // The other node takes connections and says nothing.
    let sshd = std::fs::read_to_string(lab.dir().join("node2.pid")).unwrap();
    let freeze = |signal: &str| {
        assert!(lab.hub_command("kill").args([signal, sshd.trim()]).status().unwrap().success())
    };
    freeze("-STOP");
    assert!(
        lab.hub_command("sh")
            .args(["-c", &format!("mkdir -p /run/systemd; {bind}")])
            .status()
            .unwrap()
            .success()
    );
    let serve = Serve::start(&lab);
    let password = std::fs::read_to_string(lab.dir().join("op.secret")).unwrap().trim().to_owned();
    let deployment = serve.deploy(&serve.fleet(&[1, 2]));
    let events = serve.watch(&format!("deployment={}", id(&deployment)), "");
    wait_for(&events, "install", "started");

    // A node belongs to one deployment at a time, however its address is written.
    let mut other = serve.fleet(&[1]);
    other["nodes"][0]["address"] = "FD00:CA:0:0:0:0:0:11".into();
    let busy = serve.post("/api/v1/deployments", &other.to_string());
    assert_eq!((busy.status, &busy.json()["deployment"]), (409, &Value::from(id(&deployment))));
    assert!(busy.detail().contains(id(&deployment)));

    // While it runs, with the password in use, it is nowhere to be seen.
    let shown = format!("cat {} {}", serve.proc("cmdline").display(), serve.proc("environ").display());
    let everywhere = format!(
        "{shown}; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; \
         find {0}/state -type f -exec cat {{}} +; cat {0}/serve-*.log",
        lab.dir().display()
    );
    let look = || Command::new("sh").args(["-c", &everywhere]).output().unwrap().stdout;
    let contains =
        |bytes: &[u8], what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
    let seen = look();
    assert!(contains(&seen, id(&deployment)), "the search misses the store");
    assert!(!contains(&seen, &password), "the password can be seen");
    let on_node = lab.on_node(
        1,
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; \
        grep -r . /tmp /var/tmp /run 2>/dev/null",
    );
    assert!(!on_node.contains(&password), "the password can be seen on the node");

    for _ in 0..2 {
        assert_eq!(serve.post(&format!("{deployment}/cancel"), "").status, 202);
    }
    let running = serve.get(&deployment).json();
    assert_eq!((&running["summary"]["cancelled"], &running["exit"]), (&true.into(), &Value::Null));
    // What changes nothing is given up at once; the flash is waited for.
    let ended = wait_for(&events, "result", "failed");
    assert_eq!(ended.data["node"], lab.node_address(2));
    assert_eq!(serve.get(&deployment).json()["exit"], Value::Null);
    freeze("-CONT");
    lab.on_node(1, LET_GO);
    let rest: Vec<_> = events.iter().collect();
    let ended = &rest.last().unwrap().data;
    assert_eq!(ended["exit"], 253, "{ended}");
    let nodes = &ended["summary"]["nodes"];
    assert_eq!(nodes[lab.node_address(1)]["components"][0]["outcome"], "updated", "{ended}");
    assert_eq!(nodes[lab.node_address(2)]["result"], "cancelled", "{ended}");
    assert_eq!([kept(&lab, 1), kept(&lab, 2)], before);
    let over = serve.post(&format!("{deployment}/cancel"), "");
    assert_eq!((over.status, over.detail()), (409, format!("deployment {} has ended", id(&deployment))));

    let mut all = look();
    for path in [&*deployment, "/api/v1/deployments", &format!("{deployment}/inventory")] {
        all.extend(serve.get(path).body.into_bytes());
    }
    for sent in serve.all(&deployment, "") {
        all.extend(sent.data.to_string().into_bytes());
    }
    let logged = logged.lock().unwrap().clone();
    assert!(contains(&logged, id(&deployment)), "the log misses the deployment");
    assert!(!contains(&logged, &serve.token), "the token is in the log");
    all.extend(logged);
    assert!(!contains(&all, &password), "the password can be seen");
}

#[test]
fn ending_serve_takes_a_running_deployment_back_first() {
    let lab = Lab::up(1);
    let before = kept(&lab, 1);
    lab.on_node(1, HOLD);
    let mut serve = Serve::start(&lab);
    let deployment = serve.deploy(&serve.fleet(&[1]));
    let events = serve.watch(&format!("deployment={}", id(&deployment)), "");
    wait_for(&events, "install", "started");
    serve.signal(Signal::SIGTERM);
    // Nothing new is taken, and what is being written is waited for.
    let mut other = serve.fleet(&[1]);
    other["nodes"][0]["address"] = "fd00:ca::99".into();
    other["dry_run"] = true.into();
    let refused = until("the refusal", || {
        let answer = serve.post("/api/v1/deployments", &other.to_string());
        (answer.status == 503).then_some(answer)
    });
    assert!(refused.detail().contains("being stopped"));
    assert!(!serve.has_ended());
    assert_ne!(kept(&lab, 1), before);
    lab.on_node(1, LET_GO);
    assert_eq!(serve.wait(), Some(0));
    assert_eq!(kept(&lab, 1), before);
}

#[test]
fn a_killed_serve_goes_on_with_its_deployment_when_it_is_back() {
    let lab = Lab::up(1);
    let before = kept(&lab, 1);
    lab.on_node(1, HOLD);
    let mut serve = Serve::start(&lab);
    let deployment = serve.deploy(&serve.fleet(&[1]));
    wait_for(&serve.watch(&format!("deployment={}", id(&deployment)), ""), "install", "started");
    serve.signal(Signal::SIGKILL);
    serve.wait();
    // The password came by the API and is sealed; the engine still runs, and so does its installer.
    let serve = Serve::start(&lab);
    lab.on_node(1, LET_GO);
    let all = serve.all(&deployment, "");
    assert!(all.iter().any(|sent| sent.data["message"] == "the engine still runs"), "{all:?}");
    assert!(!all.iter().any(|sent| sent.is("copy", "started") || sent.is("send", "started")), "{all:?}");
    assert_eq!(all.last().unwrap().data["exit"], 0, "{all:?}");
    assert_eq!(kept(&lab, 1), before);
}

#[test]
fn a_node_and_a_component_are_cancelled_by_their_names_and_a_retry_takes_up_what_is_not_done() {
    let lab = Lab::up(3);
    let before = [kept(&lab, 1), kept(&lab, 2), kept(&lab, 3)];
    lab.on_node(1, HOLD);
    let serve = Serve::start(&lab);
    let mut fleet = serve.fleet(&[1, 2, 3]);
    fleet["options"] = serde_json::json!({"parallel": 1});
    let deployment = serve.deploy(&fleet);
    wait_for(&serve.watch(&format!("deployment={}", id(&deployment)), ""), "install", "started");

    for (part, said) in [
        ("/nodes/fd00::99", "has no node fd00::99 (write the node's address as the fleet does)"),
        ("/components/nope", "has no component nope (there is carena-demo)"),
        ("/components/a%20b", "there is no component"),
        ("/nodes/fd00::99/components/carena-demo", "has no node fd00::99"),
    ] {
        let answer = serve.post(&format!("{deployment}{part}/cancel"), "");
        assert_eq!(answer.status, 404, "{part}: {}", answer.body);
        assert!(answer.detail().contains(said), "{part}: {}", answer.detail());
    }
    let early = serve.post(&format!("{deployment}/retry"), "");
    assert_eq!((early.status, early.detail().contains("still runs")), (409, true), "{}", early.body);
    // Twice is once, in any spelling: the one that waits never begins, the one that writes finishes.
    let other_spelling = lab.node_address(2).replace("fd00:ca::", "FD00:CA:0:0::");
    for node in [lab.node_address(2), other_spelling, lab.node_address(1)] {
        assert_eq!(serve.post(&format!("{deployment}/nodes/{node}/cancel"), "").status, 202, "{node}");
    }
    let one = format!("{deployment}/nodes/{}/components/carena-demo/cancel", lab.node_address(3));
    assert_eq!(serve.post(&one, "").status, 202);
    lab.on_node(1, LET_GO);
    let all = serve.all(&deployment, "");
    let nodes = &all.last().unwrap().data["summary"]["nodes"];
    let node = |k: usize| &nodes[lab.node_address(k)];
    assert_eq!(node(1)["components"][0]["outcome"], "updated", "{nodes}");
    assert_eq!(
        (&node(2)["result"], &node(2)["error"]),
        (&"skipped".into(), &"cancelled by the operator".into())
    );
    assert_eq!(node(3)["result"], "cancelled", "{nodes}");
    for part in ["", "/nodes/fd00:ca::12", "/components/carena-demo"] {
        let answer = serve.post(&format!("{deployment}{part}/cancel"), "");
        assert_eq!((answer.status, answer.detail().contains("has ended")), (409, true), "{part}");
    }

    // The box has no password any more; what is wrong touches no node.
    let retry = format!("{deployment}/retry");
    let password = fleet["nodes"][0]["password"].clone();
    for (body, status, said) in [
        (serde_json::json!({}), 422, "no password and no key for user operator on node"),
        (serde_json::json!({"credentials": {"password": 271828}}), 422, "text between quotes"),
        (serde_json::json!({"passwords": {}}), 422, "unknown field"),
        (serde_json::json!({"nodes": {"fd00::99": {"password": "x"}}}), 422, "not among those"),
    ] {
        let answer = serve.post(&retry, &body.to_string());
        assert_eq!((answer.status, answer.detail().contains(said)), (status, true), "{}", answer.body);
    }
    assert_eq!(serve.post("/api/v1/deployments/nope/retry", "").status, 404);
    let mut each = serde_json::json!({"credentials": {"password": password.clone()}});
    each["nodes"][lab.node_address(3)] = serde_json::json!({"password": password});
    let begun = serve.post(&retry, &each.to_string());
    assert_eq!(begun.status, 201, "{}", begun.body);
    let again = format!("/api/v1/deployments/{}", begun.json()["deployment"].as_str().unwrap());
    assert!(begun.head.contains(&format!("location: {again}\r\n")), "{}", begun.head);
    let ended = serve.all(&again, "");
    let ended = &ended.last().unwrap().data;
    let retried = ended["summary"]["nodes"].as_object().unwrap();
    assert_eq!((&ended["exit"], &ended["summary"]["retry_of"]), (&0.into(), &id(&deployment).into()));
    let expected: std::collections::BTreeSet<_> =
        if node(1)["result"] == "done" { [2, 3].as_slice() } else { &[1, 2, 3] }
            .iter()
            .map(|k| lab.node_address(*k))
            .collect();
    assert_eq!(retried.keys().cloned().collect::<std::collections::BTreeSet<_>>(), expected);
    let nothing = serve.post(&format!("{again}/retry"), "");
    assert_eq!((nothing.status, nothing.detail().contains("no node of deployment")), (409, true));
    assert_eq!([kept(&lab, 1), kept(&lab, 2), kept(&lab, 3)], before);
}

#[test]
fn a_node_that_was_cancelled_stays_so_when_serve_is_killed_at_once() {
    let lab = Lab::up(2);
    let before = [kept(&lab, 1), kept(&lab, 2)];
    lab.on_node(1, HOLD);
    let mut serve = Serve::start(&lab);
    let mut fleet = serve.fleet(&[1, 2]);
    fleet["options"] = serde_json::json!({"reboot": "never", "parallel": 1});
    let deployment = serve.deploy(&fleet);
    let events = serve.watch(&format!("deployment={}", id(&deployment)), "");
    wait_for(&events, "install", "started");
    // The second waits for its turn.
    let node = lab.node_address(2);
    assert_eq!(serve.post(&format!("{deployment}/nodes/{node}/cancel"), "").status, 202);
    serve.signal(Signal::SIGKILL);
    serve.wait();
    let serve = Serve::start(&lab);
    lab.on_node(1, LET_GO);
    let all = serve.all(&deployment, "");
    let nodes = &all.last().unwrap().data["summary"]["nodes"];
    assert_eq!(nodes[&node]["result"], "skipped", "{nodes}");
    assert_eq!(nodes[&node]["error"], "cancelled by the operator", "{nodes}");
    assert_eq!(nodes[lab.node_address(1)]["result"], "done", "{nodes}");
    assert_eq!(nodes[lab.node_address(1)]["components"][0]["outcome"], "updated", "{nodes}");
    assert_eq!([kept(&lab, 1), kept(&lab, 2)], before);
}
