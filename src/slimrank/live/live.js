// Follows the run's events and draws what they tell. After a break the browser asks again from the last
// byte that it saw, so nothing is drawn twice.
"use strict";
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const byId = (name) => document.getElementById(name);
const seconds = (value) => {
  const whole = Math.max(0, Math.round(value));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
};
const phases = new Map();
const scores = new Map();
const shares = new Set();
let alive = null;
let running = null;
let unreadable = 0;
let lastError = null;

const showPhase = (name) => {
  const phase = phases.get(name);
  if (!phase.item) {
    phase.label = make("span");
    phase.value = make("span");
    phase.bar = make("i", { className: "a" });
    phase.item = make("li", {}, phase.label, phase.value, make("div", {}, make("i", { className: "b", style: "width:100%" }), phase.bar));
    byId("phases").append(phase.item);
  }
  const share = phase.total ? Math.min(1, phase.done / phase.total) : phase.over ? 1 : 0;
  phase.bar.style.width = `${100 * (phase.over === "end" ? 1 : share)}%`;
  phase.label.textContent = phase.text && !phase.over ? `${name}: ${phase.text}` : name;
  const left = phase.done && !phase.over ? `, about ${seconds((phase.spent * (phase.total - phase.done)) / phase.done)} left` : "";
  const state = { end: "done, ", stopped: "stopped, " }[phase.over] ?? "";
  phase.value.textContent = `${phase.done} of ${phase.total}, ${state}${seconds(phase.spent)}${left}`;
};

const showState = () => {
  const state = byId("state");
  const detail = byId("detail");
  const open = [...phases.values()].some((phase) => !phase.over);
  if (open && alive === false) state.textContent = "The run is gone: its process ended in the middle of a phase.";
  else if (running) state.textContent = `Running: ${running}`;
  else if (lastError) state.textContent = `Stopped in ${lastError}.`;
  else state.textContent = phases.size ? "Nothing is running; all phases are done." : "The run has not begun.";
  const notes = [];
  if (open && alive === false) notes.push("What was measured is kept; start the same call again and it goes on.");
  if (unreadable) notes.push(`${unreadable} lines of the journal cannot be read, after a crash say, and are left out.`);
  detail.textContent = notes.join(" ");
};

const showScores = () => {
  const part = byId("scores");
  part.hidden = false;
  const columns = [...shares].sort((a, b) => a - b);
  const head = make("tr", {}, make("th", { textContent: "share that stays" }), ...columns.map((share) => make("th", { textContent: `${Math.round(1000 * share) / 10} %` })));
  part.querySelector("thead").replaceChildren(head);
  const values = [...scores.values()].flatMap((row) => [...row.values()]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const rows = [...scores].map(([name, row]) =>
    make("tr", {}, make("th", { textContent: name }), ...columns.map((share) => {
      const score = row.get(share);
      const cell = make("td", { textContent: score === undefined ? "" : score.toPrecision(4) });
      if (score !== undefined) cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round((70 * (score - low)) / Math.max(high - low, 1e-12))}%, transparent)`;
      return cell;
    })));
  part.querySelector("tbody").replaceChildren(...rows);
};

const hear = (event) => {
  if (event.event === "run") {
    running = null;
    lastError = null;
    for (const phase of phases.values()) phase.over ??= "stopped";
    for (const name of phases.keys()) showPhase(name);
  } else if (event.event === "phase") {
    const before = phases.get(event.phase);
    phases.set(event.phase, { item: before?.item, label: before?.label, value: before?.value, bar: before?.bar, done: 0, total: event.total, spent: 0, text: "" });
    running = event.phase;
    lastError = null;
    showPhase(event.phase);
  } else if (event.event === "step") {
    const phase = phases.get(event.phase);
    if (phase) Object.assign(phase, { done: event.done, total: event.total, spent: event.seconds, text: event.text });
    if (phase) showPhase(event.phase);
  } else if (event.event === "end" || event.event === "stopped") {
    const phase = phases.get(event.phase);
    if (phase) Object.assign(phase, { done: event.done, total: event.total, spent: event.seconds, over: event.event });
    if (phase) showPhase(event.phase);
    if (event.event === "stopped") lastError = event.phase;
    running = [...phases].filter(([, other]) => !other.over).map(([name]) => name).pop() ?? null;
  } else if (event.event === "score") {
    const name = `${event.layer}, ${event.method} ${event.form ?? ""}`;
    const share = Math.round(1000 * event.keep_ratio) / 1000;
    shares.add(share);
    if (!scores.has(name)) scores.set(name, new Map());
    scores.get(name).set(share, event.score);
    showScores();
  } else if (event.event === "result") {
    const cards = ["macs", "params", "bytes"].map((metric) =>
      make("section", {}, make("h2", { textContent: `${metric}, share that is left` }), make("b", { textContent: `${(100 * event[metric]).toFixed(1)} %` })));
    if (event.divergence !== null) cards.push(make("section", {}, make("h2", { textContent: "held-out divergence" }), make("b", { textContent: event.divergence.toPrecision(3) })));
    byId("numbers").replaceChildren(...cards);
  } else if (event.event === "message") {
    byId("messages").append(make("dt", { textContent: new Date(1000 * event.time).toLocaleTimeString() }), make("dd", { textContent: event.text }));
  } else if (event.event === "unreadable") {
    unreadable += 1;
  }
  showState();
};
const forget = () => {
  phases.clear();
  scores.clear();
  shares.clear();
  [running, lastError, unreadable] = [null, null, 0];
  for (const name of ["phases", "numbers", "messages"]) byId(name).replaceChildren();
  byId("scores").hidden = true;
  showState();
};
const source = new EventSource(`/events${location.search}`);
source.addEventListener("message", (message) => hear(JSON.parse(message.data)));
source.addEventListener("reset", forget);
source.addEventListener("status", (message) => {
  alive = JSON.parse(message.data).alive;
  showState();
});
source.addEventListener("error", () => {
  byId("detail").textContent = "The server does not answer; this page goes on when it does.";
});
