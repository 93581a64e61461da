//! A restart of the node between installing and verifying, where a component is active only after one, and between two
//! hops, where another one waits for that.
//!
//! Before it everything is taken back, so a node that never comes back has no trace of ours; after it an engine is
//! brought in a second time and the versions are read again. Proof of a restart is another boot id, nothing else.
//! A cancel prevents the restart until it is asked for; after that there is nothing to prevent, only to wait.

use std::time::Duration;

use tokio::time::Instant;

use crate::access::driver::AccessError;
use crate::error::{Hinted, chain};
use crate::firmware::outcome::Outcome;
use crate::fleet::Reboot;

use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{ComponentSummary, State, Step};
use super::path::{Established, Interrupt};
use super::resume::{Restarting, Stage};
use super::verify::{self, Freshness};

/// A node that was told to restart is not there any more within this.
const GO_DOWN_MAX: Duration = Duration::from_secs(30);

/// Between two tries to reach the node while it restarts; grows from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Between two events while waiting.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A booting node may refuse a login because its directory is not there yet. More refusals could lock the account.
const REFUSALS_MAX: u32 = 2;

/// Between two such logins.
const REFUSED_PAUSE: Duration = Duration::from_secs(20);

/// Some updates restart a node more than once: how often it may go away again before it is verified.
const AGAIN_MAX: u32 = 3;

/// Why a restarted node could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// It went down and did not come back, or never went down.
    #[error("the node was restarted at {since} and is not back after {seconds} s: {last}")]
    NotBack {
        /// When the restart was asked for, RFC 3339.
        since: String,
        /// How long it was waited for.
        seconds: u64,
        /// What the last try saw.
        last: String,
    },
}

impl Hinted for RebootError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotBack { .. } => Some(
                "look at the node's console; if it only takes longer, raise reboot_wait_s; when it is back, \
                 deploy again to see the active versions"
                    .into(),
            ),
        }
    }
}

impl Cycle<'_> {
    /// Whether the node is to be restarted now that its components are installed.
    pub(super) fn wants_reboot(&self) -> bool {
        if self.restarting.is_some() {
            return true;
        }
        let fresh = |component: &&ComponentSummary| self.fresh.contains(&component.id);
        let any = |test: fn(&Outcome) -> bool| {
            self.components.iter().filter(fresh).any(|component| test(&component.outcome))
        };
        let wanted = match self.run.options.reboot {
            Reboot::Never => false,
            Reboot::IfNeeded => any(|outcome| *outcome == Outcome::UpdatedRebootNeeded),
            Reboot::Always => any(Outcome::is_change),
        };
        if wanted && self.components.iter().any(|component| component.outcome.is_failure()) {
            let why = "not restarted, because not every component ended well".to_owned();
            self.run.tell(&self.node.address, Step::Reboot, State::Progress, Some(why));
            return false;
        }
        wanted
    }

    /// Restarts the node, waits for it, reads the versions again into [`Cycle::components`], and does what had to wait
    /// for that.
    ///
    /// # Errors
    /// [`CycleError`]; what is not active for certain is then unverified, once the restart was asked for.
    pub(super) async fn reboot(&mut self) -> Result<(), CycleError> {
        let asked = self.go_down().await?;
        let verified = self.verify_after(&asked, Instant::now()).await;
        if let Err(error) = &verified {
            self.doubt_restarted(error);
        }
        self.employ(verified?).await
    }

    /// The node was restarted, and what is active there now could not be read.
    pub(super) fn doubt_restarted(&mut self, error: &CycleError) {
        let why = match error {
            CycleError::Cancelled => "cancelled while the node restarted".to_owned(),
            error => format!("after the restart: {}", chain(error)),
        };
        for component in &mut self.components {
            if component.outcome == Outcome::UpdatedRebootNeeded && self.fresh.contains(&component.id) {
                component.outcome = Outcome::Unverified(why.clone());
                // What was read before the restart says nothing of now.
                component.to = None;
            }
        }
    }

    /// Has the node restart, unless an earlier process of this box has.
    async fn go_down(&mut self) -> Result<Restarting, CycleError> {
        let Some(asked) = self.restarting.take() else { return self.restart(None).await };
        if self.goes_down(&asked.boot_id).await {
            return Ok(asked);
        }
        match self.restart(Some(&asked)).await {
            Err(CycleError::Access(_)) => Ok(asked),
            done => done,
        }
    }

    /// Whether a node that was perhaps told to restart does so by itself: told twice, it could be restarted twice.
    async fn goes_down(&mut self, boot: &str) -> bool {
        let (begun, mut pause) = (Instant::now(), PAUSE.0);
        loop {
            match self.run.unless_cancelled(boot_id(self)).await {
                Ok(Ok(id)) if id == boot => {}
                // Gone, back, or not there for the asking; a cancel is seen by what follows.
                _ => return true,
            }
            if begun.elapsed() >= GO_DOWN_MAX {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Tells users, waits as long as wanted, restarts.
    async fn restart(&mut self, told: Option<&Restarting>) -> Result<Restarting, CycleError> {
        self.enter(Step::Reboot)?;
        let run = self.run;
        let delay = Duration::from_secs(u64::from(run.options.reboot_delay_s));
        let mut session = run.unless_cancelled(run.connect(self.node)).await??;
        let before = run.unless_cancelled(session.boot_id()).await??;
        if let Some(told) = told.filter(|told| told.boot_id != before) {
            session.close().await;
            self.tell(State::Done, Some("it has restarted meanwhile".into()));
            return Ok(told.clone());
        }
        let message = match run.options.reboot_message.as_str() {
            "" => "This machine is restarted for a firmware update".to_owned(),
            message => message.to_owned(),
        };
        if let Err(error) = session.tell_users(&format!("{message} (in {} s).", delay.as_secs())).await {
            self.tell(State::Progress, Some(format!("logged-in users could not be told: {}", chain(&error))));
        }
        // Nothing of ours waits on the node meanwhile.
        session.rest().await;
        let end = Instant::now() + delay;
        while Instant::now() < end {
            let left = end - Instant::now();
            self.tell(State::Progress, Some(format!("in {} s", left.as_secs_f64().ceil())));
            if let Err(cancelled) = run.unless_cancelled(tokio::time::sleep(left.min(TELL_EVERY))).await {
                // Best effort: whoever was told should know, but nothing depends on it.
                let _ = session.tell_users("The restart of this machine was called off.").await;
                session.close().await;
                return Err(cancelled);
            }
        }
        if run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let asked = Restarting { boot_id: before, since: crate::clock::now_rfc3339() };
        self.keep(None, Stage::Restarting(asked.clone())).await?;
        session.restart().await?;
        session.close().await;
        self.tell(State::Done, None);
        Ok(asked)
    }

    /// Waits, brings an engine in, reads the versions. A node that goes away again meanwhile is waited for again.
    async fn verify_after(&mut self, asked: &Restarting, begun: Instant) -> Result<Established, CycleError> {
        let since = &asked.since;
        self.wait_until_back(Some(&asked.boot_id), since, begun).await?;
        let mut again = 0;
        loop {
            let error =
                match self.verify().await {
                    Err(
                        error @ (CycleError::Access(_) | CycleError::Control(_) | CycleError::EngineGone),
                    ) if again < AGAIN_MAX => error,
                    done => return done,
                };
            again += 1;
            self.tell(State::Retry, Some(chain(&error)));
            self.session = None;
            self.wait_until_back(None, since, begun).await?;
            if !self.take_back_again().await {
                return Err(error);
            }
        }
    }

    /// Takes back what the failed try left; false when something is still there.
    async fn take_back_again(&mut self) -> bool {
        let armed = self.armed.clone();
        let outstanding = self.unwind().await;
        if !outstanding.is_empty() {
            // The unwind at the cycle's end tries again, and lists what is still there.
            self.armed = armed;
        }
        outstanding.is_empty()
    }

    /// Until the node can be logged in to and its boot id is another one than `before`.
    async fn wait_until_back(
        &mut self,
        before: Option<&str>,
        since: &str,
        begun: Instant,
    ) -> Result<(), CycleError> {
        self.enter(Step::Return)?;
        let wait = Duration::from_secs(u64::from(self.run.options.reboot_wait_s));
        let (mut pause, mut refusals, mut told) = (PAUSE.0, 0, begun);
        loop {
            let run = self.run;
            let seen = run.unless_cancelled(boot_id(self)).await?;
            let last = match seen {
                Ok(id) if Some(id.as_str()) != before => {
                    self.tell(State::Done, Some(format!("after {} s", begun.elapsed().as_secs())));
                    return Ok(());
                }
                Ok(_) => "it has not gone down".to_owned(),
                // Each of these may count against the account: a directory service may come up after the node.
                Err(
                    error @ CycleError::Access(
                        AccessError::AuthRejected { .. }
                        | AccessError::PrivilegePasswordWrong { .. }
                        | AccessError::PrivilegeRefused { .. },
                    ),
                ) => {
                    refusals += 1;
                    if refusals > REFUSALS_MAX {
                        return Err(error);
                    }
                    pause = REFUSED_PAUSE;
                    chain(&error)
                }
                Err(CycleError::Access(
                    error @ (AccessError::HostKeyChanged { .. } | AccessError::NotRoot { .. }),
                )) => {
                    return Err(error.into());
                }
                Err(CycleError::Access(error)) => chain(&error),
                Err(error) => return Err(error),
            };
            let elapsed = begun.elapsed();
            if elapsed >= wait {
                let since = since.to_owned();
                return Err(RebootError::NotBack { since, seconds: elapsed.as_secs(), last }.into());
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell(State::Progress, Some(format!("since {} s, {last}", elapsed.as_secs())));
            }
            run.unless_cancelled(tokio::time::sleep(pause.min(wait - elapsed))).await?;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn verify(&mut self) -> Result<Established, CycleError> {
        let mut established = self.establish().await?;
        match self.read_again(&mut established).await {
            Ok(()) => Ok(established),
            Err(error) => {
                self.dismiss(established).await;
                Err(error)
            }
        }
    }

    /// Reads the versions of what was installed before the restart. Only of that: a later hop may bring a newer version
    /// of what an earlier one brought.
    pub(super) async fn read_again(&mut self, established: &mut Established) -> Result<(), CycleError> {
        self.enter(Step::Verify)?;
        let baseline = self.run.baseline.clone();
        for index in 0..self.components.len() {
            let Some(mut summary) = self.components.get(index).cloned() else { continue };
            if !self.fresh.contains(&summary.id) {
                continue;
            }
            let Some(component) = baseline.components.iter().find(|component| component.id == summary.id)
            else {
                continue;
            };
            let now = Freshness::Now;
            let known = verify::read_back(self, established, component, now, Interrupt::OnCancel).await?;
            let judged = verify::judge_restarted(component, &known);
            // A restart is not what it waits for.
            let waits = matches!(summary.outcome, Outcome::UpdatedPowerCycleNeeded(_));
            if !waits || judged == Outcome::Updated {
                summary.outcome = judged;
            }
            summary.to = known.ok().flatten();
            if let Some(told) = self.components.get_mut(index) {
                *told = summary;
            }
        }
        self.fresh.clear();
        self.keep(Some(established), Stage::Working).await?;
        self.tell(State::Done, None);
        Ok(())
    }
}

/// One login, one question.
async fn boot_id(cycle: &Cycle<'_>) -> Result<String, CycleError> {
    let mut session = cycle.run.connect(cycle.node).await?;
    let id = session.boot_id().await;
    session.close().await;
    Ok(id?)
}
