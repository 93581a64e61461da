//! `carena abort`: cancels what another process of this box is doing.

use std::path::PathBuf;

use crate::firmware::outcome::Exit;
use crate::wire::id::{ComponentId, DeploymentId};

use super::control::{Answer, Request, ask};
use super::setup::{Ended, state};
use super::terminal::complain;

/// Asks the process that uses the state directory; returns when it has accepted, not when it is done.
pub async fn abort(
    deployment: DeploymentId,
    node: Option<String>,
    component: Option<ComponentId>,
    given: Option<PathBuf>,
) -> Result<Exit, Ended> {
    let directory = state(given);
    let what = match (&node, &component) {
        (None, None) => "every node".to_owned(),
        (Some(node), None) => format!("node {node}"),
        (None, Some(component)) => format!("component {component}"),
        (Some(node), Some(component)) => format!("component {component} on {node}"),
    };
    match ask(&directory, &Request::Abort { deployment, node, component }).await {
        Ok(Answer::Accepted) => {
            complain(&format!(
                "cancelling {what}: what is being written finishes, then every trace is taken back"
            ));
            Ok(Exit::Done)
        }
        Ok(Answer::Refused(why)) => Err(Ended { exit: Exit::BadInput, message: why }),
        Err(error) => Err(Ended {
            exit: Exit::BadInput,
            message: format!(
                "no carena answers in state directory {}: {error} (give the --state of the one that runs)",
                directory.display()
            ),
        }),
    }
}
