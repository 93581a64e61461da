//! The cache as its operator sees it: what goes in comes out as it was, and what was cut half-way is not there.

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use carena::cache::{Cache, Store};
use carena::digest::Sha256;
use carena::firmware::signature::Unsigned;

use crate::deployment::{baseline, deploy_watched};
use crate::lab::Lab;
use crate::operator::{Run, ended, run};

pub const MIB: usize = 1024 * 1024;

/// A box's state directory, and sources beside it.
pub struct Ground(tempfile::TempDir);

impl Ground {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn carena(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_carena"));
        command.arg("cache").args(arguments).arg("--json").arg("--state").arg(self.state());
        command
    }

    pub fn cache(&self, arguments: &[&str]) -> Run {
        run(&mut self.carena(arguments))
    }

    /// With the word that baselines need which nobody has signed, as those of these tests.
    pub fn import(&self, path: &Path) -> Run {
        self.cache(&["import", "--unsigned-ok", path.to_str().unwrap()])
    }

    /// A file; its content half text, half noise.
    pub fn file(&self, name: &str, bytes: usize) -> (PathBuf, Sha256) {
        let path = self.path(name);
        let content = content(name, bytes);
        std::fs::write(&path, &content).unwrap();
        (path, Sha256::of(&content))
    }

    /// A baseline's directory with a component per payload.
    pub fn baseline(&self, id: &str, version: &str, payloads: &[(&str, usize)]) -> PathBuf {
        let directory = self.path(&format!("{id}-{version}"));
        std::fs::create_dir(&directory).unwrap();
        let mut manifest = format!("id = \"{id}\"\nversion = \"{version}\"\ntitle = \"test\"\n");
        for (name, bytes) in payloads {
            let content = content(name, *bytes);
            std::fs::write(directory.join(name), &content).unwrap();
            manifest += &format!(
                "[[component]]\nid = \"{name}\"\ntitle = \"test\"\nversion = \"1\"\nformat = \"plain\"\npayload = \"{name}\"\n\
                 sha256 = \"{}\"\nsize = {bytes}\nexpected_s = 5\ninstall = {{ command = [\"true\"] }}\n\
                 read_back = {{ file = \"/x\" }}\n",
                Sha256::of(&content)
            );
        }
        std::fs::write(directory.join("baseline.toml"), manifest).unwrap();
        directory
    }

    pub fn store(&self) -> Store {
        Store::at(&self.state())
    }

    /// Nothing is in the cache, and that is in order.
    #[track_caller]
    pub fn assert_nothing_is_there(&self) {
        assert_eq!(self.store().objects().unwrap(), []);
        let verified = self.cache(&["verify"]);
        assert_eq!(verified.exit, 0, "{}", verified.all);
        let listed = self.cache(&["list"]);
        assert_eq!(listed.summary["payloads"], 0, "{}", listed.all);
    }

    /// The payload is there, taken up from an earlier try, and `unzstd` agrees.
    #[track_caller]
    pub fn assert_resumed(&self, imported: &Run, sha256: Sha256) {
        assert_eq!(imported.exit, 0, "{}", imported.all);
        let resumed = imported.events[0]["payloads"][0]["resumed_bytes"].as_u64().unwrap();
        assert!(resumed >= MIB as u64, "{}", imported.all);
        self.assert_unpacks(sha256);
        let verified = self.cache(&["verify"]);
        assert_eq!(verified.exit, 0, "{}", verified.all);
        assert_eq!(self.store().partials().unwrap(), []);
    }

    #[track_caller]
    pub fn assert_unpacks(&self, sha256: Sha256) {
        let path = self.store().object_path(sha256);
        let judge = "set -o pipefail; zstd -t \"$1\" && unzstd -c \"$1\" | sha256sum";
        let judged = Command::new("bash").args(["-c", judge, "-"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&judged.stdout);
        assert!(judged.status.success() && said.starts_with(&sha256.to_string()), "{judged:?}");
    }
}

/// Half text, half noise, in turns that fall across frames.
pub fn content(seed: &str, bytes: usize) -> Vec<u8> {
    let mut state =
        seed.bytes().fold(1_u64, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let noise = (content.len() / 1_400_000).is_multiple_of(2);
        content.extend_from_slice(&if noise { (state >> 8).to_le_bytes() } else { *b"firmware" });
    }
    content.truncate(bytes);
    content
}

/// Waits until `done`, a minute at most.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of imports that are not whole.
pub fn half(ground: &Ground) -> u64 {
    ground.store().partials().unwrap_or_default().iter().map(|(_, bytes)| bytes).sum()
}

pub fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn unzstd_gets_the_named_bytes_out_of_everything_that_is_stored() {
    let ground = Ground::new();
    // One byte, one frame and a byte less or more, many frames.
    let sizes = [1, 1_000, MIB - 1, MIB, MIB + 1, 5 * MIB + 17];
    let names: Vec<String> = sizes.iter().map(|size| format!("p{size}")).collect();
    let payloads: Vec<_> = names.iter().map(String::as_str).zip(sizes).collect();
    let source = ground.baseline("mixed", "1.0", &payloads);
    let imported = ground.import(&source);
    assert_eq!(imported.exit, 0, "{}", imported.all);
    for (name, size) in payloads {
        ground.assert_unpacks(Sha256::of(&content(name, size)));
    }
    let opened = Cache::at(&ground.state())
        .open("mixed", Unsigned::Refuse)
        .map(|opened| opened.baseline.components.len());
    assert_eq!(opened.ok(), Some(6));
    let again = ground.import(&source);
    assert_eq!((again.exit, again.events[0]["state"].as_str()), (3, Some("there")), "{}", again.all);
    let listed = ground.cache(&["list"]);
    assert_eq!(listed.summary["payloads"], 6, "{}", listed.all);
    let content: usize = sizes.iter().sum();
    assert_eq!(listed.summary["bytes"], content, "{}", listed.all);
    // Noise costs next to nothing, text next to all that can be had.
    assert!(listed.summary["stored_bytes"].as_u64().unwrap() < content as u64 * 7 / 10, "{}", listed.all);
}

#[test]
fn an_import_that_is_killed_leaves_nothing_and_the_next_goes_on_where_it_stopped() {
    let ground = Ground::new();
    let (source, sha256) = ground.file("image", 40 * MIB);
    let pipe = ground.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut importing = spawn(&mut ground.carena(&["import", pipe.to_str().unwrap()]));
    let mut writer = File::options().write(true).open(&pipe).unwrap();
    let bytes = std::fs::read(&source).unwrap();
    writer.write_all(&bytes[..30 * MIB]).unwrap();
    until("half of it is written", || half(&ground) > 8 * MIB as u64);
    importing.kill().unwrap();
    importing.wait().unwrap();
    ground.assert_nothing_is_there();
    ground.assert_resumed(&ground.import(&source), sha256);
}

#[test]
fn what_a_cut_import_left_counts_only_as_far_as_it_is_right() {
    for rubbish_at in [None, Some(MIB + MIB / 2)] {
        let ground = Ground::new();
        let (source, sha256) = ground.file("image", 12 * MIB);
        let mut cut = std::fs::read(&source).unwrap();
        // Another content in the sixth frame.
        cut[6 * MIB - 5] ^= 1;
        let mut importing = ground.carena(&["import", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        importing.stdin.as_ref().unwrap().write_all(&cut[..11 * MIB]).unwrap();
        until("much of it is written", || half(&ground) > 3 * MIB as u64);
        importing.kill().unwrap();
        importing.wait().unwrap();
        if let Some(at) = rubbish_at {
            // What a power cut may leave: a block of the third frame that was never written.
            let (partial, _) = ground.store().partials().unwrap().remove(0);
            let file = File::options().write(true).open(&partial).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], at as u64).unwrap();
        }
        let imported = ground.import(&source);
        ground.assert_resumed(&imported, sha256);
        let resumed = imported.events[0]["payloads"][0]["resumed_bytes"].as_u64().unwrap() / MIB as u64;
        match rubbish_at {
            None => assert_eq!(resumed, 5),
            Some(_) => assert!((1..4).contains(&resumed), "{resumed}"),
        }
    }
}

#[test]
fn a_source_that_fails_half_way_leaves_nothing_and_the_next_import_goes_on() {
    let ground = Ground::new();
    let (source, sha256) = ground.file("image", 20 * MIB);
    let bytes = std::fs::read(&source).unwrap();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut near, _) = listener.accept().unwrap();
    let importing = ground
        .carena(&["import", "-"])
        .stdin(OwnedFd::from(far))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    near.write_all(&bytes[..12 * MIB]).unwrap();
    until("some of it is written", || half(&ground) > 3 * MIB as u64);
    // Reset, as a stick that is pulled: what reads gets an error, not an end.
    nix::sys::socket::setsockopt(
        &near,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )
    .unwrap();
    drop(near);
    let ended = importing.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(ended.status.code(), Some(255), "{said}");
    assert!(said.contains("reading standard input") && said.contains("reset"), "{said}");
    ground.assert_nothing_is_there();
    ground.assert_resumed(&ground.import(&source), sha256);
}

#[test]
fn a_full_disk_leaves_nothing_and_the_next_import_goes_on() {
    let ground = Ground::new();
    let (source, sha256) = ground.file("image", 60 * MIB);
    std::fs::create_dir(ground.state()).unwrap();
    // A file system of its own, so that "full" is the real thing; a pipe, so that the size is not known before. What is
    // left is carried out of it.
    let script = "set -e
        mount -t tmpfs -o size=24m tmpfs \"$1\"
        code=0; cat \"$2\" | \"$3\" cache import - --json --state \"$1\" || code=$?
        stat -f -c '%a %S' \"$1\" > \"$4.free\"
        cp -a \"$1/cache\" \"$4\"
        exit $code";
    let saved = ground.path("saved");
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "sh", "-c", script, "-"]).arg(ground.state()).arg(&source);
    let full = run(apart.arg(env!("CARGO_BIN_EXE_carena")).arg(&saved));
    assert_eq!(full.exit, 255, "{}", full.all);
    assert!(full.all.contains("must stay free") && full.all.contains("make room"), "{}", full.all);
    // The box's journal has room all the time.
    let free = std::fs::read_to_string(ground.path("saved.free")).unwrap();
    let free: Vec<u64> = free.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert!(free[0] * free[1] >= 16 * MIB as u64, "{free:?}");
    Command::new("cp").arg("-a").arg(&saved).arg(ground.state().join("cache")).status().unwrap();
    ground.assert_nothing_is_there();
    ground.assert_resumed(&ground.import(&source), sha256);
}

#[test]
fn what_cannot_fit_is_refused_before_anything_is_written() {
    let ground = Ground::new();
    let (source, sha256) = ground.file("image", 8 * MIB);
    let refused = ground.cache(&["import", source.to_str().unwrap(), "--cache-max", "6MiB"]);
    assert_eq!(refused.exit, 255, "{}", refused.all);
    assert!(refused.all.contains("8393") && refused.all.contains("6291456"), "{}", refused.all);
    assert_eq!(half(&ground), 0);
    let imported = ground.cache(&["import", source.to_str().unwrap(), "--cache-max", "9MiB"]);
    assert_eq!(imported.exit, 0, "{}", imported.all);
    ground.assert_unpacks(sha256);
    // A stream has no size: it ends where the limit is.
    let (second, _) = ground.file("second", 8 * MIB);
    let mut stream = ground.carena(&["import", "-", "--cache-max", "6MiB"]);
    let ended = ended(stream.stdin(File::open(second).unwrap()).output().unwrap());
    assert_eq!(ended.exit, 255, "{}", ended.all);
    assert_eq!(ground.store().objects().unwrap().len(), 1);
    // A file system that is too small says what is needed and what there is.
    let script =
        "mount -t tmpfs -o size=20m tmpfs \"$1\" && exec \"$3\" cache import \"$2\" --json --state \"$1\"";
    let small = ground.path("small");
    std::fs::create_dir(&small).unwrap();
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "sh", "-c", script, "-"]).arg(&small).arg(&source);
    let refused = run(apart.arg(env!("CARGO_BIN_EXE_carena")));
    assert_eq!(refused.exit, 255, "{}", refused.all);
    assert!(refused.all.contains("are needed in") && refused.all.contains("are free"), "{}", refused.all);
}

#[test]
fn a_baseline_whose_files_are_not_what_it_says_is_not_there_afterwards() {
    let ground = Ground::new();
    let source = ground.baseline("vendor", "2", &[("one", 3 * MIB), ("two", 2 * MIB)]);
    let path = source.join("two");
    let right = std::fs::read(&path).unwrap();
    let mut damaged = right.clone();
    damaged[MIB + 7] ^= 1;
    for (wrong, why) in [(&right[..MIB], "its manifest says"), (&damaged[..], "SHA-256 is")] {
        std::fs::write(&path, wrong).unwrap();
        let refused = ground.import(&source);
        assert_eq!(refused.exit, 254, "{}", refused.all);
        assert!(refused.all.contains(why) && refused.all.contains("two"), "{}", refused.all);
        assert!(Cache::at(&ground.state()).open("vendor", Unsigned::Refuse).is_err());
        assert_eq!(ground.cache(&["verify"]).exit, 0);
    }
    std::fs::write(&path, &right).unwrap();
    let imported = ground.import(&source);
    assert_eq!(imported.exit, 0, "{}", imported.all);
    assert!(Cache::at(&ground.state()).open("vendor@2", Unsigned::Refuse).is_ok());
    // The same name for something else is refused.
    let manifest = source.join("baseline.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("title = \"test\"\n[[", "title = \"other\"\n[[")).unwrap();
    let conflict = ground.import(&source);
    assert_eq!(conflict.exit, 254, "{}", conflict.all);
    assert!(conflict.all.contains("carena cache remove vendor@2"), "{}", conflict.all);
}

#[test]
fn imports_of_many_processes_at_once_do_each_others_no_harm() {
    let ground = Ground::new();
    let shared = [("common", 9 * MIB), ("second", 3 * MIB)];
    let a = ground.baseline("a", "1", &shared);
    let b = ground.baseline("b", "1", &[("own", 2 * MIB), shared[0], shared[1]]);
    let mut importing: Vec<Child> = [&a, &b, &a, &b, &a]
        .iter()
        .map(|source| spawn(&mut ground.carena(&["import", "--unsigned-ok", source.to_str().unwrap()])))
        .collect();
    for child in &mut importing {
        let exit = child.wait().unwrap().code();
        assert!(matches!(exit, Some(0 | 3)), "{exit:?}");
    }
    let verified = ground.cache(&["verify"]);
    assert_eq!(verified.exit, 0, "{}", verified.all);
    assert_eq!(ground.store().objects().unwrap().len(), 3);
    assert_eq!(ground.store().partials().unwrap(), []);
    for (name, size) in shared {
        ground.assert_unpacks(Sha256::of(&content(name, size)));
    }
}

#[test]
fn a_large_file_goes_in_with_flat_memory() {
    let ground = Ground::new();
    let source = ground.path("large");
    File::create(&source).unwrap().set_len(4 << 30).unwrap();
    let imported = ground.import(&source);
    assert_eq!(imported.exit, 0, "{}", imported.all);
    assert_eq!(imported.events[0]["payloads"][0]["size"], 4_u64 << 30);
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
    let mib = used.max_rss() / 1024;
    println!("{mib} MiB for 4 GiB");
    assert!(mib <= 64, "{mib} MiB");
}

#[test]
fn what_is_broken_is_named_and_out_of_use_until_it_is_imported_again() {
    let ground = Ground::new();
    let source = ground.baseline("vendor", "1", &[("good", 3 * MIB), ("bad", 3 * MIB)]);
    assert_eq!(ground.import(&source).exit, 0);
    let sha256 = Sha256::of(&content("bad", 3 * MIB));
    let path = ground.store().object_path(sha256);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, MIB as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 4], MIB as u64).unwrap();
    let verified = ground.cache(&["verify"]);
    assert_eq!(verified.exit, 253, "{}", verified.all);
    assert_eq!(verified.events[0]["what"], sha256.to_string(), "{}", verified.all);
    // The manifest that needs it is named too.
    assert_eq!(verified.summary["faults"], 2, "{}", verified.all);
    assert!(!path.exists());
    let Err(error) = Cache::at(&ground.state()).open("vendor", Unsigned::Refuse) else { panic!("opened") };
    assert!(carena::error::explain(&error).contains("import the baseline again"));
    let again = ground.import(&source);
    assert_eq!(again.exit, 0, "{}", again.all);
    assert_eq!(ground.cache(&["verify"]).exit, 0);
    assert_eq!(ground.cache(&["gc"]).summary["broken"], 1);
    ground.assert_unpacks(sha256);
}

#[test]
fn importing_again_repairs_what_is_damaged_inside_a_frame() {
    let ground = Ground::new();
    let source = ground.baseline("vendor", "1", &[("one", 3 * MIB)]);
    assert_eq!(ground.import(&source).exit, 0);
    let sha256 = Sha256::of(&content("one", 3 * MIB));
    let path = ground.store().object_path(sha256);
    // As the same stick again, and as a loose file, whose name is known only when it was read.
    for again in [&source, &source.join("one")] {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, MIB as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 4], MIB as u64).unwrap();
        let imported = ground.import(again);
        assert_eq!((imported.exit, imported.events[0]["state"].as_str()), (0, Some("imported")));
        ground.assert_unpacks(sha256);
        assert_eq!(ground.import(again).exit, 3);
    }
    assert_eq!(ground.cache(&["verify"]).exit, 0);
}

#[test]
fn only_what_the_same_source_has_begun_counts_as_there() {
    let ground = Ground::new();
    let (other, _) = ground.file("other", 30 * MIB);
    let mut importing = ground.carena(&["import", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let bytes = std::fs::read(&other).unwrap();
    importing.stdin.as_ref().unwrap().write_all(&bytes[..20 * MIB]).unwrap();
    until("much of it is written", || half(&ground) > 5 * MIB as u64);
    importing.kill().unwrap();
    importing.wait().unwrap();
    let begun = half(&ground);
    let max = (begun + 4 * MIB as u64).to_string();
    // A file, and a baseline with it: the cut import of another content makes no room for either.
    let baseline = ground.baseline("vendor", "1", &[("one", 8 * MIB)]);
    for source in [baseline.join("one"), baseline] {
        let refused =
            ground.cache(&["import", "--unsigned-ok", source.to_str().unwrap(), "--cache-max", &max]);
        assert_eq!(refused.exit, 255, "{}", refused.all);
        assert!(refused.all.contains("8393280 bytes are needed"), "{}", refused.all);
    }
    assert_eq!(half(&ground), begun);
    let max = (31 * MIB).to_string();
    let imported = ground.cache(&["import", other.to_str().unwrap(), "--cache-max", &max]);
    assert_eq!(imported.exit, 0, "{}", imported.all);
}

#[test]
fn gc_removes_what_no_baseline_needs_and_nothing_while_one_cannot_be_read() {
    let ground = Ground::new();
    let first = ground.baseline("a", "1", &[("common", MIB), ("only-a", MIB)]);
    let second = ground.baseline("b", "1.2", &[("common", MIB)]);
    let third = ground.baseline("b", "1.10", &[("common", MIB), ("new", MIB)]);
    let (loose, _) = ground.file("loose", 1000);
    for source in [&first, &second, &third, &loose] {
        let imported = ground.import(source);
        assert_eq!(imported.exit, 0, "{}", imported.all);
    }
    let manifest = ground.store().manifest_path("a", "1");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("format = \"plain\"", "format = \"plane\"")).unwrap();
    let refused = ground.cache(&["gc"]);
    assert_eq!(refused.exit, 254, "{}", refused.all);
    assert!(
        refused.all.contains("a/1/baseline.toml:8") && refused.all.contains("nothing was removed"),
        "{}",
        refused.all
    );
    assert_eq!(ground.store().objects().unwrap().len(), 4);
    std::fs::write(&manifest, text).unwrap();
    let collected = ground.cache(&["gc"]);
    assert_eq!((collected.exit, &collected.summary["payloads"]), (0, &1.into()), "{}", collected.all);
    // The newest version is the one that is meant.
    let newest =
        Cache::at(&ground.state()).open("b", Unsigned::Refuse).map(|opened| opened.baseline.version.clone());
    assert_eq!(newest.ok().as_deref(), Some("1.10"));
    // What was begun with an older one goes on with that.
    let again = Cache::at(&ground.state())
        .reopen("b", "1.2", None, Unsigned::Refuse)
        .map(|opened| opened.baseline.version.clone());
    assert_eq!(again.ok().as_deref(), Some("1.2"));
    assert_eq!(ground.cache(&["remove", "a", "b"]).events[1]["version"], "1.10");
    let collected = ground.cache(&["gc"]);
    assert_eq!(collected.summary["payloads"], 2, "{}", collected.all);
    assert_eq!(ground.cache(&["gc"]).exit, 3);
    assert!(Cache::at(&ground.state()).open("b@1.2", Unsigned::Refuse).is_ok());
    assert!(Cache::at(&ground.state()).open("b@1.10", Unsigned::Refuse).is_err());
    let unknown = ground.cache(&["remove", "a"]);
    assert_eq!(unknown.exit, 254, "{}", unknown.all);
}

#[test]
fn gc_leaves_an_import_alone_that_is_under_way() {
    let ground = Ground::new();
    let mut importing = ground.carena(&["import", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = importing.stdin.take().unwrap();
    stdin.write_all(&content("image", 12 * MIB)).unwrap();
    until("some of it is written", || half(&ground) > MIB as u64);
    let refused = ground.cache(&["gc"]);
    assert_eq!(refused.exit, 255, "{}", refused.all);
    assert!(refused.stderr.contains("an import is under way"), "{}", refused.all);
    drop(stdin);
    assert!(importing.wait().unwrap().success());
    ground.assert_unpacks(Sha256::of(&content("image", 12 * MIB)));
}

#[test]
fn an_imported_baseline_is_deployed_by_its_id_and_stays_while_it_is() {
    let lab = Lab::up(1);
    let source = baseline(&lab, "vendor", "sleep 1\necho 2.0 > /var/lib/thing");
    let cache = |arguments: &[&str]| run(&mut lab.carena(&[&["cache"], arguments].concat()));
    let imported = cache(&["import", "--unsigned-ok", source.to_str().unwrap(), "--json"]);
    assert_eq!(imported.exit, 0, "{}", imported.all);
    // The files are not needed any more.
    std::fs::remove_dir_all(&source).unwrap();
    let fleet = lab.fleet(&[1], "vendor", "");
    let mut refused = None;
    let done = deploy_watched(&lab, &fleet, |event| {
        if event["step"] == "install" && event["state"] == "started" {
            refused = Some(cache(&["remove", "vendor@1", "--json"]));
        }
        None
    });
    assert_eq!(done.exit, 0, "{}", done.all);
    assert_eq!(done.component(&lab, 1)["outcome"], "updated");
    let refused = refused.expect("it was installed");
    assert!(refused.exit == 254 && refused.stderr.contains("in use"), "{}", refused.all);
    assert_eq!(cache(&["remove", "vendor@1", "--json"]).exit, 0);
    let gone = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]));
    assert!(gone.exit == 254 && gone.all.contains("there is no baseline"), "{}", gone.all);
}
