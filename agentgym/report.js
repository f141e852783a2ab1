// The page itself: helpers, the views and the address, the list of trajectories.
// Text is only ever set as text nodes, and no string is turned into markup or code.
"use strict";

const $ = (id) => document.getElementById(id);
const INDEX = JSON.parse($("index").textContent);
const LIST = INDEX.list;
const COUNT = LIST.file.length;
const ROW_HEIGHT = 54;

const state = { view: "overview", selected: -1, tab: "turns", color: "", shown: [] };

// ---- helpers ----

/** An element with properties and children; strings become text. */
function el(tag, properties, ...children) {
  const node = document.createElement(tag);
  Object.assign(node, properties);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An SVG element with attributes. */
function svg(tag, attributes, ...children) {
  const node = document.createElementNS($("drawing").namespaceURI, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A number in few characters. */
function num(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(1).replace(/\.0|\+/g, "").replaceAll("-", "−");
  const text = size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

function signed(value) {
  return (value > 0 ? "+" : "") + num(value);
}

function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Undo the run-length encoding of the data. */
function unpack(values) {
  if (!values || Array.isArray(values)) return values;
  const all = [];
  for (let i = 0; i < values.runs.length; i += 2) {
    for (let n = values.runs[i + 1]; n > 0; n--) all.push(values.runs[i]);
  }
  return all;
}

const opened = new Map();

/** Everything about trajectory i, with whole token rows. */
function load(i) {
  if (opened.has(i)) return opened.get(i);
  const detail = JSON.parse($(`t${i}`).textContent);
  let before = [];
  for (const segment of detail.segments) {
    segment.ids = before.slice(0, segment.kept).concat(segment.ids);
    before = segment.ids;
    const values = { logps: segment.logps, versions: unpack(segment.versions), advantages: unpack(segment.advantages) };
    segment.mask = unpack(segment.mask);
    let k = 0;
    const place = segment.mask.map((sampled) => (sampled ? k++ : -1));
    for (const [name, list] of Object.entries(values)) {
      segment[name] = list && place.map((at) => (at < 0 ? null : list[at]));
    }
  }
  if (opened.size > 200) opened.clear();
  opened.set(i, detail);
  return detail;
}

const FAILED = new Set(["env_error", "sandbox_error", "engine_error", "timeout"]);
const hasFailed = (i) => FAILED.has(LIST.status[i]);
const outcome = (i) => {
  if (hasFailed(i)) return "broken";
  return { true: "good", false: "bad" }[String(LIST.success[i])] ?? "none";
};
const outcomeText = (i) => (hasFailed(i) ? "failed, counts nowhere" : `success: ${LIST.success[i] ?? "not defined"}`);
const groupName = (i) => LIST.group[i] || "no group";
/** Who played: the member of a group, or in an evaluation, where a group is an episode, the policy. */
const memberName = (i) => (INDEX.policies ? fileName(LIST.file[i]) : String(LIST.member[i]));
const fileName = (file) => (INDEX.policies ? INDEX.policies[file].policy : INDEX.files[file]);
const count = (value) => (value === null ? "–" : value.toLocaleString("en"));

/** Show a tooltip of label and value pairs beside the pointer. */
function tip(event, pairs, title) {
  const box = $("tip");
  if (!pairs) {
    box.hidden = true;
    return;
  }
  const rows = pairs.map(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]);
  box.replaceChildren(...(title ? [el("pre", {}, title)] : []), el("dl", {}, ...rows));
  box.hidden = false;
  const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
  const below = event.clientY + 18;
  const top = below + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 12 : below;
  box.style.left = `${left}px`;
  box.style.top = `${top}px`;
}

// ---- views and the address: #overview, #games, #g=3&at=12, #trajectories, #t=12&view=tokens&color=logp ----

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const number = Number.parseInt(parts.get("t"), 10);
  state.view = location.hash === "#trajectories" || number >= 0 ? "trajectories" : "overview";
  if (INDEX.games && (location.hash === "#games" || parts.has("g"))) {
    state.view = "games";
    readGameAddress(parts);
  }
  if (number >= 0 && number < COUNT) {
    state.selected = number;
    state.tab = ["turns", "tokens", "group"].includes(parts.get("view")) ? parts.get("view") : "turns";
    state.color = parts.get("color") ?? state.color;
  } else if (state.view === "trajectories" && state.selected < 0) {
    state.selected = state.shown[0] ?? -1;
  }
  show();
}

function writeAddress() {
  const color = state.tab === "tokens" && state.color ? `&color=${state.color}` : "";
  history.replaceState(null, "", `#t=${state.selected}&view=${state.tab}${color}`);
  $("to-trajectories").href = location.hash;
}

function show() {
  for (const name of ["overview", "games", "trajectories"]) {
    $(name).hidden = state.view !== name;
    $(`to-${name}`).classList.toggle("on", state.view === name);
  }
  tip(null, null);
  if (INDEX.games && state.view !== "games") pause();
  if (state.view === "overview") drawOverview();
  else if (state.view === "games") drawGames();
  else {
    drawRows();
    reveal();
    drawDetail();
  }
}

function select(i, tab = state.tab) {
  state.selected = i;
  state.tab = tab;
  writeAddress();
  drawRows();
  drawDetail();
}

// ---- the list: only the rows in sight exist ----

function hasStatus(i, wanted) {
  if (wanted === "failed") return hasFailed(i);
  if (wanted === "parse_error") return LIST.parse_errors[i] > 0;
  return wanted === "" || LIST.status[i] === wanted;
}

function matches(i, form) {
  return (
    (form.file.value === "" || LIST.file[i] === Number(form.file.value)) &&
    hasStatus(i, form.status.value) &&
    (form.success.value === "" || String(LIST.success[i]) === form.success.value) &&
    (form.group.value === "" || LIST.group[i].includes(form.group.value))
  );
}

function applyFilters() {
  const form = $("filters").elements;
  state.shown = [];
  for (let i = 0; i < COUNT; i++) if (matches(i, form)) state.shown.push(i);
  const key = form.sort.value.replace("-", "");
  const sign = form.sort.value.startsWith("-") ? -1 : 1;
  if (key) state.shown.sort((a, b) => sign * ((LIST[key][a] ?? -Infinity) - (LIST[key][b] ?? -Infinity)) || a - b);
  const part = state.shown.length === COUNT ? "" : `${state.shown.length.toLocaleString("en")} of `;
  $("count").textContent = `${part}${COUNT.toLocaleString("en")} trajectories`;
  $("rows").style.height = `${state.shown.length * ROW_HEIGHT}px`;
  $("list").scrollTop = 0;
}

function row(i, at) {
  const on = i === state.selected;
  const status = LIST.status[i] === "done" ? null : el("span", { className: "status" }, LIST.status[i]);
  const node = el(
    "div",
    { className: `row${on ? " on" : ""}`, role: "option", ariaSelected: String(on) },
    el("span", { className: `dot ${outcome(i)}`, title: outcomeText(i) }),
    el("span", { className: "who" }, groupName(i), INDEX.policies ? null : el("i", {}, ` · ${LIST.member[i]}`)),
    el("span", { className: "return" }, num(LIST.return[i])),
    el("span", { className: "where" }, fileName(LIST.file[i]), status),
    el("span", { className: "size" }, plural(LIST.turns[i], "turn"), LIST.tokens[i] === null ? null : `, ${num(LIST.tokens[i])} tok`),
  );
  node.style.top = `${at * ROW_HEIGHT}px`;
  node.dataset.i = i;
  return node;
}

function drawRows() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 5);
  const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 10);
  const rows = [];
  for (let at = first; at < last; at++) rows.push(row(state.shown[at], at));
  $("rows").replaceChildren(...rows);
}

/** Scroll the list so that the selected row is in sight. */
function reveal() {
  const at = state.shown.indexOf(state.selected);
  const list = $("list");
  if (at < 0) return;
  const top = at * ROW_HEIGHT;
  if (top < list.scrollTop || top + ROW_HEIGHT > list.scrollTop + list.clientHeight) {
    list.scrollTop = top - list.clientHeight / 2;
    drawRows();
  }
}

function moveBy(step) {
  const at = state.shown.indexOf(state.selected);
  const next = state.shown[Math.max(0, Math.min(state.shown.length - 1, at + step))];
  if (next === undefined) return;
  select(next);
  reveal();
}

/** Show the trajectories of one status, the first of them opened. */
function showStatus(status) {
  const form = $("filters").elements;
  for (const field of [form.file, form.success, form.group, form.sort]) field.value = "";
  form.status.value = status;
  applyFilters();
  location.hash = `#t=${state.shown[0] ?? 0}&view=turns`;
}

function startList() {
  const form = $("filters").elements;
  const options = (select, any, pairs) =>
    select.append(el("option", { value: "" }, any), ...pairs.map(([value, name]) => el("option", { value }, name)));
  options(form.file, INDEX.policies ? "all policies" : "all files", INDEX.files.map((_, i) => [i, fileName(i)]));
  const statuses = [...new Set(LIST.status)].sort().map((name) => [name, name]);
  if (statuses.some(([name]) => FAILED.has(name))) statuses.push(["failed", "any failure"]);
  if (LIST.parse_errors.some(Boolean)) statuses.push(["parse_error", "with a parse error"]);
  options(form.status, "any status", statuses);
  const refilter = () => {
    applyFilters();
    drawRows();
  };
  $("filters").addEventListener("input", refilter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("list").addEventListener("scroll", drawRows, { passive: true });
  $("rows").addEventListener("click", (event) => {
    const hit = event.target.closest(".row");
    if (hit) select(Number(hit.dataset.i));
  });
  document.addEventListener("keydown", (event) => {
    if (state.view !== "trajectories" || event.target.closest("input, select")) return;
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (!step || event.metaKey || event.ctrlKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && event.target !== $("list")) return;
    event.preventDefault();
    moveBy(step);
  });
  applyFilters();
}

function start() {
  $("name").textContent = INDEX.name;
  $("amount").textContent = num(COUNT, 6);
  $("facts").append(...INDEX.facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))));
  $("config").querySelector("pre").textContent = INDEX.config;
  if (INDEX.policies) $("config").querySelector("summary").textContent = "Settings";
  startList();
  if (INDEX.games) startGames();
  addEventListener("hashchange", readAddress);
  addEventListener("resize", () => state.view === "trajectories" && drawRows());
  readAddress();
  document.body.getBoundingClientRect(); // lay the view out before the time is taken
  document.documentElement.dataset.ready = Math.round(performance.now());
}

document.addEventListener("DOMContentLoaded", start);
