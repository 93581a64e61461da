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

/// The script that tells what [`Ground::read`] understands. `$1` is the connection as the node sees it. One grep looks
/// at whose rights these are, at the mounts of the places, at the clock (proc(5): when the node booted, and how long ago),
/// and at the sockets for an engine's claim. A node whose proc tells no clock (in a container, perhaps) is asked for the
/// date. A shell that pretends to be of another machine (`setarch`) is asked with a program that is told the same.
pub const LOOK: &str = r#"tools=
for tool in zstd gzip; do command -v $tool >/dev/null && tools="$tools $tool"; done
{ read -r kernel < /proc/sys/kernel/osrelease && read -r how < /proc/self/personality && [ $how = 00000000 ] &&
    read -r arch < /proc/sys/kernel/arch; } 2>/dev/null && system="$kernel $arch" || system=$(uname -rm)
connection=$1 readonly=
set --
for place in /var/tmp /tmp /run /dev/shm; do
    [ -d $place ] || continue
    if [ -w $place ]; then set -- "$@" $place; else readonly="$readonly $place"; fi
done
echo "connection $connection
system $system
tools$tools
readonly$readonly
places $*"
facts=$(grep -shE "^Uid:|^btime |^[0-9.]+ [0-9.]+$|@carena-engine/|^[^ ]+ /((var/)?tmp|var|run|dev(/shm)?)? " /proc/self/status /proc/stat /proc/uptime /proc/self/mounts /proc/net/unix)
printf "%s\n" "$facts"
{ read -r up < /proc/uptime; } 2>/dev/null && case $facts in *btime\ *) ;; *) false ;; esac || echo "now $(date +%s)"
[ $# -eq 0 ] || stat -fc "free %a %S %c %d" "$@" 2>/dev/null || { echo blocks; df -Pk "$@"; echo inodes; df -Pi "$@" 2>/dev/null; }
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
        let list = |key: &str| value(key).unwrap_or_default().split_whitespace();
        let box_address_text = value("connection")?.split(' ').next()?.to_owned();
        let box_address: IpAddr = box_address_text.split('%').next()?.parse().ok()?;
        let (kernel, arch) = value("system")?.split_once(' ')?;
        let mounts: Vec<(&str, bool)> = said.lines().filter_map(mount).collect();
        let rooms = rooms(said);
        let mut unfit: Vec<String> =
            list("readonly").map(|path| format!("{path} cannot be written")).collect();
        let mut places = Vec::new();
        for (index, path) in list("places").enumerate() {
            if !runs_programs(path, &mounts) {
                unfit.push(format!("{path} is mounted noexec"));
                continue;
            }
            let room = rooms.get(index)?;
            // Some file systems make inodes as they go and say 0 of 0.
            let free_files = room.files.filter(|(total, _)| *total > 0).map(|(_, free)| free);
            places.push(Place { path: path.to_owned(), free_bytes: room.free_bytes, free_files });
        }
        let has = |tool: &str| list("tools").any(|other| other == tool);
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
            claim: said.lines().find_map(|line| Claim::parse(line.split(' ').next_back()?)),
            clock_ahead_s: clock_s(said)? - now_s,
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

/// Whether the script ran with root's rights: the second number is the one that counts, proc(5).
pub fn is_root(said: &str) -> bool {
    let ids = said.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// The node's clock, seconds after 1970: `btime` of `/proc/stat` and the first number of `/proc/uptime`, or the date.
fn clock_s(said: &str) -> Option<i64> {
    let number = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<i64>().ok());
    if let Some(now_s) = number("now ") {
        return Some(now_s);
    }
    let booted = number("btime ")?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let uptime = said.lines().find_map(|line| {
        let (since, idle) = line.split_once(' ')?;
        (is_number(since) && is_number(idle)).then_some(since)
    })?;
    Some(booted + uptime.split('.').next()?.parse::<i64>().ok()?)
}

/// A line of `/proc/self/mounts`: where, and whether programs may run there.
fn mount(line: &str) -> Option<(&str, bool)> {
    match line.split(' ').collect::<Vec<_>>().as_slice() {
        [_, mount, _, options, "0", "0"] if mount.starts_with('/') => {
            Some((mount, !options.split(',').any(|option| option == "noexec")))
        }
        _ => None,
    }
}

/// What is free in one place.
struct Room {
    free_bytes: u64,
    /// Inodes in all, and free.
    files: Option<(u64, u64)>,
}

/// One for each place, by `stat`, or by `df` on a node whose `stat` knows no file systems.
fn rooms(said: &str) -> Vec<Room> {
    let by_stat = said.lines().filter_map(|line| {
        let numbers = line.strip_prefix("free ")?.split(' ').map(|word| word.parse().ok());
        match numbers.collect::<Option<Vec<u64>>>()?.as_slice() {
            [blocks, block, files, free] => {
                Some(Room { free_bytes: blocks.saturating_mul(*block), files: Some((*files, *free)) })
            }
            _ => None,
        }
    });
    let inodes = df(said, "inodes");
    let by_df = df(said, "blocks").into_iter().enumerate().map(|(index, (_, free))| Room {
        free_bytes: free.saturating_mul(1024),
        files: inodes.get(index).copied(),
    });
    let by_df: Vec<Room> = by_df.collect();
    // `df` was asked because `stat` failed, perhaps after some of the places: its word is about all of them.
    if by_df.is_empty() { by_stat.collect() } else { by_df }
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

    const SAID: &str = "connection fe80::1%eth0 4000 fe80::2%eth0 22\nsystem 6.1.0 x86_64\n\
        tools gzip\nreadonly /run\nplaces /var/tmp /tmp\nUid:\t0\t0\t0\t0\n\
        btime 900\n100.99 300.00\n\
        /dev/my\\040disk / ext4 rw,relatime 0 0\ntmpfs /tmp tmpfs rw,nosuid,noexec 0 0\n\
        0000: 00000002 00000000 00010000 0001 01 11 @carena-engine/1/0190-test/900/fd00::9\n";
    const STAT: &str = "free 90 1024 70 10\nfree 50 1024 9 8\n";
    const DF: &str = "blocks\nFilesystem 1024-blocks Used Available Capacity Mounted on\n/dev/my disk 100 10 90 10% /\ntmpfs 50 0 50 0% /tmp\n\
        inodes\nFilesystem Inodes IUsed IFree IUse% Mounted on\n/dev/my disk 70 60 10 86% /\ntmpfs 9 1 8 0% /tmp\n";

    fn ground(rooms: &str, now_s: i64) -> Option<Ground> {
        Ground::read(&format!("{SAID}{rooms}"), now_s)
    }

    #[test]
    fn a_node_is_understood_and_unfit_places_are_named() {
        assert!(is_root(SAID) && !is_root("Uid:\t0\t1000\t0\t0\n"));
        let ground = ground(STAT, 1000).unwrap();
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
        let ground = ground(DF, 1000).unwrap();
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
        for rooms in [STAT.replace("70 10", "0 0"), DF.replace("70 60 10 86%", "0 0 0 -")] {
            assert!(ground(&rooms, 1000).unwrap().place(1, 1_000_000).is_ok());
        }
    }

    #[test]
    fn a_stat_that_fails_half_way_is_not_mixed_with_what_df_says() {
        let some = "free 1 1 1 1\n";
        let mixed = ground(&format!("{some}{DF}"), 1000).unwrap();
        assert_eq!(mixed.places, ground(DF, 1000).unwrap().places);
    }

    #[test]
    fn a_clock_is_told_only_beyond_a_day() {
        let warning = |now_s| ground(STAT, now_s).unwrap().clock_warning();
        assert_eq!(warning(1000 + 86_400), None);
        assert!(warning(1000 + 90_001).unwrap().contains("25 h behind"));
        assert!(warning(1000 - 90_001).unwrap().contains("25 h ahead"));
    }

    #[test]
    fn a_node_whose_proc_tells_no_clock_tells_the_date() {
        for half in ["btime 900\n", "100.99 300.00\n"] {
            let said = format!("{}{STAT}now 1007\n", SAID.replace(half, ""));
            assert_eq!(Ground::read(&said, 1000).unwrap().clock_ahead_s, 7);
        }
    }
}
