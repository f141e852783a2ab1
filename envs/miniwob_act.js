// What an agent does in a MiniWoB page: the events of a mouse and a keyboard, and what a browser does by itself then.

const mouse = (type, target, extra) => {
  const pointing = type.startsWith("pointer");
  const init = {
    bubbles: !/enter$|leave$/.test(type), cancelable: true, composed: true, view: window, detail: pointing ? 0 : 1,
    clientX: pointer.x, clientY: pointer.y, screenX: pointer.x, screenY: pointer.y, button: 0, ...extra,
  };
  return target.dispatchEvent(pointing ? new PointerEvent(type, { ...init, pointerId: 1, isPrimary: true, pointerType: "mouse" }) : new MouseEvent(type, init));
};
const chain = (element) => { const up = []; for (; element; element = element.parentElement) up.push(element); return up; };
const move = (x, y, buttons = 0) => {
  [pointer.x, pointer.y] = [x, y];
  const old = pointer.target && pointer.target.isConnected ? pointer.target : null;
  const target = document.elementFromPoint(x, y) || document.documentElement;
  if (target !== old) {
    if (old) {
      for (const kind of ["pointerout", "mouseout"]) mouse(kind, old, { buttons, relatedTarget: target });
      for (const left of chain(old)) if (!left.contains(target)) mouse("mouseleave", left, { buttons, relatedTarget: target });
    }
    for (const kind of ["pointerover", "mouseover"]) mouse(kind, target, { buttons, relatedTarget: old });
    for (const entered of chain(target).reverse()) if (!old || !entered.contains(old)) mouse("mouseenter", entered, { buttons, relatedTarget: old });
  }
  pointer.target = target;
  for (const kind of ["pointermove", "mousemove"]) mouse(kind, target, { buttons });
  return target;
};
const editable = (element) => element && (element.isContentEditable || (element.matches("input,textarea") && !element.disabled && !element.readOnly
  && (element.tagName === "TEXTAREA" || TEXTUAL.has(element.type))));
const caretAtEnd = (element) => {
  if (element.isContentEditable) getSelection().selectAllChildren(element), getSelection().collapseToEnd();
  else try { element.setSelectionRange(element.value.length, element.value.length); } catch (error) { /* a type without a caret */ }
};
const caret = (x, y) => document.caretRangeFromPoint(x, y);
/** Button down: focus moves as a browser moves it. Returns where a selection by dragging would start. */
const down = (target) => {
  mouse("pointerdown", target, { buttons: 1 });
  if (!mouse("mousedown", target, { buttons: 1 })) return null;
  const element = target.closest("input,textarea,select,button,a[href],[tabindex],[contenteditable=true]");
  if (document.activeElement && document.activeElement !== element) document.activeElement.blur();
  if (opened && opened !== element) opened = null;
  if (element && !element.disabled) {
    element.focus({ preventScroll: true });
    if (editable(element)) caretAtEnd(element);
    if (element.matches("input,textarea,select,button") || editable(element)) return null;  // what was selected stays so
  }
  const start = caret(pointer.x, pointer.y);
  if (start) getSelection().collapse(start.startContainer, start.startOffset);
  return start;
};
const up = (target, pressed) => {
  mouse("pointerup", target, {});
  mouse("mouseup", target, {});
  const common = chain(pressed).find((element) => element.contains(target));
  if (!common || !common.isConnected) return;
  if (common.tagName === "SELECT") opened = opened === common ? null : common;
  mouse("click", common, {});
};
const changed = (element) => { for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, { bubbles: true })); };

const press = (x, y) => { const target = move(x, y); down(target); up(pointer.target, target); };
const choose = (option) => {
  const select = option.closest("select");
  select.focus();
  opened = null;
  if (select.multiple || !option.selected) { option.selected = !option.selected; changed(select); }
};
/** A point of the element that a click would hit; its middle if there is none. */
const reach = (element) => {
  element.scrollIntoView({ block: "nearest", inline: "nearest" });
  return spot(element, false);
};
const middle = (element) => box(element).slice(0, 2);
/** Click where the mouse hits the element or, where it cannot, on what lies there; a thing without size is just hit. */
const pressOn = (element) => {
  const point = reach(element), r = element.getBoundingClientRect();
  if (point || (r.width && r.height)) return press(...(point || middle(element)));
  [pointer.x, pointer.y] = middle(element);
  for (const type of ["mousedown", "mouseup", "click"]) mouse(type, element, {});
};

const KEYS = {
  Enter: 13, Tab: 9, Escape: 27, Backspace: 8, Delete: 46, Home: 36, End: 35, PageUp: 33, PageDown: 34,
  ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40, " ": 32,
};
const key = (type, name, control) => {
  const code = KEYS[name] || name.toUpperCase().charCodeAt(0);
  const init = { key: name, code: name.length === 1 && /[a-z]/i.test(name) ? "Key" + name.toUpperCase() : name, bubbles: true, cancelable: true, composed: true, view: window, ctrlKey: !!control };
  const event = new KeyboardEvent(type, init);
  const value = type === "keypress" ? (name === "Enter" ? 13 : name.charCodeAt(0)) : code;
  for (const field of ["keyCode", "which", "charCode"]) Object.defineProperty(event, field, { value: field === "charCode" && type !== "keypress" ? 0 : value });
  return (document.activeElement || document.body).dispatchEvent(event);
};
const insert = (text) => {
  const element = document.activeElement;
  if (!editable(element)) return;
  if (!document.execCommand("insertText", false, text) && !element.isContentEditable) {
    element.setRangeText(text, element.selectionStart, element.selectionEnd, "end");
    element.dispatchEvent(new InputEvent("input", { bubbles: true, data: text, inputType: "insertText" }));
  }
};
const stroke = (name, control) => {
  const go = key("keydown", name, control);
  const printed = go && !control && (name.length === 1 || name === "Enter");
  const allowed = printed ? key("keypress", name, control) : go;
  if (allowed) (control ? shortcut : act)(name);
  key("keyup", name, control);
};
const dated = (element, text) => {
  let p;
  if (element.type === "date") {
    if ((p = /^(\d{1,2})\D(\d{1,2})\D(\d{4})$/.exec(text))) return `${p[3]}-${p[1].padStart(2, "0")}-${p[2].padStart(2, "0")}`;
    return /^\d{4}-\d\d-\d\d$/.test(text) ? text : null;
  }
  if (!(p = /^(\d{1,2}):(\d\d)\s*([ap])?\.?m?\.?$/i.exec(text))) return null;
  const hour = p[3] ? (+p[1] % 12) + (/p/i.test(p[3]) ? 12 : 0) : +p[1];
  return hour < 24 && +p[2] < 60 ? `${String(hour).padStart(2, "0")}:${p[2]}` : null;
};
const write = (text) => {
  const element = document.activeElement;
  if (element && element.tagName === "SELECT") {
    const option = [...element.options].find((o) => clean(o.textContent).toLowerCase().startsWith(text.toLowerCase()));
    if (!option) return "no option of the list starts with this";
    choose(option);
    return "";
  }
  if (element && /^(date|time)$/.test(element.type) && element.tagName === "INPUT") {
    const value = dated(element, text);
    if (value === null) return element.type === "date" ? "a date is typed as MM/DD/YYYY" : "a time is typed as HH:MM AM";
    element.value = value;
    changed(element);
    return "";
  }
  for (const letter of text) letter === "\n" && element.tagName !== "TEXTAREA" ? stroke("Enter") : stroke(letter);
  return "";
};
const tab = () => {
  const all = [...document.querySelectorAll("input,textarea,select,button,a[href],[tabindex],[contenteditable=true]")]
    .filter((element) => element.tabIndex >= 0 && !element.disabled && shown(element) && element.id !== "sync-task-cover");
  const next = all[(all.indexOf(document.activeElement) + 1) % all.length];
  if (next) { next.focus(); if (editable(next) && next.select) next.select(); }
};
/** What a browser does by itself when a key is pressed. */
const act = (name) => {
  const element = document.activeElement || document.body, selection = getSelection();
  const arrow = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[name];
  if (name === "Tab") return tab();
  if (element.tagName === "SELECT") {
    const step = { ArrowDown: 1, ArrowUp: -1 }[name], option = element.options[element.selectedIndex + (step || 0)];
    if (name === "Enter" || name === "Escape" || name === " ") opened = name === "Escape" || opened ? null : element;
    else if (step && option) { option.selected = true; changed(element); }
    return;
  }
  if (/^(checkbox|radio)$/.test(element.type) && name === " ") return element.click();
  if ((element.tagName === "BUTTON" || (element.tagName === "A" && name === "Enter")) && (name === "Enter" || name === " ")) return element.click();
  if (element.type === "number" && (name === "ArrowUp" || name === "ArrowDown")) {
    name === "ArrowUp" ? element.stepUp() : element.stepDown();
    return changed(element);
  }
  if (!editable(element)) {
    const far = { ArrowUp: -40, ArrowDown: 40, PageUp: -150, PageDown: 150, " ": 150 }[name];
    if (far) scroll(element, far);
    return;
  }
  if (name === "Backspace") document.execCommand("delete");
  else if (name === "Delete") document.execCommand("forwardDelete");
  else if (name === "Enter") {
    if (element.tagName === "TEXTAREA" || element.isContentEditable) document.execCommand("insertText", false, "\n");
    else if (element.form) element.form.requestSubmit();
    else element.dispatchEvent(new Event("change", { bubbles: true }));
  } else if (name === "Home" || name === "End") selection.modify("move", name === "Home" ? "backward" : "forward", "lineboundary");
  else if (arrow) selection.modify("move", /Up|Left/.test(name) ? "backward" : "forward", /Left|Right/.test(name) ? "character" : "line");
  else if (name.length === 1) insert(name);
};
const chosenText = () => {
  const element = document.activeElement;
  return element && element.matches("input,textarea") ? element.value.slice(element.selectionStart, element.selectionEnd) : String(getSelection());
};
const shortcut = (name) => {
  const element = document.activeElement;
  if (name === "a") { editable(element) && element.select ? element.select() : getSelection().selectAllChildren(editable(element) ? element : document.body); }
  else if (name === "c" || name === "x") { clipboard = chosenText(); if (name === "x" && editable(element)) document.execCommand("delete"); }
  else if (name === "v") insert(clipboard);
  else if (name === "z") document.execCommand("undo");
};
const scroll = (from, dy) => {
  for (let element = from; element; element = element.parentElement) {
    const style = getComputedStyle(element);
    if (element !== document.documentElement && !(/auto|scroll/.test(style.overflowY) || element.tagName === "TEXTAREA")) continue;
    const before = element.scrollTop;
    element.scrollTop += dy;
    if (element.scrollTop !== before) { element.dispatchEvent(new Event("scroll")); return true; }
  }
  return false;
};
const tallest = () => [...document.querySelectorAll("#area, #area *")].find((e) => e.scrollHeight > e.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(e).overflowY)) || document.body;
const drag = (from, to) => {
  const pressed = move(...from), start = down(pressed);
  for (let part = 1; part <= 8; part++) {
    move(from[0] + ((to[0] - from[0]) * part) / 8, from[1] + ((to[1] - from[1]) * part) / 8, 1);
    pass(FRAME_MS);
  }
  const end = start && caret(...to);
  if (end) getSelection().setBaseAndExtent(start.startContainer, start.startOffset, end.startContainer, end.startOffset);
  up(pointer.target, pressed);
};

const ends = (place) => {
  if (Array.isArray(place)) {
    const [x, y] = place;
    return x >= 0 && y >= 0 && x < innerWidth && y < innerHeight ? place : `(${x}, ${y}) is not on the screen, which is ${innerWidth} wide and ${innerHeight} high`;
  }
  const element = byNumber.get(place);
  return element && element.isConnected && shown(element) ? element : `there is no element ${place}`;
};
/** Do a command: [kind, place, ...]. Returns what was wrong with it. */
const perform = ([kind, place, other]) => {
  const start = place === null || place === undefined ? null : ends(place);
  if (typeof start === "string") return start;
  if (kind === "click") {
    if (start.tagName === "OPTION") choose(start);
    else if (Array.isArray(start)) press(...start);
    else pressOn(start);
  } else if (kind === "type") {
    if (start) {
      const field = Array.isArray(start) ? null : start.tagName === "LABEL" ? start.control : start;
      if (!field || !(editable(field) || field.tagName === "SELECT" || field.matches("[tabindex]"))) return `nothing can be typed into element ${place}`;
      pressOn(field);
      opened = null;
      field.focus();
      if (editable(field) && !/^(date|time)$/.test(field.type)) { shortcut("a"); if (chosenText() || field.isContentEditable) document.execCommand("delete"); }
    }
    return write(other);
  } else if (kind === "press") stroke(other.replace("ctrl+", ""), other.startsWith("ctrl+"));
  else if (kind === "scroll") {
    const from = !start ? (pointer.target && pointer.target.isConnected && pointer.target !== document.documentElement ? pointer.target : tallest()) : Array.isArray(start) ? document.elementFromPoint(...start) : start;
    const dy = other === "up" ? -100 : 100;
    from.dispatchEvent(new WheelEvent("wheel", { bubbles: true, cancelable: true, deltaY: dy }));
    if (!scroll(from, dy) && !(!start && scroll(tallest(), dy))) return "nothing scrolls any further there";
  } else if (kind === "drag") {
    const stop = ends(other);
    if (typeof stop === "string") return stop;
    drag(Array.isArray(start) ? start : reach(start) || middle(start), Array.isArray(stop) ? stop : middle(stop));
  }
  return "";
};
