//! Every path and port the product uses, one constant each.

/// HTTPS of the box: console, API and engines.
pub const HTTPS_PORT: u16 = 63002;
/// First port an engine tries to listen on; on a conflict the next free one.
pub const ENGINE_PORT: u16 = 62286;
/// How many ports from [`ENGINE_PORT`] on an engine tries.
pub const ENGINE_PORT_TRIES: u16 = 32;
/// Name of the engine's program file in its directory on a node.
pub const ENGINE_PROGRAM: &str = "carena-engine";
/// Pid and start time of the running engine, written by it before anything else: "PID STARTTIME\n".
pub const ENGINE_PID_FILE: &str = "pid";
/// Exists in the engine's directory while an installer runs: a running flash is never interrupted.
pub const ENGINE_BUSY_FILE: &str = "busy";
/// Directory in the engine's directory for what an installer unpacks; it is gone when the installer has ended.
pub const ENGINE_WORK_DIRECTORY: &str = "work";
/// The rule that was opened for the engine, as JSON, written just before it is opened: the lease closes it.
pub const ENGINE_RULE_FILE: &str = "rule";
/// The root shells that worked on the engine's directory, see [`crate::wire::root_shell`].
pub const ENGINE_SHELLS_FILE: &str = "shells";
/// Marks a directory on a node as ours; holds the deployment's id and nothing else.
pub const ENGINE_MARKER_FILE: &str = "carena-deployment";
/// Unix socket of the engine in its directory, mode 0600: where `carena-engine attach` joins.
pub const ENGINE_SOCKET: &str = "socket";
/// State directory of the command line when the caller is root and gives none.
pub const STATE_ROOT: &str = "/var/lib/carena";
/// The store's database in the state directory.
pub const STORE_FILE: &str = "carena.db";
/// The socket in the state directory by which `carena abort` reaches the process that uses it.
pub const CONTROL_SOCKET: &str = "control";
/// The box's certificate in the state directory, PEM.
pub const CERTIFICATE_FILE: &str = "console.crt.pem";
/// Its private key, PEM, readable by the box's user only.
pub const CERTIFICATE_KEY_FILE: &str = "console.key.pem";
/// The token in the state directory, where standard error is a log.
pub const TOKEN_FILE: &str = "console.token";
/// The cache's store in the state directory.
pub const CACHE_DIRECTORY: &str = "cache";
/// Packed payloads in it: `ab/cdef….zst`, by the SHA-256 of their content.
pub const CACHE_OBJECTS: &str = "objects";
/// Imported baselines in it: `ID/VERSION/baseline.toml`.
pub const CACHE_BASELINES: &str = "baselines";
/// Beside an imported baseline's manifest: the SHA-256 of the one that the operator accepts without a signature.
pub const CACHE_ACCEPTED: &str = "baseline.toml.unsigned-ok";
/// Imports that are not whole yet, by the SHA-256 of their first frame's content. Never served.
pub const CACHE_PARTIAL: &str = "partial";
/// Payloads that were found to be broken. Never served.
pub const CACHE_QUARANTINE: &str = "quarantine";
/// Locked by who imports (shared), and by who removes (alone).
pub const CACHE_LOCK: &str = "lock";
/// The certificates in the state directory that signed packages must lead to, PEM.
pub const CERTIFICATES_DIRECTORY: &str = "certificates";
/// Public keys in the state directory whose signatures of baselines count: `KEY.pub`, as minisign writes them.
pub const TRUST_DIRECTORY: &str = "trust";
