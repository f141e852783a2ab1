// The clock of a MiniWoB page: it moves with the agent's steps alone. Runs before the page's own scripts.

const FRAME_MS = 16, START = Date.UTC(2020, 0, 1, 12), TICKS = 10000;
const RealDate = Date;
let now = 0, timers = new Map(), lastTimer = 0;
const later = (callback, delay, args, period) => {
  timers.set(++lastTimer, { due: now + Math.max(1, Number(delay) || 0), callback, args, period });
  return lastTimer;
};
window.setTimeout = (callback, delay, ...args) => later(callback, delay, args, 0);
window.setInterval = (callback, delay, ...args) => later(callback, delay, args, Math.max(1, Number(delay) || 0));
window.requestAnimationFrame = (callback) => later(() => callback(now), FRAME_MS, [], 0);
window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = (id) => { timers.delete(id); };
window.Date = class Date extends RealDate {
  constructor(...args) { args.length ? super(...args) : super(START + now); }
  static now() { return START + now; }
};
performance.now = () => now;

/** Let time pass: run what is due, in order. */
const pass = (ms) => {
  const end = now + ms;
  for (let tick = 0; tick < TICKS; tick++) {
    let next = null, id = 0;
    for (const [key, timer] of timers) if (timer.due <= end && (!next || timer.due < next.due)) [id, next] = [key, timer];
    if (!next) break;
    now = Math.max(now, next.due);
    if (next.period) next.due = now + next.period; else timers.delete(id);
    try {
      typeof next.callback === "function" ? next.callback(...next.args) : (0, eval)(String(next.callback));
    } catch (error) { /* the page's own mistake; in a browser it would go to the console */ }
  }
  now = end;
};

// Before a page is seeded its random numbers are always the same, too.
let noise = 1;
Math.random = () => (noise = (noise * 16807) % 2147483647) / 2147483647;
window.alert = window.print = () => {};
window.confirm = () => true;
window.prompt = () => null;
const stay = (event) => {
  if (event.type === "submit" || event.target.closest?.("a[href]")) event.preventDefault();  // never leave the page
};
window.addEventListener("submit", stay);
window.addEventListener("click", stay);

const listening = new WeakSet(), CLICKS = ["click", "mousedown", "mouseup", "mouseover", "mouseenter"];
const listen = EventTarget.prototype.addEventListener;
EventTarget.prototype.addEventListener = function (type, ...rest) {
  if (CLICKS.includes(type) && this instanceof Element) listening.add(this);
  return listen.call(this, type, ...rest);
};
