//! A baseline as the text of its `baseline.toml`, for people to read and correct.
//!
//! The same baseline always gives the same bytes: it is what gets signed. What is not said is not written, so a manifest
//! made here has no more lines than one that a person writes. It must never write what [`Baseline::parse`] reads as
//! something else.

use serde::Serialize;
use toml::{Table, Value};

use super::baseline::Baseline;

/// The order of a component's fields in the text: what it is, its bytes, whom it is for, how it goes. Others follow by
/// name.
const ORDER: &[&str] = &[
    "id",
    "title",
    "version",
    "version_format",
    "format",
    "payload",
    "sha256",
    "size",
    "match",
    "order",
    "requires",
    "conflicts",
    "needs",
    "only_if_installed",
    "expected_s",
    "install",
    "read_back",
];

/// What a person who opens the file should know.
const HEAD: &str = "\
# A baseline of Carena: components at versions, installed in this order where nothing else is asked for.
# Correct what is wrong, then sign it; any later change makes the signature wrong:
#     minisign -Sm baseline.toml
";

/// The text of a baseline's manifest.
pub fn write(baseline: &Baseline) -> String {
    let mut text = HEAD.to_owned();
    line(&mut text, "id", &Value::String(baseline.id.to_string()));
    line(&mut text, "version", &Value::String(baseline.version.clone()));
    line(&mut text, "title", &Value::String(baseline.title.clone()));
    for component in &baseline.components {
        text.push_str("\n[[component]]\n");
        fields(component).iter().for_each(|(name, value)| line(&mut text, name, value));
    }
    text
}

fn line(text: &mut String, name: &str, value: &Value) {
    text.push_str(&format!("{name} = {value}\n"));
}

/// The fields of a component that say something, in their order.
fn fields(component: &impl Serialize) -> Vec<(String, Value)> {
    // A component is a table of strings, numbers and lists: there is none that TOML cannot hold.
    let table = Table::try_from(component).unwrap_or_default();
    let mut fields: Vec<(String, Value)> = table
        .into_iter()
        .map(|(name, value)| (name, without_defaults(value)))
        .filter(|(_, value)| says_something(value))
        .collect();
    let place = |name: &str| ORDER.iter().position(|other| *other == name).unwrap_or(ORDER.len());
    fields.sort_by_key(|(name, _)| place(name));
    fields
}

/// Without what is the same when it is left out: empty lists and tables, zero, false.
fn without_defaults(value: Value) -> Value {
    match value {
        Value::Table(table) => {
            let entries = table.into_iter().map(|(name, value)| (name, without_defaults(value)));
            Value::Table(entries.filter(|(name, value)| is_command(name) || says_something(value)).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_defaults).collect()),
        other => other,
    }
}

/// An empty one is not the same as none.
fn is_command(name: &str) -> bool {
    name == "command"
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Array(values) => !values.is_empty(),
        Value::Table(table) => !table.is_empty(),
        Value::Boolean(is) => *is,
        Value::Integer(number) => *number != 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::baseline::MANIFEST;
    use proptest::prelude::*;

    fn parse(text: &str) -> Baseline {
        Baseline::parse(text, MANIFEST).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn a_manifest_is_as_a_person_would_write_it() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-cache/demo");
        let demo = parse(&std::fs::read_to_string(directory.join(MANIFEST)).unwrap());
        let expected = "id = \"demo\"\nversion = \"1\"\ntitle = \"Demonstration (not firmware)\"\n\n\
            [[component]]\nid = \"carena-demo\"\n\
            title = \"Demonstration component (not firmware): two files under /var/lib/carena-demo\"\n\
            version = \"1.2.0\"\nversion_format = \"mixed\"\nformat = \"plain\"\n\
            payload = \"carena-demo-1.2.0.sh\"\n\
            sha256 = \"98fba6796353164b7dba3cba1e014000b0d283556f7f73af51b94175be73549a\"\nsize = 639\n\
            match = { arch = \"x86_64\" }\nexpected_s = 5\n\
            install = { command = [\"/bin/sh\", \"{payload}\"], exit = { 0 = \"done\" } }\n\
            read_back = { file = \"/var/lib/carena-demo/version\" }\n";
        assert_eq!(write(&demo), format!("{HEAD}{expected}"));
        assert_eq!(parse(&write(&demo)), demo);
    }

    /// Text as strangers write it: quotes, backslashes, several lines, other scripts.
    fn words() -> impl Strategy<Value = String> {
        prop_oneof!["[ -~]{1,20}", "\\PC{1,8}", "a\nb\"\"\"'''\\\\\t\u{7f}\u{0}é"]
    }

    fn source() -> impl Strategy<Value = toml::Value> {
        let name = |name: &'static str| words().prop_map(move |text| table([(name, text.into())]));
        let pci = |name: &'static str| Just(table([(name, "8086:1572:103c:22fd".into())]));
        prop_oneof![
            name("file"),
            name("package"),
            name("disk"),
            name("uefi"),
            pci("network"),
            pci("storage"),
            proptest::collection::vec(words(), 0..3).prop_map(|list| table([("command", list.into())])),
            Just("bios".into()),
            Just("bmc".into()),
            Just("microcode".into()),
        ]
    }

    fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Table(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn component(index: usize) -> impl Strategy<Value = Value> {
        let list = || proptest::collection::vec(words(), 0..3);
        let rules = (proptest::option::of(words()), list(), any::<bool>());
        let numbers = (any::<u32>(), any::<u32>(), 1_i64..=i64::MAX, any::<bool>());
        (words(), rules, numbers, list(), source(), source(), proptest::option::of(words())).prop_map(
            move |(
                title,
                (product, models, pci),
                (order, expected, size, only),
                command,
                read,
                of,
                least,
            )| {
                let mut rules = table([("disk_model", models.into())]);
                let mut need = table([("version_of", of)]);
                if let (Value::Table(rules), Value::Table(need)) = (&mut rules, &mut need) {
                    rules.extend(product.map(|product| ("dmi_product".to_owned(), product.into())));
                    if pci {
                        rules.insert("pci".into(), vec!["8086:1572"].into());
                    }
                    need.extend(least.map(|least| ("at_least".to_owned(), least.into())));
                    need.insert("not".into(), command.clone().into());
                    need.insert("version_format".into(), "triplet".into());
                }
                let id = |index: usize| format!("c{index}");
                let mut command = command;
                command.push("run".into());
                let requires: Vec<String> = (0..index).map(id).collect();
                let install = table([
                    ("command", command.into()),
                    ("exit", table([("0", "done".into()), ("3010", "reboot-needed".into())])),
                ]);
                table([
                    ("id", id(index).into()),
                    ("title", title.into()),
                    ("version", "1.2".into()),
                    ("format", "plain".into()),
                    ("payload", format!("p {index}.bin").into()),
                    ("sha256", format!("{index:064x}").into()),
                    ("size", size.into()),
                    ("match", rules),
                    ("order", i64::from(order).into()),
                    ("requires", requires.into()),
                    ("needs", vec![need].into()),
                    ("only_if_installed", only.into()),
                    ("expected_s", i64::from(expected).into()),
                    ("install", install),
                    ("read_back", read),
                ])
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_as_it_was(
            title in words(), components in (component(0), component(1), component(2)),
        ) {
            let (a, b, c) = components;
            let whole = table([
                ("id", "b".into()), ("version", "1".into()), ("title", title.into()),
                ("component", vec![a, b, c].into()),
            ]);
            let baseline = parse(&toml::to_string(&whole).unwrap());
            let text = write(&baseline);
            prop_assert_eq!(&parse(&text), &baseline, "{}", text);
            prop_assert_eq!(write(&parse(&text)), text);
        }
    }
}
