//! Who the user is, proved to the SSH server by what there is: a key, a password, or one after the other.
//!
//! Every proof is looked at once. A server that wants several (`AuthenticationMethods publickey,password`) says after
//! each what it takes next; a proof that it would not look at yet is kept for later, one that it has rejected is
//! never offered again: accounts lock. A question that is not a hidden prompt for a password is not answered.

use std::sync::Arc;

use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg};
use russh::{MethodKind, MethodSet};

use super::error::AccessError;
use super::{Guard, Key, Target};
use crate::secret::Secret;

/// More methods in a row than any server has.
const ROUNDS_MAX: usize = 6;

enum Proof {
    Key(Arc<PrivateKey>),
    Password(Secret),
}

impl Proof {
    fn name(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Password(_) => "password",
        }
    }

    fn fits(&self, methods: &MethodSet) -> bool {
        match self {
            Self::Key(_) => methods.contains(&MethodKind::PublicKey),
            Self::Password(_) => {
                methods.contains(&MethodKind::Password) || methods.contains(&MethodKind::KeyboardInteractive)
            }
        }
    }
}

/// Logs in.
pub(super) async fn authenticate(handle: &mut Handle<Guard>, target: &Target) -> Result<(), AccessError> {
    let mut proofs = Vec::new();
    if let Some(key) = &target.key {
        proofs.push(Proof::Key(read_key(key.clone()).await?));
    }
    proofs.extend(target.password.clone().map(Proof::Password));
    let (mut offered, mut accepted) = (None::<MethodSet>, Vec::new());
    for _ in 0..ROUNDS_MAX {
        let fits = |proof: &Proof| offered.as_ref().is_none_or(|methods| proof.fits(methods));
        let Some(next) = proofs.iter().position(fits) else { break };
        let proof = proofs.remove(next);
        match prove(handle, &target.user, &proof, offered.as_ref()).await? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure { remaining_methods, partial_success } => {
                if partial_success {
                    accepted.push(proof.name());
                } else if !proof.fits(&remaining_methods) {
                    // It was not looked at: its turn may come.
                    proofs.push(proof);
                }
                offered = Some(remaining_methods);
            }
        }
    }
    let methods = offered.iter().flat_map(|methods| methods.iter()).map(<&str>::from).collect::<Vec<_>>();
    Err(AccessError::AuthRejected {
        user: target.user.clone(),
        methods: methods.join(", "),
        accepted: accepted.join(", "),
    })
}

async fn prove(
    handle: &mut Handle<Guard>,
    user: &str,
    proof: &Proof,
    offered: Option<&MethodSet>,
) -> Result<AuthResult, AccessError> {
    let lost = |source| AccessError::Lost { source };
    match proof {
        Proof::Key(key) => {
            let hash = handle.best_supported_rsa_hash().await.map_err(lost)?.flatten();
            let key = PrivateKeyWithHashAlg::new(key.clone(), hash);
            handle.authenticate_publickey(user, key).await.map_err(lost)
        }
        Proof::Password(password) => {
            let only_asks = |methods: &MethodSet| {
                !methods.contains(&MethodKind::Password) && methods.contains(&MethodKind::KeyboardInteractive)
            };
            if offered.is_some_and(only_asks) {
                return interactive(handle, user, password).await;
            }
            match handle.authenticate_password(user, password.reveal()).await.map_err(lost)? {
                // Where passwords go through PAM only: not a second try, the first was never looked at.
                AuthResult::Failure { remaining_methods, partial_success: false }
                    if only_asks(&remaining_methods) =>
                {
                    interactive(handle, user, password).await
                }
                result => Ok(result),
            }
        }
    }
}

/// Answers one hidden prompt with the password; another question is none that a password answers.
async fn interactive(
    handle: &mut Handle<Guard>,
    user: &str,
    password: &Secret,
) -> Result<AuthResult, AccessError> {
    let lost = |source| AccessError::Lost { source };
    let mut answered = false;
    let mut response =
        handle.authenticate_keyboard_interactive_start(user, None::<String>).await.map_err(lost)?;
    loop {
        response = match response {
            KeyboardInteractiveAuthResponse::Success => return Ok(AuthResult::Success),
            KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success } => {
                return Ok(AuthResult::Failure { remaining_methods, partial_success });
            }
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                let other = |prompt: &&russh::client::Prompt| {
                    answered || prompt.echo || !wants_password(&prompt.prompt)
                };
                let unanswerable = prompts.iter().find(other).or(prompts.get(1));
                if let Some(prompt) = unanswerable {
                    let question = prompt.prompt.trim().chars().take(100).collect();
                    return Err(AccessError::Question { user: user.to_owned(), question });
                }
                answered |= !prompts.is_empty();
                let answers = prompts.iter().map(|_| password.reveal().to_owned()).collect();
                handle.authenticate_keyboard_interactive_respond(answers).await.map_err(lost)?
            }
        };
    }
}

/// A one-time code is hidden as well; a password sent for it would count as a failure. Servers ask in any language, so
/// what is known to be something else is left out rather than what is known to be a password let in.
fn wants_password(prompt: &str) -> bool {
    let lower = prompt.to_ascii_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    !words.any(|word| matches!(word, "code" | "token" | "otp" | "pin" | "passcode" | "verification" | "new"))
}

/// Deriving the key from a passphrase is made to take long: not where other nodes' work waits.
async fn read_key(key: Key) -> Result<Arc<PrivateKey>, AccessError> {
    let read = move || match russh::keys::decode_secret_key(key.pem.reveal(), None) {
        Ok(key) => Ok(Arc::new(key)),
        Err(russh::keys::Error::KeyIsEncrypted) => match &key.passphrase {
            None => Err(AccessError::KeyEncrypted),
            Some(passphrase) => russh::keys::decode_secret_key(key.pem.reveal(), Some(passphrase.reveal()))
                .map(Arc::new)
                .map_err(|_| AccessError::PassphraseWrong),
        },
        Err(_) => Err(AccessError::KeyUnusable),
    };
    tokio::task::spawn_blocking(read).await.map_err(|_| AccessError::KeyUnusable)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_no_answer_to_a_code() {
        for prompt in ["Password: ", "(op@node1) Password: ", "Passwort: ", "Mot de passe : "] {
            assert!(wants_password(prompt), "{prompt}");
        }
        for prompt in ["Verification code: ", "One-time password (OTP): ", "New password: ", "Enter PIN:"] {
            assert!(!wants_password(prompt), "{prompt}");
        }
    }
}
