// The map: cells of a grid, each an image. Of any part of it the level is drawn whose pictures can be made out.
const map = by("map"), pen = map.getContext("2d");
const LEAST = 22, CLOSEST = 160, TILES = 240, NAME = 45;  // pixels of a cell; tiles kept; pixels of width that a name wants
const view = {x: A.cells[0] / 2, y: A.cells[1] / 2, scale: 0};  // its middle in cells, pixels per cell
let chosen = -1, looked = -1, outline = [], planned = false;
const fitting = () => Math.min(CLOSEST, .96 * Math.min(map.clientWidth / A.cells[0], map.clientHeight / A.cells[1]));
const across = x => map.clientWidth / 2 + (x - view.x) * view.scale, down = y => map.clientHeight / 2 + (y - view.y) * view.scale;
const cellAt = (x, y) => [view.x + (x - map.clientWidth / 2) / view.scale, view.y + (y - map.clientHeight / 2) / view.scale];

// Of each level: the images of each tile, and which image stands for each.
const levels = [];
function level(z) {
  if (levels[z]) return levels[z];
  const shift = A.levels - 1 - z, tiles = new Map(), at = new Map(), stands = new Uint32Array(N);
  for (let i = 0; i < N; i++) {
    if (TOP[i] > z) continue;
    const x = X[i] >> shift, y = Y[i] >> shift, tile = Math.floor(x / A.tile) * 65536 + Math.floor(y / A.tile);
    if (!tiles.has(tile)) tiles.set(tile, []);
    tiles.get(tile).push(i);
    at.set(x * 65536 + y, i);
  }
  for (let i = 0; i < N; i++) stands[i] = at.get((X[i] >> shift) * 65536 + (Y[i] >> shift));
  return levels[z] = {z, shift, tiles, at, stands, factor: 2 ** shift, paint: null};
}
function current() {
  let z = A.levels - 1;
  while (z > 0 && view.scale * 2 ** (A.levels - 1 - z) < Math.min(LEAST, map.clientWidth / 24)) z--;
  return level(z);
}

// Tiles, without what is empty in them, the newest last.
const tiles = new Map();
function tile(at, x, y) {
  const name = `${at.z}/${x}-${y}`, there = tiles.get(name);
  if (there) { tiles.delete(name); tiles.set(name, there); return there.canvas; }
  const kept = {canvas: null}, image = new Image();
  tiles.set(name, kept);
  if (tiles.size > TILES) tiles.delete(tiles.keys().next().value);
  image.onload = () => {
    const canvas = element("canvas", "", {width: A.tile * A.side, height: A.tile * A.side}), brush = canvas.getContext("2d");
    for (const i of at.tiles.get(x * 65536 + y)) {
      const left = ((X[i] >> at.shift) % A.tile) * A.side, top = ((Y[i] >> at.shift) % A.tile) * A.side;
      brush.drawImage(image, left + 1, top + 1, A.side - 2, A.side - 2, left + 1, top + 1, A.side - 2, A.side - 2);
    }
    kept.canvas = canvas;
    redraw();
  };
  image.src = `tiles/${name}.jpg`;
  return null;
}

function redraw() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => { planned = false; draw(); });
}
function draw() {
  const dense = devicePixelRatio || 1, width = map.clientWidth, height = map.clientHeight;
  if (!view.scale) view.scale = fitting();
  if (map.width !== Math.round(width * dense) || map.height !== Math.round(height * dense)) {
    map.width = Math.round(width * dense);
    map.height = Math.round(height * dense);
  }
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.clearRect(0, 0, width, height);
  const at = current(), span = A.tile * at.factor, [left, top] = cellAt(0, 0), [right, bottom] = cellAt(width, height);
  const paint = painted(at), empty = colour("--rule");
  for (let x = Math.max(0, Math.floor(left / span)); x <= right / span && x * span < A.cells[0]; x++) {
    for (let y = Math.max(0, Math.floor(top / span)); y <= bottom / span && y * span < A.cells[1]; y++) {
      const images = at.tiles.get(x * 65536 + y);
      if (!images) continue;
      const picture = tile(at, x, y), size = span * view.scale;
      if (picture) pen.drawImage(picture, across(x * span), down(y * span), size, size);
      if (!picture || paint) drawCells(at, images, picture ? null : empty, paint);
    }
  }
  drawNames();
  if (chosen >= 0) ring(A.disc[3 * chosen] + .5, A.disc[3 * chosen + 1] + .5, A.disc[3 * chosen + 2] + .5);
  if (looked >= 0) {
    const i = at.stands[looked], side = at.factor * view.scale;
    frame((X[i] >> at.shift) * at.factor, (Y[i] >> at.shift) * at.factor, side);
  }
  if (document.activeElement === map) drawCross(width / 2, height / 2);
  drawOutline();
}
function drawCells(at, images, empty, paint) {
  const side = at.factor * view.scale, gap = side / 64;
  for (const i of images) {
    const x = across((X[i] >> at.shift) * at.factor), y = down((Y[i] >> at.shift) * at.factor);
    const fill = empty ?? paint.colours[i];
    if (!fill) continue;
    pen.globalAlpha = empty ? 1 : paint.strength[i];
    pen.fillStyle = fill;
    pen.fillRect(x + gap, y + gap, side - 2 * gap, side - 2 * gap);
  }
  pen.globalAlpha = 1;
}
function stroked(path) {  // to be seen on any picture
  for (const [width, name] of [[5, "--paper"], [2.5, "--ink"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour(name);
    pen.beginPath();
    path();
    pen.stroke();
  }
}
const ring = (x, y, radius) => stroked(() => pen.arc(across(x), down(y), radius * view.scale, 0, 7));
const frame = (x, y, side) => stroked(() => pen.rect(across(x), down(y), side, side));
const drawCross = (x, y) => stroked(() => { pen.moveTo(x - 9, y); pen.lineTo(x + 9, y); pen.moveTo(x, y - 9); pen.lineTo(x, y + 9); });
const drawOutline = () => outline.length > 1 && stroked(() => outline.forEach(([x, y], j) => j ? pen.lineTo(across(x), down(y)) : pen.moveTo(across(x), down(y))));
function drawNames() {
  const taken = [], paper = colour("--paper"), ink = colour("--ink");
  pen.font = "600 12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (let c = 0; c < k && taken.length < map.clientWidth / NAME; c++) {
    const x = across(A.disc[3 * c] + .5), y = down(A.disc[3 * c + 1] + .5), text = titleOf(c);
    if (!text || x < 0 || y < 0 || x > map.clientWidth || y > map.clientHeight) continue;
    const shown = text.length > 30 ? text.slice(0, 29) + "…" : text, half = pen.measureText(shown).width / 2 + 6;
    if (x - half < 0 || x + half > map.clientWidth) continue;
    if (taken.some(([left, right, middle]) => x - half < right + 4 && x + half > left - 4 && Math.abs(y - middle) < 26)) continue;
    taken.push([x - half, x + half, y]);
    pen.globalAlpha = .86;
    pen.fillStyle = paper;
    pen.beginPath();
    pen.roundRect(x - half, y - 10, 2 * half, 20, 6);
    pen.fill();
    pen.globalAlpha = 1;
    pen.fillStyle = ink;
    pen.fillText(shown, x, y);
  }
}

// Moving
function zoom(factor, x = map.clientWidth / 2, y = map.clientHeight / 2) {
  const [atX, atY] = cellAt(x, y);
  view.scale = Math.min(CLOSEST, Math.max(Math.min(fitting(), CLOSEST), view.scale * factor));
  view.x = atX - (x - map.clientWidth / 2) / view.scale;
  view.y = atY - (y - map.clientHeight / 2) / view.scale;
  move(0, 0);
}
function move(x, y) {  // in pixels; the middle stays on the map
  view.x = Math.min(A.cells[0], Math.max(0, view.x + x / view.scale));
  view.y = Math.min(A.cells[1], Math.max(0, view.y + y / view.scale));
  redraw();
}
function showAll() { Object.assign(view, {x: A.cells[0] / 2, y: A.cells[1] / 2, scale: fitting()}); redraw(); }
function goTo(x, y, cells) {  // so many cells wide
  Object.assign(view, {x, y, scale: Math.max(fitting(), Math.min(CLOSEST / 2, map.clientWidth / cells, map.clientHeight / cells))});
  redraw();
}
by("closer").onclick = () => zoom(1.6);
by("farther").onclick = () => zoom(1 / 1.6);
by("whole").onclick = showAll;
by("full").onclick = () => document.fullscreenElement ? document.exitFullscreen() : by("stage").requestFullscreen();
document.addEventListener("fullscreenchange", () => { by("full").textContent = document.fullscreenElement ? "Leave full screen" : "Full screen"; showAll(); });

// A wheel without Ctrl and one finger scroll the page, which the map must not hold fast.
map.addEventListener("wheel", event => {
  if (!event.ctrlKey && !event.metaKey && !document.fullscreenElement) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.offsetX, event.offsetY);
}, {passive: false});
const held = new Map(), mean = values => values.reduce((a, b) => a + b, 0) / values.length;
let moved = false;
const middle = () => ({x: mean([...held.values()].map(at => at.x)), y: mean([...held.values()].map(at => at.y))});
const apart = () => { const [a, b] = [...held.values()]; return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0; };
const onMap = at => { const box = map.getBoundingClientRect(); return [at.x - box.left, at.y - box.top]; };
map.onpointerdown = event => {
  if (!held.size) moved = false;
  held.set(event.pointerId, {x: event.clientX, y: event.clientY});
  map.setPointerCapture(event.pointerId);
  if (drawing) outline = [cellAt(event.offsetX, event.offsetY)];
};
map.onpointermove = event => {
  const at = held.get(event.pointerId);
  if (!at || (!moved && Math.hypot(event.clientX - at.x, event.clientY - at.y) < 4)) return;
  moved = true;
  const before = middle(), width = apart();
  held.set(event.pointerId, {x: event.clientX, y: event.clientY});
  if (drawing) { outline.push(cellAt(event.offsetX, event.offsetY)); redraw(); return; }
  if (event.pointerType === "touch" && held.size < 2 && !document.fullscreenElement) return;
  move(before.x - middle().x, before.y - middle().y);
  if (width) zoom(apart() / width, ...onMap(middle()));
};
map.onpointercancel = event => { held.delete(event.pointerId); outline = []; redraw(); };
map.onpointerup = event => {
  if (!held.delete(event.pointerId) || held.size) return;
  if (drawing) enclosed(outline);
  else if (!moved) lookAt(...cellAt(event.offsetX, event.offsetY));
};
map.ondblclick = event => zoom(2, event.offsetX, event.offsetY);
function lookAt(x, y) {
  const at = current(), i = at.at.get(Math.floor(x / at.factor) * 65536 + Math.floor(y / at.factor));
  if (i !== undefined) choose(HOME[i], i);
}
const STEP = 90, KEYS = {
  ArrowLeft: () => move(-STEP, 0), ArrowRight: () => move(STEP, 0), ArrowUp: () => move(0, -STEP), ArrowDown: () => move(0, STEP),
  "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), "0": showAll, Home: showAll,
  Enter: () => lookAt(view.x, view.y), Escape: () => select(null),
};
map.onkeydown = event => {
  const act = event.ctrlKey || event.metaKey || event.altKey ? null : KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
};
map.onfocus = map.onblur = redraw;
