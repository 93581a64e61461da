//! The page for browsers, out of the binary: its files as they stand in `assets/`, packed with zstd.
//!
//! A browser that takes zstd gets the packed bytes as they are. It must never name a file that was not embedded.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use rust_embed::RustEmbed;

use super::problem;

#[derive(RustEmbed)]
#[folder = "src/console/assets"]
#[compression = "zstd"]
pub(super) struct Assets;

/// `GET /`
pub async fn index(uri: Uri, headers: HeaderMap) -> Response {
    answer("index.html", uri, &headers).await
}

/// `GET /assets/{name}`
pub async fn asset(Path(name): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    answer(&name, uri, &headers).await
}

async fn answer(name: &str, uri: Uri, headers: &HeaderMap) -> Response {
    let (Some(kind), Some(file)) = (kind(name), Assets::compressed(name)) else {
        return problem::no_such_path(uri).await.into_response();
    };
    let digest: String = file.metadata.sha256_hash().iter().map(|byte| format!("{byte:02x}")).collect();
    let packed = takes_zstd(headers);
    // A strong tag differs with the encoding (RFC 9110, section 8.8.3.3).
    let tag = format!("\"{digest}{}\"", if packed { "-zstd" } else { "" });
    let seen = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fresh = seen.split(',').any(|seen| seen.trim().trim_start_matches("W/") == tag);
    let always = [
        (header::ETAG, tag),
        (header::VARY, "Accept-Encoding".to_owned()),
        // Asked for each time: with another version of the box, or signed out, nothing old is shown.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::CONTENT_TYPE, kind.to_owned()),
    ];
    if fresh {
        return (StatusCode::NOT_MODIFIED, always).into_response();
    }
    if packed {
        let encoding = [(header::CONTENT_ENCODING, file.content_encoding())];
        return (always, encoding, Body::from(file.data.compressed())).into_response();
    }
    match Assets::get(name) {
        Some(file) => (always, Body::from(file.data)).into_response(),
        None => problem::no_such_path(uri).await.into_response(),
    }
}

fn kind(name: &str) -> Option<&'static str> {
    Some(match name.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        _ => return None,
    })
}

/// RFC 9110, section 12.5.3, as far as a weight of zero.
fn takes_zstd(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
        named && weight.is_ok_and(|weight| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(name: &str, headers: &[(header::HeaderName, &str)]) -> Response {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        answer(name, Uri::from_static("/assets/x"), &HeaderMap::from_iter(headers)).await
    }

    #[tokio::test]
    async fn a_browser_that_takes_zstd_gets_it_and_others_the_same_bytes_plain() {
        let packed = get("console.css", &[(header::ACCEPT_ENCODING, "gzip, br, zstd")]).await;
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "zstd");
        assert_eq!(packed.headers()[header::VARY], "Accept-Encoding");
        let tag = packed.headers()[header::ETAG].to_str().unwrap().to_owned();
        let packed = axum::body::to_bytes(packed.into_body(), 1 << 20).await.unwrap();
        for refused in ["gzip", "zstd;q=0"] {
            let plain = get("console.css", &[(header::ACCEPT_ENCODING, refused)]).await;
            assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
            assert_ne!(plain.headers()[header::ETAG], tag);
            let plain = axum::body::to_bytes(plain.into_body(), 1 << 20).await.unwrap();
            assert_eq!(zstd::bulk::decompress(&packed, 1 << 20).unwrap(), plain);
        }
        let fresh = [(header::ACCEPT_ENCODING, "zstd"), (header::IF_NONE_MATCH, &*tag)];
        assert_eq!(get("console.css", &fresh).await.status(), StatusCode::NOT_MODIFIED);
    }

    #[tokio::test]
    async fn what_is_not_embedded_is_not_there() {
        for name in ["nothing.js", "../mod.rs", "/etc/passwd", ""] {
            assert_eq!(get(name, &[]).await.status(), StatusCode::NOT_FOUND, "{name}");
        }
    }
}
