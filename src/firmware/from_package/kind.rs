//! What a package is the firmware of, from its maker's words, and what follows: its turn, and how long it may take.
//!
//! The order is HPE's and Dell's own advice: software that flashing needs, then the management controller, the system ROM,
//! the board's own logic, and last what is plugged in. The kind also says where the version is read back, so a word must never
//! stand here that makers use of several things. Whom something is for, words never decide.

use crate::firmware::formats::metadata::{Metadata, Rule};

/// What a package is the firmware of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Drivers and tools.
    Software,
    /// The management controller.
    Bmc,
    /// The system ROM.
    Bios,
    /// Logic and power of the board.
    Board,
    /// Controllers of disks.
    Storage,
    /// Disks.
    Disk,
    /// Network cards and Fibre Channel adapters.
    Network,
    /// Anything else.
    Other,
}

/// By words in lower case, as makers name their packages; the first that is found decides, so what only one thing is
/// called comes before what is said of many. "ROM Flash" is HPE's word for every firmware there is.
const WORDS: &[(&str, Kind)] = &[
    ("idrac", Kind::Bmc),
    ("lifecycle controller", Kind::Bmc),
    ("integrated lights-out", Kind::Bmc),
    ("firmware-ilo", Kind::Bmc),
    ("ilo ", Kind::Bmc),
    ("cpld", Kind::Board),
    ("power management", Kind::Board),
    ("platform services", Kind::Board),
    ("innovation engine", Kind::Board),
    ("backplane", Kind::Board),
    ("system rom", Kind::Bios),
    ("firmware-system-", Kind::Bios),
    ("smart array", Kind::Storage),
    ("smartarray", Kind::Storage),
    ("megaraid", Kind::Storage),
    ("perc", Kind::Storage),
    ("storage controller", Kind::Storage),
    ("host bus adapter", Kind::Storage),
    ("hdd", Kind::Disk),
    ("ssd", Kind::Disk),
    ("nvme", Kind::Disk),
    ("drive", Kind::Disk),
    ("ethernet", Kind::Network),
    ("network", Kind::Network),
    ("infiniband", Kind::Network),
    ("fibre channel", Kind::Network),
    ("firmware-nic", Kind::Network),
    ("converged", Kind::Network),
    ("bios", Kind::Bios),
];

/// HPE's name for a system ROM's package: "Online ROM Flash", and then the family of the ROM in parentheses.
fn is_rom_flash(words: &str) -> bool {
    let mut parts = words.split('(').skip(1).filter_map(|rest| rest.split(')').next());
    let is_family = |word: &str| {
        let digits = word.strip_prefix(|c: char| c.is_ascii_lowercase()).unwrap_or_default();
        digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_digit())
    };
    words.contains("rom flash") && parts.any(|part| part.split('/').all(is_family))
}

impl Kind {
    /// By what a package says of itself.
    pub fn of(metadata: &Metadata) -> Self {
        match metadata.hints.get("component-type").map(String::as_str) {
            Some("BIOS") => return Self::Bios,
            Some("DRVR" | "APAC") => return Self::Software,
            _ => {}
        }
        let is_package = |rule: &Rule| matches!(rule, Rule::Package { .. });
        let flashes = metadata.hints.contains_key("hpe-setup");
        if !flashes && metadata.targets.iter().any(|target| is_package(&target.rule)) {
            return Self::Software;
        }
        let words = format!("{} {}", metadata.name, metadata.id).to_ascii_lowercase();
        let found = WORDS.iter().find(|(word, _)| words.contains(word));
        let unnamed = if is_rom_flash(&words) { Self::Bios } else { Self::Other };
        found.map_or(unnamed, |(_, kind)| *kind)
    }

    /// Its turn: lower ones come first.
    pub fn order(self) -> u32 {
        match self {
            Self::Software => 10,
            Self::Bmc => 20,
            Self::Bios => 30,
            Self::Board => 40,
            Self::Storage => 50,
            Self::Disk => 60,
            Self::Network => 70,
            Self::Other => 80,
        }
    }

    /// Seconds an installation takes on slow hardware, where its maker does not say.
    pub fn expected_s(self) -> u32 {
        match self {
            Self::Software => 60,
            // Written over a slow bus, then verified.
            Self::Bmc | Self::Bios => 600,
            Self::Board | Self::Storage | Self::Disk | Self::Network | Self::Other => 300,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_words_give_each_its_turn() {
        for (name, kind) in [
            ("Online ROM Flash Component for Linux - HPE DL380 Gen10 (U30) Servers", Kind::Bios),
            ("Online ROM Flash Component for Linux - HPE Integrated Lights-Out 5", Kind::Bmc),
            ("iDRAC with Lifecycle Controller", Kind::Bmc),
            ("Dell PowerEdge BIOS", Kind::Bios),
            ("Online HDD/SSD Flash Component for Linux (x64) - MO000400JWDKU Drives", Kind::Disk),
            ("Online Flash Component for Linux (x64) - HPE Smart Array P408i-a", Kind::Storage),
            ("Broadcom Gigabit Ethernet", Kind::Network),
            ("Online ROM Flash Component for Linux - Smart Array P440ar", Kind::Storage),
            ("Online ROM Flash for Power Management Controller", Kind::Board),
            ("Online ROM Flash Component for Linux - Something", Kind::Other),
            ("Something", Kind::Other),
        ] {
            let metadata = Metadata { name: name.into(), ..Metadata::default() };
            assert_eq!(Kind::of(&metadata), kind, "{name}");
        }
    }
}
