"use strict";
const A = ATLAS, k = A.cluster.length, by = id => document.getElementById(id);
const numbers = n => n.toLocaleString("en"), percent = x => Math.round(100 * x) + "%";
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name);
const element = (tag, text, attributes) => Object.assign(document.createElement(tag), {textContent: text ?? ""}, attributes);
const origin = A.named_by === "head" ? "named by the run's head" : "by k-means of their features";
const whole = A.named_by === "head" ? " (a whole one; crops in training may be theirs)" : "";
by("about").textContent = `${A.data}: ${numbers(A.images)} images; ${numbers(A.clusters)} clusters ${origin}` +
  (A.empty ? `, ${numbers(A.empty)} of them without an image${whole}` : "") +
  (A.sampled < A.images ? `; all but the sizes is of a sample of ${numbers(A.sampled)} images` : "");

function picture(sheet, across, down, label) {
  const box = element("span", "", {className: "picture", title: label});
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  box.style.cssText = `width:${A.side}px;height:${A.side}px;background-image:url("${sheet}");` +
    `background-position:${-across * A.side}px ${-down * A.side}px`;
  return box;
}
function pictures(i, most) {
  const row = element("div", "", {className: "pictures"});
  const sheet = `sheet-${String(Math.floor(i / A.sheet)).padStart(3, "0")}.jpg`;
  A.nearest[i].slice(0, most).forEach((key, j) => row.append(picture(sheet, j, i % A.sheet, "image " + key)));
  return row;
}
const told = i => `${numbers(A.size[i])} images, ${percent(A.repeated[i])} repeated` +
  (A.group[i] ? `, ${percent(A.share[i])} of ${A.by} ${A.group[i]}` : "");

// the map
const map = by("map"), pen = map.getContext("2d");
let view = {x: 0, y: 0, zoom: 1}, chosen = -1;
const largest = Math.max(...A.size.slice(0, 1), 1);
const scale = () => Math.min(map.clientWidth, map.clientHeight) / 2.35 * view.zoom;
const across = i => map.clientWidth / 2 + (A.x[i] - view.x) * scale();
const down = i => map.clientHeight / 2 - (A.y[i] - view.y) * scale();
const radius = i => Math.max(1.5, 13 * Math.sqrt(A.size[i] / largest)) * Math.min(3, Math.sqrt(view.zoom)) / Math.max(1, Math.log10(k) - 1.5);
function draw() {
  const dense = devicePixelRatio || 1;
  map.width = map.clientWidth * dense;
  map.height = map.clientHeight * dense;
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  for (let i = 0; i < k; i++) {
    pen.globalAlpha = .65;
    pen.fillStyle = colour(A.repeated[i] > .3 ? "--mark" : "--s0");
    pen.beginPath();
    pen.arc(across(i), down(i), radius(i), 0, 7);
    pen.fill();
  }
  if (chosen < 0) return;
  pen.globalAlpha = 1;
  pen.lineWidth = 3;
  pen.strokeStyle = colour("--ink");
  pen.beginPath();
  pen.arc(across(chosen), down(chosen), radius(chosen) + 4, 0, 7);
  pen.stroke();
}
function zoom(factor) { view.zoom = Math.min(200, Math.max(1, view.zoom * factor)); draw(); }
by("closer").onclick = () => zoom(1.6);
by("farther").onclick = () => zoom(1 / 1.6);
by("whole").onclick = () => { view = {x: 0, y: 0, zoom: 1}; draw(); };
// A wheel without Ctrl and one finger scroll the page, which the map must not hold fast.
map.addEventListener("wheel", event => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
}, {passive: false});
const held = new Map();
let moved = false;
const middle = () => { const all = [...held.values()]; return {x: mean(all.map(at => at.x)), y: mean(all.map(at => at.y))}; };
const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
const apart = () => { const [a, b] = [...held.values()]; return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0; };
map.onpointerdown = event => {
  if (!held.size) moved = false;
  held.set(event.pointerId, {x: event.clientX, y: event.clientY});
  map.setPointerCapture(event.pointerId);
};
map.onpointermove = event => {
  const at = held.get(event.pointerId);
  if (!at || (!moved && Math.hypot(event.clientX - at.x, event.clientY - at.y) < 4)) return;
  moved = true;
  const before = middle(), width = apart();
  held.set(event.pointerId, {x: event.clientX, y: event.clientY});
  if (event.pointerType === "touch" && held.size < 2) return;
  view.x -= (middle().x - before.x) / scale();
  view.y += (middle().y - before.y) / scale();
  zoom(width ? apart() / width : 1);
};
map.onpointercancel = event => held.delete(event.pointerId);
map.onpointerup = event => {
  const clicked = held.delete(event.pointerId) && !held.size && !moved;
  if (!clicked) return;
  let best = -1, least = 20;
  for (let i = 0; i < k; i++) {
    const distance = Math.hypot(across(i) - event.offsetX, down(i) - event.offsetY) - radius(i);
    if (distance < least) { best = i; least = distance; }
  }
  if (best >= 0) choose(best);
};

// one cluster
function choose(i) {
  chosen = i;
  const at = by("detail"), title = element("h2", `Cluster ${A.cluster[i]}`);
  at.replaceChildren(title, element("p", `${told(i)}; mean cosine to its centre ${A.cohesion[i]}`), pictures(i, A.show));
  by("near").replaceChildren(...A.near[i].map(j => { const card = element("div", "", {className: "card"}); card.append(row(j)); return card; }));
  at.append(element("h3", "Leave it out of training"));
  const list = A.keys ? `${location.protocol === "file:" ? decodeURI(new URL(".", location.href).pathname) : ""}keys/${A.cluster[i]}.csv` : "keys.csv";
  if (A.keys) at.append(element("p", "")), at.lastChild.append(element("a", "The keys of its images", {href: `keys/${A.cluster[i]}.csv`, download: `cluster-${A.cluster[i]}.csv`}));
  const make = A.keys ? "" : `seer-pipe atlas-keys ${quoted(A.names)} ${A.cluster[i]} --out keys.csv\n`;
  const command = element("pre", `${make}seer-ingest exclude ${quoted(A.data)} --keys ${quoted(list)}`, {id: "command"});
  at.append(command, element("button", "Copy the command", {id: "copy", type: "button", onclick: () => copy(command)}));
  draw();
}
const quoted = word => /^[\w@%+=:,./~-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
async function copy(command) {
  try { await navigator.clipboard.writeText(command.textContent); }
  catch { getSelection().selectAllChildren(command); document.execCommand("copy"); }  // where the page may not ask
  by("copy").textContent = "Copied";
}
function row(i) {
  const button = element("button", `Cluster ${A.cluster[i]}`, {type: "button", onclick: () => { choose(i); by("detail").scrollIntoView({block: "nearest"}); }});
  const box = element("div", "");
  box.append(button, element("p", told(i), {className: "faint"}), pictures(i, 4));
  return box;
}

// the list
let matching = [], listed = 0;
function more() {
  matching.slice(listed, listed + 24).forEach(i => { const item = element("li", "", {className: "card"}); item.append(row(i)); by("list").append(item); });
  listed = Math.min(matching.length, listed + 24);
  by("more").hidden = listed === matching.length;
}
function search() {
  const wanted = by("find").value.trim().toLowerCase(), order = by("order").value;
  matching = [...Array(k).keys()].filter(i => !wanted || String(A.cluster[i]) === wanted ||
    A.group[i].toLowerCase().includes(wanted) || A.nearest[i].some(key => key.toLowerCase().includes(wanted)));
  matching.sort((a, b) => order === "cohesion" ? A.cohesion[a] - A.cohesion[b] : A[order][b] - A[order][a]);
  by("found").textContent = `${numbers(matching.length)} of ${numbers(k)}`;
  by("list").replaceChildren();
  listed = 0;
  more();
}
by("more").onclick = more;
by("find").oninput = search;
by("order").onchange = search;
document.querySelector("form").onsubmit = event => event.preventDefault();
A.outliers.forEach(([key, cluster], j) => by("outliers").append(picture("outliers.jpg", j % 8, Math.floor(j / 8), `image ${key} of cluster ${cluster}`)));
A.asked.forEach(([file, nearest, homes], i) => {
  const box = element("div", "", {className: "card"}), images = element("div", "", {className: "pictures"});
  nearest.forEach(([key, cluster], j) => images.append(picture("asked.jpg", j + 1, i, `image ${key} of cluster ${cluster}`)));
  box.append(element("h3", file), picture("asked.jpg", 0, i, file), images, ...homes.map(row));
  by("asked").append(box);
  by("asked").hidden = false;
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (k) choose(0);
search();
