// One deployment, live: every node's step, progress, outcome and what is still on it.

import { ask, Refused, watch } from "./box.js";
import { confirmed, retried } from "./dialogs.js";
import { calm, list, make, say } from "./element.js";
import { Deployment, needsAttention, progress, standing } from "./state.js";
import { bytes, duration, text, time, title } from "./text.js";

// More rows than that make a browser slow; search and filter find the others.
const SHOWN_MAX = 300;

/** Shows a deployment; returns what ends it. */
export async function show(main, line, id) {
  const view = make("view-deployment");
  const path = `/api/v1/deployments/${id}`;
  const deployment = new Deployment(await ask(path));
  const rows = new Map();
  let asked = 0;
  const draw = () => {
    if (asked) return;
    asked = requestAnimationFrame(() => {
      asked = 0;
      drawAll(view, deployment, rows);
    });
  };
  const adopt = (report) => {
    deployment.adopt(report);
    draw();
  };
  const refresh = calm(1000, async () => adopt(await ask(path)));
  view.search.oninput = draw;
  view.filter.onchange = draw;
  const cancel = async (part) => {
    view.alert.hidden = true;
    try {
      await ask(`${path}${part}/cancel`, { method: "POST" });
      return true;
    } catch (error) {
      // One that has ended meanwhile is refused, and shown as it is; all else the operator must know.
      if (!(error instanceof Refused && error.status === 409)) {
        say(view.alert, error.message);
        view.alert.hidden = false;
      }
      return false;
    } finally {
      refresh();
    }
  };
  view.cancel.onclick = async () => (await confirmed("deployment")) && cancel("");
  view.cancelNode = async (node) => {
    if (!(await confirmed("node", node))) return;
    node.cancelling = true;
    draw();
    node.cancelling = await cancel(`/nodes/${encodeURIComponent(node.address)}`);
    draw();
  };
  view.retry.onclick = async () => {
    const begun = await retried(path);
    if (begun) location.hash = `#/d/${begun}`;
  };
  drawAll(view, deployment, rows);
  main.replaceChildren(view.root);
  const stop = watch(`deployment=${id}`, {
    line,
    event: (event) => {
      if (deployment.take(event)) refresh();
      draw();
    },
    gap: refresh,
    summary: (report) => {
      // The last word; the browser would come back for more.
      stop();
      adopt(report);
    },
  });
  return () => {
    cancelAnimationFrame(asked);
    stop();
  };
}

function drawAll(view, deployment, rows) {
  const state = standing(deployment);
  say(view.title, title(deployment));
  view.chip.dataset.state = state;
  say(view.chip, text("state." + state));
  view.cancel.hidden = state !== "running";
  view.retry.hidden = !deployment.ended || [...deployment.nodes.values()].every(({ result }) => result === "done");
  const counts = Object.entries(deployment.counts()).filter(([, count]) => count > 0);
  drawFigures(view.figures, counts);
  view.bar.value = deployment.progress();
  view.bar.ariaLabel = text("one.overall");
  view.bar.dataset.state = state;
  const started = time(deployment.started);
  say(view.times, deployment.ended
    ? text("one.ended", { time: started, duration: duration(deployment.started, deployment.ended) })
    : text("one.started", { time: started }));
  say(view.id, deployment.deployment);
  drawNodes(view, deployment, rows);
}

function drawFigures(figures, counts) {
  const words = counts.map(([result, count]) => [result, `${count}`]);
  if (figures.dataset.shown === JSON.stringify([words, text("result.done")])) return;
  figures.dataset.shown = JSON.stringify([words, text("result.done")]);
  figures.replaceChildren(...words.map(([result, count]) => {
    const figure = document.createElement("span");
    figure.className = "figure";
    figure.dataset.state = result;
    const [number, name] = [document.createElement("strong"), document.createElement("span")];
    number.textContent = count;
    name.textContent = text("result." + result);
    figure.append(number, name);
    return figure;
  }));
}

function drawNodes(view, deployment, rows) {
  const [words, filter] = [view.search.value.trim().toLowerCase(), view.filter.value];
  const wanted = [...deployment.nodes.values()].filter((node) =>
    node.address.toLowerCase().includes(words) &&
    (filter === "" || (filter === "failed" ? needsAttention(node) : node.result === filter)));
  const shown = wanted.slice(0, SHOWN_MAX).map((node) => {
    if (!rows.has(node.address)) {
      const made = make("node");
      made.cancel.onclick = () => view.cancelNode(node);
      rows.set(node.address, made);
    }
    const row = rows.get(node.address);
    drawNode(row, node, standing(deployment) === "running");
    return row.root;
  });
  const now = [...view.nodes.children];
  if (now.length !== shown.length || shown.some((root, index) => root !== now[index])) view.nodes.replaceChildren(...shown);
  view.more.hidden = wanted.length <= SHOWN_MAX;
  say(view.more, text("one.more", { count: wanted.length - SHOWN_MAX }));
}

function drawNode(row, node, running) {
  say(row.address, node.address);
  // Its place stays, so that nothing moves.
  row.cancel.classList.toggle("gone", !running || node.result !== "running");
  row.cancel.disabled = Boolean(node.cancelling);
  say(row.cancel, node.cancelling ? text("state.cancelling") : text("one.cancelNode"));
  row.cancel.ariaLabel = `${row.cancel.textContent} ${node.address}`;
  row.chip.dataset.state = node.result;
  say(row.chip, text("result." + node.result));
  say(row.step, stepWords(node));
  say(row.path, node.path ? text("one.path", { path: node.path }) : "");
  row.bar.value = progress(node);
  row.bar.ariaLabel = node.address;
  row.bar.dataset.state = node.result;
  list(row.components, node.components.map(componentWords));
  row.error.hidden = !node.error;
  say(row.error, node.error ?? "");
  row.traces.hidden = node.outstanding_traces.length === 0;
  list(row.traceList, node.outstanding_traces);
}

function stepWords(node) {
  if (node.result !== "running") {
    const clean = node.outstanding_traces.length === 0 && node.step;
    return clean ? text("step.result") : "";
  }
  if (!node.step) return text("one.waiting");
  const amount = node.bytes ? { done: bytes(node.bytes.done), total: bytes(node.bytes.total) } : null;
  const far = amount ? text("one.bytes", amount) : node.percent === null ? "" : `${node.percent} %`;
  return text("step." + node.step) + (far ? ` · ${far}` : "");
}

function componentWords({ id, from, to, outcome, why }) {
  const none = text("one.none");
  const versions = from || to ? text("one.version", { id, from: from ?? none, to: to ?? none }) : id;
  return `${versions} · ${text("outcome." + outcome)}${why ? `: ${why}` : ""}`;
}
