//! Holds the import table: lower layers never name higher ones, and parts of one layer name each
//! other only where the table says so. Reads source text, so it needs no build and sees both features.

use std::path::{Path, PathBuf};

const L0: &[&str] = &["error", "paths", "durable", "digest", "secret", "clock"];

/// What a part may import beyond L0 and itself; `None` for a part the table does not know.
fn allowed(part: &str) -> Option<&'static [&'static str]> {
    Some(match part {
        "wire" => &[],
        "init" | "net" | "firmware" | "engine" | "access" | "https" => &["wire"],
        "cache" => &["wire", "firmware"],
        "fleet" => &["wire", "access", "firmware", "cache"],
        "deploy" => &["fleet", "access", "wire", "firmware", "cache", "https"],
        "console" | "cli" => &["deploy", "fleet", "cache", "firmware", "https", "net", "wire"],
        _ => return None,
    })
}

/// The parts named by `crate::` paths in the text before its tests; nested `crate::{a, b::c}` included.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut name) = (0, String::new());
            let mut taking = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push(std::mem::take(&mut name));
                        taking = true;
                    }
                    c if depth == 0 && taking && (c.is_alphanumeric() || c == '_') => name.push(c),
                    c if !c.is_whitespace() => taking = false,
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Complaints about one file, by its path below `src`.
fn violations(file: &Path, text: &str) -> Vec<String> {
    let part = file.iter().next().and_then(|p| p.to_str()).unwrap_or_default();
    let part = part.trim_end_matches(".rs");
    if ["main", "lib", "appliance"].contains(&part) {
        return Vec::new();
    }
    let known = |name: &str| L0.contains(&name) || allowed(name).is_some() || name == "appliance";
    let may = |name: &str| {
        if L0.contains(&part) {
            return L0.contains(&name);
        }
        name == part || L0.contains(&name) || allowed(part).is_some_and(|list| list.contains(&name))
    };
    if !known(part) {
        return vec![format!("{}: the table has no part {part}", file.display())];
    }
    imports(text)
        .iter()
        .filter(|name| known(name) && !may(name))
        .map(|name| format!("{}: {part} must not import {name}", file.display()))
        .collect()
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn the_import_table_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 10, "sources found: {}", files.len());
    let found: Vec<String> = files
        .iter()
        .flat_map(|f| violations(f.strip_prefix(&root).unwrap(), &std::fs::read_to_string(f).unwrap()))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// How a node is reached is behind `access::driver`, or the next kind of node would change every deployment.
#[test]
fn deployments_name_no_driver() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/deploy");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 10, "sources found: {}", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("access::ssh"), "{}", file.display());
    }
}

#[test]
fn a_planted_violation_is_found() {
    for planted in ["use crate::deploy::Plan;", "use crate::{\n error::Hinted,\n deploy::{a, b},\n};"] {
        assert_eq!(violations(Path::new("access/mod.rs"), planted).len(), 1, "{planted}");
    }
    assert_eq!(violations(Path::new("digest.rs"), "fn f() { crate::wire::x() }").len(), 1);
    assert!(
        violations(Path::new("cache/store.rs"), "use crate::{firmware::Baseline, error::Hinted};").is_empty()
    );
}
