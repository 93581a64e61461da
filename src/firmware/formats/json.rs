//! JSON of vendors, whose key names differ in case from file to file: found without regard to it.

use serde_json::Value;

/// The value of a key in an object.
pub fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .get(key)
        .or_else(|| object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value))
}

/// The value at the end of a path of keys.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| get(value, key))
}

/// A list; a single value counts as a list of one, nothing as an empty one.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    match get(value, key) {
        Some(Value::Array(values)) => values,
        Some(Value::Null) | None => &[],
        Some(single) => std::slice::from_ref(single),
    }
}

/// Text or a number as text; not when it is empty.
pub fn text(value: &Value, key: &str) -> Option<String> {
    plain(get(value, key)?)
}

/// As [`text`], of the value itself.
pub fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A number, also one that is written as text.
pub fn number(value: &Value, key: &str) -> Option<u64> {
    text(value, key)?.parse().ok()
}

/// True or false, also where it is written as text: `true`, `yes`, `1`.
pub fn flag(value: &Value, key: &str) -> Option<bool> {
    match get(value, key)? {
        Value::Bool(flag) => Some(*flag),
        other => plain(other).map(|text| yes(&text)),
    }
}

/// Whether a vendor's word means yes.
pub fn yes(word: &str) -> bool {
    ["true", "yes", "1", "y"].iter().any(|yes| word.trim().eq_ignore_ascii_case(yes))
}
