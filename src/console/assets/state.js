// How a deployment stands, from its summary and its events. No element is touched here.

const STEPS = ["recover", "connect", "look", "copy", "start", "open", "join", "path", "inventory", "plan", "send", "install",
  "reboot", "return", "verify", "stop", "remove", "close", "disconnect", "result"];

/** One word for a whole deployment, as text key and colour. */
export function standing({ ended, cancelled, exit }) {
  if (!ended) return cancelled ? "cancelling" : "running";
  if (cancelled && exit === 253) return "cancelled";
  return { 0: "done", 1: "reboot", 3: "nothing" }[exit] ?? "failed";
}

/** A deployment that follows its events. */
export class Deployment {
  constructor({ summary, exit }) {
    this.nodes = new Map();
    this.adopt({ summary, exit });
  }

  /** Takes what the box says as it is; what events told of running nodes stays. */
  adopt({ summary, exit }) {
    const { nodes, ...facts } = summary;
    Object.assign(this, facts, { exit });
    for (const [address, node] of Object.entries(nodes)) {
      const known = this.nodes.get(address) ?? { address, step: null, bytes: null, percent: null, said: null, at: 0 };
      // A summary that was on its way while the node ended is older than what is shown.
      const result = node.result === "running" && known.over ? known.result : node.result;
      this.nodes.set(address, Object.assign(known, node, { result }));
    }
  }

  /** Takes an event; whether the summary has news with it. */
  take(event) {
    const node = this.nodes.get(event.node);
    if (!node) return false;
    const { step, state } = event;
    const failed = state === "failed";
    if (step !== node.step) Object.assign(node, { bytes: null, percent: null });
    node.step = step;
    node.bytes = event.bytes ?? node.bytes;
    node.percent = event.percent ?? node.percent;
    if (event.message && (failed || state === "progress" || state === "retry")) node.said = event.message;
    if (failed && step !== "result") node.error ??= event.message;
    node.at = Math.max(node.at, STEPS.indexOf(step));
    if (step !== "result") return false;
    node.over = true;
    if (node.result === "running") node.result = state === "done" ? "done" : this.cancelled ? "cancelled" : "failed";
    return true;
  }

  counts() {
    const counts = { running: 0, done: 0, failed: 0, cancelled: 0, skipped: 0 };
    for (const { result } of this.nodes.values()) counts[result] += 1;
    return counts;
  }

  /** 0 to 1. */
  progress() {
    let sum = 0;
    for (const node of this.nodes.values()) sum += progress(node);
    return this.nodes.size ? sum / this.nodes.size : 0;
  }
}

/** How far a node is, 0 to 1: by the steps behind it, and the bytes or the percentage of the one it is at. */
export function progress(node) {
  if (node.result !== "running") return 1;
  const part = node.bytes && node.bytes.total ? node.bytes.done / node.bytes.total : (node.percent ?? 0) / 100;
  return Math.min(1, (node.at + part) / STEPS.length);
}

/** Whether a person should look at a node. */
export function needsAttention(node) {
  return node.result === "failed" || node.result === "skipped" || node.outstanding_traces.length > 0;
}
