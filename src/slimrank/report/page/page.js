// The page is complete without this script; it sorts, filters and copies tables, exchanges the metric of
// the bars, and opens what is known of a layer. It reads the page's own data and nothing else.
const read = async () => {
  const block = document.getElementById("data");
  if (block.type === "application/json") return JSON.parse(block.textContent);
  const bytes = Uint8Array.from(atob(block.textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};
const data = await read();
const layerOf = (element) => data.layers[element.dataset.layer];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const short = (value) => {
  if (typeof value !== "number") return "-";
  if (!Number.isInteger(value)) return String(Number(value.toPrecision(4)));
  for (const [size, prefix] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return `${(value / size).toPrecision(3)} ${prefix}`;
  return String(value);
};

// Long names break after dots and underscores, not in the middle of a word.
for (const element of document.querySelectorAll("main tbody th, .bars span:first-child, dt, figcaption")) {
  const name = element.firstChild;
  const parts = name?.nodeType === Node.TEXT_NODE ? name.data.split(/(?<=[._])/) : [];
  if (parts.length > 1) name.replaceWith(...parts.flatMap((part) => [part, make("wbr")]));
}

// Tables: headings sort, a field filters, a button copies.
const cellValue = (row, index) => row.cells[index].dataset.v ?? row.cells[index].textContent.trim();
const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
};
for (const table of document.querySelectorAll("table[data-tools]")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => {
    const button = make("button", { type: "button", textContent: heading.textContent });
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => compare(cellValue(a, index), cellValue(b, index)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
  const copy = make("button", { type: "button", textContent: "Copy as CSV" });
  copy.addEventListener("click", async () => {
    const quoted = (cell) => `"${(cell.dataset.v ?? cell.textContent).trim().replaceAll('"', '""')}"`;
    const shown = [table.tHead.rows[0], ...body.rows].filter((row) => !row.hidden);
    const text = shown.map((row) => [...row.cells].map(quoted).join(",")).join("\n");
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages opened from disk may have no clipboard to write to.
      const area = make("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy as CSV"), 1500);
  });
  const filter = make("input", { type: "search", placeholder: "Filter" });
  filter.setAttribute("aria-label", "Filter rows");
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  const tools = make("div", { className: "tools" }, ...(body.rows.length > 8 ? [filter] : []), copy);
  table.parentElement.before(tools);
}

// Bars: another metric.
const bars = document.getElementById("bars");
if (bars) {
  const metrics = ["macs", "params", "bytes", ...(data.latency ? ["ms"] : [])];
  const choice = make("select", {}, ...metrics.map((name) => new Option(name, name)));
  choice.setAttribute("aria-label", "Metric of the bars");
  choice.addEventListener("change", () => {
    const metric = choice.value;
    const items = [...bars.children].filter(layerOf);
    const costs = items.map(layerOf);
    const longest = Math.max(...costs.map((layer) => Math.max(layer.before[metric], layer.after?.[metric] ?? 0))) || 1;
    for (const item of bars.children) item.hidden = !items.includes(item);
    items.forEach((item, index) => {
      const before = costs[index].before;
      const after = costs[index].after ?? before;
      const [wide, narrow] = item.querySelectorAll("i");
      wide.style.width = `${(100 * before[metric]) / longest}%`;
      if (narrow) narrow.style.width = `${(100 * after[metric]) / longest}%`;
      const text = narrow && costs[index].after ? `${short(before[metric])} \u2192 ${short(after[metric])}` : short(before[metric]);
      item.querySelectorAll("span")[1].textContent = text;
    });
  });
  bars.before(make("div", { className: "tools" }, make("label", {}, "Show ", choice)));
}

// All that is known of a layer.
const svg = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
// What saves parameters alone has more MACs than the layer, and no place in a picture of shares.
const drawable = (points) => points.filter(([keep, damage]) => damage > 0 && keep <= 1);
const curveOf = (curves) => {
  const measured = (curve) => drawable(curve.anchors ?? []);
  const points = curves.flatMap((curve) => [...drawable(curve.points), ...measured(curve)]);
  if (points.length < 2) return [];
  const logs = points.map(([, damage]) => Math.log10(damage));
  const high = Math.max(...logs);
  const low = Math.max(Math.min(...logs), high - 6);
  const across = (keep) => 10 + 580 * keep;
  const up = (damage) => 170 - (150 * (Math.max(Math.log10(damage), low) - low)) / Math.max(high - low, 1e-9);
  // As in the small pictures: a colour for each method, a second form of one dashed.
  const colours = curves.map((curve) => ({ weight_svd: 0, spatial_svd: 1, tucker2: 3 })[curve.method] ?? 2);
  const kinds = colours.map((colour, index) => `c${colour}${colours.indexOf(colour) < index ? " dashed" : ""}`);
  const lines = curves.map((curve, index) => {
    const good = drawable(curve.points);
    const line = good.map(([keep, damage]) => `${across(keep)},${up(damage)}`).join(" ");
    const dots = (triples, kind, word) => triples.map(([keep, damage, size]) =>
      svg("circle", { class: kind, cx: across(keep), cy: up(damage) },
        svg("title", {}, `keeps ${percent(keep)} (${size}): ${word} ${damage}`)));
    const chosen = good.filter(([, , size]) => size === curve.chosen).map(([keep, damage]) =>
      svg("circle", { class: "chosen", cx: across(keep), cy: up(damage) }));
    return svg("g", { class: kinds[index] }, svg("polyline", { points: line }),
      ...dots(good, "p", "damage"), ...dots(measured(curve), "m", "measured"), ...chosen);
  });
  const picture = svg("svg", { viewBox: "0 0 600 190", role: "img", "aria-label": "Damage by what is kept" }, ...lines);
  const names = curves.map((curve, index) =>
    make("span", { className: `c${colours[index]}text`, textContent: `${curve.method} ${curve.form ?? ""} ` }));
  const rows = curves.flatMap((curve) => measured(curve).map(([keep, divergence, size]) => {
    const predicted = curve.points.find((point) => point[2] === size)?.[1] ?? "-";
    const cells = [percent(keep), size, predicted, divergence].map((value) => make("td", { className: "n", textContent: value }));
    return make("tr", {}, make("th", { textContent: `${curve.method} ${curve.form ?? ""}` }), ...cells);
  }));
  const headings = ["", "stays", "rank or units", "predicted", "measured"];
  const head = headings.map((text, index) => make("th", { className: index ? "n" : "", textContent: text }));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return [make("h3", { textContent: "Damage (log scale) by the share that stays, 0 to 1" }), picture, make("p", {}, ...names),
    ...(rows.length ? [make("div", { className: "scroll" }, table)] : [])];
};

// Small pictures hold their lines and what was measured; the numbers of a line come from the data.
for (const figure of document.querySelectorAll("figure[data-curves]")) {
  const [kind, index] = figure.dataset.curves.split(" ");
  const curves = kind === "layers" ? data.layers[index].curves : [data.groups[index]];
  const shown = curves.map((curve) => drawable(curve.points)).filter((points) => points.length);
  figure.querySelectorAll("polyline").forEach((line, index) => {
    const hidden = shown[index].map(([keep, damage, size], at) => {
      const { x, y } = line.points[at];
      return svg("circle", { class: "p", cx: x, cy: y }, svg("title", {}, `${percent(keep)} (${size}): ${damage}`));
    });
    line.after(...hidden);
  });
}
const dialog = make("dialog");
document.body.append(dialog);
const show = (layer) => {
  const close = make("button", { type: "button", textContent: "Close" });
  close.addEventListener("click", () => dialog.close());
  const title = make("h2", { textContent: layer.name || "(model)" });
  const list = make("dl");
  const row = (name, value) => {
    if (value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length)) return;
    list.append(make("dt", { textContent: name }), make("dd", { textContent: Array.isArray(value) ? value.join(", ") : String(value) }));
  };
  row("kind", layer.kind);
  row("weight", layer.weight);
  row("output", layer.output);
  row("calls", layer.calls);
  for (const metric of ["macs", "params", "bytes"]) {
    const [before, after] = [layer.before[metric], layer.after?.[metric]];
    row(metric, after === undefined || after === before ? before.toLocaleString("en")
      : `${before.toLocaleString("en")} \u2192 ${after.toLocaleString("en")}`);
  }
  if (typeof layer.before.ms === "number")
    row("ms of a batch", layer.after ? `${layer.before.ms} \u2192 ${layer.after.ms}` : layer.before.ms);
  row("methods", layer.methods);
  row("left alone", layer.reason);
  row("makes channels of", layer.makes);
  row("reads channels of", layer.reads);
  row("inside of block", layer.block);
  const words = (setting) => Object.values(setting).filter((value) => value !== null).join(" ");
  if (layer.setting) row("chosen", words(layer.setting));
  if (data.plan?.unrounded && (layer.setting || layer.unrounded))
    row("chosen if any rank were allowed", layer.unrounded ? words(layer.unrounded) : "left whole");
  row("channels", layer.slimmed);
  row("damage, predicted", layer.damage);
  row("fit", layer.fit);
  const groups = data.groups.filter((group) => layer.makes.includes(group.name) && group.points.length);
  const chosen = (curve) => layer.setting?.method === curve.method && layer.setting?.form === curve.form ? layer.setting.rank : null;
  const curves = [
    ...layer.curves.map((curve) => ({ ...curve, chosen: chosen(curve) })),
    ...groups.map((group) => ({ ...group, method: group.name === layer.name ? "channels" : `channels of ${group.name}`, chosen: group.kept })),
  ];
  dialog.replaceChildren(make("header", {}, title, close), list, ...curveOf(curves));
  dialog.showModal();
};
for (const row of document.querySelectorAll("[data-layer]")) {
  const layer = layerOf(row);
  if (!layer) continue;
  row.tabIndex = 0;
  row.setAttribute("role", row.tagName === "TR" ? "row" : "button");
  row.addEventListener("click", () => show(layer));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      show(layer);
    }
  });
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

// On paper everything is open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
