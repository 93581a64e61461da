//! Whose baselines are used, and how they travel: minisign, tar, sha256sum and genisoimage are the judges.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use carena::cache::import::Importer;
use carena::cache::{Cache, Manifest};
use carena::digest::Sha256;
use carena::firmware::signature::{Anchor, Unsigned};

use crate::cache::{Ground, MIB, content, half, spawn, until};
use crate::deployment::baseline;
use crate::lab::Lab;
use crate::operator::{Run, run};

/// Runs a foreign tool that must succeed.
#[track_caller]
fn tool(program: &str, arguments: &[&str], directory: &Path) -> String {
    let done = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A key pair of minisign's in a directory of its own: the public one.
fn key(directory: &Path, name: &str) -> PathBuf {
    let (public, secret) = (format!("{name}.pub"), format!("{name}.sec"));
    tool("minisign", &["-G", "-W", "-p", &public, "-s", &secret], directory);
    directory.join(public)
}

fn sign(public: &Path, baseline: &Path, more: &[&str]) {
    let secret = public.with_extension("sec");
    let arguments = [&["-S", "-s", secret.to_str().unwrap(), "-m", "baseline.toml"], more].concat();
    tool("minisign", &arguments, baseline);
}

/// Whether minisign takes the signature of a baseline for right.
fn minisign_accepts(public: &Path, baseline: &Path) -> bool {
    let mut judge = Command::new("minisign");
    judge.args(["-V", "-q", "-m", "baseline.toml", "-p"]).arg(public).current_dir(baseline);
    judge.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

fn carena(ground: &Ground, arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carena"));
    run(command.args(arguments).arg("--json").arg("--state").arg(ground.state()).current_dir(ground.path("")))
}

fn trust(ground: &Ground, public: &Path) {
    let added = carena(ground, &["baseline", "trust", "add", public.to_str().unwrap()]);
    assert_eq!(added.exit, 0, "{}", added.all);
}

fn import(ground: &Ground, path: &Path) -> Run {
    ground.cache(&["import", path.to_str().unwrap()])
}

fn may_be_deployed(ground: &Ground, name: &str) -> bool {
    Cache::at(&ground.state()).open(name, Unsigned::Refuse).is_ok()
}

#[test]
fn what_minisign_signs_is_imported_and_nothing_is_accepted_that_minisign_refuses() {
    for (form, version) in [(&[][..], "1"), (&["-l"][..], "2")] {
        let ground = Ground::new();
        let (public, other) = (key(&ground.path(""), "maker"), key(&ground.path(""), "other"));
        let source = ground.baseline("vendor", version, &[("one", 1000)]);
        let comment = ["-t", "tested on\tDL380"];
        sign(&public, &source, &[form, &comment[..]].concat());
        assert!(minisign_accepts(&public, &source));
        trust(&ground, &other);
        let refused = import(&ground, &source);
        assert_eq!(refused.exit, 254, "{}", refused.all);
        assert!(refused.all.contains("none of the 1 trusted"), "{}", refused.all);
        trust(&ground, &public);
        let imported = import(&ground, &source);
        assert_eq!(imported.exit, 0, "{}", imported.all);
        let signature = &imported.events[0]["signature"];
        assert_eq!(
            (&signature["state"], &signature["comment"]),
            (&"signed".into(), &"tested on DL380".into())
        );
        assert!(may_be_deployed(&ground, "vendor"));
        // Every byte of manifest and signature; minisign looks at each signature too.
        let anchors = [Anchor::parse(&std::fs::read_to_string(&public).unwrap()).unwrap()];
        let mut tolerated = 0;
        for file in ["baseline.toml", "baseline.toml.minisig"] {
            let right = std::fs::read(source.join(file)).unwrap();
            for at in 0..right.len() {
                let mut damaged = right.clone();
                damaged[at] ^= 1;
                std::fs::write(source.join(file), &damaged).unwrap();
                let ours =
                    Manifest::in_directory(&source).is_ok_and(|manifest| manifest.judge(&anchors).is_ok());
                assert!(!ours || minisign_accepts(&public, &source), "{file}: byte {at}");
                tolerated += usize::from(ours);
            }
            std::fs::write(source.join(file), right).unwrap();
        }
        // Its first comment is signed by nobody, which is why minisign calls it untrusted.
        assert!(tolerated < 60, "{tolerated}");
        // A key that is trusted no more counts no more.
        let number = anchors[0].number();
        assert_eq!(carena(&ground, &["baseline", "trust", "remove", number]).exit, 0);
        assert!(!may_be_deployed(&ground, "vendor"));
        let listed = ground.cache(&["list"]);
        assert_eq!(listed.events[1]["signature"]["state"], "refused", "{}", listed.all);
    }
}

#[test]
fn an_unsigned_baseline_takes_the_operators_word_and_is_shown_as_that() {
    let ground = Ground::new();
    let source = ground.baseline("own", "1", &[("one", 1000)]);
    let refused = import(&ground, &source);
    assert_eq!(refused.exit, 254, "{}", refused.all);
    for word in ["it has no signature", "--unsigned-ok", "trust add", "unsigned = \\\"accept\\\""] {
        assert!(refused.all.contains(word), "{word}: {}", refused.all);
    }
    assert_eq!(ground.store().objects().unwrap(), []);
    let imported = ground.import(&source);
    assert_eq!((imported.exit, &imported.events[0]["signature"]["state"]), (0, &"unsigned".into()));
    assert!(may_be_deployed(&ground, "own"));
    let listed = ground.cache(&["list"]);
    assert_eq!(listed.events[1]["signature"]["state"], "unsigned", "{}", listed.all);
    // The word was for this very manifest.
    let manifest = ground.store().manifest_path("own", "1");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("expected_s = 5", "expected_s = 6")).unwrap();
    assert!(!may_be_deployed(&ground, "own"));
    std::fs::write(&manifest, &text).unwrap();
    // Signed later, it needs no word any more.
    let public = key(&ground.path(""), "maker");
    sign(&public, &source, &[]);
    trust(&ground, &public);
    let signed = import(&ground, &source);
    assert_eq!(
        (signed.exit, &signed.events[0]["signature"]["state"]),
        (0, &"signed".into()),
        "{}",
        signed.all
    );
    assert_eq!(import(&ground, &source).exit, 3);
    // What is left of it goes with it.
    assert_eq!(ground.cache(&["remove", "own"]).exit, 0);
    assert!(!manifest.parent().unwrap().exists());
}

#[test]
fn keys_are_added_listed_and_removed_and_rubbish_is_no_key() {
    let ground = Ground::new();
    let public = key(&ground.path(""), "maker");
    let alone = std::fs::read_to_string(&public).unwrap().lines().nth(1).unwrap().to_owned();
    let add = |key: &str| carena(&ground, &["baseline", "trust", "add", key]);
    assert_eq!((add(&alone).exit, add(public.to_str().unwrap()).exit), (0, 3));
    let listed = carena(&ground, &["baseline", "trust", "list"]);
    assert_eq!((listed.events.len(), &listed.events[0]["public"]), (1, &alone.into()), "{}", listed.all);
    let secret = public.with_extension("sec");
    for rubbish in ["RWnothing", secret.to_str().unwrap(), "/nowhere"] {
        assert_eq!(add(rubbish).exit, 254, "{rubbish}");
    }
    assert_eq!(carena(&ground, &["baseline", "trust", "remove", "0000000000000000"]).exit, 254);
    // A store of keys that cannot be read is not an empty one.
    let kept = ground.state().join("trust");
    std::fs::write(kept.join("broken.pub"), "rubbish").unwrap();
    let source = ground.baseline("own", "1", &[("one", 10)]);
    let refused = import(&ground, &source);
    assert!(refused.exit == 254 && refused.all.contains("broken.pub"), "{}", refused.all);
}

/// A signed baseline in the cache of `ground`, and a file that it was exported to.
fn exported(ground: &Ground, payloads: &[(&str, usize)]) -> (PathBuf, PathBuf) {
    let public = key(&ground.path(""), "maker");
    let source = ground.baseline("vendor", "1", payloads);
    sign(&public, &source, &[]);
    trust(ground, &public);
    assert_eq!(import(ground, &source).exit, 0);
    let file = ground.path("vendor.carena");
    let done = carena(ground, &["baseline", "export", "vendor@1", file.to_str().unwrap()]);
    assert_eq!(done.exit, 0, "{}", done.all);
    (file, public)
}

#[test]
fn one_file_carries_a_baseline_and_tar_sha256sum_unzstd_and_minisign_agree() {
    let ground = Ground::new();
    let payloads = [("one", 3 * MIB + 5), ("two", 1), ("three", MIB)];
    let (file, public) = exported(&ground, &payloads);
    let again = ground.path("again.carena");
    assert_eq!(carena(&ground, &["baseline", "export", "vendor", again.to_str().unwrap()]).exit, 0);
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap());
    let unpacked = ground.path("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let listed = tool("tar", &["-xvf", file.to_str().unwrap()], &unpacked);
    assert!(listed.starts_with("baseline.toml\nbaseline.toml.minisig\nSHA256SUMS\nobjects/"), "{listed}");
    tool("sha256sum", &["--strict", "-c", "SHA256SUMS"], &unpacked);
    assert!(minisign_accepts(&public, &unpacked));
    for (name, bytes) in payloads {
        let sha256 = Sha256::of(&content(name, bytes)).to_string();
        let script = format!("set -o pipefail; unzstd -c objects/{sha256}.zst | sha256sum");
        assert!(tool("bash", &["-c", &script], &unpacked).starts_with(&sha256));
    }
    // On another box, as a file and through a pipe: the same objects, and the same file comes out again.
    let other = Ground::new();
    trust(&other, &public);
    let imported = import(&other, &file);
    assert_eq!(
        (imported.exit, &imported.events[0]["signature"]["state"]),
        (0, &"signed".into()),
        "{}",
        imported.all
    );
    assert_eq!(other.cache(&["verify"]).exit, 0);
    assert!(may_be_deployed(&other, "vendor@1"));
    let back = other.path("back.carena");
    assert_eq!(carena(&other, &["baseline", "export", "vendor", back.to_str().unwrap()]).exit, 0);
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&back).unwrap());
    let piped = other.carena(&["import", "-"]).stdin(File::open(&file).unwrap()).status().unwrap();
    assert_eq!(piped.code(), Some(3));
    // A box that trusts nobody.
    let third = Ground::new();
    let refused = import(&third, &file);
    assert_eq!(refused.exit, 254, "{}", refused.all);
    third.assert_nothing_is_there();
}

#[test]
fn a_flipped_byte_anywhere_in_the_file_is_refused_even_with_the_operators_word() {
    let ground = Ground::new();
    let (file, _) = exported(&ground, &[("one", 700), ("two", 40)]);
    let right = std::fs::read(&file).unwrap();
    let other = Ground::new();
    let take = |bytes: &[u8]| {
        let importer = Importer::new(other.store(), None).unwrap().telling(Unsigned::Accept);
        importer.container(&file, bytes, &mut |_, _, _| ()).map(|_| ())
    };
    for at in 0..right.len() {
        let mut damaged = right.clone();
        damaged[at] ^= 1;
        assert!(take(&damaged).is_err(), "byte {at} of {}", right.len());
    }
    for cut in (0..right.len()).step_by(100) {
        assert!(take(&right[..cut]).unwrap_err().to_string().contains("byte"), "cut to {cut}");
    }
    assert!(Cache::at(&other.state()).find("vendor").is_err());
    assert_eq!(other.cache(&["verify"]).exit, 0);
    take(&right).unwrap();
    assert_eq!(other.cache(&["verify"]).exit, 0);
}

#[test]
fn a_stick_pulled_a_kill_and_a_full_disk_leave_nothing_and_the_next_import_goes_on() {
    let ground = Ground::new();
    let (file, public) = exported(&ground, &[("image", 60 * MIB)]);
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.len() > 20 * MIB, "{}", bytes.len());
    let sha256 = Sha256::of(&content("image", 60 * MIB));
    // Killed in the middle.
    let other = Ground::new();
    trust(&other, &public);
    let mut importing = spawn(other.carena(&["import", "-"]).stdin(Stdio::piped()));
    importing.stdin.as_ref().unwrap().write_all(&bytes[..18 * MIB]).unwrap();
    until("much of it is written", || half(&other) > 8 * MIB as u64);
    importing.kill().unwrap();
    importing.wait().unwrap();
    other.assert_nothing_is_there();
    other.assert_resumed(&import(&other, &file), sha256);
    // Pulled: the file ends.
    let other = Ground::new();
    trust(&other, &public);
    let cut = ground.path("cut.carena");
    std::fs::write(&cut, &bytes[..18 * MIB]).unwrap();
    let refused = import(&other, &cut);
    assert!(refused.exit == 254 && refused.all.contains("cut"), "{}", refused.all);
    other.assert_nothing_is_there();
    other.assert_resumed(&import(&other, &file), sha256);
    // A full disk: a file system of its own, and a pipe, so that the size is not known before.
    let other = Ground::new();
    trust(&other, &public);
    let script = "set -e
        keys=$(mktemp -d); cp -a \"$1/trust\" \"$keys\"
        mount -t tmpfs -o size=30m tmpfs \"$1\"; cp -a \"$keys/trust\" \"$1\"
        code=0; cat \"$2\" | \"$3\" cache import - --cache-max 4GiB --json --state \"$1\" || code=$?
        cp -a \"$1/cache\" \"$4\"
        exit $code";
    let saved = other.path("saved");
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "bash", "-c", script, "-"]).arg(other.state()).arg(&file);
    let full = run(apart.arg(env!("CARGO_BIN_EXE_carena")).arg(&saved));
    assert_eq!(full.exit, 255, "{}", full.all);
    assert!(full.all.contains("make room"), "{}", full.all);
    assert!(
        Command::new("cp").arg("-a").arg(&saved).arg(other.state().join("cache")).status().unwrap().success()
    );
    other.assert_nothing_is_there();
    let imported = import(&other, &file);
    assert_eq!(imported.exit, 0, "{}", imported.all);
    assert_eq!(other.cache(&["verify"]).exit, 0);
}

#[test]
fn a_stick_and_an_iso_image_are_searched_for_baselines() {
    let ground = Ground::new();
    let (file, public) = exported(&ground, &[("one", 2000)]);
    let stick = ground.path("stick");
    std::fs::create_dir_all(stick.join("firmware")).unwrap();
    for (id, payload) in [("a", "first payload.bin"), ("b", "second")] {
        let source = ground.baseline(id, "1", &[(&payload.replace(' ', "-"), MIB + 3)]);
        sign(&public, &source, &[]);
        tool("cp", &["-r", source.to_str().unwrap(), stick.join("firmware").to_str().unwrap()], &stick);
    }
    let image = |name: &str, form: &str| {
        let path = ground.path(name);
        tool("genisoimage", &["-quiet", form, "-o", path.to_str().unwrap(), "stick"], &ground.path(""));
        path
    };
    let images = [image("rock.iso", "-R"), image("joliet.iso", "-J")];
    std::fs::copy(&file, stick.join("vendor.carena")).unwrap();
    std::fs::write(stick.join("readme.txt"), "not firmware").unwrap();
    for (path, expected) in [(&images[0], 2), (&images[1], 2), (&stick, 3)] {
        let other = Ground::new();
        trust(&other, &public);
        let imported = import(&other, path);
        assert_eq!((imported.exit, imported.events.len()), (0, expected), "{}", imported.all);
        assert!(may_be_deployed(&other, "a@1") && may_be_deployed(&other, "b@1"));
        assert_eq!(other.cache(&["verify"]).summary["baselines"], expected);
    }
    let empty = ground.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let refused = import(&ground, &empty);
    assert!(refused.exit == 254 && refused.all.contains("holds no baseline"), "{}", refused.all);
}

#[test]
fn a_baseline_is_made_of_others_and_two_are_compared() {
    let ground = Ground::new();
    let own = ground.baseline("own", "1", &[("one", 2000), ("two", 3000)]);
    let new = ["baseline", "new", "mine@2", "--title", "Mine", "demo/carena-demo", own.to_str().unwrap()];
    let made = carena(&ground, &new);
    assert_eq!(made.exit, 0, "{}", made.all);
    let directory = ground.path("mine-2");
    let manifest = Manifest::in_directory(&directory).unwrap();
    let ids: Vec<_> = manifest.baseline.components.iter().map(|component| component.id.as_str()).collect();
    assert_eq!(ids, ["carena-demo", "one", "two"]);
    for component in &manifest.baseline.components {
        let sum = tool("sha256sum", &[&component.payload], &directory);
        assert!(sum.starts_with(&component.sha256.to_string()), "{sum}");
    }
    let again = carena(&ground, &new);
    assert!(again.exit == 255 && again.all.contains("--into"), "{}", again.all);
    let unknown = carena(&ground, &["baseline", "new", "x@1", "--title", "x", "demo/nope"]);
    assert!(unknown.exit == 254 && unknown.all.contains("no component nope"), "{}", unknown.all);
    // Signed by its owner, it goes in and can be taken from.
    let public = key(&ground.path(""), "me");
    sign(&public, &directory, &[]);
    trust(&ground, &public);
    assert_eq!(import(&ground, &directory).exit, 0);
    let next = ["baseline", "new", "mine@3", "--title", "Mine", "mine@2/two", "mine/carena-demo"];
    assert_eq!(carena(&ground, &next).exit, 0);
    let changed = ground.path("mine-3/baseline.toml");
    let text = std::fs::read_to_string(&changed).unwrap();
    std::fs::write(&changed, text.replacen("expected_s = 5", "expected_s = 7", 1)).unwrap();
    let compare = |a: &str, b: &str| carena(&ground, &["baseline", "compare", a, b]);
    let compared = compare("mine@2", ground.path("mine-3").to_str().unwrap());
    let said: Vec<_> = compared
        .events
        .iter()
        .map(|event| (event["component"].as_str().unwrap(), event["change"].as_str().unwrap()))
        .collect();
    assert_eq!(said, [("two", "changed"), ("one", "removed")], "{}", compared.all);
    assert_eq!(compared.events[0]["fields"], serde_json::json!(["expected_s"]));
    assert_eq!((compared.exit, compare("mine", "mine@2").exit, compare("mine", "nope").exit), (0, 3, 254));
}

#[test]
fn a_deployment_refuses_what_nobody_signed_and_shows_what_the_operator_accepts() {
    let lab = Lab::up(1);
    let public = key(lab.dir(), "maker");
    let source = baseline(&lab, "vendor", "echo 2.0 > /var/lib/thing");
    let accepting = lab.fleet(&[1], source.to_str().unwrap(), "");
    let asking = lab.dir().join("asking.toml");
    let text = std::fs::read_to_string(&accepting).unwrap();
    std::fs::write(&asking, text.replace("unsigned = \"accept\"", "")).unwrap();
    let deploy = |fleet: &Path, more: &[&str]| {
        let arguments = [&["deploy", fleet.to_str().unwrap(), "--json"], more].concat();
        run(&mut lab.carena(&arguments))
    };
    let refused = deploy(&asking, &[]);
    assert_eq!(refused.exit, 254, "{}", refused.all);
    assert!(refused.events.is_empty() && refused.all.contains("it has no signature"), "{}", refused.all);
    // Signed by somebody, but changed since.
    sign(&public, &source, &[]);
    let added = run(&mut lab.carena(&["baseline", "trust", "add", public.to_str().unwrap()]));
    assert_eq!(added.exit, 0, "{}", added.all);
    let manifest = source.join("baseline.toml");
    let right = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, right.replace("title = \"test\"\n[[", "title = \"tesT\"\n[[")).unwrap();
    let refused = deploy(&asking, &[]);
    assert!(refused.exit == 254 && refused.all.contains("changed after signing"), "{}", refused.all);
    let dry = deploy(&accepting, &["--dry-run"]);
    assert_eq!((dry.exit, &dry.summary["signature"]["state"]), (0, &"unsigned".into()), "{}", dry.all);
    let plan = &dry.events[dry.first(&lab, 1, "plan", "done")];
    assert!(plan["message"].as_str().unwrap().contains("NOT SIGNED"), "{plan}");
    std::fs::write(&manifest, &right).unwrap();
    let done = deploy(&asking, &[]);
    assert_eq!((done.exit, &done.summary["signature"]["state"]), (0, &"signed".into()), "{}", done.all);
    assert_eq!(done.summary["manifest"], Sha256::of(right.as_bytes()).to_string());
    // What goes on after a crash is what was begun.
    let cache = Cache::at(&lab.dir().join("state"));
    let begun = || Some((Sha256::of(right.as_bytes()), None));
    let name = source.to_str().unwrap();
    let signed = cache.reopen(name, "1", begun(), Unsigned::Refuse).ok().unwrap().standing;
    assert!(signed.warning().is_none(), "{signed}");
    // Also when its key is trusted no more; it does not begin anew.
    let number = Anchor::parse(&std::fs::read_to_string(&public).unwrap()).unwrap().number().to_owned();
    let removed = run(&mut lab.carena(&["baseline", "trust", "remove", &number]));
    assert_eq!(removed.exit, 0, "{}", removed.all);
    assert!(cache.open(name, Unsigned::Refuse).is_err());
    assert!(cache.reopen(name, "1", None, Unsigned::Refuse).is_err());
    let kept = begun().map(|(digest, _)| (digest, Some(signed.clone())));
    assert_eq!(cache.reopen(name, "1", kept, Unsigned::Refuse).ok().unwrap().standing, signed);
    let distrusted = cache.reopen(name, "1", begun(), Unsigned::Refuse).ok().unwrap().standing;
    assert!(distrusted.warning().is_some(), "{distrusted}");
    std::fs::write(&manifest, right.replace("expected_s = 5", "expected_s = 6")).unwrap();
    sign(&public, &source, &[]);
    let Err(error) = cache.reopen(name, "1", begun(), Unsigned::Refuse) else { panic!("opened") };
    assert!(error.to_string().contains("another one than the deployment began with"), "{error}");
}
