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

// One request after the other: each change is made to what the one before it left.
const ask = (request, done) => {
  last = last.then(async () => {
    try {
      const options = request && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) };
      const response = await fetch(`${request ? "/do" : "/state"}${location.search}`, options || {});
      const answer = await response.json();
      if (response.ok) {
        shown = answer;
        say(done(answer));
      } else say("Not changed.", answer.error);
    } catch {
      say("The server does not answer.", "Start slimrank edit again; what was saved is kept.");
    }
    if (shown) show(shown);
  });
};

const slider = (label, value, top, why, change) => {
  const told = make("output", { textContent: String(value) });
  const input = make("input", { type: "range", min: 1, max: Math.max(top, 1), value, title: why, ariaLabel: label });
  input.addEventListener("input", () => {
    told.textContent = input.value;
    byId("detail").textContent = Number(input.value) === Number(input.max) ? `${label}: ${why}` : "";
  });
  input.addEventListener("change", () => change(Number(input.value)));
  return make("td", {}, input, " ", told);
};

const lock = (kind, row) => {
  const box = make("input", { type: "checkbox", checked: row.locked, ariaLabel: `lock ${kind} ${row.name}` });
  box.addEventListener("change", () => ask({ action: "lock", kind, name: row.name, locked: box.checked }, () => (box.checked ? `${row.name} is locked.` : `${row.name} is free.`)));
  return make("td", {}, box);
};

const fill = (id, heads, rows) => {
  byId(id).hidden = rows.length === 0;
  byId(id).querySelector("thead").replaceChildren(make("tr", {}, ...heads.map((text) => make("th", { textContent: text }))));
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
  const rank = row.method === null ? make("td") : slider(`rank of ${row.name}`, row.rank, row.top, row.why, (value) =>
    ask({ action: "pair", name: row.name, method: row.method, rank: value }, () => `${row.name} changed.`));
  return make("tr", {}, make("th", { textContent: row.name }), make("td", { textContent: row.kind }), make("td", {}, choice), rank, make("td", { textContent: row.why }), lock("layer", row));
};

const groupRow = (row) => make("tr", {}, make("th", { textContent: row.name }), make("td", { textContent: row.consumers.join(", ") }),
  slider(`width of ${row.name}`, row.keep, row.units, row.why, (keep) => ask({ action: "width", name: row.name, keep }, () => `${row.name} changed.`)),
  make("td", { textContent: `of ${row.units}` }), lock("group", row));

const blockRow = (row) => {
  const box = make("input", { type: "checkbox", checked: row.dropped, ariaLabel: `drop ${row.name}` });
  box.addEventListener("change", () => ask({ action: "block", name: row.name, dropped: box.checked }, () => `${row.name} changed.`));
  return make("tr", {}, make("th", { textContent: row.name }), make("td", {}, box), lock("block", row));
};

const show = (facts) => {
  const cards = Object.entries(facts.totals).map(([metric, total]) => {
    const budget = facts.budgets[metric] === undefined ? "" : `, budget ${(100 * facts.budgets[metric]).toFixed(1)} %`;
    return make("section", {}, make("h2", { textContent: metric }), make("b", { textContent: `${(100 * total.ratio).toFixed(1)} %` }),
      make("p", { textContent: `${total.after.toLocaleString("en")} of ${total.before.toLocaleString("en")}${budget}` }));
  });
  const damage = facts.damage === null ? "not predicted" : facts.damage.toPrecision(3);
  cards.push(make("section", {}, make("h2", { textContent: "predicted damage" }), make("b", { textContent: damage }), make("p", { textContent: facts.unit })));
  byId("numbers").replaceChildren(...cards);
  fill("layers", ["layer", "kind", "method", "rank", "", "locked"], facts.layers.map(layerRow));
  fill("groups", ["group", "read by", "units kept", "", "locked"], facts.groups.map(groupRow));
  fill("blocks", ["block", "dropped", "locked"], facts.blocks.map(blockRow));
  byId("undo").disabled = facts.undo === 0;
};
byId("replan").addEventListener("click", () => ask({ action: "replan" }, () => "The rest is planned again."));
byId("undo").addEventListener("click", () => ask({ action: "undo" }, () => "The last change is taken back."));
byId("save").addEventListener("click", () => ask({ action: "save" }, (facts) => `Saved as ${facts.saved}.`));
ask(null, () => "Ready.");
