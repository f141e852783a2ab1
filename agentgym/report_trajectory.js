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
    ["sampled tokens", count(LIST.tokens[i])],
    ["env seed", detail.seeds[0]],
    ["sampling seed", detail.seeds[1]],
    ...(INDEX.policies ? [] : [["policy", detail.policy || "–"]]),
    ...(detail.attempts > 1 ? [["attempts", String(detail.attempts)]] : []),
    ...Object.entries(detail.info).filter(([key]) => key !== "success").map(([key, value]) => [key, plain(value)]),
  ];
  return el(
    "header",
    { className: "title" },
    el("p", { className: "path" }, `${detail.env}  /  ${fileName(LIST.file[i])}`),
    el(
      "h2",
      {},
      `${groupName(i)} · ${memberName(i)}`,
      success && !hasFailed(i) ? el("span", { className: `pill ${outcome(i)}` }, success) : null,
      el("span", { className: `pill${hasFailed(i) ? " bad" : ""}` }, LIST.status[i]),
    ),
    el("dl", {}, ...facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)))),
    hasFailed(i) ? el("p", { className: "note" }, "Something outside the policy failed: this episode counts nowhere.") : null,
    detail.error ? el("pre", { className: "error" }, detail.error) : null,
  );
}

/** The trajectories of the same group and file, by member; in an evaluation the same episode of every policy. */
function members(i) {
  if (LIST.group[i] === "") return [i];
  const same = [];
  for (let k = 0; k < COUNT; k++) {
    if (LIST.group[k] === LIST.group[i] && (INDEX.policies || LIST.file[k] === LIST.file[i])) same.push(k);
  }
  return same.sort((a, b) => LIST.file[a] - LIST.file[b] || LIST.member[a] - LIST.member[b]);
}

function drawTabs(i, detail) {
  const names = { turns: "Turns", tokens: "Tokens", group: INDEX.policies ? "Policies" : "Group" };
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
  const last = (label, shown) =>
    shown
      ? el("section", { className: "turn" }, el("div", { className: "at" }, "end"), sight(label, shown))
      : null;
  return [system, ...turns, last("Observation without an answer", detail.unanswered), last("Final observation", detail.final)];
}

function fold(label, text) {
  return el("details", { className: "fold" }, el("summary", {}, label), el("pre", {}, text));
}

function block(label, text, note = null, kind = "") {
  return el("div", { className: `block ${kind}` }, el("h4", {}, label, note), el("pre", {}, text));
}

/** An observation: its images, the action drawn on the last one, and its text. */
function sight(label, shown, drawn = null) {
  if (typeof shown === "string") return block(label, shown);
  const screens = shown.images.map((hash, k) => drawScreen(hash, k === shown.images.length - 1 ? drawn : null));
  const text = shown.text ? el("pre", {}, shown.text) : null;
  return el("div", { className: "block sight" }, el("h4", {}, label), el("div", {}, ...screens, text));
}

const seconds = (value) => (value < 1 ? `${num(1000 * value, 2)} ms` : `${num(value)} s`);

function drawTurn(detail, turn, number) {
  const segment = detail.segments[turn.segment];
  const forked = segment?.edit?.turn === number ? segment.edit : null;
  const amount = (label, value) =>
    el("span", { className: value > 0 ? "plus" : value < 0 ? "minus" : "" }, el("small", {}, label), signed(value));
  const advantage = turn.advantage === null ? null : amount("advantage", turn.advantage);
  const cut = turn.finish === "length" ? el("small", { className: "warn" }, "cut at the token limit") : null;
  const action =
    turn.parse_error === null
      ? el("p", { className: "action" }, el("small", {}, "action"), el("code", {}, turn.action ?? "–"))
      : el("p", { className: "action failed" }, el("small", {}, "parse error"), turn.parse_error);
  const tokens = detail.texts ? 0 : turn.stop - turn.start;
  const logps = segment ? segment.logps.slice(turn.start, turn.stop).filter((x) => x !== null) : [];
  const mean = logps.length ? logps.reduce((a, b) => a + b, 0) / logps.length : null;
  const costs = [
    tokens > 0 ? plural(tokens, "token") : null,
    mean === null ? null : `mean logp ${num(mean)}`,
    turn.probe === null ? null : `gold answer before: logp ${num(turn.probe)}`,
    turn.policy_s ? `policy ${seconds(turn.policy_s)}` : null,
    turn.env_s ? `environment ${seconds(turn.env_s)}` : null,
  ];
  return el(
    "section",
    { className: "turn", id: `turn-${number + 1}` },
    el("div", { className: "at" }, String(number + 1), amount("reward", turn.reward), advantage),
    el(
      "div",
      {},
      drawEdit(forked, detail),
      sight("Observation", turn.observation, turn.drawn),
      block("Model", turn.text || " ", cut, "model"),
      turn.calls.length ? null : action,
      ...turn.calls.map(drawCall),
      el("p", { className: "costs" }, costs.filter(Boolean).join("  ·  ")),
    ),
  );
}

/** A call of a tool: name, how it ended, its time; arguments and output when it is opened. */
function drawCall(call) {
  const ended = call.exit_code === null ? call.status : `${call.status}, exit code ${call.exit_code}`;
  const good = call.status === "ok" && !call.exit_code;
  const given = Object.entries(call.arguments).map(([name, value]) => block(name, value));
  return el(
    "details",
    { className: "fold call", open: !good },
    el(
      "summary",
      {},
      el("code", {}, call.name),
      el("span", { className: `pill ${good ? "good" : "bad"}` }, ended),
      el("small", {}, call.seconds === null ? "" : seconds(call.seconds)),
    ),
    ...given,
    block("Output", call.output || " "),
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
    el("tr", { className: kind }, el("th", { scope: "row" }, label), ...all.map((k, at) => value(k, at)));
  const text = (value, className = "") => el("td", { className }, value);
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, INDEX.policies ? "policy" : "member"),
    ...all.map((k) => {
      const button = el("button", { type: "button", value: k, className: k === i ? "on" : "" }, memberName(k));
      return el("td", {}, el("span", { className: `dot ${outcome(k)}`, title: outcomeText(k) }), button);
    }),
  );
  const differs = (k, at) => {
    if (k === i) return text("reference", "soft");
    return parts[at] === null ? text("same", "soft") : text(`turn ${parts[at] + 1}`);
  };
  const rows = [
    cells("return", (k) => text(num(LIST.return[k], 4), "figure")),
    cells("status", (k) => text(LIST.status[k], hasFailed(k) ? "warn" : "")),
    cells("turns", (k) => text(String(LIST.turns[k]))),
    ...(all.some((k) => LIST.tokens[k] !== null) ? [cells("tokens", (k) => text(count(LIST.tokens[k])))] : []),
    cells("first differs at", differs, "last"),
  ];
  const advantages = details.flatMap((other) => other.turns.map((turn) => Math.abs(turn.advantage ?? 0)));
  const top = Math.max(0, ...advantages) || 1;
  const length = Math.max(...details.map((other) => other.turns.length));
  for (let n = 0; n < length; n++) {
    rows.push(cells(`turn ${n + 1}`, (k, at) => deedCell(details[at], n, k, n === parts[at], top)));
  }
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    select(Number(button.value), button.dataset.turn ? "turns" : state.tab);
    reveal();
    if (button.dataset.turn) $(`turn-${button.dataset.turn}`)?.scrollIntoView();
  });
  const returns = all.filter((k) => !hasFailed(k)).map((k) => LIST.return[k]).filter((value) => value !== null);
  const mean = returns.reduce((a, b) => a + b, 0) / (returns.length || 1);
  const spread = Math.sqrt(returns.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (returns.length || 1));
  const summary = [
    returns.length ? `Mean return ${num(mean)}, standard deviation ${num(spread)}.` : null,
    `Actions are compared with those of ${INDEX.policies ? "" : "member "}${memberName(i)}; the first one that differs is outlined.`,
    advantages.some(Boolean) ? "The colour of a turn is its mean advantage." : null,
  ];
  return [el("p", { className: "note" }, summary.filter(Boolean).join(" ")), el("div", { className: "wide" }, table)];
}

/** One turn of one member: its action, reward and advantage; a click opens it. */
function deedCell(detail, n, k, differs, top) {
  const turn = detail.turns[n];
  if (!turn) return el("td", { className: "over" });
  const amount = (label, value) =>
    value ? el("small", { className: value > 0 ? "plus" : "minus" }, `${label} ${signed(value)}`) : null;
  const title = turn.parse_error === null ? turn.text : `${turn.parse_error}\n\n${turn.text}`;
  const button = el(
    "button",
    { type: "button", value: k, title },
    el("span", { className: turn.action === null ? "failed" : "" }, turn.action ?? "parse error"),
    amount("reward", turn.reward),
    amount("advantage", turn.advantage),
  );
  button.dataset.turn = n + 1;
  const cell = el("td", { className: `deed${differs ? " parts" : ""}` }, button);
  if (turn.advantage) cell.style.background = shade(turn.advantage < 0 ? "minus" : "plus", (0.35 * Math.abs(turn.advantage)) / top);
  return cell;
}
