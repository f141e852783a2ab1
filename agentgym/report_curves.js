// The overview: results, before and after or policy by policy, one small chart per metric, and what went wrong.

const WIDTH = 340;
const HEIGHT = 150;
const EDGE = { left: 40, right: 8, top: 8, bottom: 20 };
const charts = [];
let overviewDrawn = false;

function drawOverview() {
  if (overviewDrawn) return;
  overviewDrawn = true;
  drawEvaluation();
  drawPolicies();
  drawErrors();
  const groups = new Map();
  for (const curve of INDEX.curves) {
    const name = curve.name.includes("/") ? curve.name.split("/")[0] : "other";
    groups.set(name, [...(groups.get(name) ?? []), curve]);
  }
  const first = ["eval", "episode", "reward"];
  const rank = (name) => (first.includes(name) ? first.indexOf(name) : first.length);
  const ordered = [...groups.keys()].sort((a, b) => rank(a) - rank(b));
  for (const name of ordered) {
    const curves = groups.get(name);
    const className = `group n${Math.min(4, curves.length)}`;
    $("curves").append(el("div", { className }, el("h2", {}, name), ...curves.map(chart)));
  }
}

// ---- before and after ----

function measure(name, value) {
  return name === "success" ? `${num(100 * value)}%` : num(value);
}

function drawEvaluation() {
  if (!INDEX.evaluation?.length) return;
  $("evaluation").hidden = false;
  const both = INDEX.evaluation.some((entry) => entry.before && entry.after);
  $("evaluation").querySelector("h2").textContent = both ? "Before and after" : "Evaluation";
  $("evaluation").querySelector(".cards").append(...INDEX.evaluation.map(card));
}

/** A measure: its numbers, and both intervals on one scale. */
function card({ name, before, after }) {
  const value = (side, text) =>
    side ? el("div", { className: `side ${text}` }, el("small", {}, text), measure(name, side[0])) : null;
  const arrow = before && after ? el("span", { className: "arrow" }, "→") : null;
  const sides = [before, after].filter(Boolean);
  const ends = sides.flat().filter((x) => x !== null);
  const low = name === "success" ? 0 : Math.min(0, ...ends);
  const high = name === "success" ? 1 : Math.max(...ends) || 1;
  const x = (v) => 4 + (232 * (v - low)) / (high - low || 1);
  const plot = svg("svg", { viewBox: `0 0 240 ${6 + 14 * sides.length}`, class: "intervals" });
  plot.append(svg("line", { x1: 4, x2: 236, y1: 5 + 14 * sides.length, y2: 5 + 14 * sides.length, class: "axis" }));
  sides.forEach((side, at) => {
    const y = 9 + 14 * at;
    const kind = side === before ? "before" : "after";
    if (side[1] !== null) plot.append(svg("line", { x1: x(side[1]), x2: x(side[2]), y1: y, y2: y, class: kind }));
    plot.append(svg("circle", { cx: x(side[0]), cy: y, r: 4.5, class: kind }));
  });
  const range = (side) => (side && side[1] !== null ? `${measure(name, side[1])} to ${measure(name, side[2])}` : "–");
  const node = el(
    "div",
    { className: "card" },
    el("h3", {}, name),
    el("div", { className: "sides" }, value(before, "before"), arrow, value(after, "after")),
    plot,
  );
  node.onpointermove = (event) => tip(event, [["before, 95%", range(before)], ["after, 95%", range(after)]]);
  node.onpointerleave = () => tip(null, null);
  return node;
}

// ---- the policies of an evaluation ----

const MEASURES = ["success", "return", "turns", "tokens"];

function drawPolicies() {
  if (!INDEX.policies) return;
  $("policies").hidden = false;
  const first = INDEX.policies[0];
  const several = INDEX.policies.length > 1;
  const span = (text, columns) => el("th", { colSpan: columns, className: "over" }, text);
  const heads = ["policy", "episodes", "failed", ...MEASURES, ...(several ? ["success, points", "return", "pairs"] : [])];
  const head = [el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)))];
  if (several) head.unshift(el("tr", {}, el("td", { colSpan: 7 }), span(`difference from ${first.policy}`, 3)));
  const rows = INDEX.policies.map((policy) => {
    const against = policy.versus;
    const cells = [
      el("td", {}, policy.episodes.toLocaleString("en")),
      el("td", { className: policy.failed ? "warn" : "" }, policy.failed.toLocaleString("en")),
      ...MEASURES.map((name) => intervalCell(name, policy[name])),
    ];
    if (several && against) {
      cells.push(intervalCell("success", against.success, true), intervalCell("return", against.return, true));
      const dropped = against.dropped ? el("small", {}, ` ${against.dropped} dropped`) : null;
      cells.push(el("td", {}, against.episodes.toLocaleString("en"), dropped));
    } else if (several) cells.push(el("td", { colSpan: 3, className: "soft" }, "baseline"));
    return el("tr", {}, el("th", { scope: "row" }, policy.policy), ...cells);
  });
  const table = el("table", { className: "results" }, el("thead", {}, ...head), el("tbody", {}, ...rows));
  $("policies").querySelector(".wide").append(table);
  const pairs = several ? " Differences are paired: over the episodes that failed for neither policy." : "";
  $("policies").querySelector(".note").textContent =
    `Means with 95 % intervals; n/a where the environment or the policy has no such measure.${pairs}`;
}

/** A mean over its interval. */
function intervalCell(name, estimate, difference = false) {
  if (!estimate) return el("td", { className: "soft" }, "n/a");
  const scale = name === "success" ? 100 : 1;
  const text = (value) => (difference ? signed(scale * value) : num(scale * value));
  const unit = name === "success" && !difference ? "%" : "";
  const [low, high] = estimate.ci95;
  const clear = difference && (low > 0 || high < 0);
  const className = clear ? (low > 0 ? "plus" : "minus") : "";
  return el("td", {}, el("b", { className }, text(estimate.mean) + unit), el("small", {}, `${text(low)} to ${text(high)}`));
}

// ---- errors ----

const KINDS = {
  env_error: "The environment failed",
  sandbox_error: "The sandbox failed",
  engine_error: "The inference engine failed",
  timeout: "A deadline was missed",
  parse_error: "The answer held no action",
};

function drawErrors() {
  if (!INDEX.errors.length) return;
  $("errors").hidden = false;
  $("errors").querySelector(".kinds").append(...INDEX.errors.map(drawKind));
}

function drawKind({ kind, count: found, messages, attempts }) {
  const parse = kind === "parse_error";
  const amounts = [
    found ? plural(found, parse ? "turn" : "episode") + " in this page" : null,
    attempts ? `${plural(attempts, "failed attempt")} in the whole run` : null,
  ];
  const open = found ? el("button", { type: "button" }, "show them") : null;
  open?.addEventListener("click", () => showStatus(kind));
  const lines = messages.map(([text, times]) => el("li", {}, el("b", {}, `${times.toLocaleString("en")}×`), el("pre", {}, text)));
  return el(
    "div",
    { className: "kind" },
    el("h3", {}, el("span", { className: "pill bad" }, kind), KINDS[kind] ?? ""),
    el("p", { className: "note" }, amounts.filter(Boolean).join(", "), open),
    lines.length ? el("ul", {}, ...lines) : null,
  );
}

// ---- curves ----

/** Round values about a third of the range apart, from at or below `low` to at or above `high`. */
function ticks(low, high) {
  const raw = (high - low || Math.abs(high) || 1) / 3;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let k = Math.floor(low / step + 1e-6); ; k++) {
    found.push(k * step);
    if (k * step >= high - step * 1e-6 && found.length > 1) return found;
  }
}

/** The values on the vertical axis. */
function scale(curve) {
  if (/success/.test(curve.name) && curve.y.every((y) => y >= 0 && y <= 1)) return [0, 0.5, 1];
  const all = [...curve.y, ...(curve.lo ?? []), ...(curve.hi ?? [])].filter((v) => v !== null);
  const low = Math.min(...all);
  const high = Math.max(...all);
  return ticks(low > 0 && (low < 0.4 * high || low === high) ? 0 : low, high);
}

/** Mean over the last `window` points at every point. */
function smooth(values, window) {
  let sum = 0;
  return values.map((value, i) => {
    sum += value - (i >= window ? values[i - window] : 0);
    return sum / Math.min(i + 1, window);
  });
}

const path = (xs, ys) => xs.map((x, i) => `${i ? "L" : "M"}${x.toFixed(1)} ${ys[i].toFixed(1)}`).join("");

function chart(curve) {
  const last = curve.y.length - 1;
  const value = el("output", {}, num(curve.y[last]));
  const step = el("small", {});
  const title = el("figcaption", {}, el("span", {}, curve.name.split("/").slice(1).join("/") || curve.name), step, value);
  const figure = el("figure", {}, title);
  if (last < 0) return figure;
  const levels = scale(curve);
  const [low, high] = [levels[0], levels.at(-1)];
  const [from, to] = [curve.x[0], curve.x[last]];
  const x = (v) => EDGE.left + ((WIDTH - EDGE.left - EDGE.right) * (v - from)) / (to - from || 1);
  const y = (v) => HEIGHT - EDGE.bottom - ((HEIGHT - EDGE.top - EDGE.bottom) * (v - low)) / (high - low);
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": curve.name });
  for (const tick of levels) {
    plot.append(svg("line", { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(tick), y2: y(tick), class: "rule" }));
    plot.append(svg("text", { x: EDGE.left - 6, y: y(tick) + 3.5, class: "y" }, num(tick)));
  }
  for (const tick of to > from ? ticks(from, to).filter((v) => v >= from && v <= to) : [from]) {
    plot.append(svg("text", { x: x(tick), y: HEIGHT - 5, class: "x" }, num(tick, 6)));
  }
  const xs = curve.x.map(x);
  const ys = curve.y.map(y);
  const sparse = last < 40 || curve.lo;
  plot.append(svg("path", { d: path(xs, ys), class: sparse ? "line" : "line raw" }));
  if (!sparse) plot.append(svg("path", { d: path(xs, smooth(curve.y, Math.ceil(last / 20)).map(y)), class: "line" }));
  if (curve.lo && curve.hi) {
    curve.lo.forEach((lo, i) => {
      if (lo === null || curve.hi[i] === null) return;
      plot.append(svg("line", { x1: xs[i], x2: xs[i], y1: y(lo), y2: y(curve.hi[i]), class: "interval" }));
    });
  }
  if (sparse) xs.forEach((at, i) => plot.append(svg("circle", { cx: at, cy: ys[i], r: last < 25 ? 2.4 : 1.6, class: "point" })));
  const rule = svg("line", { y1: EDGE.top, y2: HEIGHT - EDGE.bottom, class: "cursor" });
  const dot = svg("circle", { r: 3.6, class: "cursor" });
  plot.append(rule, dot);
  figure.append(plot);

  const mark = (at) => {
    figure.classList.toggle("marked", at !== null);
    const i = at === null ? last : nearest(curve.x, at);
    const between = at !== null && curve.lo && curve.lo[i] !== null ? ` (${num(curve.lo[i])} to ${num(curve.hi[i])})` : "";
    value.textContent = num(curve.y[i], 4) + between;
    step.textContent = at === null ? "" : `step ${num(curve.x[i], 6)}`;
    rule.setAttribute("x1", xs[i]);
    rule.setAttribute("x2", xs[i]);
    dot.setAttribute("cx", xs[i]);
    dot.setAttribute("cy", ys[i]);
  };
  charts.push(mark);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width) * WIDTH;
    const at = from + ((share - EDGE.left) / (WIDTH - EDGE.left - EDGE.right)) * (to - from);
    for (const other of charts) other(at);
  });
  plot.addEventListener("pointerleave", () => charts.forEach((other) => other(null)));
  return figure;
}

/** Index of the element of a sorted list that is nearest to a value. */
function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? low - 1 : low;
}
