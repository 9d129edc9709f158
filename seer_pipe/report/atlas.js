"use strict";
// What the page knows: clusters from data.js, points from points.js, and what images are called, fetched when asked for.
const A = ATLAS, k = A.cluster.length, by = id => document.getElementById(id);
const numbers = n => n.toLocaleString("en"), percent = x => Math.round(100 * x) + "%";
const plural = (n, what) => `${numbers(n)} ${what}${n === 1 ? "" : "s"}`;
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const element = (tag, text, attributes) => Object.assign(document.createElement(tag), {textContent: text ?? ""}, attributes);
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const X = new Uint16Array(bytes(A.points.x).buffer), Y = new Uint16Array(bytes(A.points.y).buffer), TOP = bytes(A.points.top);
const N = X.length, HOME = new Uint32Array(N);
for (let c = 0; c < k; c++) HOME.fill(c, A.start[c], A.start[c + 1]);
const titleOf = c => A.title[c] || (A.share[c] >= .5 ? A.group[c] : "");
const sizes = c => `${plural(A.size[c], "image")}, ${percent(A.repeated[c])} repeated` +
  (A.group[c] ? `, ${percent(A.share[c])} of ${A.by} ${A.group[c]}` : "") + (A.parts ? `; ${splitOf(A.parts.slice(3 * c, 3 * c + 3))}` : "");
// Of two sets: images that only the first has, both, only the second.
const splitOf = ([first, both, second]) =>
  `${numbers(both)} in both, ${numbers(first)} only in ${A.sets[0].name}, ${numbers(second)} only in ${A.sets[1].name}`;

const origin = A.named_by === "head" ? "named by the run's head" : "by k-means of their features";
const whole = A.named_by === "head" ? " (a whole one; crops in training may be theirs)" : "";
by("about").textContent = `${A.sets.map(set => set.data).join(" beside ")}: ${numbers(A.images)} images${A.parts ? ` (${splitOf([0, 1, 2].map(state => A.parts.filter((_, at) => at % 3 === state).reduce((a, b) => a + b, 0)))})` : ""}; ${numbers(A.clusters)} clusters ${origin}` +
  (A.empty ? `, ${numbers(A.empty)} of them without an image${whole}` : "") +
  (A.sampled < A.images ? `; all but the sizes is of a sample of ${numbers(A.sampled)} images` : "") +
  (N < A.images ? `; the map shows ${numbers(N)}` : "");
by("by").textContent = A.by;

// Scripts instead of data, which a page that is a file may not fetch.
const chunks = new Map();
A.arrived = (number, columns) => chunks.get(number).resolve(columns);
function chunk(number) {
  if (!chunks.has(number)) {
    const one = {};
    one.promise = new Promise((resolve, reject) => Object.assign(one, {resolve, reject}));
    chunks.set(number, one);
    const src = `images/${String(number).padStart(3, "0")}.js`;
    document.head.append(element("script", "", {src, onerror: () => one.reject(new Error(src + " is missing"))}));
  }
  return chunks.get(number).promise;
}
const allChunks = () => Promise.all([...Array(Math.ceil(N / A.chunk)).keys()].map(chunk));
async function known(i) {
  const columns = await chunk(Math.floor(i / A.chunk)), at = i % A.chunk;
  const places = [[columns.key[at], columns.shard[at]], ...(columns.copy?.[at] ? [columns.copy[at]] : [])].map(([key, shard]) =>
    ({key, shard: A.shards[shard][1], set: A.shards[shard][0]}));
  return {key: columns.key[at], places, group: columns.group[at], text: columns.text[at]};
}

// A picture is a cell of a tile of the finest level.
const tileOf = i => `tiles/${A.levels - 1}/${Math.floor(X[i] / A.tile)}-${Math.floor(Y[i] / A.tile)}.jpg`;
function picture(i, onclick, side = A.side) {
  const box = element(onclick ? "button" : "span", "", onclick ? {type: "button", className: "picture", onclick} : {className: "picture"});
  if (!onclick) box.setAttribute("role", "img");
  const label = text => { box.title = text; box.setAttribute("aria-label", text); };
  label(`image of cluster ${A.cluster[HOME[i]]}`);
  known(i).then(one => label(`image ${one.key} of cluster ${A.cluster[HOME[i]]}${one.text ? ": " + one.text : ""}`));
  box.style.cssText = `width:${side}px;height:${side}px;background-image:url("${tileOf(i)}");background-size:${side * A.tile}px;` +
    `background-position:${-(X[i] % A.tile) * side}px ${-(Y[i] % A.tile) * side}px`;
  return box;
}
function pictures(images, onclick) {
  const row = element("div", "", {className: "pictures"});
  row.append(...images.map(i => picture(i, onclick && (() => onclick(i)))));
  return row;
}
const nearest = (c, most) => [...Array(Math.min(most, A.start[c + 1] - A.start[c])).keys()].map(j => A.start[c] + j);

const quoted = word => /^[\w@%+=:,./~-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
function commandBox(text, label) {
  const box = element("div"), command = element("pre", text, {className: "command", tabIndex: 0});
  command.setAttribute("role", "region");
  command.setAttribute("aria-label", label);
  box.append(command, element("button", "Copy the command", {type: "button", onclick: event => copied(event.target, command)}));
  return box;
}
async function copied(button, place) {
  try { await navigator.clipboard.writeText(place.textContent); }
  catch { getSelection().selectAllChildren(place); document.execCommand("copy"); }  // where the page may not ask
  button.textContent = "Copied";
}
