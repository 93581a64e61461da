//! How one command line of this box speaks to another that runs: a socket in the state directory, its owner's only.
//!
//! The state directory is used by one process at a time, so `carena abort` cannot act by itself: it asks the process
//! that does, which answers once its store has it. One JSON object a line each way. The other side's user is asked of the kernel, not believed.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::deploy::Deployments;
use crate::error::explain;
use crate::paths::CONTROL_SOCKET;
use crate::wire::id::{ComponentId, DeploymentId};

/// Most bytes of a request or an answer.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// A request is there, and answered, within this.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Cancel a deployment, one node of it, or one component.
    Abort {
        /// Which.
        deployment: DeploymentId,
        /// Only this node.
        node: Option<String>,
        /// Only this component, on that node or on all.
        component: Option<ComponentId>,
    },
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is under way.
    Accepted,
    /// Why not, and what to do, in words.
    Refused(String),
}

/// The socket; dropping it takes it away.
pub struct Control {
    path: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
        // The next process that uses the directory removes what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Control {
    /// Listens in the state directory, whose lock the caller holds: a socket that is there already is a dead one's.
    ///
    /// # Errors
    /// Those of the system.
    pub fn listen(directory: &Path, deployments: Deployments) -> io::Result<Self> {
        let path = directory.join(CONTROL_SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = short(directory, |short| UnixListener::bind(short))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let serving = tokio::spawn(async move {
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // For want of descriptors, until some are free again.
                        tracing::warn!(%error, "a request on the control socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let deployments = deployments.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &deployments).await {
                        tracing::warn!(%error, "a request on the control socket");
                    }
                });
            }
        });
        Ok(Self { path, serving })
    }
}

/// Asks the process that uses the state directory.
///
/// # Errors
/// Not found or refused when there is none, else those of the system.
pub async fn ask(directory: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream =
        short(directory, |short| std::os::unix::net::UnixStream::connect(short)).and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        })?;
    let asking = async {
        send(&mut stream, request).await?;
        receive(&mut stream).await
    };
    tokio::time::timeout(ANSWER_MAX, asking).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Socket addresses hold 107 bytes, state directories more: by way of the directory's descriptor any path fits.
fn short<T>(directory: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let directory = File::open(directory)?;
    act(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(CONTROL_SOCKET))
}

async fn serve(mut stream: UnixStream, deployments: &Deployments) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user != 0 && user != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let asked = tokio::time::timeout(ANSWER_MAX, receive(&mut stream)).await;
    let answer = match asked.map_err(|_| io::ErrorKind::TimedOut)? {
        Ok(request) => answer(request, deployments).await,
        Err(error) => Answer::Refused(format!("not understood: {error}")),
    };
    send(&mut stream, &answer).await
}

async fn answer(request: Request, deployments: &Deployments) -> Answer {
    let Request::Abort { deployment: id, node, component } = request;
    let done = match (node, component) {
        (node, Some(component)) => deployments.cancel_component(&id, node.as_deref(), &component).await,
        (Some(node), None) => deployments.cancel_node(&id, &node).await,
        (None, None) => deployments.cancel_all(&id).await,
    };
    done.map_or_else(|error| Answer::Refused(explain(&error)), |()| Answer::Accepted)
}

async fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn receive<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::deploy::store::Store;
    use crate::https::Registry;

    #[tokio::test]
    async fn another_process_of_the_owner_is_answered_under_any_path() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("long".repeat(40));
        std::fs::create_dir(&directory).unwrap();
        let deployments =
            Deployments::new(Store::in_memory().unwrap(), Cache::embedded(), Registry::new(), 1);
        let abort = Request::Abort { deployment: "x".parse().unwrap(), node: None, component: None };
        assert_eq!(ask(&directory, &abort).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        // A dead process's socket is no hindrance.
        let control = Control::listen(&directory, deployments.clone()).unwrap();
        std::mem::forget(control);
        let control = Control::listen(&directory, deployments).unwrap();
        let socket = directory.join(CONTROL_SOCKET);
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let Answer::Refused(why) = ask(&directory, &abort).await.unwrap() else { panic!("accepted") };
        assert_eq!(why, "no deployment x runs here (nothing runs)");
        drop(control);
        assert!(!socket.exists());
    }
}
