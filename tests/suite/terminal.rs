//! What a person at a terminal sees: bars while it runs, a table at the end; and plain lines where there is no terminal.

use crate::lab::Lab;
use crate::operator::{deploy, run};

#[test]
fn a_terminal_gets_bars_and_a_table_and_a_pipe_gets_lines() {
    let lab = Lab::up(2);
    let fleet = lab.fleet(&[1, 2], "demo", "");
    let carena = env!("CARGO_BIN_EXE_carena");
    let state = lab.dir().join("state");
    let typed = format!(
        "stty cols 120 rows 40; {carena} deploy {} --state {}; echo exit $?",
        fleet.display(),
        state.display()
    );
    let seen = run(lab.hub_command("script").args(["-qec", &typed, "/dev/null"]).env("TERM", "xterm")).all;
    assert!(seen.contains('░') && seen.contains("\u{1b}["), "no bar: {seen}");
    let (_, table) = seen.rsplit_once("baseline demo").unwrap_or_else(|| panic!("no table: {seen}"));
    for k in [1, 2] {
        assert!(table.contains(&lab.node_address(k)), "{table}");
    }
    assert_eq!(table.matches("updated").count(), 2, "{table}");
    assert!(table.contains("1.2.0") && table.contains("exit 0"), "{table}");

    let piped = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap()]));
    assert_eq!(piped.exit, 3, "{}", piped.all);
    assert!(
        !piped.all.contains('\u{1b}') && piped.stderr.contains("fd00:ca::11 connect done"),
        "{}",
        piped.all
    );
    assert_eq!(deploy(&lab, &fleet).exit, 3);
}
