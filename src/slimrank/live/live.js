// Follows the run's events and draws what they tell. After a break the browser asks again from the last
// byte that it saw, so nothing is drawn twice.
"use strict";
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const drawn = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const byId = (name) => document.getElementById(name);
const seconds = (value) => {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  const [minutes, rest] = [Math.floor(whole / 60), String(whole % 60).padStart(2, "0")];
  return minutes < 60 ? `${minutes} min ${rest} s` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
};
const short = (value) => (typeof value !== "number" ? "none" : value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(1) : value.toPrecision(3));
const percent = (share) => `${Math.round(1000 * share) / 10} %`;

const phases = new Map();
// What is drawn as a map of colours: layer and way -> share that is left -> value.
const maps = { damage: new Map(), score: new Map() };
const epochs = [];
let [alive, running, unreadable, lastError, isOver, isLost, problem] = [null, null, 0, null, false, false, ""];
let opened = null;

const chart = (series, { across, log = false, guide = null }) => {
  const [width, height, left, top, right, bottom] = [420, 190, 52, 10, 10, 28];
  const all = series.flatMap((each) => each.points).filter(([, y]) => y !== null && (!log || y > 0));
  if (!all.length) return make("p", { className: "soft", textContent: "no number yet" });
  const ys = [...all.map(([, y]) => y), ...(guide === null ? [] : [guide])];
  const xs = all.map(([x]) => x);
  const scale = (value) => (log ? Math.log(value) : value);
  const [low, high] = [Math.min(...ys), Math.max(...ys)].map(scale);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const x = (value) => left + ((width - left - right) * (value - first)) / Math.max(last - first, 1e-12);
  const y = (value) => height - bottom - ((height - top - bottom) * (scale(value) - low)) / Math.max(high - low, 1e-12);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${series.map((each) => each.name).join(", ")} over ${across.label}` });
  for (const value of new Set([Math.min(...ys), Math.max(...ys)])) {
    picture.append(drawn("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      drawn("text", { x: left - 6, y: y(value) + 3, "text-anchor": "end" }, short(value)));
  }
  if (guide !== null) picture.append(drawn("line", { class: "guide", x1: left, x2: width - right, y1: y(guide), y2: y(guide) }));
  const ends = first === last ? [[first, "start"]] : [[first, "start"], [last, "end"]];
  for (const [value, anchor] of ends) picture.append(drawn("text", { x: x(value), y: height - 8, "text-anchor": anchor }, across.text(value)));
  picture.append(drawn("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, across.label));
  series.forEach((each, index) => {
    const points = each.points.filter(([, value]) => value !== null && (!log || value > 0));
    const group = drawn("g", { class: `c${index % 4}` }, drawn("polyline", { points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
    if (index > 3) group.classList.add("dashed");
    for (const [a, b] of points) group.append(drawn("circle", { cx: x(a), cy: y(b) }, drawn("title", {}, `${each.name}: ${short(b)} at ${across.text(a)}`)));
    picture.append(group);
  });
  const legend = make("figcaption", {}, ...series.map((each, index) => make("span", { className: `c${index % 4}text`, textContent: `${index > 3 ? "╌" : "━"} ${each.name}` })));
  const figure = make("figure", { className: "plot" }, legend);
  figure.append(picture);
  return figure;
};
const shares = { label: "share that is left", text: percent };

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
  const open = [...phases.values()].some((phase) => !phase.over);
  const isGone = open && alive === false;
  byId("state").textContent = isGone ? "The run is gone: its process ended in the middle of a phase."
    : running ? `Running: ${running}`
    : lastError ? `Stopped in ${lastError}.`
    : phases.size ? "Nothing is running; all phases are done." : "The run has not begun.";
  const notes = [];
  if (isGone) notes.push("What was measured is kept; start the same call again and it goes on.");
  if (unreadable) notes.push(`${unreadable} ${unreadable === 1 ? "line" : "lines"} of the journal cannot be read, after a crash say, and left out.`);
  if (isOver) notes.push("The call that showed this page has ended; slimrank serve shows the run again.");
  if (problem) notes.push(problem);
  if (isLost && !isOver) notes.push("The server does not answer; this page goes on when it does.");
  byId("detail").textContent = notes.join(" ");
};

// Plans that lie in the run's directory: each opens in an editor of its own.
const askPlans = async () => {
  try {
    const response = await fetch(`/plans${location.search}`);
    if (!response.ok) return;
    const { plans } = await response.json();
    byId("plans").hidden = plans.length === 0;
    byId("plans").querySelector("div").replaceChildren(...plans.map((plan) => {
      const button = make("button", { textContent: `Edit ${plan}` });
      button.addEventListener("click", () => edit(plan));
      return button;
    }));
  } catch {
    // What the stream of events tells of the server is enough.
  }
};
const edit = async (plan) => {
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ plan }) };
    const response = await fetch(`/edit${location.search}`, options);
    const answer = await response.json();
    if (response.ok) location.assign(answer.url);
    else problem = `Not opened: ${answer.error}`;
  } catch {
    problem = "The server does not answer; slimrank edit opens a plan as well.";
  }
  showState();
};

const openLayer = (name) => {
  opened = name;
  const parts = [];
  for (const [kind, heading] of [["damage", "predicted damage"], ["score", "eval score"]]) {
    const series = [...maps[kind].values()].filter((row) => row.layer === name)
      .map((row) => ({ name: row.way, points: [...row.values].sort(([a], [b]) => a - b) }));
    if (series.length) parts.push(make("h3", { textContent: heading }), chart(series, { across: shares, log: kind === "damage" && series.every((each) => each.points.every(([, value]) => value === null || value > 0)) }));
  }
  const close = make("button", { textContent: "Close" });
  close.addEventListener("click", () => byId("layer").close());
  byId("layer").replaceChildren(make("header", {}, make("h2", { textContent: name }), close), ...parts);
  if (!byId("layer").open) byId("layer").showModal();
};
byId("layer").addEventListener("close", () => {
  opened = null;
});

const showMap = (kind) => {
  const part = byId(kind);
  part.hidden = false;
  const rows = [...maps[kind].values()];
  const column = (share) => (kind === "damage" ? Math.round(20 * share) / 20 : Math.round(1000 * share) / 1000);
  const columns = [...new Set(rows.flatMap((row) => [...row.values.keys()].map(column)))].sort((a, b) => a - b);
  const head = make("tr", {}, make("th", { textContent: "share that is left" }), ...columns.map((share) => make("th", { textContent: percent(share) })));
  part.querySelector("thead").replaceChildren(head);
  const scale = (value) => (kind === "damage" ? Math.log(Math.max(value, 1e-12)) : value);
  const known = rows.flatMap((row) => [...row.values.values()]).filter((value) => value !== null && (kind === "score" || value > 0)).map(scale);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const shown = rows.map((row) => {
    const cells = new Map([...row.values].map(([share, value]) => [column(share), value]));
    const label = make("button", { textContent: row.layer, title: `show ${row.layer}` });
    label.addEventListener("click", () => openLayer(row.layer));
    const line = make("tr", {}, make("th", {}, label, " ", make("span", { className: "count", textContent: row.way })), ...columns.map((share) => {
      const value = cells.get(share);
      const cell = make("td", { textContent: value === undefined ? "" : short(value) });
      if (typeof value === "number" && (kind === "score" || value > 0)) cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round((70 * (scale(value) - low)) / Math.max(high - low, 1e-12))}%, transparent)`;
      return cell;
    }));
    line.dataset.layer = row.layer;
    return line;
  });
  part.querySelector("tbody").replaceChildren(...shown);
  if (opened) openLayer(opened);
};

const showTraining = () => {
  byId("training").hidden = false;
  const points = (key) => epochs.map((epoch) => [epoch.epoch, epoch[key]]);
  const series = [{ name: "training loss", points: points("training_loss") }, { name: "held-out loss", points: points("held_out_loss") }];
  const last = epochs[epochs.length - 1];
  const best = epochs.filter((epoch) => epoch.is_best).pop();
  const said = make("p", { className: "soft", textContent: `held-out loss ${short(last.held_out_loss)}, ${short(last.held_out_before)} before training (dashed); ${best ? `best after epoch ${best.epoch}` : "no epoch is better yet"}` });
  byId("training").querySelector("div").replaceChildren(said, chart(series, { across: { label: "epoch", text: String }, guide: last.held_out_before }));
};

// Many events may come at once: each picture is drawn when all of them are read.
const waiting = new Set();
const draw = (what) => {
  if (!waiting.size) setTimeout(() => {
    const all = [...waiting];
    waiting.clear();
    for (const each of all) each();
  });
  waiting.add(what);
};
const showDamages = () => showMap("damage");
const showScores = () => showMap("score");

const hear = (event) => {
  if (event.event === "run") {
    [running, lastError] = [null, null];
    for (const phase of phases.values()) phase.over ??= "stopped";
    for (const name of phases.keys()) showPhase(name);
  } else if (event.event === "phase") {
    const past = phases.get(event.phase);
    phases.set(event.phase, { item: past?.item, label: past?.label, value: past?.value, bar: past?.bar, done: 0, total: event.total, spent: 0, text: "" });
    [running, lastError] = [event.phase, null];
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
    draw(askPlans);
    running = [...phases].filter(([, other]) => !other.over).map(([name]) => name).pop() ?? null;
  } else if (event.event === "damage" || event.event === "score") {
    const way = `${event.method}${event.form ? ` ${event.form}` : ""}`;
    const rows = maps[event.event];
    const key = JSON.stringify([event.layer, way]);
    if (!rows.has(key)) rows.set(key, { layer: event.layer, way, values: new Map() });
    rows.get(key).values.set(event.keep_ratio, event[event.event]);
    draw(event.event === "damage" ? showDamages : showScores);
  } else if (event.event === "epoch") {
    if (event.epoch === 1) epochs.length = 0;
    epochs.push(event);
    draw(showTraining);
  } else if (event.event === "result") {
    const cards = ["macs", "params", "bytes"].map((metric) =>
      make("section", {}, make("h2", { textContent: `${metric}, share that is left` }), make("b", { textContent: percent(event[metric]) })));
    if (event.divergence !== null) cards.push(make("section", {}, make("h2", { textContent: "held-out divergence" }), make("b", { textContent: short(event.divergence) })));
    byId("numbers").replaceChildren(...cards);
  } else if (event.event === "message") {
    byId("said").hidden = false;
    byId("messages").append(make("dt", { textContent: new Date(1000 * event.time).toLocaleTimeString() }), make("dd", { textContent: event.text }));
  } else if (event.event === "unreadable") {
    unreadable += 1;
  }
  draw(showState);
};
const forget = () => {
  phases.clear();
  maps.damage.clear();
  maps.score.clear();
  epochs.length = 0;
  [running, lastError, unreadable] = [null, null, 0];
  for (const name of ["phases", "numbers", "messages"]) byId(name).replaceChildren();
  for (const name of ["damage", "score", "training", "said"]) byId(name).hidden = true;
  showState();
};
askPlans();
const source = new EventSource(`/events${location.search}`);
source.addEventListener("message", (message) => {
  try {
    hear(JSON.parse(message.data));
  } catch {
    // It lacks what an event of its kind has.
    unreadable += 1;
    draw(showState);
  }
});
source.addEventListener("reset", forget);
source.addEventListener("status", (message) => {
  alive = JSON.parse(message.data).alive;
  isLost = false;
  draw(showState);
});
source.addEventListener("over", () => {
  source.close();
  isOver = true;
  draw(showState);
});
source.addEventListener("error", () => {
  isLost = true;
  draw(showState);
});
