// The token view: every token of every segment, coloured by what was computed for it.

const COLORS = {
  advantage: { label: "Advantage", of: (segment, k) => segment.advantages?.[k] ?? null },
  logp: { label: "Log-probability", of: (segment, k) => segment.logps[k] },
  mask: { label: "Loss mask", of: (segment, k) => segment.mask[k] || null },
  version: { label: "Policy version", of: (segment, k) => segment.versions[k] },
};

function drawTokens(detail) {
  if (!detail.segments.some((segment) => segment.ids.length)) {
    return [el("p", { className: "empty" }, "This policy stored no tokens.")];
  }
  const learned = detail.segments.some((segment) => segment.advantages);
  const usual = learned ? "advantage" : "logp";
  if (detail.texts || !(state.color in COLORS)) state.color = detail.texts ? "mask" : usual;
  const spans = detail.segments.map(() => []);
  const key = el("div", { className: "key" });
  const buttons = Object.entries(COLORS).map(([name, { label }]) => {
    const off = (name === "advantage" && !learned) || (detail.texts && name !== "mask");
    const title = off ? "not stored" : "";
    return el("button", { type: "button", value: name, disabled: off, title }, label);
  });
  const paint = () => {
    for (const button of buttons) button.classList.toggle("on", button.value === state.color);
    const scale = colorScale(detail.segments);
    spans.forEach((list, s) =>
      list.forEach((span, k) => {
        span.style.background = scale.color(COLORS[state.color].of(detail.segments[s], k));
      }),
    );
    key.replaceChildren(...scale.key);
  };
  const bar = el("div", { className: "bar" }, el("div", { className: "choice" }, ...buttons), key);
  bar.addEventListener("click", (event) => {
    if (!event.target.value) return;
    state.color = event.target.value;
    writeAddress();
    paint();
  });
  const rows = detail.segments.map((segment, s) => drawSegment(detail, segment, s, spans[s]));
  paint();
  const note = detail.texts
    ? el("p", { className: "note" }, "This policy writes text: its bytes are stored, not the tokens of a model.")
    : null;
  return [note, bar, ...rows];
}

function drawSegment(detail, segment, s, spans) {
  const turns = new Map();
  detail.turns.forEach((turn, number) => {
    if (turn.segment === s) turns.set(turn.prompt_start, number);
  });
  const text = el("div", { className: "tokens" });
  segment.ids.forEach((id, k) => {
    if (k > 0 && k === segment.edit?.kept) text.append(el("b", { className: "mark" }, "fork"));
    if (turns.has(k)) text.append(el("b", { className: "mark" }, `turn ${turns.get(k) + 1}`));
    const span = el("span", { className: segment.mask[k] ? "own" : "" }, visible(textOf(detail, s, k), id));
    span.dataset.k = k;
    spans.push(span);
    text.append(span);
  });
  text.addEventListener("pointerover", (event) => {
    const k = event.target.dataset.k;
    tip(event, ...(k === undefined ? [null] : describe(detail, segment, s, Number(k))));
  });
  text.addEventListener("pointerleave", () => tip(null, null));
  const sampled = segment.mask.reduce((sum, bit) => sum + bit, 0);
  const facts = detail.texts ? "" : `${plural(segment.ids.length, "token")}, ${sampled.toLocaleString("en")} trained (mask 1)`;
  return el(
    "section",
    { className: "segment" },
    el("h3", {}, `Segment ${s + 1}`, el("small", {}, facts)),
    drawEdit(segment.edit, detail),
    text,
  );
}

/** The text of a token; of a policy that writes text, the text of a stretch. */
const textOf = (detail, s, k) => (detail.texts ? detail.texts[s][k] : INDEX.tokens?.[detail.segments[s].ids[k]]);

/** A text with line ends visible; the id if the text is not known. */
function visible(text, id) {
  if (text === null || text === undefined) return `${id} `;
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
}

function describe(detail, segment, s, k) {
  const id = segment.ids[k];
  const turn = detail.turns.findIndex((t) => t.segment === s && t.prompt_start <= k && k < t.stop);
  const logp = segment.logps[k];
  const mask = ["mask", segment.mask[k] ? "1, written by the policy" : "0, context"];
  const pairs = detail.texts ? [mask] : [["id", String(id)], ["position", num(k, 6)], mask];
  if (turn >= 0) pairs.push(["turn", String(turn + 1)]);
  if (logp !== null) pairs.push(["logp", `${num(logp, 4)} (p = ${num(Math.exp(logp))})`]);
  if (segment.advantages && segment.mask[k]) pairs.push(["advantage", num(segment.advantages[k], 4)]);
  if (segment.versions[k] !== null) pairs.push(["version", String(segment.versions[k])]);
  const text = detail.texts ? undefined : textOf(detail, s, k);
  return [pairs, text === undefined ? null : JSON.stringify(text)];
}

/** What a fork kept and dropped, and the text before and after. */
function drawEdit(edit, detail) {
  if (!edit) return null;
  const amounts = detail.texts ? "" : `${plural(edit.kept, "token")} kept, ${edit.dropped.toLocaleString("en")} dropped`;
  const side = (label, text) => el("div", {}, el("h4", {}, label), el("pre", {}, text || "nothing"));
  return el(
    "div",
    { className: "edit" },
    el("p", {}, el("b", {}, `History rewritten before turn ${edit.turn + 1}`), amounts),
    el("div", { className: "pair" }, side("before", edit.before), side("after", edit.after)),
  );
}

// ---- colours ----

const shade = (name, share) => `color-mix(in oklab, var(--${name}) ${Math.round(6 + 58 * share)}%, transparent)`;
const swatch = (color, label) => {
  const box = el("i", {});
  box.style.background = color;
  return el("span", {}, box, label);
};

/** How the chosen value becomes a background, and the key that explains it. */
function colorScale(segments) {
  const values = segments.flatMap((segment) => segment.ids.map((_, k) => COLORS[state.color].of(segment, k)));
  const present = values.filter((value) => value !== null);
  const context = swatch("transparent", "context");
  const on = (color) => (value) => (value === null ? "" : color(value));
  if (state.color === "mask") {
    return { color: on(() => shade("accent", 0.6)), key: [swatch(shade("accent", 0.6), "1, trained"), swatch("transparent", "0, context")] };
  }
  if (state.color === "version") {
    const versions = [...new Set(present)].sort((a, b) => a - b);
    const hue = new Map(versions.map((v, i) => [v, `hsl(${(200 + 67 * i) % 360} 55% 50% / 0.38)`]));
    const keys = versions.slice(0, 12).map((v) => swatch(hue.get(v), `version ${v}`));
    return { color: on((value) => hue.get(value)), key: [...keys, context] };
  }
  if (state.color === "logp") {
    const share = (value) => Math.min(1, -value / 4);
    const color = (value) => shade("rare", share(value));
    const keys = [-0.05, -1, -2, -4].map((v) => swatch(color(v), v === -4 ? "−4 or less" : num(v)));
    return { color: on(color), key: [...keys, context] };
  }
  const top = present.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  const color = (value) => shade(value < 0 ? "minus" : "plus", Math.abs(value) / top);
  return { color: on(color), key: [...[-top, 0, top].map((v) => swatch(color(v), signed(v))), context] };
}
