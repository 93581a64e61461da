//! The body of a request: JSON of a bounded size. How long it may take is the HTTPS server's bound.

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};

use super::problem::Problem;
use crate::https::body::TooSlow;

/// Most bytes of a request. A node with everything in it takes some 400 bytes, a fleet of 10,000 half of this.
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The JSON in a request.
///
/// # Errors
/// 413, 408, 415 or 400.
pub async fn json(headers: &HeaderMap, body: Body) -> Result<serde_json::Value, Problem> {
    check_type(headers)?;
    check_length(headers)?;
    parse(&read(body).await?)
}

/// The JSON in a request that may come without any; then it is an empty object.
///
/// # Errors
/// As [`json`].
pub async fn json_or_nothing(headers: &HeaderMap, body: Body) -> Result<serde_json::Value, Problem> {
    check_length(headers)?;
    let bytes = read(body).await?;
    if bytes.is_empty() {
        return Ok(serde_json::json!({}));
    }
    check_type(headers)?;
    parse(&bytes)
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let detail = "the body must be JSON (send it as Content-Type: application/json)";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    Ok(())
}

fn check_length(headers: &HeaderMap) -> Result<(), Problem> {
    let told =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if told.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<serde_json::Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("request: {error} (correct it and send it again)"))
    })
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if error.is::<http_body_util::LengthLimitError>() {
                return too_large();
            }
            if let Some(slow) = error.downcast_ref::<TooSlow>() {
                return Problem::new(StatusCode::REQUEST_TIMEOUT, slow.to_string());
            }
            cause = error.source();
        }
        Problem::new(StatusCode::BAD_REQUEST, "the body of the request was cut short")
    })
}

fn too_large() -> Problem {
    let detail = format!("the body of a request has at most {BODY_BYTES_MAX} bytes (split the fleet)");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}
