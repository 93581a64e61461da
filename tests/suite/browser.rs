//! The page in a real Chromium, driven over WebDriver (W3C) by plain HTTP: what a person does, in both languages.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::serve::{Serve, URL, until};

const DRIVER: &str = "http://127.0.0.1:9515";

/// Movement of what is already shown, by the browser's own measure; 0.1 is what it calls good.
const LAYOUT_SHIFT_MAX: f64 = 0.05;

/// Chromium with its driver, in the lab's hub. Both end with the lab.
struct Browser<'a> {
    lab: &'a Lab,
    driver: Child,
    session: String,
}

impl<'a> Browser<'a> {
    fn start(lab: &'a Lab, language: &str) -> Self {
        let mut command = lab.hub_command("chromedriver");
        let driver = command.arg("--port=9515").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut browser = Self { lab, driver, session: String::new() };
        until("chromedriver", || {
            browser.http("GET", "/status", &Value::Null)["value"]["ready"].as_bool()?.then_some(())
        });
        let profile = lab.dir().join(format!("profile-{language}"));
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1280,900",
            &format!("--lang={language}"),
            &format!("--user-data-dir={}", profile.display()),
        ];
        let started = browser.http(
            "POST",
            "/session",
            &json!({"capabilities": {"alwaysMatch": {
                "acceptInsecureCerts": true,
                "goog:loggingPrefs": {"browser": "ALL"},
                "goog:chromeOptions": {"args": arguments, "prefs": {"intl.accept_languages": language}},
            }}}),
        );
        browser.session =
            started["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned();
        browser
    }

    fn http(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut curl = self.lab.hub_command("curl");
        curl.args(["--silent", "--max-time", "60", "--request", method, "--data-binary", "@-"]);
        curl.args(["--header", "Content-Type: application/json", &format!("{DRIVER}{path}")]);
        let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let body = if *body == Value::Null { String::new() } else { body.to_string() };
        child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap_or_default()
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.http(method, &format!("/session/{}{path}", self.session), body)["value"].take()
    }

    fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    fn element(&self, selector: &str) -> String {
        until(selector, || {
            let found = self.ask("POST", "/element", &json!({"using": "css selector", "value": selector}));
            found
                .as_object()?
                .values()
                .next()?
                .as_str()
                .filter(|_| found["error"] == Value::Null)
                .map(str::to_owned)
        })
    }

    fn click(&self, selector: &str) {
        until(&format!("{selector} to click"), || {
            let element = self.element(selector);
            let answer = self.ask("POST", &format!("/element/{element}/click"), &json!({}));
            (answer == Value::Null).then_some(())
        });
    }

    fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        let answer = self.ask("POST", &format!("/element/{element}/value"), &json!({"text": text}));
        assert_eq!(answer, Value::Null, "{selector}");
    }

    /// The text that a person sees there.
    fn text(&self, selector: &str) -> String {
        let found = self.run(&format!("return document.querySelector({selector:?})?.innerText ?? ''"));
        found.as_str().unwrap_or_default().to_owned()
    }

    fn shows(&self, selector: &str, words: &str) {
        until(&format!("{words:?} in {selector}"), || self.text(selector).contains(words).then_some(()));
    }

    fn developer(&self, command: &str, parameters: Value) {
        self.ask("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters}));
    }

    fn scheme(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.developer("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    fn width(&self, width: u32) {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.developer("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Pictures of the page as it is: both schemes, a desk's width and a phone's. Nothing may reach over the edge.
    fn picture(&self, name: &str) {
        for (width, size) in [(1280, "desk"), (360, "phone")] {
            self.width(width);
            let over = self.run("return document.documentElement.scrollWidth - innerWidth");
            assert!(
                over.as_i64().is_some_and(|over| over <= 0),
                "{name} is {over} pixels too wide at {width}"
            );
            for scheme in ["light", "dark"] {
                self.scheme(scheme);
                let picture = self.ask("GET", "/screenshot", &Value::Null);
                let path = pictures().join(format!("{name}-{size}-{scheme}.png"));
                let mut base64 = std::process::Command::new("base64");
                let file = std::fs::File::create(path).unwrap();
                let mut child = base64.arg("-d").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
                child.stdin.take().unwrap().write_all(picture.as_str().unwrap().as_bytes()).unwrap();
                assert!(child.wait().unwrap().success());
            }
        }
        self.scheme("light");
        self.width(1280);
    }

    fn sign_in(&self, token: &str) {
        self.write("input[name=token]", token);
        self.click("button[type=submit]");
    }

    /// How much of what was shown has moved by itself, since the page was loaded.
    fn layout_shift(&self) -> f64 {
        let script = "const done = arguments[0]; let sum = 0;
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
            }).observe({type: 'layout-shift', buffered: true});
            setTimeout(() => done(sum), 100);";
        let sum = self.ask("POST", "/execute/async", &json!({"script": script, "args": []}));
        sum.as_f64().unwrap_or_else(|| panic!("{sum}"))
    }

    /// What the browser complains of, but for the answer that is the sign-in page.
    fn complaints(&self) -> Vec<Value> {
        let log = self.ask("POST", "/se/log", &json!({"type": "browser"}));
        let log = log.as_array().unwrap_or_else(|| panic!("{log}")).clone();
        // The second is the retry without a password.
        let expected = |message: &str| {
            message.contains(URL) && (message.contains("status of 401") || message.contains("status of 422"))
        };
        log.into_iter().filter(|entry| !expected(entry["message"].as_str().unwrap_or_default())).collect()
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            self.ask("DELETE", "", &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn pictures() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/console");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn a_person_signs_in_starts_a_deployment_and_sees_it_done() {
    let lab = Lab::up(2);
    let serve = Serve::start(&lab);
    let browser = Browser::start(&lab, "en-GB");
    browser.open(URL);
    browser.shows("h1", "Sign in");
    browser.picture("sign-in");
    browser.sign_in("not-the-token");
    browser.shows("#said", "not the token");
    browser.sign_in(&serve.token);
    browser.shows("main", "Nothing has been deployed yet");
    browser.picture("empty");
    browser.run("window.sameVisit = true");

    // Left empty, the form says so and sends nothing.
    browser.click("main .empty a");
    browser.shows("h1", "New deployment");
    browser.click("button[type=submit]");
    browser.shows("[role=alert]", "Fill in");
    browser.picture("form");
    lab.on_node(1, "mkdir -p /var/lib/carena-demo && mkfifo /var/lib/carena-demo/firmware.bin.new");
    let password = std::fs::read_to_string(lab.dir().join("op.secret")).unwrap();
    browser.write("textarea[name=addresses]", &format!("{}\n{}", lab.node_address(1), lab.node_address(2)));
    browser.write("input[name=user]", "operator");
    browser.write("input[name=password]", password.trim());
    browser.click("button[type=submit]");

    // One node is done while the other still writes.
    let node = |k: usize| format!("main .node:nth-child({k})");
    browser.shows(&node(2), "Done");
    browser.shows(&node(2), "carena-demo: none → 1.2.0 · updated");
    browser.shows(&node(1), "Installing");
    browser.shows(".head .chip", "Running");
    browser.picture("running");
    // Loaded anew in the middle, it shows the same.
    let shown = || browser.text("main");
    let before = shown();
    browser.ask("POST", "/refresh", &json!({}));
    until("the same page", || (shown() == before).then_some(()));
    browser.run("window.sameVisit = true");
    browser.click(".head [data-part=cancel]");
    browser.shows("dialog[open]", "Nothing new is begun");
    browser.picture("confirm");
    browser.click("dialog[open] button[value=no]");
    browser.shows(".head .chip", "Running");
    lab.on_node(1, "timeout 60 cat /var/lib/carena-demo/firmware.bin.new");
    browser.shows(".head .chip", "Done");
    browser.shows(&node(1), "as it was found");
    assert_eq!(browser.run("return document.querySelector('.overall progress').value"), 1);
    browser.picture("done");
    assert_eq!(browser.run("return window.sameVisit"), true, "the page was loaded anew");

    // One node is cancelled from its row, and what is not done is retried with the password typed again.
    lab.on_node(1, "rm -r /var/lib/carena-demo; mkdir /var/lib/carena-demo; mkfifo /var/lib/carena-demo/firmware.bin.new");
    lab.on_node(2, "rm -r /var/lib/carena-demo");
    let mut fleet = serve.fleet(&[1, 2]);
    fleet["options"] = json!({"parallel": 1});
    browser.click("header nav a[href='#/']");
    browser.shows("h1", "Deployments");
    serve.deploy(&fleet);
    browser.shows(".rows li:first-child", "Running");
    browser.click(".rows li:first-child a");
    browser.shows(&node(1), "Installing");
    browser.click(&format!("{} [data-part=cancel]", node(2)));
    browser.shows("dialog[open]", &format!("Cancel node {}?", lab.node_address(2)));
    browser.picture("confirm-node");
    browser.click("dialog[open] button[value=yes]");
    browser.shows(&node(2), "cancelled by the operator");
    browser.shows(".head .chip", "Running");
    lab.on_node(1, "timeout 60 cat /var/lib/carena-demo/firmware.bin.new");
    browser.shows(".head .chip", "Failed");
    browser.click("[data-part=retry]");
    browser.shows("dialog[open]", "The box keeps no password");
    browser.picture("retry");
    browser.click("dialog[open] button[name=yes]");
    browser.shows("dialog[open] [role=alert]", "no password and no key for user operator");
    browser.write("dialog[open] input[name=password]", password.trim());
    browser.click("dialog[open] button[name=yes]");
    browser.shows(&node(1), lab.node_address(2).as_str());
    browser.shows(".head .chip", "Done");
    assert_eq!(browser.run("return document.querySelector('#retry input').value"), "");

    // Cancelled from the page; what a node is refused for stands beside it.
    lab.on_node(1, "rm -r /var/lib/carena-demo; mkdir /var/lib/carena-demo; mkfifo /var/lib/carena-demo/firmware.bin.new");
    let mut fleet = serve.fleet(&[1, 2]);
    fleet["nodes"][1]["password"] = "wrong".into();
    browser.click("header nav a[href='#/']");
    browser.shows("h1", "Deployments");
    serve.deploy(&fleet);
    browser.shows(".rows li:first-child", "Running");
    browser.picture("list");
    browser.click(".rows li:first-child a");
    browser.shows(&node(1), "Installing");
    browser.shows(&node(2), "user operator was not let in");
    browser.click(".head [data-part=cancel]");
    browser.click("dialog[open] button[value=yes]");
    browser.shows(".head .chip", "Cancelling");
    lab.on_node(1, "timeout 60 cat /var/lib/carena-demo/firmware.bin.new");
    browser.shows(".head .chip", "Cancelled");
    browser.picture("cancelled");
    assert!(browser.layout_shift() <= LAYOUT_SHIFT_MAX, "{}", browser.layout_shift());
    assert_eq!(browser.complaints(), Vec::<Value>::new());
    browser.click("#sign-out");
    browser.shows("h1", "Sign in");
}

#[test]
fn the_page_speaks_spanish_to_who_does_and_lets_one_choose() {
    let lab = Lab::up(1);
    let serve = Serve::start(&lab);
    serve.all(&serve.deploy(&serve.fleet(&[1])), "");
    let browser = Browser::start(&lab, "es");
    browser.open(URL);
    browser.shows("h1", "Iniciar sesión");
    browser.sign_in(&serve.token);
    browser.shows("h1", "Despliegues");
    browser.shows(".rows li", "Terminado");
    browser.click(".rows li a");
    browser.shows(".node", "carena-demo: ninguna → 1.2.0 · actualizado");
    let shown = browser.run("return document.querySelector('[data-part=retry]').hidden");
    assert_eq!(shown, true, "nothing failed, and a retry is offered");
    let words = browser.run("return document.querySelector('[data-part=retry]').textContent");
    assert_eq!(words, "Reintentar los nodos fallidos");
    browser.picture("spanish");
    assert_eq!(browser.run("return document.documentElement.lang"), "es");
    browser.run("const l = document.getElementById('language'); l.value = 'en'; l.onchange()");
    browser.shows(".node", "updated");
    browser.open(URL);
    browser.shows("h1", "Deployments");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}
