// What an agent sees of a MiniWoB page: its elements, numbered in the order in which they are first seen.

const HIDDEN = new Set(["reward-display", "sync-task-cover", "click-canvas", "query"]);
const CONTROLS = "input,button,select,textarea,a,[contenteditable=true],.alink,[role=button],[role=tab],[role=menuitem]";
const TEXTUAL = new Set(["text", "password", "search", "email", "tel", "url", "number", "date", "time", "input"]);
const SHAPES = new Set(["rect", "circle", "ellipse", "polygon", "path", "line", "polyline", "image", "img", "canvas"]);
const INLINE = new Set(["B", "I", "EM", "STRONG", "SPAN", "BR", "LABEL", "FONT", "U", "SMALL", "MARK", "P", "tspan"]);
const COLOURS = {
  "0,0,0": "black", "255,255,255": "white", "255,0,0": "red", "0,255,0": "lime", "0,128,0": "green",
  "0,0,255": "blue", "255,255,0": "yellow", "0,255,255": "aqua", "255,0,255": "magenta", "128,128,128": "grey",
  "255,165,0": "orange", "128,0,128": "purple", "255,192,203": "pink", "165,42,42": "brown", "128,0,0": "maroon",
  "0,0,128": "navy", "128,128,0": "olive", "0,128,128": "teal", "192,192,192": "silver", "238,130,238": "violet",
};
let numbers = new WeakMap(), byNumber = new Map(), pointer = { x: 0, y: 0, target: null }, clipboard = "", opened = null, pointing = false;

const clean = (text) => text.replace(/\s+/g, " ").trim();
const number = (element) => {
  if (!numbers.has(element)) { numbers.set(element, byNumber.size + 1); byNumber.set(byNumber.size + 1, element); }
  return numbers.get(element);
};
const colour = (value) => {
  const parts = /^rgba?\((\d+), (\d+), (\d+)(?:, ([\d.]+))?\)$/.exec(value || "");
  if (!parts || parts[4] === "0") return "";
  const key = parts.slice(1, 4).join(",");
  return COLOURS[key] || "#" + parts.slice(1, 4).map((n) => (+n).toString(16).padStart(2, "0")).join("");
};
const shown = (element) => {
  if (element.tagName === "OPTION") return true;
  if (!element.getClientRects().length) return false;
  const style = getComputedStyle(element);
  return style.visibility !== "hidden" && style.opacity !== "0";
};
const labelled = (element) => {
  const label = element.labels && element.labels[0];
  return clean(element.getAttribute("aria-label") || element.placeholder || (label && label.textContent) || "");
};
const kindOf = (element) => {
  const tag = element.tagName.toLowerCase(), type = element.type;
  if (tag === "input") return TEXTUAL.has(type) ? (type === "text" ? "textbox" : type) : (/submit|button|reset/.test(type) ? "button" : type);
  if (element.isContentEditable) return "textbox";
  if (tag === "a" || element.classList.contains("alink")) return "link";
  if (tag === "polygon") return element.points.numberOfItems === 3 ? "triangle" : "polygon" + element.points.numberOfItems;
  if (tag === "text") return "letter";
  return { textarea: "textarea", select: "select", button: "button", option: "option", img: "image" }[tag]
    || (SHAPES.has(tag) ? tag : element.getAttribute("role") || (clickable(element) ? "item" : "text"));
};
const hand = (element) => !!element && getComputedStyle(element).cursor === "pointer";
const clickable = (element) => element.matches(CONTROLS) || listening.has(element) || !!element.onclick
  || (hand(element) && !hand(element.parentElement));
const box = (element) => {
  const r = element.getBoundingClientRect();
  return [r.left + r.width / 2, r.top + r.height / 2, r.width, r.height].map(Math.round);
};
const flags = (element) => {
  const found = [];
  if (element.type === "checkbox" || element.type === "radio" ? element.checked : element.tagName === "OPTION" && element.selected) found.push("checked");
  if (element.disabled) found.push("disabled");
  if (element.matches('[aria-selected="true"],[aria-expanded="true"],.ui-state-active,.selected,.active')) found.push("active");
  if (document.activeElement === element) found.push("focused");
  return found;
};
const SPOTS = [[0.5, 0.5], [0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75], [0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9], [0.02, 0.5], [0.98, 0.5], [0.5, 0.02], [0.5, 0.98]];
/** A point of the element that a click would hit, in whole pixels if wanted, null if there is none. */
const spot = (element, whole) => {
  const r = element.getClientRects()[0] || element.getBoundingClientRect();
  const mine = (x, y) => { const hit = document.elementFromPoint(x, y); return hit && (element.contains(hit) || (hit.contains(element) && hit.tagName === "LABEL")); };
  for (const [u, v] of SPOTS) {
    const exact = [r.left + u * r.width, r.top + v * r.height], point = whole ? exact.map(Math.round) : exact;
    if (mine(...point)) return point;
  }
  return null;
};
/** Where one would point at the element; far above or below if it lies there in a box that scrolls. */
const aim = (element) => {
  const found = spot(element, true), [x, y] = box(element);
  for (let outer = element.parentElement; !found && outer; outer = outer.parentElement) {
    if (outer.scrollHeight <= outer.clientHeight || !/auto|scroll/.test(getComputedStyle(outer).overflowY)) continue;
    const r = outer.getBoundingClientRect();
    if (y < r.top || y >= r.bottom) return [x, y < r.top ? -1e4 : 1e4];
  }
  return found || [x, y];
};
/** [number, kind, text, value, flags, box, id, class, colour, aim] */
const record = (element, text) => {
  const style = getComputedStyle(element), shape = element instanceof SVGElement;
  const paint = shape ? colour(style.fill) || colour(style.stroke) : colour(style.backgroundColor);
  const value = element.tagName === "SELECT" ? clean(element.selectedOptions[0]?.textContent || "")
    : /^(checkbox|radio|button|submit)$/.test(element.type || "") ? null
    : element.matches("input,textarea") ? element.value : null;
  const name = text || (element.type === "submit" || element.type === "button" ? element.value || clean(element.textContent) : "");
  const classes = typeof element.className === "string" ? element.className : element.getAttribute("class") || "";
  return [number(element), kindOf(element), name, value, flags(element), box(element), element.id, classes, paint, pointing ? aim(element) : null];
};
const plain = (element) => [...element.children].every((c) => INLINE.has(c.tagName) && !clickable(c) && plain(c));

/** The elements of the page in reading order. */
const look = () => {
  const found = [];
  const walk = (element) => {
    if (HIDDEN.has(element.id) || /^(SCRIPT|STYLE|HEAD|DEFS)$/i.test(element.tagName) || !shown(element)) return;
    if (element.matches("input,textarea")) { found.push(record(element, labelled(element))); return; }
    if (element.tagName === "SELECT") {
      found.push(record(element, labelled(element)));
      if (opened === element || element.multiple) for (const option of element.options) found.push(record(option, clean(option.textContent)));
      return;
    }
    if (element.tagName === "LABEL" && element.control && element.control.matches("[type=checkbox],[type=radio]")) {
      if (element.contains(element.control)) found.push(record(element.control, labelled(element.control)));
      return;
    }
    const tag = element.tagName.toLowerCase(), text = getComputedStyle(element).fontSize === "0px" ? "" : clean(element.textContent);
    if (tag === "text" || element.matches("button,a,[contenteditable=true],.alink") || (text && plain(element))) {
      found.push(record(element, text || element.title || ""));
      if (tag !== "a") return;
      for (const child of element.children) if (!plain(child)) walk(child);
      return;
    }
    const marked = element.matches(".ui-slider-handle,.ui-resizable-handle") || colour(getComputedStyle(element).backgroundColor);
    if (SHAPES.has(tag) || (!text && !element.children.length && (clickable(element) || marked))
      || (!text && clickable(element) && element !== document.body && tag !== "svg" && element.id !== "area" && element.id !== "wrap")) {
      found.push(record(element, element.alt || element.title || ""));
      if (SHAPES.has(tag)) return;
    }
    for (const child of element.childNodes) {
      if (child.nodeType === Node.TEXT_NODE && text && clean(child.data)) found.push([0, "text", clean(child.data), null, [], [0, 0, 0, 0], "", "", "", null]);
      else if (child.nodeType === Node.ELEMENT_NODE) walk(child);
    }
  };
  walk(document.body);
  return found;
};
