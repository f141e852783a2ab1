// A screenshot, and on it what was done there: a click as a ring, a drag as an arrow, a typed text as a label.

/** The image of a hash with an action on it; a note if the page does not hold it. */
function drawScreen(hash, drawn) {
  const data = $(`p${hash}`);
  if (!data) return el("p", { className: "note" }, `The screenshot is not in this page: images/${hash}.png`);
  const image = el("img", { alt: "screenshot", src: JSON.parse(data.textContent).url });
  const frame = el("figure", { className: "screen" }, image);
  image.addEventListener("load", () => {
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const scale = Math.min(3, Math.floor(480 / Math.max(width, height)));
    image.width = Math.min(width * Math.max(1, scale), 720);
    if (drawn) frame.append(drawAction(drawn, width, height, width / image.width));
  });
  return frame;
}

/** An action in the pixels of a screenshot; `unit` of them are one pixel of the page. */
function drawAction({ point, to, label }, width, height, unit) {
  const layer = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const size = 11 * unit;
  if (point && to) layer.append(...arrow(point, to, size));
  else if (point) layer.append(...ring(point, size));
  if (label !== null) {
    const [x, y] = point ?? [0, height];
    const text = svg("text", { x: x + 0.6 * size, y: y - 0.8 * size, "font-size": 13 * unit, "stroke-width": 3 * unit });
    text.append(label.length > 40 ? `${label.slice(0, 40)}…` : label);
    layer.append(text);
  }
  return layer;
}

/** A shape with a light rim, so that it is seen on any ground. */
function rimmed(tag, attributes, size) {
  return [svg(tag, { ...attributes, class: "rim", "stroke-width": size * 0.6 }), svg(tag, { ...attributes, "stroke-width": size * 0.3 })];
}

function ring([x, y], size) {
  return [...rimmed("circle", { cx: x, cy: y, r: size }, size), svg("circle", { cx: x, cy: y, r: size / 4, "stroke-width": 0 })];
}

function arrow([x, y], [toX, toY], size) {
  const angle = Math.atan2(toY - y, toX - x);
  const wing = (turn) => `${toX - size * Math.cos(angle + turn)},${toY - size * Math.sin(angle + turn)}`;
  const points = `${x},${y} ${toX},${toY} ${wing(0.5)} ${toX},${toY} ${wing(-0.5)}`;
  return [...ring([x, y], size / 2), ...rimmed("polyline", { points }, size)];
}
