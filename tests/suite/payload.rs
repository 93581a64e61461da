//! A payload on its way: cut in the middle, it is taken up again at the byte where it stopped.

use std::time::Duration;

use crate::deployment::{baseline_of, deploy_watched, run};
use crate::journal::Journal;
use crate::lab::Lab;

/// Big enough that a cut falls into the middle.
const PAYLOAD_BYTES: usize = 24 * 1024 * 1024;

/// Once 8 MiB have gone out, nothing more passes until the table is deleted; what is sent at all is counted.
const HOLD: &str = "nft -f - <<E
table inet hold {
    counter held { }
    chain out { type filter hook output priority 0
        tcp sport 63002 quota over 8 mbytes counter name held drop; }
}
table inet watch {
    counter sent { }
    chain out { type filter hook output priority 10
        tcp sport 63002 counter name sent; }
}
E";

/// Waits until the transfer is held, then lets it go and at once resets its connection, before a retransmission.
const CUT: &str = "for i in $(seq 1000); do
    nft list counter inet hold held | grep -q 'packets 0' || break
    sleep 0.01
done
nft delete table inet hold && ss -KtnH sport = :63002";

#[test]
fn a_cut_transfer_is_taken_up_where_it_stopped_and_verified() {
    let lab = Lab::up(1);
    let large = baseline_of(&lab, "large", "echo 2.0 > /var/lib/thing", PAYLOAD_BYTES);
    taken_up(&lab, large.to_str().unwrap());
}

/// Noise: packed, it is as long as before, so the same bytes are counted.
#[test]
fn a_cut_transfer_of_packed_bytes_is_taken_up_where_it_stopped_and_verified() {
    let lab = Lab::up(1);
    let large = baseline_of(&lab, "large", "echo 2.0 > /var/lib/thing", PAYLOAD_BYTES);
    let imported =
        run(&mut lab.carena(&["cache", "import", "--unsigned-ok", large.to_str().unwrap(), "--json"]));
    assert_eq!(imported.exit, 0, "{}", imported.all);
    taken_up(&lab, "large");
}

fn taken_up(lab: &Lab, baseline: &str) {
    let journal = Journal::listen(lab);
    let in_hub = |command: &str| {
        let done = lab.hub_command("sh").args(["-c", command]).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let fleet = lab.fleet(&[1], baseline, "");
    in_hub(HOLD);
    let done = deploy_watched(lab, &fleet, |event| {
        if event["step"] == "send" && event["state"] == "started" {
            assert!(in_hub(CUT).contains(":63002"), "no connection was cut");
        }
        None
    });
    assert_eq!(done.exit, 0, "{}", done.all);
    assert_eq!(done.component(lab, 1)["outcome"], "updated");
    journal.wait_for("taken up again", Duration::from_secs(1));
    // Sent from the start again, the first 8 MiB would be in this twice.
    let counted = in_hub("nft list counter inet watch sent");
    let words: Vec<&str> = counted.split_whitespace().collect();
    let bytes: usize = words[words.iter().position(|word| *word == "bytes").unwrap() + 1].parse().unwrap();
    let most = PAYLOAD_BYTES + 4 * 1024 * 1024;
    assert!((PAYLOAD_BYTES..most).contains(&bytes), "{bytes} bytes were sent for {PAYLOAD_BYTES}");
}
