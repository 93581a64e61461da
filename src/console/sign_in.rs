//! Signing in with a browser: one page with one field, and `POST /session`, which takes the token for a session.
//!
//! The page is whole in itself, style included, because nothing else is answered before the token is given. It needs no
//! script. It must never say more than that a token is needed, or was wrong.

use std::net::SocketAddr;

use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, Extension, Form, FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use serde::Deserialize;

use super::Console;
use super::guard::{Site, site};
use super::pages::Assets;
use super::problem::Problem;
use crate::digest::Sha256;
use crate::secret::Secret;

/// The languages of the page, the first one for who speaks neither.
pub const LANGUAGES: [&str; 2] = ["en", "es"];

/// What the page's form sends.
#[derive(Deserialize)]
struct Given {
    token: Secret,
}

/// `POST /session`
pub async fn sign_in(
    State(console): State<Console>,
    Extension(peer): Extension<SocketAddr>,
    request: Request,
) -> Response {
    // Else any page could sign its reader in with a token of its own choice.
    if site(&request) == Site::Other {
        let detail = "this request does not come from the console's own page";
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    let headers = request.headers().clone();
    let given: Result<Form<Given>, FormRejection> = Form::from_request(request, &()).await;
    let Ok(Form(Given { token })) = given else {
        let detail = "the token is sent as the form field token (application/x-www-form-urlencoded)";
        return Problem::new(StatusCode::BAD_REQUEST, detail).into_response();
    };
    if !console.0.token.matches(token.reveal().trim()) {
        let _ = console.refuse(peer).await;
        return page(&headers, StatusCode::UNAUTHORIZED, Some("signin.wrong"));
    }
    match console.0.sessions.begin() {
        Ok(cookie) => {
            (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, "/".to_owned())])
                .into_response()
        }
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The page, in the reader's language; `said` is the key of what went wrong.
pub fn page(headers: &HeaderMap, status: StatusCode, said: Option<&str>) -> Response {
    let language = language(headers);
    let style = asset("console.css");
    let mut text = asset("sign-in.html").replace("{{lang}}", language);
    for (key, translations) in strings() {
        let translated = translations.get(language).map_or("", String::as_str);
        text = text.replace(&format!("{{{{{key}}}}}"), &escape(translated));
        if said == Some(key.as_str()) {
            text = text.replace("{{said}}", &escape(translated));
        }
    }
    let text = text.replace("{{said}}", "").replace("{{style}}", &style);
    // The one style in the page, and no other, by its digest (CSP level 3, section 8.3).
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; img-src data:; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
        base64(Sha256::of(style.as_bytes()).as_bytes())
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::VARY, "Accept-Language, Cookie".to_owned()),
        (header::CONTENT_LANGUAGE, language.to_owned()),
    ];
    (status, headers, Html(text)).into_response()
}

fn asset(name: &str) -> String {
    Assets::get(name).map(|file| String::from_utf8_lossy(&file.data).into_owned()).unwrap_or_default()
}

type Strings = std::collections::BTreeMap<String, std::collections::BTreeMap<String, String>>;

/// Every text of the page, by key and language.
fn strings() -> Strings {
    serde_json::from_str(&asset("strings.json")).unwrap_or_default()
}

/// The reader's first language that there is (RFC 9110, section 12.5.4).
fn language(headers: &HeaderMap) -> &'static str {
    let value =
        headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut best = (0.0, LANGUAGES[0]);
    for range in value.split(',') {
        let (tag, parameters) = range.trim().split_once(';').unwrap_or((range.trim(), ""));
        let weight = parameters.trim().strip_prefix("q=").map_or(1.0, |q| q.parse().unwrap_or(0.0));
        let primary = tag.split('-').next().unwrap_or_default();
        let spoken = LANGUAGES.into_iter().find(|language| language.eq_ignore_ascii_case(primary));
        if let Some(spoken) = spoken.filter(|_| weight > best.0) {
            best = (weight, spoken);
        }
    }
    best.1
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// RFC 4648, section 4: a digest is all there is to encode, so a crate for it would be the larger evil.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let letter = ALPHABET.get(index as usize).filter(|_| digit <= chunk.len());
            text.push(letter.map_or('=', |letter| char::from(*letter)));
        }
    }
    text
}

/// The largest form is a token; anything else is not read.
pub fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(4_096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::event::{NodeResult, Step};
    use crate::firmware::outcome::Outcome;

    #[test]
    fn base64_is_rfc_4648s() {
        let tests = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in tests {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn the_reader_gets_the_language_it_prefers() {
        let spoken = |value: &str| {
            language(&HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, value.parse().unwrap())]))
        };
        assert_eq!(language(&HeaderMap::new()), "en");
        for (value, expected) in [
            ("es-ES,es;q=0.9,en;q=0.8", "es"),
            ("de, en;q=0.5, es;q=0.7", "es"),
            ("en-GB, es;q=0.9", "en"),
            ("fr", "en"),
            ("es;q=0", "en"),
        ] {
            assert_eq!(spoken(value), expected, "{value}");
        }
    }

    #[test]
    fn the_page_is_whole() {
        for language in LANGUAGES {
            let headers = HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, language.parse().unwrap())]);
            let page = page(&headers, StatusCode::UNAUTHORIZED, Some("signin.wrong"));
            let body = futures_util::FutureExt::now_or_never(axum::body::to_bytes(page.into_body(), 1 << 20));
            let text = String::from_utf8(body.unwrap().unwrap().to_vec()).unwrap();
            assert!(!text.contains("{{"), "{text}");
            assert!(text.contains(&format!("<html lang=\"{language}\"")));
            assert!(text.contains(&escape(&strings()["signin.wrong"][language])));
        }
    }

    /// The page's texts and its use of them, held together.
    #[test]
    fn every_text_is_there_in_every_language_and_no_text_is_missing_or_idle() {
        let strings = strings();
        assert!(!strings.is_empty());
        let page: String =
            Assets::iter().filter(|name| *name != "strings.json").map(|name| asset(&name)).collect();
        for (key, translations) in &strings {
            for language in LANGUAGES {
                assert!(
                    translations.get(language).is_some_and(|text| !text.trim().is_empty()),
                    "{key} in {language}"
                );
            }
            assert_eq!(
                translations.len(),
                LANGUAGES.len(),
                "{key} has a language that the page does not offer"
            );
            let holes = |text: &str| {
                let mut holes: Vec<_> =
                    text.split('{').skip(1).map(|rest| rest.split('}').next().unwrap().to_owned()).collect();
                holes.sort();
                holes
            };
            assert_eq!(holes(&translations["en"]), holes(&translations["es"]), "{key}");
        }
        let mut used: Vec<String> = Vec::new();
        for (open, close) in
            [("text(\"", "\""), ("data-text=\"", "\""), ("data-label=\"", "\""), ("{{", "}}")]
        {
            used.extend(page.split(open).skip(1).map(|rest| rest.split(close).next().unwrap().to_owned()));
        }
        used.retain(|key| !["lang", "style", "said"].contains(&key.as_str()));
        for key in &used {
            // A key that ends with a dot is the beginning of a family: `text("step." + name)`.
            let there = if key.ends_with('.') {
                strings.keys().any(|known| known.starts_with(key.as_str()))
            } else {
                strings.contains_key(key)
            };
            assert!(there, "the page uses {key}, which has no text");
        }
        for key in strings.keys().filter(|key| *key != "signin.wrong") {
            let family = |used: &String| used.ends_with('.') && key.starts_with(used.as_str());
            assert!(used.iter().any(|used| used == key || family(used)), "{key} is used nowhere");
        }
        // What comes from the box by name: what it would have expected lists them all.
        let names = |refused: serde_json::Error| -> Vec<String> {
            refused.to_string().split('`').skip(3).step_by(2).map(str::to_owned).collect()
        };
        let steps = names(serde_json::from_str::<Step>("\"x\"").unwrap_err());
        let results = names(serde_json::from_str::<NodeResult>("\"x\"").unwrap_err());
        let outcomes = names(serde_json::from_str::<Outcome>("{\"outcome\": \"x\"}").unwrap_err());
        assert!(
            steps.len() > 16 && results.len() > 4 && outcomes.len() > 7,
            "{steps:?} {results:?} {outcomes:?}"
        );
        for (family, names) in [("step", &steps), ("result", &results), ("outcome", &outcomes)] {
            for name in names {
                assert!(strings.contains_key(&format!("{family}.{name}")), "{family}.{name}");
            }
        }
        let order: Vec<_> = steps.iter().map(|step| asset("state.js").find(&format!("\"{step}\""))).collect();
        assert!(
            order.iter().all(Option::is_some) && order.is_sorted(),
            "state.js has other steps, or in another order"
        );
    }
}
