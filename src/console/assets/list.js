// The list of deployments, newest first, kept as they begin, go on and end.

import { ask, watch } from "./box.js";
import { calm, make, say } from "./element.js";
import { standing } from "./state.js";
import { text, time, title } from "./text.js";

/** Shows the list; returns what ends it. */
export async function show(main, line) {
  const view = make("view-list");
  main.replaceChildren(view.root);
  const rows = new Map();
  const draw = (deployments) => {
    view.empty.hidden = deployments.length > 0;
    view.rows.replaceChildren(...deployments.map((deployment) => {
      const row = rows.get(deployment.deployment) ?? make("row-deployment");
      rows.set(deployment.deployment, row);
      drawRow(row, deployment);
      return row.root;
    }));
  };
  const first = await ask("/api/v1/deployments");
  draw(first.deployments);
  const refresh = calm(1000, async () => draw((await ask("/api/v1/deployments")).deployments));
  return watch(`after=${first.newest_event}`, {
    line,
    event: ({ step }) => step === "result" && refresh(),
    deployments: refresh,
    gap: refresh,
  });
}

function drawRow(row, deployment) {
  row.root.firstElementChild.href = `#/d/${deployment.deployment}`;
  const nodes = Object.values(deployment.nodes).reduce((sum, count) => sum + count, 0);
  const ended = nodes - deployment.nodes.running;
  say(row.baseline, title(deployment));
  say(row.started, time(deployment.started));
  const all = nodes === 1 ? text("list.node") : text("list.nodes", { count: nodes });
  say(row.counts, deployment.ended ? all : text("list.ended", { ended, count: nodes }));
  const state = standing(deployment);
  row.chip.dataset.state = state;
  say(row.chip, text("state." + state));
}
