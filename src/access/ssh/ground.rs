//! What a node is, before anything is changed: its machine, its clock, and where a program may be put.
//!
//! One script asks with few processes; whether there is a place is decided here, before a byte is sent, and a refusal
//! names what was found. A 32-bit userland on a 64-bit kernel is no obstacle: the engine brings all it needs.

use std::net::IpAddr;

use super::Unpacker;
use crate::error::Hinted;
use crate::wire::claim::Claim;

/// A clock may be wrong by so much before it is worth a word. The deployment's certificates hold at any time; logs
/// and installers may not like it.
const SKEW_MAX_S: u64 = 24 * 3600;

/// The script that tells what [`Ground::read`] understands. `$1` is the connection as the node sees it.
pub const LOOK: &str = r#"echo "uid $(id -u)"
echo "system $(uname -rm)"
echo "clock $(date +%s)"
echo "connection $1"
for tool in zstd gzip; do command -v $tool >/dev/null && echo "tool $tool"; done
set --
for place in /var/tmp /tmp /run /dev/shm; do
    [ -d $place ] || continue
    if [ -w $place ]; then set -- "$@" $place; else echo "readonly $place"; fi
done
while read -r device mount kind options rest; do
    case ,$options, in *,noexec,*) echo "noexec $mount" ;; *) echo "exec $mount" ;; esac
done < /proc/self/mounts
grep -o "@carena-engine/.*" /proc/net/unix | while read -r claim; do echo "claim $claim"; done
echo "places $*"
[ $# -eq 0 ] || { echo blocks; df -Pk "$@"; echo inodes; df -Pi "$@" 2>/dev/null; }
:"#;

/// What the node is, before anything is changed.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Machine, as "x86_64".
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// The box's address as the node sees it.
    pub box_address: IpAddr,
    /// The same with the node's zone, where it needs one.
    pub box_address_text: String,
    /// Where programs may be put, best first.
    pub places: Vec<Place>,
    /// Why the others are none, for people.
    pub unfit: Vec<String>,
    /// What the node unpacks with.
    pub unpacker: Unpacker,
    /// Who holds the node, if an engine runs there.
    pub claim: Option<Claim>,
    /// The node's clock against the box's, seconds.
    pub clock_ahead_s: i64,
}

/// A directory that root may write and run programs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path.
    pub path: String,
    /// Bytes free.
    pub free_bytes: u64,
    /// Files that may still be made; none where the file system does not count them.
    pub free_files: Option<u64>,
}

/// Why there is no place for the engine and its payloads.
#[derive(Debug, thiserror::Error)]
pub enum NoPlace {
    /// Programs run nowhere.
    #[error("no directory on the node may hold a running program: {unfit}")]
    Unfit {
        /// Each directory and why not.
        unfit: String,
    },
    /// Too little disk.
    #[error("{needed} bytes are needed on the node, the roomiest place is {place} with {free} bytes free")]
    Bytes {
        /// Bytes.
        needed: u64,
        /// The place with the most room.
        place: String,
        /// Bytes free there.
        free: u64,
    },
    /// Too few inodes.
    #[error("{needed} files (inodes) are needed on the node, the roomiest place is {place} with {free} free")]
    Files {
        /// Files.
        needed: u64,
        /// The place with the most room.
        place: String,
        /// Files free there.
        free: u64,
    },
}

impl Hinted for NoPlace {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unfit { .. } => {
                "mount one of them with exec and writable for the time of the deployment".into()
            }
            Self::Bytes { place, .. } => format!("free some room in {place}"),
            Self::Files { place, .. } => format!("remove some files in {place}"),
        })
    }
}

impl Ground {
    /// Understands what [`LOOK`] said; `now_s` is the box's clock in seconds since 1970.
    pub fn read(said: &str, now_s: i64) -> Option<Self> {
        let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let all = |key: &'static str| {
            said.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(' '))
        };
        let box_address_text = value("connection")?.split(' ').next()?.to_owned();
        let box_address: IpAddr = box_address_text.split('%').next()?.parse().ok()?;
        let (kernel, arch) = value("system")?.split_once(' ')?;
        let mounts: Vec<(&str, bool)> =
            all("exec").map(|mount| (mount, true)).chain(all("noexec").map(|mount| (mount, false))).collect();
        let paths: Vec<&str> = value("places")?.split_whitespace().collect();
        let (blocks, inodes) = (df(said, "blocks"), df(said, "inodes"));
        let mut unfit: Vec<String> =
            all("readonly").map(|path| format!("{path} cannot be written")).collect();
        let mut places = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            if !runs_programs(path, &mounts) {
                unfit.push(format!("{path} is mounted noexec"));
                continue;
            }
            let free_bytes = blocks.get(index)?.1 * 1024;
            // Some file systems make inodes as they go and say 0 of 0.
            let free_files = inodes.get(index).filter(|(total, _)| *total > 0).map(|(_, free)| *free);
            places.push(Place { path: (*path).to_owned(), free_bytes, free_files });
        }
        let has = |tool: &str| all("tool").any(|other| other == tool);
        let unpacker = match () {
            () if has("zstd") => Unpacker::Zstd,
            () if has("gzip") => Unpacker::Gzip,
            () => Unpacker::Plain,
        };
        Some(Self {
            arch: arch.trim().to_owned(),
            kernel: kernel.to_owned(),
            box_address,
            box_address_text,
            places,
            unfit,
            unpacker,
            claim: value("claim").and_then(Claim::parse),
            clock_ahead_s: value("clock")?.trim().parse::<i64>().ok()? - now_s,
        })
    }

    /// The first place with room for so many bytes and files.
    ///
    /// # Errors
    /// [`NoPlace`], with what is needed and what there is.
    pub fn place(&self, bytes: u64, files: u64) -> Result<&Place, NoPlace> {
        let has_files = |place: &&Place| place.free_files.is_none_or(|free| free >= files);
        let has_bytes = |place: &&Place| place.free_bytes >= bytes;
        if let Some(place) = self.places.iter().find(|place| has_bytes(place) && has_files(place)) {
            return Ok(place);
        }
        let Some(roomiest) = self.places.iter().max_by_key(|place| place.free_bytes) else {
            let unfit = if self.unfit.is_empty() { "there is none".into() } else { self.unfit.join(", ") };
            return Err(NoPlace::Unfit { unfit });
        };
        // Where there are bytes enough, it is the files that are wanting.
        if let Some(place) = self.places.iter().filter(has_bytes).max_by_key(|place| place.free_files) {
            let free = place.free_files.unwrap_or(0);
            return Err(NoPlace::Files { needed: files, place: place.path.clone(), free });
        }
        Err(NoPlace::Bytes { needed: bytes, place: roomiest.path.clone(), free: roomiest.free_bytes })
    }

    /// What is to be said of the node's clock, if anything.
    pub fn clock_warning(&self) -> Option<String> {
        let off_s = self.clock_ahead_s.unsigned_abs();
        let direction = if self.clock_ahead_s > 0 { "ahead of" } else { "behind" };
        (off_s > SKEW_MAX_S).then(|| {
            format!("the node's clock is {} h {direction} the box's: set one of them right", off_s / 3600)
        })
    }
}

/// Total and free of each line of `df`'s table after the line `name`; its columns are POSIX's.
fn df(said: &str, name: &str) -> Vec<(u64, u64)> {
    let mut lines = said.lines().skip_while(|line| *line != name).skip(1);
    // The heading.
    lines.next();
    let table = lines.take_while(|line| *line != "inodes");
    let row = |line: &str| {
        // From the right, since a device may have spaces in its name: TOTAL USED FREE PERCENT MOUNT.
        let words: Vec<&str> = line.split_whitespace().collect();
        let percent = words.iter().rposition(|word| word.ends_with('%') || *word == "-")?;
        let number = |back: usize| words.get(percent.checked_sub(back)?)?.parse().ok();
        Some((number(3)?, number(1)?))
    };
    table.filter_map(row).collect()
}

/// Whether the mount that `path` is on lets programs run; of two on one directory, the later one counts.
fn runs_programs(path: &str, mounts: &[(&str, bool)]) -> bool {
    let inside = |mount: &str| mount == "/" || path == mount || path.starts_with(&format!("{mount}/"));
    let nearest = mounts.iter().filter(|(mount, _)| inside(mount)).max_by_key(|(mount, _)| mount.len());
    nearest.is_none_or(|(_, exec)| *exec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "uid 0\nsystem 6.1.0 x86_64\nclock 1000\nconnection fe80::1%eth0 4000 fe80::2%eth0 22\n\
        tool gzip\nreadonly /run\nnoexec /tmp\nexec /\n\
        claim @carena-engine/1/0190-test/900/fd00::9\nplaces /var/tmp /tmp\n\
        blocks\nFilesystem 1024-blocks Used Available Capacity Mounted on\n/dev/my disk 100 10 90 10% /\ntmpfs 50 0 50 0% /tmp\n\
        inodes\nFilesystem Inodes IUsed IFree IUse% Mounted on\n/dev/my disk 70 60 10 86% /\ntmpfs 9 1 8 0% /tmp\n";

    #[test]
    fn a_node_is_understood_and_unfit_places_are_named() {
        let ground = Ground::read(SAID, 1000).unwrap();
        assert_eq!((ground.arch.as_str(), ground.kernel.as_str()), ("x86_64", "6.1.0"));
        assert_eq!(ground.box_address_text, "fe80::1%eth0");
        let place = Place { path: "/var/tmp".into(), free_bytes: 92_160, free_files: Some(10) };
        assert_eq!(ground.places, [place]);
        assert_eq!(ground.unfit, ["/run cannot be written", "/tmp is mounted noexec"]);
        assert_eq!(ground.unpacker, Unpacker::Gzip);
        assert_eq!(ground.claim.unwrap().deployment.as_str(), "0190-test");
        assert!(Ground::read("garbage", 0).is_none());
    }

    #[test]
    fn a_refusal_says_what_is_needed_and_what_there_is() {
        let ground = Ground::read(SAID, 1000).unwrap();
        assert_eq!(ground.place(90_000, 10).unwrap().path, "/var/tmp");
        let said = |bytes, files| ground.place(bytes, files).unwrap_err().to_string();
        assert!(
            said(100_000, 1)
                .contains("100000 bytes are needed on the node, the roomiest place is /var/tmp with 92160")
        );
        assert!(
            said(1, 11)
                .contains("11 files (inodes) are needed on the node, the roomiest place is /var/tmp with 10")
        );
        let none = Ground { places: Vec::new(), ..ground };
        assert!(
            none.place(1, 1)
                .unwrap_err()
                .to_string()
                .contains("/run cannot be written, /tmp is mounted noexec")
        );
    }

    #[test]
    fn inodes_that_are_not_counted_are_no_limit() {
        let said = SAID.replace("70 60 10 86%", "0 0 0 -");
        assert!(Ground::read(&said, 1000).unwrap().place(1, 1_000_000).is_ok());
    }

    #[test]
    fn a_clock_is_told_only_beyond_a_day() {
        let warning = |now_s| Ground::read(SAID, now_s).unwrap().clock_warning();
        assert_eq!(warning(1000 + 86_400), None);
        assert!(warning(1000 + 90_001).unwrap().contains("25 h behind"));
        assert!(warning(1000 - 90_001).unwrap().contains("25 h ahead"));
    }
}
