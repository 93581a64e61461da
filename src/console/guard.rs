//! What stands before every route: the token or a session, and headers that tell browsers to trust nothing else.
//!
//! It asks the table of routes what is open, and lets nothing else pass. It must never answer anything that depends on
//! what there is before it knows who asks.

use std::net::SocketAddr;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::delay::LONGEST;
use super::problem::Problem;
use super::session::SessionId;
use super::{Console, routes, sign_in};

/// What a request came in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The token itself: a program.
    Token,
    /// A session: a browser.
    Session(SessionId),
}

/// Where a request comes from, as the browser that sent it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// A page of ours.
    Ours,
    /// A page of somebody else.
    Other,
    /// It does not say: no browser.
    Unsaid,
}

impl Console {
    /// Whether what a request came in with still opens the console.
    pub fn opens(&self, credential: Credential) -> bool {
        match credential {
            Credential::Token => true,
            Credential::Session(id) => self.0.sessions.lives(id),
        }
    }

    /// 401 to a wrong token, after a while.
    pub async fn refuse(&self, peer: SocketAddr) -> Problem {
        let wait = self.0.delays.wrong(peer.ip());
        // Warnings stand on the machine's own screen: nobody may scroll the token off it.
        if wait < LONGEST {
            tracing::warn!(%peer, "a wrong token was offered");
        } else {
            tracing::debug!(%peer, "a wrong token was offered");
        }
        tokio::time::sleep(wait).await;
        Problem::new(StatusCode::UNAUTHORIZED, "this is not the token (the box's own console shows it)")
    }
}

/// Lets pass who has the token.
pub async fn guard(
    State(console): State<Console>,
    Extension(peer): Extension<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    if routes::is_open(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    let credential = if let Some(given) = request.headers().get(header::AUTHORIZATION) {
        if !bearer(given).is_some_and(|token| console.0.token.matches(token)) {
            return challenge(console.refuse(peer).await.into_response());
        }
        Credential::Token
    } else if let Some(session) = console.0.sessions.find(request.headers()) {
        // Browsers add the cookie by themselves. SameSite=Strict keeps other sites from making them do so, but it looks
        // at the registrable domain and not at the port, and an address of a private network has neighbours; so whatever
        // changes something must also say that it comes from a page of ours, which no other page can make it say.
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        if changes && site(&request) != Site::Ours {
            let detail = "this request does not come from the console's own page (programs send the token)";
            return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
        }
        Credential::Session(session)
    } else {
        if request.method() == Method::GET && request.uri().path() == "/" {
            return challenge(sign_in::page(request.headers(), StatusCode::UNAUTHORIZED, None));
        }
        let detail =
            "the token is needed (send it as Authorization: Bearer TOKEN; the box's own console shows it)";
        return challenge(Problem::new(StatusCode::UNAUTHORIZED, detail).into_response());
    };
    request.extensions_mut().insert(credential);
    next.run(request).await
}

/// RFC 6750, section 2.1.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// RFC 9110, section 15.5.2: a 401 says what would open.
fn challenge(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"carena\""));
    response
}

/// Which page made a browser send this. Both headers are the browser's own: a page cannot set them.
pub fn site(request: &Request) -> Site {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let host = || request.uri().authority().map(|host| host.as_str()).or_else(|| text("host"));
    let ours = match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => origin.strip_prefix("https://").is_some_and(|origin| Some(origin) == host()),
        (None, None) => return Site::Unsaid,
    };
    if ours { Site::Ours } else { Site::Other }
}

/// On every answer. Pages bring their own policy where they need another one.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Adds what every answer carries.
pub async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let present: &mut HeaderMap = response.headers_mut();
    for (name, value) in HEADERS {
        present.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(headers: &[(&str, &str)]) -> Site {
        let mut request = Request::builder().uri("/session").header("host", "[fd00::1]:63002");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        site(&request.body(axum::body::Body::empty()).unwrap())
    }

    #[test]
    fn only_our_own_page_is_ours() {
        assert_eq!(from(&[]), Site::Unsaid);
        assert_eq!(from(&[("origin", "https://[fd00::1]:63002")]), Site::Ours);
        assert_eq!(from(&[("sec-fetch-site", "same-origin"), ("origin", "https://x")]), Site::Ours);
        for other in ["https://[fd00::1]", "http://[fd00::1]:63002", "null", "https://evil.example"] {
            assert_eq!(from(&[("origin", other)]), Site::Other, "{other}");
        }
        for other in ["same-site", "cross-site", "none", ""] {
            let headers = [("sec-fetch-site", other), ("origin", "https://[fd00::1]:63002")];
            assert_eq!(from(&headers), Site::Other, "{other}");
        }
    }
}
