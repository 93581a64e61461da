//! The root shells that a deployment has had on a node, so that none outlives it.
//!
//! A box keeps one shell with root's rights for its whole visit. When the cable is pulled, the node's SSH server waits
//! for hours for a connection that is dead, and the shell with it. So each shell notes itself in the engine's
//! directory, and whoever takes that directory away, the box's next visit or the engine at the end of its lease, ends
//! the others first. Identity is the process id with its start time: it must never end anything else.
//!
//! Before every `shift` the words are counted: dash ends at one that there are too few for, whatever comes after it.

use super::id::DeploymentId;
use crate::paths::{ENGINE_MARKER_FILE, ENGINE_SHELLS_FILE};

/// Shell that notes its own shell: process id and start time, field 22 of `/proc/PID/stat`, a line each. For whoever has
/// just made the directory and its marker.
pub fn note_script(directory: &str) -> String {
    format!(
        "read -r stat < /proc/$$/stat && set -- ${{stat##*) }} && [ $# -gt 19 ] && shift 19 && echo \"$$ $1\" >> {directory}/{ENGINE_SHELLS_FILE}"
    )
}

/// The same, and only in a directory that root made and that has the deployment's whole marker: others must not get root
/// to write, and of a directory whose marker is not whole nothing but the marker would ever be removed.
pub fn note_own_script(directory: &str, deployment: &DeploymentId) -> String {
    format!(
        "d={directory} owner=\n{{ [ -d $d ] && [ ! -h $d ] && [ -O $d ] && {{ read -r owner < $d/{ENGINE_MARKER_FILE}; \
         [ \"$owner\" = {deployment} ]; }} && {}; }} 2>/dev/null",
        note_script("$d")
    )
}

/// Shell that ends every noted shell but its own, and waits a moment for the sudo or su above it.
pub fn end_script(directory: &str) -> String {
    format!(
        r#"end_shells() {{
    while read -r shell began; do
        [ "$shell" != $$ ] && read -r stat < /proc/$shell/stat || continue
        set -- ${{stat##*) }}
        parent=$2
        [ $# -gt 19 ] && shift 19 && [ "$1" = "$began" ] && kill -HUP $shell || continue
        n=0
        while [ -d /proc/$shell ] || grep -qsx -e sudo -e su /proc/$parent/comm; do
            [ $n -lt 40 ] || break
            n=$((n+1)); sleep 0.05
        done
    done < {directory}/{ENGINE_SHELLS_FILE}
}}
[ ! -f {directory}/{ENGINE_SHELLS_FILE} ] || end_shells 2>/dev/null"#
    )
}
