//! Payloads over HTTPS as others fetch them: curl judges ranges, tags and codings of both representations.

use std::path::{Path, PathBuf};
use std::process::Command;

use carena::cache::Payloads;
use carena::cache::import::{Expected, Importer};
use carena::cache::store::Store;
use carena::digest::Sha256;
use carena::https::identity::Identity;
use carena::https::{Listener, Registry};

const MIB: usize = 1024 * 1024;

/// A server of some payloads, and curl.
struct Served {
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    port: u16,
}

/// What curl got.
struct Got {
    status: String,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| {
            let (key, _) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(key.len() + 1)
        };
        self.head.lines().find_map(|text| Some(text[line(text)?..].trim()))
    }
}

impl Served {
    fn new(fill: impl FnOnce(&Path, &mut Payloads)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut payloads = Payloads::default();
        fill(directory.path(), &mut payloads);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let identity = Identity::open(directory.path()).unwrap();
        let (port, serving) = runtime.block_on(async {
            let listener = Listener::bind(64_100, 100).unwrap();
            let registry = Registry::new();
            registry.set_default(identity.server, payloads.router());
            (listener.port(), listener.serve(registry, std::future::pending()))
        });
        runtime.spawn(serving);
        Self { directory, _runtime: runtime, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn curl(&self, sha256: Sha256, arguments: &[&str]) -> Got {
        let (head, body) = (self.path("head"), self.path("body"));
        let _ = std::fs::remove_file(&body);
        let done = Command::new("curl")
            .args(["-sS", "-k", "--noproxy", "*", "--max-time", "60", "-w", "%{http_code}"])
            .args(arguments)
            .arg("-D")
            .arg(&head)
            .arg("-o")
            .arg(&body)
            .arg(format!("https://[::1]:{}/payload/{sha256}", self.port))
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        Got {
            status: String::from_utf8(done.stdout).unwrap(),
            head: std::fs::read_to_string(head).unwrap(),
            body: std::fs::read(body).unwrap_or_default(),
        }
    }
}

fn content(bytes: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let noise = (content.len() / 900_000).is_multiple_of(2);
        content.extend_from_slice(&if noise { (state >> 8).to_le_bytes() } else { *b"firmware" });
    }
    content.truncate(bytes);
    content
}

fn store(directory: &Path, content: &[u8], payloads: &mut Payloads) -> Sha256 {
    let store = Store::at(directory);
    let importer = Importer::new(store.clone(), None).unwrap();
    let imported = importer.stream(Path::new("x"), content, Expected::default(), &mut |_, _, _| ()).unwrap();
    payloads.add_stored(imported.sha256, store.object_path(imported.sha256));
    imported.sha256
}

#[test]
fn curl_gets_any_range_of_the_content_and_of_the_packed_bytes() {
    let content = content(5 * MIB + 77);
    let mut name = None;
    let served = Served::new(|directory, payloads| name = Some(store(directory, &content, payloads)));
    let sha256 = name.unwrap();
    let plain = served.curl(sha256, &[]);
    assert_eq!((plain.status.as_str(), plain.header("etag")), ("200", Some(&*format!("\"{sha256}\""))));
    assert_eq!(plain.header("vary"), Some("Accept-Encoding"));
    assert_eq!(plain.header("content-encoding"), None);
    assert!(plain.body == content);
    let asked = ["-H", "Accept-Encoding: zstd"];
    let packed = served.curl(sha256, &asked);
    assert_eq!((packed.status.as_str(), packed.header("content-encoding")), ("200", Some("zstd")));
    assert_eq!(packed.header("vary"), Some("Accept-Encoding"));
    assert_ne!(packed.header("etag"), plain.header("etag"));
    assert!(packed.body.len() < content.len() * 7 / 10);
    std::fs::write(served.path("packed.zst"), &packed.body).unwrap();
    let unpacked = Command::new("unzstd").arg("-c").arg(served.path("packed.zst")).output().unwrap();
    assert!(unpacked.status.success() && unpacked.stdout == content);
    // curl unpacks by itself.
    let by_curl = served.curl(sha256, &["--compressed"]);
    assert_eq!(by_curl.header("content-encoding"), Some("zstd"));
    assert!(by_curl.body == content);
    for (whole, more) in [(&plain, &[][..]), (&packed, &asked[..])] {
        let size = whole.body.len();
        for (from, to) in
            [(0, 1), (MIB - 1, MIB + 1), (MIB, 2 * MIB), (17, size), (size - 1, size), (0, size)]
        {
            let range = format!("{from}-{}", to - 1);
            let part = served.curl(sha256, &[&["-r", &range], more].concat());
            assert_eq!(part.status, "206", "{range} {more:?}");
            assert_eq!(part.header("content-range"), Some(&*format!("bytes {range}/{size}")));
            assert_eq!(part.header("etag"), whole.header("etag"));
            assert!(part.body == whole.body[from..to], "{range} {more:?}");
        }
        let tail = served.curl(sha256, &[&["-r", "-1000"], more].concat());
        assert!(tail.body == whole.body[size - 1000..]);
        let beyond = served.curl(sha256, &[&["-r", &format!("{size}-")], more].concat());
        assert_eq!((beyond.status.as_str(), beyond.header("vary")), ("416", Some("Accept-Encoding")));
        assert_eq!(beyond.header("content-range"), Some(&*format!("bytes */{size}")));
    }
}

#[test]
fn a_range_goes_on_with_the_representation_it_was_begun_with_only() {
    let content = content(2 * MIB);
    let mut name = None;
    let served = Served::new(|directory, payloads| name = Some(store(directory, &content, payloads)));
    let sha256 = name.unwrap();
    let asked = ["-H", "Accept-Encoding: zstd"];
    let tag = |got: Got| got.header("etag").unwrap().to_owned();
    let (plain, packed) =
        (tag(served.curl(sha256, &["-I"])), tag(served.curl(sha256, &[&["-I"], &asked[..]].concat())));
    for (given, more, status) in [
        (&plain, &[][..], "206"),
        (&packed, &asked[..], "206"),
        (&packed, &[][..], "200"),
        (&plain, &asked[..], "200"),
        (&format!("W/{plain}"), &[][..], "200"),
    ] {
        let given = format!("If-Range: {given}");
        let got = served.curl(sha256, &[&["-r", "100-", "-H", &given], more].concat());
        assert_eq!(got.status, status, "{given} {more:?}");
    }
    let known = served.curl(sha256, &["-H", &format!("If-None-Match: {plain}")]);
    assert_eq!((known.status.as_str(), known.header("etag")), ("304", Some(&*plain)));
    assert_eq!(served.curl(sha256, &["-H", &format!("If-Match: {packed}")]).status, "412");
    assert_eq!(served.curl(sha256, &["-H", "Accept-Encoding: *;q=0"]).status, "406");
}

#[test]
fn head_tells_what_get_would_send_and_http_2_sends_the_same() {
    let content = content(3 * MIB);
    let mut name = None;
    let served = Served::new(|directory, payloads| name = Some(store(directory, &content, payloads)));
    let sha256 = name.unwrap();
    for version in ["--http1.1", "--http2"] {
        let head = served.curl(sha256, &[version, "-I", "-r", "5-"]);
        assert_eq!(head.status, "200");
        assert_eq!(head.header("content-length"), Some(&*content.len().to_string()), "{}", head.head);
        assert!(served.curl(sha256, &[version]).body == content);
        assert!(served.curl(sha256, &[version, "--compressed"]).body == content);
        assert_eq!(served.curl(Sha256::of(b"none"), &[version]).status, "404");
    }
}

#[test]
fn files_and_memory_are_served_as_they_are() {
    let content = content(MIB);
    let sha256 = Sha256::of(&content);
    for in_memory in [false, true] {
        let served = Served::new(|directory, payloads| {
            if in_memory {
                payloads.add_memory(sha256, content.clone().into());
                return;
            }
            let path = directory.join("payload");
            std::fs::write(&path, &content).unwrap();
            payloads.add_file(sha256, path, content.len() as u64);
        });
        let got = served.curl(sha256, &["--compressed", "-r", "7-"]);
        assert_eq!((got.status.as_str(), got.header("content-encoding")), ("206", None));
        assert!(got.body == content[7..]);
    }
}

#[test]
fn a_payload_that_is_damaged_on_the_disk_is_never_sent_as_whole() {
    let content = content(4 * MIB);
    let mut name = None;
    let served = Served::new(|directory, payloads| name = Some(store(directory, &content, payloads)));
    let path = Store::at(served.directory.path()).object_path(name.unwrap());
    let mut packed = std::fs::read(&path).unwrap();
    let middle = packed.len() / 2;
    packed[middle] ^= 1;
    std::fs::write(&path, packed).unwrap();
    let url = format!("https://[::1]:{}/payload/{}", served.port, name.unwrap());
    let got = served.path("got");
    let curl = Command::new("curl")
        .args(["-sSk", "--http1.1", "--noproxy", "*", "-o"])
        .arg(&got)
        .arg(&url)
        .output()
        .unwrap();
    // 18: transferred a partial file.
    assert_eq!(curl.status.code(), Some(18), "{}", String::from_utf8_lossy(&curl.stderr));
    let got = std::fs::read(&got).unwrap();
    assert!(got.len() < content.len() && got == content[..got.len()]);
}
