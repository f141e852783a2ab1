// Games of hidden roles: a table to watch, step by step. This file is in the page only if there are games.

const GAMES = INDEX.games.list;
const STEP_MS = 1600;
const STAGE = { width: 400, height: 300, x: 200, y: 155, rx: 158, ry: 100, seat: 19 };
const SIDES = { wolves: "The Werewolves win.", village: "The village wins.", nobody: "Nobody wins: the game was truncated." };
const replay = { game: -1, data: null, at: 0, roles: false, timer: 0 };
const ui = {};

const player = (seat) => replay.data.players[seat].agent;
const winnerText = (winner) => SIDES[winner] ?? winner;

// ---- the address: #g=3&at=12&roles=1 ----

function readGameAddress(address) {
  const game = Number.parseInt(address.get("g"), 10);
  const known = game >= 0 && game < GAMES.length;
  if (known) replay.roles = address.get("roles") === "1";
  if (known || replay.game < 0) openGame(known ? game : 0, Number.parseInt(address.get("at"), 10) || 0);
}

function writeGameAddress() {
  if (!replay.data) return;
  history.replaceState(null, "", `#g=${replay.game}&at=${replay.at}${replay.roles ? "&roles=1" : ""}`);
  $("to-games").href = location.hash;
}

function openGame(game, at = 0) {
  if (game >= GAMES.length) return;
  pause();
  replay.game = game;
  replay.data = JSON.parse($(`g${game}`).textContent);
  replay.data.events.unshift({ kind: "deal", round: 0 });
  replay.at = Math.max(0, Math.min(replay.data.events.length - 1, at));
}

// ---- moving ----

function goTo(at) {
  const last = replay.data.events.length - 1;
  replay.at = Math.max(0, Math.min(last, at));
  if (replay.at === last) pause();
  drawGame();
}

function pause() {
  clearInterval(replay.timer);
  replay.timer = 0;
  if (ui.play) ui.play.textContent = "Play";
}

function play() {
  if (replay.timer) {
    pause();
    return;
  }
  goTo(replay.at === replay.data.events.length - 1 ? 0 : replay.at + 1);
  replay.timer = setInterval(() => goTo(replay.at + 1), STEP_MS);
  ui.play.textContent = "Pause";
}

// ---- what is known at this step ----

/** Round and manner of the death of each seat, and the ballots that lie on the table. */
function standing() {
  const events = replay.data.events.slice(0, replay.at + 1);
  const now = events[events.length - 1];
  const dead = new Map();
  for (const event of events) {
    if (event.kind === "dawn" && event.victim !== null) dead.set(event.victim, `killed, night ${event.round}`);
    if (event.kind === "out" && event.seat !== null) dead.set(event.seat, `voted out, day ${event.round}`);
  }
  const cast = ["ballots", "out"].includes(now.kind) ? events.findLast((event) => event.kind === "ballots").targets : null;
  return { now, events, dead, cast };
}

const NIGHT = {
  kill: (act) => (act.proposal ? "proposes to kill" : "kills"),
  see: () => "looks at",
  save: () => "protects",
};

/** A deed of a night as a sentence. */
function actText(act) {
  const whom = act.target === act.seat ? "itself" : player(act.target);
  const learned = act.wolf === undefined ? "" : act.wolf ? ": a Werewolf" : ": no Werewolf";
  return `${player(act.seat)} ${NIGHT[act.verb](act)} ${whom}${learned}`;
}

/** The votes by target, most first, as sentences. */
function ballotTexts(targets) {
  const by = new Map();
  targets.forEach((target, voter) => target !== null && by.set(target, [...(by.get(target) ?? []), voter]));
  const sorted = [...by].sort((a, b) => (a[0] === "abstain") - (b[0] === "abstain") || b[1].length - a[1].length);
  const list = (voters) => voters.map(player).join(", ");
  return sorted.map(([target, voters]) =>
    target === "abstain" ? `${list(voters)} abstained` : `${plural(voters.length, "vote")} for ${player(target)}: ${list(voters)}`,
  );
}

function dealText() {
  const counts = new Map();
  for (const { role } of replay.data.players) counts.set(role, (counts.get(role) ?? 0) + 1);
  const roles = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  return `Dealt: ${roles.map(([role, count]) => (count > 1 ? `${role} × ${count}` : role)).join(", ")}.`;
}

/** What happened, as sentences; what is secret only with the roles. */
function eventTexts(event) {
  switch (event.kind) {
    case "deal":
      return [dealText()];
    case "night":
      return replay.roles ? event.acts.map(actText) : ["What is done at night is secret."];
    case "dawn":
      return [event.victim === null ? "Nobody was killed." : `${player(event.victim)} was killed.`];
    case "ballots":
      return ballotTexts(event.targets);
    case "out":
      if (event.seat === null) return ["Nobody is out: all abstained."];
      return [`${player(event.seat)} is out${event.tied ? ", by lot after a tie" : ""}.`];
    case "end":
      return [winnerText(replay.data.winner)];
    default:
      return [event.text || "(says nothing)"];
  }
}

const TITLES = { deal: "Before the game", end: "The end" };
const eventTitle = (event) =>
  TITLES[event.kind] ?? (event.kind === "night" ? `Night ${event.round}` : `Day ${event.round}`);

/** Notes beside a speech: how many candidates there were, and its latent strategy. */
function speechNotes(event) {
  const notes = event.candidates === null ? [] : [`1 of ${event.candidates} candidates`];
  if (replay.roles) notes.push(`latent strategy ${event.latent ?? "–"}`);
  return notes.join(" · ");
}

// ---- the stage ----

function place(seat) {
  const angle = (2 * Math.PI * seat) / replay.data.players.length - Math.PI / 2;
  return { x: STAGE.x + STAGE.rx * Math.cos(angle), y: STAGE.y + STAGE.ry * Math.sin(angle) };
}

/** A bent arrow from seat to seat, so that two that vote for each other have one each. */
function arrow(from, to, kind) {
  const a = place(from);
  const b = place(to);
  const length = Math.hypot(b.x - a.x, b.y - a.y);
  const unit = { x: (b.x - a.x) / length, y: (b.y - a.y) / length };
  const bend = 0.09 * length;
  const middle = { x: (a.x + b.x) / 2 - unit.y * bend, y: (a.y + b.y) / 2 + unit.x * bend };
  const toward = (p, gap) => {
    const far = Math.hypot(middle.x - p.x, middle.y - p.y);
    return { x: p.x + ((middle.x - p.x) * gap) / far, y: p.y + ((middle.y - p.y) * gap) / far, far };
  };
  const start = toward(a, STAGE.seat);
  const tip = toward(b, STAGE.seat);
  const back = toward(b, STAGE.seat + 7);
  const side = { x: (-(middle.y - b.y) / back.far) * 3.5, y: ((middle.x - b.x) / back.far) * 3.5 };
  return svg(
    "g",
    { class: `arrow ${kind}` },
    svg("path", { d: `M${start.x} ${start.y}Q${middle.x} ${middle.y} ${back.x} ${back.y}`, class: "shaft" }),
    svg("path", { d: `M${tip.x} ${tip.y}L${back.x + side.x} ${back.y + side.y}L${back.x - side.x} ${back.y - side.y}Z` }),
  );
}

function seatNode(seat, { now, dead, cast }) {
  const { agent, role, seat: name, trajectory } = replay.data.players[seat];
  const { x, y } = place(seat);
  const votes = cast ? cast.filter((target) => target === seat).length : 0;
  const own = replay.roles && now.kind === "night" ? now.acts.filter((act) => act.seat === seat && act.target === seat) : [];
  const badge = votes ? String(votes) : cast?.[seat] === "abstain" ? "–" : own.length ? "✚" : null;
  const classes = ["seat", replay.roles ? `is-${role.toLowerCase()}` : ""];
  if (y < STAGE.y - 1) classes.push("upper"); // its name is above it, out of the way of the arrows
  if (dead.has(seat)) classes.push("dead");
  if (now.kind === "speech" && now.seat === seat) classes.push("speaks");
  const struck = (now.kind === "dawn" && now.victim === seat) || (now.kind === "out" && now.seat === seat);
  if (struck) classes.push("struck");
  const node = el(
    "button",
    {
      type: "button",
      className: classes.filter(Boolean).join(" "),
      disabled: trajectory === null,
      title: trajectory === null ? `${agent}: its trajectory is not in this page` : `Open the trajectory of ${agent}`,
      onclick: () => openTurn(trajectory, null),
    },
    el("span", { className: "disc" }, String(seat), badge === null ? null : el("i", { className: "badge" }, badge)),
    el("b", {}, agent),
    replay.roles ? el("span", { className: "role" }, name === null ? role : `${role} · ${name}`) : null,
    dead.has(seat) ? el("small", {}, dead.get(seat)) : null,
  );
  node.style.left = `${(100 * x) / STAGE.width}%`;
  node.style.top = `${(100 * y) / STAGE.height}%`;
  return node;
}

function drawStage(known) {
  const { now, cast } = known;
  const arrows = svg("svg", { viewBox: `0 0 ${STAGE.width} ${STAGE.height}`, "aria-hidden": "true" });
  cast?.forEach((target, voter) => {
    if (typeof target === "number") arrows.append(arrow(voter, target, now.kind === "out" ? "vote past" : "vote"));
  });
  if (replay.roles && now.kind === "night") {
    for (const act of now.acts) {
      if (act.target !== act.seat) arrows.append(arrow(act.seat, act.target, `${act.verb}${act.proposal ? " proposal" : ""}`));
    }
  }
  const said = now.kind === "speech";
  const spoken = said ? el("small", {}, speechNotes(now)) : null;
  const head = said ? `${player(now.seat)} says` : { ballots: "The vote", out: "The vote" }[now.kind];
  const told = now.kind === "ballots" || (now.kind === "night" && replay.roles) ? [] : eventTexts(now);
  const middle = el(
    "div",
    { className: `middle ${now.kind}` },
    el("h3", {}, eventTitle(now), head ? el("span", {}, head) : null),
    ...told.map((text) => el("p", {}, text)),
    spoken,
  );
  const seats = replay.data.players.map((_, seat) => seatNode(seat, known));
  ui.stage.className = `stage${now.kind === "night" ? " night" : ""}`;
  ui.stage.replaceChildren(arrows, middle, ...seats);
}

// ---- the log ----

function drawLog({ events, now }) {
  const rows = [];
  let title = "";
  events.forEach((event, at) => {
    if (eventTitle(event) !== title) {
      title = eventTitle(event);
      rows.push(el("h3", {}, title));
    }
    const said = event.kind === "speech";
    const source = said && event.turn !== null ? replay.data.players[event.seat].trajectory : null;
    const link = source === null ? null : el("button", { type: "button", onclick: () => openTurn(source, event.turn) }, `turn ${event.turn + 1}`);
    const notes = said ? el("small", {}, speechNotes(event), link) : null;
    rows.push(
      el(
        "div",
        { className: `entry ${event.kind}${event === now ? " on" : ""}` },
        el("button", { type: "button", className: "at", title: "Go to this step", onclick: () => goTo(at) }, String(at)),
        el("div", {}, said ? el("b", {}, player(event.seat)) : null, ...eventTexts(event).map((text) => el("p", {}, text)), notes),
      ),
    );
  });
  ui.log.replaceChildren(...rows);
  ui.log.scrollTop = ui.log.scrollHeight;
}

/** Show a trajectory, and a turn of it. */
function openTurn(trajectory, turn) {
  location.hash = `#t=${trajectory}&view=turns`;
  if (turn !== null) addEventListener("hashchange", () => $(`turn-${turn + 1}`)?.scrollIntoView(), { once: true });
}

// ---- the view ----

function gameOption(game, i) {
  const facts = [`${game.players} players`, plural(game.rounds, "round"), ...(replay.roles ? [`won by ${game.winner}`] : [])];
  const text = `${fileName(game.file)} · ${game.id} (${facts.join(", ")})`;
  return el("option", { value: i, selected: i === replay.game }, text);
}

function drawGame() {
  const known = standing();
  const last = replay.data.events.length - 1;
  ui.slider.max = last;
  ui.slider.value = replay.at;
  ui.slider.ariaValueText = `${eventTitle(known.now)}: ${eventTexts(known.now).join("; ")}`;
  ui.where.textContent = `${replay.at} of ${last}`;
  ui.back.disabled = replay.at === 0;
  ui.next.disabled = replay.at === last;
  drawStage(known);
  drawLog(known);
  writeGameAddress();
}

function buildGames() {
  const button = (text, label, onclick) => el("button", { type: "button", ariaLabel: label, title: label, onclick }, text);
  ui.choice = el("select", { ariaLabel: "Game", onchange: () => (openGame(Number(ui.choice.value)), drawGame()) });
  ui.roles = el("input", { type: "checkbox", onchange: () => switchRoles(ui.roles.checked) });
  ui.back = button("‹", "Step back", () => goTo(replay.at - 1));
  ui.next = button("›", "Next step", () => goTo(replay.at + 1));
  ui.play = button("Play", "Play or pause", play);
  ui.slider = el("input", { type: "range", min: 0, ariaLabel: "Step", oninput: () => goTo(Number(ui.slider.value)) });
  ui.where = el("output", {});
  ui.stage = el("div", { className: "stage" });
  ui.log = el("div", { className: "log", tabIndex: 0, ariaLabel: "What happened so far" });
  const skipped = INDEX.games.skipped.map(({ id, file, why }) => el("li", {}, `${id} (${fileName(file)}): ${why}`));
  const left = skipped.length
    ? el("details", { className: "skipped" }, el("summary", {}, `${plural(skipped.length, "game")} left out`), el("ul", {}, ...skipped))
    : null;
  const table = el(
    "section",
    { className: "table" },
    el("div", { className: "top" }, ui.choice, el("label", {}, ui.roles, "Show roles")),
    ui.stage,
    el("div", { className: "moves" }, ui.back, ui.play, ui.next, ui.slider, ui.where),
    left,
  );
  $("games").append(...(GAMES.length ? [table, ui.log] : [el("section", {}, left)]));
}

function switchRoles(on) {
  replay.roles = on;
  ui.choice.replaceChildren(...GAMES.map(gameOption));
  drawGame();
}

/** Draw the view, built when it is first opened. */
function drawGames() {
  if (!ui.stage) buildGames();
  if (!GAMES.length) return;
  ui.roles.checked = replay.roles;
  switchRoles(replay.roles);
}

function startGames() {
  $("to-games").hidden = false;
  $("to-games").append(" ", el("small", {}, num(GAMES.length, 6)));
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || state.view !== "games" || !replay.data || event.target.closest("input[type=range], select")) return;
    if (event.metaKey || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    pause();
    goTo(replay.at + step);
  });
}
