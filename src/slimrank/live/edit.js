// Shows what the server says of the plan, and asks it for each change; nothing is computed here.
"use strict";
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const byId = (name) => document.getElementById(name);
const say = (text, detail = "") => {
  byId("state").textContent = text;
  byId("detail").textContent = detail;
};
let shown = null;
let last = Promise.resolve();
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const short = (value) => (value === null ? "not predicted" : value.toPrecision(3));

// One request after the other: each change is made to what the one before it left.
const ask = (request, done) => {
  last = last.then(async () => {
    try {
      const body = request && JSON.stringify({ ...request, version: shown.version });
      const options = request && { method: "POST", headers: { "Content-Type": "application/json" }, body };
      const response = await fetch(`${request ? "/do" : "/state"}${location.search}`, options || {});
      const answer = await response.json();
      if (response.ok) {
        shown = answer;
        say(done(answer));
      } else {
        // Changed in another window: the answer has the plan as it is now.
        if (answer.now) shown = answer.now;
        say("Not changed.", answer.error);
      }
    } catch {
      say("The server does not answer.", "Start slimrank edit again; what was saved is kept.");
    }
    if (shown) show(shown);
  });
};

// What a change would come to, while a slider is moved; one question at a time.
let isAsking = false;
const preview = async (request) => {
  if (isAsking) return;
  isAsking = true;
  try {
    const body = JSON.stringify({ ...request, version: shown.version, preview: true });
    const response = await fetch(`/do${location.search}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (response.ok) showTotals({ ...shown, ...(await response.json()) });
  } catch {
    // The change itself tells that the server does not answer.
  } finally {
    isAsking = false;
  }
};

const slider = (label, value, top, why, request) => {
  const told = make("output", { textContent: String(value) });
  const input = make("input", { type: "range", min: 1, max: Math.max(top, 1), value, title: why, ariaLabel: label });
  input.addEventListener("input", () => {
    told.textContent = input.value;
    byId("detail").textContent = Number(input.value) === Number(input.max) ? `${label}: ${why}` : "";
    preview(request(Number(input.value)));
  });
  input.addEventListener("change", () => ask(request(Number(input.value)), () => `${request(0).name} changed.`));
  return make("td", {}, input, " ", told);
};

const lock = (kind, row) => {
  const box = make("input", { type: "checkbox", checked: row.locked, ariaLabel: `lock ${kind} ${row.name}` });
  box.addEventListener("change", () => ask({ action: "lock", kind, name: row.name, locked: box.checked }, () => (box.checked ? `${row.name} is locked.` : `${row.name} is free.`)));
  return make("td", {}, box);
};

const fill = (id, heads, rows) => {
  byId(id).hidden = rows.length === 0;
  byId(id).querySelector("thead").replaceChildren(make("tr", {}, ...heads.map((text) => make("th", { className: ["kind", "read by"].includes(text) ? "kind" : text ? "" : "why", textContent: text }))));
  byId(id).querySelector("tbody").replaceChildren(...rows);
};

const layerRow = (row) => {
  const choice = make("select", { ariaLabel: `method of ${row.name}` }, ...[null, ...row.methods].map((method) =>
    make("option", { value: method ?? "", textContent: method ?? "left alone", selected: method === row.method, disabled: method !== null && row.tops[method] < 1 })));
  choice.addEventListener("change", () => {
    const method = choice.value || null;
    const rank = method && Math.ceil(row.tops[method] / 2);
    ask({ action: "pair", name: row.name, method, rank }, () => `${row.name} changed.`);
  });
  const rank = row.method === null ? make("td") : slider(`rank of ${row.name}`, row.rank, row.top, row.why, (rank) => ({ action: "pair", name: row.name, method: row.method, rank }));
  return make("tr", {}, make("th", { textContent: row.name }), lock("layer", row), make("td", { className: "kind", textContent: row.kind }), make("td", {}, choice), rank, make("td", { className: "soft why", textContent: row.why }));
};

const groupRow = (row) => make("tr", {}, make("th", { textContent: row.name }), lock("group", row), make("td", { className: "kind", textContent: row.consumers.join(", ") }),
  slider(`width of ${row.name}`, row.keep, row.units, row.why, (keep) => ({ action: "width", name: row.name, keep })),
  make("td", { className: "soft why", textContent: `of ${row.units}` }));

const blockRow = (row) => {
  const box = make("input", { type: "checkbox", checked: row.dropped, ariaLabel: `drop ${row.name}` });
  box.addEventListener("change", () => ask({ action: "block", name: row.name, dropped: box.checked }, () => `${row.name} changed.`));
  return make("tr", {}, make("th", { textContent: row.name }), lock("block", row), make("td", {}, box));
};

const card = (heading, value, text, isOver = false) => make("section", { className: isOver ? "warning" : "" },
  make("h2", { textContent: heading }), make("b", { textContent: value }), make("p", { textContent: text }));

// A share that is just at a budget may be a hair above it.
const over = (ratio, budget) => budget !== undefined && budget !== null && ratio > budget * (1 + 1e-9);

const showCompared = (facts) => {
  const [other, compared] = [byId("other"), facts.compared];
  other.replaceChildren(...["", ...facts.plans].map((name) => make("option", { value: name, textContent: name || "choose one" })));
  other.value = compared ? compared.name : "";
  const [head, body] = [byId("compared").querySelector("thead"), byId("compared").querySelector("tbody")];
  if (!compared) {
    head.replaceChildren();
    body.replaceChildren();
    return;
  }
  head.replaceChildren(make("tr", {}, ...["", "this plan", compared.name].map((text) => make("th", { textContent: text }))));
  const row = (name, mine, theirs) => make("tr", { className: mine === theirs ? "idle" : "" }, make("th", { textContent: name }), make("td", { textContent: mine }), make("td", { textContent: theirs }));
  const totals = Object.entries(facts.totals).map(([metric, total]) => row(metric, percent(total.ratio), percent(compared.ratios[metric])));
  if (facts.latency) totals.push(row("predicted latency", percent(facts.latency.ratio), percent(compared.latency.ratio)));
  totals.push(row(`predicted damage, ${facts.unit}`, short(facts.damage), short(compared.damage)));
  const rows = compared.rows.filter((each) => byId("all").checked || each.this !== each.other);
  body.replaceChildren(...totals, ...rows.map((each) => row(`${each.kind} ${each.name}`, each.this, each.other)));
  if (!compared.rows.some((each) => each.this !== each.other)) body.append(make("tr", {}, make("td", { colSpan: 3, textContent: "Both plans do the same." })));
};

const showBuilding = (facts) => {
  const { state, plan, folder, divergence, unit, error } = facts.building;
  byId("built").hidden = state === "none" || state === "no model";
  byId("built").textContent = {
    running: `Applying ${plan}; slimrank serve shows how far it is.`,
    done: `${plan} was applied: the model is in ${folder}${divergence === null ? "" : `, held-out divergence ${short(divergence ?? null)} ${unit}`}.`,
    failed: `${plan} could not be applied: ${error}`,
  }[state] ?? "";
  byId("build").disabled = state === "running";
  byId("build").title = state === "no model" ? "start slimrank edit with --model REF, or use slimrank apply" : "saves the plan, and builds the model beside it";
  if (state === "running") setTimeout(watchBuilding, 1000);
};

// Only what is said of the model: a slider that is being moved stays.
const watchBuilding = async () => {
  try {
    const response = await fetch(`/state${location.search}`);
    if (response.ok) showBuilding(await response.json());
  } catch {
    say("The server does not answer.", "Start slimrank edit again with the same --study: layers that are fitted are kept.");
  }
};

const showTotals = (facts) => {
  const cards = Object.entries(facts.totals).map(([metric, total]) => {
    const budget = facts.budgets[metric];
    const text = `${total.after.toLocaleString("en")} of ${total.before.toLocaleString("en")}${budget === undefined ? "" : `, budget ${percent(budget)}`}`;
    return card(metric, percent(total.ratio), text, over(total.ratio, budget));
  });
  if (facts.latency) {
    const { ratio, ms, before_ms: before, backend, budget } = facts.latency;
    cards.push(card("predicted latency", percent(ratio), `${short(ms)} of ${short(before)} ms in ${backend}${budget === null ? "" : `, budget ${percent(budget)}`}`, over(ratio, budget)));
  }
  cards.push(card("predicted damage", short(facts.damage), facts.unit));
  byId("numbers").replaceChildren(...cards);
};

const show = (facts) => {
  const focused = document.activeElement?.ariaLabel;
  showTotals(facts);
  byId("notices").hidden = facts.notices.length === 0;
  byId("notices").textContent = facts.notices.join(" ");
  showCompared(facts);
  showBuilding(facts);
  fill("layers", ["layer", "locked", "kind", "method", "rank", ""], facts.layers.map(layerRow));
  fill("groups", ["group", "locked", "read by", "units kept", ""], facts.groups.map(groupRow));
  fill("blocks", ["block", "locked", "dropped"], facts.blocks.map(blockRow));
  byId("undo").disabled = facts.undo === 0;
  // The rows are new: who works with the keyboard stays where they were.
  if (focused) document.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
};
byId("replan").addEventListener("click", () => ask({ action: "replan" }, () => "The rest is planned again."));
byId("undo").addEventListener("click", () => ask({ action: "undo" }, () => "The last change is taken back."));
byId("save").addEventListener("click", () => ask({ action: "save" }, (facts) => `Saved as ${facts.saved}.`));
byId("build").addEventListener("click", () => ask({ action: "build" }, (facts) => `Applying ${facts.building.plan}.`));
byId("other").addEventListener("change", () => ask({ action: "compare", name: byId("other").value || null }, () => (byId("other").value ? `Beside ${byId("other").value}.` : "Ready.")));
byId("all").addEventListener("change", () => showCompared(shown));
ask(null, () => "Ready.");
