//! Sessions of browsers: a random id in a cookie instead of the token.
//!
//! A browser that holds the token could be made to give it away; a session id opens this console only, until this
//! process ends, and can be taken back. What is kept is the id's digest, in memory, a bounded number. It must never
//! outlive [`SESSION_MAX`], however busy it is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::Console;
use super::auth::NoRandomness;
use super::guard::Credential;
use crate::digest::Sha256;

/// How long a session lives.
pub const SESSION_MAX: Duration = Duration::from_secs(12 * 3600);

/// Sessions at once; one more ends the oldest.
const SESSIONS_MAX: usize = 64;

/// `__Host-` binds it to this host, to TLS and to the whole path (RFC 6265bis, section 4.1.3.2).
const COOKIE: &str = "__Host-carena";

/// A session, by its id's digest: looking it up tells nothing about other ids by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionId(Sha256);

/// The sessions there are.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<[u8; 32], Instant>>);

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<[u8; 32], Instant>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, begun| begun.elapsed() < SESSION_MAX);
        all
    }

    /// Begins one; what the browser is to keep, as the value of `Set-Cookie`.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn begin(&self) -> Result<String, NoRandomness> {
        let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
        SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| NoRandomness)?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut all = self.all();
        if all.len() >= SESSIONS_MAX {
            let oldest = all.iter().min_by_key(|(_, begun)| **begun).map(|(id, _)| *id);
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        all.insert(*Sha256::of(id.as_bytes()).as_bytes(), Instant::now());
        Ok(cookie(&id, SESSION_MAX))
    }

    /// The session that a request is part of.
    pub fn find(&self, headers: &HeaderMap) -> Option<SessionId> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, id) = pairs.find(|(name, _)| *name == COOKIE)?;
        let id = SessionId(Sha256::of(id.as_bytes()));
        self.lives(id).then_some(id)
    }

    /// Whether a session has not ended.
    pub fn lives(&self, id: SessionId) -> bool {
        self.all().contains_key(id.0.as_bytes())
    }

    fn end(&self, id: SessionId) {
        self.all().remove(id.0.as_bytes());
    }
}

/// Strict: no other site can make the browser send it, not even by a link.
fn cookie(id: &str, age: Duration) -> String {
    format!("{COOKIE}={id}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={}", age.as_secs())
}

/// `DELETE /session`
pub async fn sign_out(
    State(console): State<Console>,
    Extension(credential): Extension<Credential>,
) -> Response {
    if let Credential::Session(id) = credential {
        console.0.sessions.end(id);
    }
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie("", Duration::ZERO))]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_back(cookie: &str) -> HeaderMap {
        let value = format!("other=1; {}", cookie.split(';').next().unwrap());
        HeaderMap::from_iter([(header::COOKIE, value.parse().unwrap())])
    }

    #[test]
    fn a_session_opens_until_it_ends_and_the_oldest_makes_room() {
        let sessions = Sessions::default();
        let first = sent_back(&sessions.begin().unwrap());
        let id = sessions.find(&first).unwrap();
        let other = sessions.find(&sent_back(&sessions.begin().unwrap())).unwrap();
        sessions.end(other);
        assert!(sessions.lives(id) && !sessions.lives(other));
        for _ in 0..SESSIONS_MAX {
            sessions.begin().unwrap();
        }
        assert_eq!(sessions.find(&first), None);
        assert_eq!(sessions.all().len(), SESSIONS_MAX);
    }

    #[test]
    fn an_old_session_is_none() {
        let sessions = Sessions::default();
        let headers = sent_back(&sessions.begin().unwrap());
        let id = sessions.find(&headers).unwrap();
        let Some(begun) = Instant::now().checked_sub(SESSION_MAX) else { return };
        sessions.0.lock().unwrap().insert(*id.0.as_bytes(), begun);
        assert_eq!(sessions.find(&headers), None);
    }

    #[test]
    fn the_cookie_says_everything_that_keeps_it_here() {
        let cookie = Sessions::default().begin().unwrap();
        for attribute in
            ["__Host-carena=", "; Path=/", "; Secure", "; HttpOnly", "; SameSite=Strict", "; Max-Age=43200"]
        {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(!cookie.contains("Domain"));
    }
}
