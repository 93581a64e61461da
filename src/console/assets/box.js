// Talking to the box: requests, and the stream of events. Signed out, the page begins again.

/** What the box refused, in its own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A request; its answer's JSON. */
export async function ask(path, { method = "GET", body } = {}) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 401) location.reload();
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, problem.detail ?? `${answer.status}`);
}

/**
 * Events as they come, one after another, each once. The browser resumes by itself after a break.
 * `on` has the kinds wanted: event, summary, gap, deployments; and line("" | "lost" | "failed").
 */
export function watch(query, on) {
  const source = new EventSource(`/api/v1/events?${query}`);
  let last = 0;
  source.onopen = () => on.line("");
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.sequence <= last) return;
    last = event.sequence;
    on.event(event);
  };
  for (const kind of ["summary", "gap", "deployments"]) {
    source.addEventListener(kind, ({ data }) => on[kind]?.(JSON.parse(data)));
  }
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) return on.line("lost");
    // Refused for good: a request says why, and reloads the page if the session has ended.
    await ask("/api/v1/baselines").catch(() => {});
    on.line("failed");
  };
  return () => source.close();
}
