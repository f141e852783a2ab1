// One trajectory: its facts, its turns, and its group side by side.

function drawDetail() {
  const i = state.selected;
  const article = $("detail");
  if (i < 0 || i >= COUNT) {
    article.replaceChildren(el("p", { className: "empty" }, "No trajectory matches the filters."));
    return;
  }
  const detail = load(i);
  const draw = { turns: drawTurns, tokens: drawTokens, group: drawGroup }[state.tab];
  article.replaceChildren(drawTitle(i, detail), drawTabs(i, detail), ...draw(detail, i).filter(Boolean));
  article.scrollTop = 0;
}

const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

function drawTitle(i, detail) {
  const success = { true: "success", false: "no success" }[String(LIST.success[i])];
  const facts = [
    ["return", num(LIST.return[i], 4)],
    ["turns", String(LIST.turns[i])],
    ["sampled tokens", LIST.tokens[i].toLocaleString("en")],
    ["env seed", detail.seeds[0]],
    ["sampling seed", detail.seeds[1]],
    ["policy", detail.policy || "–"],
    ...(detail.attempts > 1 ? [["attempts", String(detail.attempts)]] : []),
    ...Object.entries(detail.info).map(([key, value]) => [key, plain(value)]),
  ];
  return el(
    "header",
    { className: "title" },
    el("p", { className: "path" }, `${detail.env}  /  ${INDEX.files[LIST.file[i]]}`),
    el(
      "h2",
      {},
      `${groupName(i)} · ${LIST.member[i]}`,
      success ? el("span", { className: `pill ${outcome(i)}` }, success) : null,
      el("span", { className: "pill" }, LIST.status[i]),
    ),
    el("dl", {}, ...facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)))),
    detail.error ? el("pre", { className: "error" }, detail.error) : null,
  );
}

/** The trajectories of the same group and file, by member. */
function members(i) {
  if (LIST.group[i] === "") return [i];
  const same = [];
  for (let k = 0; k < COUNT; k++) {
    if (LIST.file[k] === LIST.file[i] && LIST.group[k] === LIST.group[i]) same.push(k);
  }
  return same.sort((a, b) => LIST.member[a] - LIST.member[b]);
}

function drawTabs(i, detail) {
  const names = { turns: "Turns", tokens: "Tokens", group: "Group" };
  const counts = { turns: LIST.turns[i], tokens: plural(detail.segments.length, "row"), group: members(i).length };
  const tabs = Object.entries(names).map(([value, name]) => {
    const className = value === state.tab ? "on" : "";
    return el("button", { type: "button", value, className }, name, el("small", {}, String(counts[value])));
  });
  const bar = el("div", { className: "tabs" }, ...tabs);
  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select(state.selected, button.value);
  });
  return bar;
}

// ---- turns ----

function drawTurns(detail) {
  const system = detail.system === null ? null : fold("System prompt", INDEX.systems[detail.system]);
  const turns = detail.turns.map((turn, number) => drawTurn(detail, turn, number));
  if (!detail.final) return [system, ...turns];
  const end = el("div", { className: "at" }, "end");
  return [system, ...turns, el("section", { className: "turn" }, end, block("Final observation", detail.final))];
}

function fold(label, text) {
  return el("details", { className: "fold" }, el("summary", {}, label), el("pre", {}, text));
}

function block(label, text, note = null, kind = "") {
  return el("div", { className: `block ${kind}` }, el("h4", {}, label, note), el("pre", {}, text));
}

const seconds = (value) => (value < 1 ? `${num(1000 * value, 2)} ms` : `${num(value)} s`);

function drawTurn(detail, turn, number) {
  const segment = detail.segments[turn.segment];
  const forked = segment?.edit?.turn === number ? segment.edit : null;
  const reward = turn.reward ? el("span", { className: turn.reward > 0 ? "plus" : "minus" }, signed(turn.reward)) : null;
  const cut = turn.finish === "length" ? el("small", { className: "warn" }, "cut at the token limit") : null;
  const action =
    turn.parse_error === null
      ? el("p", { className: "action" }, el("small", {}, "action"), el("code", {}, turn.action ?? "–"))
      : el("p", { className: "action failed" }, el("small", {}, "parse error"), turn.parse_error);
  const tokens = turn.stop - turn.start;
  const logps = segment ? segment.logps.slice(turn.start, turn.stop).filter((x) => x !== null) : [];
  const mean = logps.length ? logps.reduce((a, b) => a + b, 0) / logps.length : null;
  const costs = [
    tokens > 0 ? plural(tokens, "token") : null,
    mean === null ? null : `mean logp ${num(mean)}`,
    turn.policy_s ? `policy ${seconds(turn.policy_s)}` : null,
    turn.env_s ? `environment ${seconds(turn.env_s)}` : null,
  ];
  return el(
    "section",
    { className: "turn" },
    el("div", { className: "at" }, String(number + 1), reward),
    el(
      "div",
      {},
      drawEdit(forked),
      block("Observation", turn.observation),
      block("Model", turn.text || " ", cut, "model"),
      action,
      el("p", { className: "costs" }, costs.filter(Boolean).join("  ·  ")),
    ),
  );
}

// ---- group ----

/** What a member did in a turn, as text to compare. */
const deed = (turn) => (turn ? (turn.action ?? `parse error: ${turn.parse_error}`) : null);

/** First turn in which two episodes act differently or only one goes on; null if there is none. */
function divergence(one, other) {
  const length = Math.max(one.turns.length, other.turns.length);
  for (let k = 0; k < length; k++) if (deed(one.turns[k]) !== deed(other.turns[k])) return k;
  return null;
}

function drawGroup(detail, i) {
  const all = members(i);
  const details = all.map(load);
  const parts = details.map((other) => divergence(detail, other));
  const cells = (label, value, kind = "") =>
    el("tr", { className: kind }, el("th", {}, label), ...all.map((k, at) => value(k, at)));
  const text = (value, className = "") => el("td", { className }, value);
  const head = el(
    "tr",
    {},
    el("th", {}, "member"),
    ...all.map((k) => {
      const button = el("button", { type: "button", value: k, className: k === i ? "on" : "" }, String(LIST.member[k]));
      return el("td", {}, el("span", { className: `dot ${outcome(k)}` }), button);
    }),
  );
  const differs = (k, at) => {
    if (k === i) return text("reference", "soft");
    return parts[at] === null ? text("same", "soft") : text(`turn ${parts[at] + 1}`);
  };
  const rows = [
    cells("return", (k) => text(num(LIST.return[k], 4), "figure")),
    cells("status", (k) => text(LIST.status[k])),
    cells("turns", (k) => text(String(LIST.turns[k]))),
    cells("tokens", (k) => text(LIST.tokens[k].toLocaleString("en"))),
    cells("first differs at", differs, "last"),
  ];
  const length = Math.max(...details.map((other) => other.turns.length));
  for (let n = 0; n < length; n++) {
    rows.push(
      cells(`turn ${n + 1}`, (k, at) => {
        const turn = details[at].turns[n];
        if (!turn) return text("", "over");
        const reward = turn.reward ? el("small", { className: turn.reward > 0 ? "plus" : "minus" }, signed(turn.reward)) : null;
        const className = `deed${turn.action === null ? " failed" : ""}${n === parts[at] ? " parts" : ""}`;
        return el("td", { className }, turn.action ?? "parse error", reward);
      }),
    );
  }
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
  table.addEventListener("click", (event) => {
    if (event.target.tagName !== "BUTTON") return;
    select(Number(event.target.value));
    reveal();
  });
  const returns = all.map((k) => LIST.return[k]).filter((value) => value !== null);
  const mean = returns.reduce((a, b) => a + b, 0) / (returns.length || 1);
  const spread = Math.sqrt(returns.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (returns.length || 1));
  const summary =
    `Mean return ${num(mean)}, standard deviation ${num(spread)}. ` +
    `Actions are compared with those of member ${LIST.member[i]}.`;
  return [el("p", { className: "note" }, summary), el("div", { className: "wide" }, table)];
}
