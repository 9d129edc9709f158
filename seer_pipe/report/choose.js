// Colours, selections, and what is known of a cluster or an image.
const RAMP = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];  // viridis
const KINDS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8f5fd6"];  // Okabe and Ito's
const OTHER = 254, NONE = 255, LABELS = {set: "set", repeated: "repeated or not", typical: "cosine to the centre"};
let mask = null, drawing = false, coloured = null;  // mask: [N] 1 where selected

function mixed(level) {  // a colour of the ramp for 0 to 253
  const at = level / 253 * (RAMP.length - 1), low = Math.min(RAMP.length - 2, Math.floor(at));
  const part = (hex, from) => parseInt(hex.slice(from, from + 2), 16);
  return `rgb(${[1, 3, 5].map(from => Math.round(part(RAMP[low], from) + (at - low) * (part(RAMP[low + 1], from) - part(RAMP[low], from)))).join()})`;
}
const ramp = [...Array(254).keys()].map(mixed);

// What is laid over each picture of a level: a colour, and so strongly. Of many images under one picture: their mean,
// or their commonest label; what is not selected fades.
function painted(at) {
  if (!mask && !coloured) return null;
  if (at.paint) return at.paint;
  const colours = new Array(N).fill(null), strength = new Float32Array(N);
  if (coloured) {
    const levels = coloured.levels, labels = coloured.names ? KINDS : null, kinds = labels ? 10 : 1;
    const sum = new Float32Array(N * kinds), count = new Uint32Array(N), rest = colour("--faint");
    for (let i = 0; i < N; i++) {
      const to = at.stands[i];
      if (labels) sum[to * kinds + (levels[i] >= OTHER ? 8 + levels[i] - OTHER : levels[i])]++;
      else if (levels[i] < NONE) { sum[to] += levels[i]; count[to]++; }
    }
    for (let i = 0; i < N; i++) {
      if (TOP[i] > at.z) continue;
      if (labels) {
        const own = sum.subarray(i * kinds, i * kinds + kinds), most = own.indexOf(Math.max(...own));
        colours[i] = most < 8 ? labels[most] : rest;
      } else colours[i] = count[i] ? ramp[Math.round(sum[i] / count[i])] : rest;
      strength[i] = .66;
    }
  }
  if (mask) {
    const any = new Uint8Array(N), paper = colour("--card");
    for (let i = 0; i < N; i++) if (mask[i]) any[at.stands[i]] = 1;
    for (let i = 0; i < N; i++) if (TOP[i] <= at.z && !any[i]) { colours[i] = paper; strength[i] = .82; }
  }
  return at.paint = {colours, strength};
}
function repaint() { levels.forEach(at => at.paint = null); redraw(); }

for (const column of A.columns) by("colour").append(element("option", LABELS[column.id] ?? column.id, {value: column.id}));
by("colour").onchange = () => {
  const column = A.columns.find(one => one.id === by("colour").value), legend = by("legend");
  coloured = column ? {...column, levels: bytes(A.points["by_" + column.id])} : null;
  legend.hidden = !column;
  legend.replaceChildren();
  if (column?.names) {
    const entries = column.names.map((name, j) => [name, KINDS[j]]);
    if (coloured.levels.some(one => one >= OTHER)) entries.push(["others", colour("--faint")]);
    for (const [name, fill] of entries) {
      const line = element("div");
      line.append(element("span", "", {className: "swatch", style: `background:${fill}`}), name);
      legend.append(line);
    }
  } else if (column) {
    const ends = element("div", "", {className: "ends"});
    ends.append(...(column.ends ?? ["alone", "repeated"]).map(text => element("span", text)));
    legend.append(element("span", "", {className: "ramp", style: `background:linear-gradient(90deg,${RAMP.join()})`}), ends);
  }
  repaint();
};

// Selections
function select(images, what) {  // their numbers, or null
  mask = images && new Uint8Array(N);
  images?.forEach(i => mask[i] = 1);
  outline = drawing ? outline : [];
  repaint();
  const box = by("selection");
  box.hidden = !images;
  box.replaceChildren();
  if (!images) return;
  const counts = new Map();
  images.forEach(i => counts.set(HOME[i], (counts.get(HOME[i]) ?? 0) + 1));
  by("said").textContent = `${plural(images.length, "image")} of ${plural(counts.size, "cluster")}: ${what}`;
  box.append(element("h2", "Selected"), element("p", by("said").textContent), pictures(images.slice(0, 12), i => choose(HOME[i], i)));
  if (A.parts) box.append(element("p", splitOf([0, 1, 2].map(state => images.filter(i => stateOf(i) === state).length)), {id: "split"}));
  for (const [s, set] of A.sets.entries()) {
    if (!images.some(i => isIn(i, s))) continue;
    const buttons = element("div", "", {className: "buttons"}), of = A.parts ? ` of ${set.name}` : "", file = `${set.keys}.csv`;
    buttons.append(element("button", `Download the keys${of}`, {type: "button", id: s ? "download-beside" : "download", onclick: () => download(images, s, file)}),
      element("button", `Copy the keys${of}`, {type: "button", id: s ? "copy-keys-beside" : "copy-keys", onclick: async event => copied(event.target, element("pre", await listOf(images, s)))}));
    box.append(buttons, commandBox(`seer-ingest exclude ${quoted(set.data)} --keys ${file}`, `Command for the selection${of}`));
  }
  box.append(element("button", "Clear", {type: "button", onclick: () => { by("find").value = ""; by("said").textContent = ""; search(); select(null); }}));
  const wholly = [...counts].filter(([c, count]) => count === A.start[c + 1] - A.start[c]).map(([c]) => A.cluster[c]);
  if (N < A.images && wholly.length)
    box.append(element("p", `The map shows ${percent(N / A.images)} of the images. All images of the clusters that are wholly selected:`, {className: "faint"}),
      ...A.sets.map(set => commandBox(`seer-pipe atlas-keys ${quoted(set.names)} ${wholly.join(" ")} --out ${set.keys}.csv`, `Command for whole clusters${A.parts ? ` of ${set.name}` : ""}`)));
}
const cell = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
async function listOf(images, s) {  // of one set, as seer-ingest exclude takes it
  const rows = await Promise.all(images.map(known));
  return "key,shard\n" + rows.flatMap(one => one.places).filter(at => at.set === s).map(at => `${cell(at.key)},${cell(at.shard)}\n`).join("");
}
async function download(images, s, file) {
  const url = URL.createObjectURL(new Blob([await listOf(images, s)], {type: "text/csv"}));
  element("a", "", {href: url, download: file}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
function lasso(on) {
  drawing = on;
  by("lasso").setAttribute("aria-pressed", on);
  map.classList.toggle("drawing", on);
  if (on) by("said").textContent = "Draw around images on the map.";
}
by("lasso").onclick = () => lasso(!drawing);
function enclosed(path) {  // the images whose middle is inside
  const inside = [];
  for (let i = 0; i < N && path.length > 2; i++) {
    const x = X[i] + .5, y = Y[i] + .5;
    let within = false;
    for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
      const [ax, ay] = path[a], [bx, by] = path[b];
      if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) within = !within;
    }
    if (within) inside.push(i);
  }
  select(inside.length ? inside : null, "within the lasso");
  if (!inside.length) by("said").textContent = "No image is within the lasso.";
  lasso(false);
}
by("in-view").onclick = () => {
  const [left, top] = cellAt(0, 0), [right, bottom] = cellAt(map.clientWidth, map.clientHeight);
  enclosed([[left, top], [right, top], [right, bottom], [left, bottom]]);
};

// An image; where it is of a clip, the clip, and where it has a sound, the sound too.
function played(i) {
  const kind = A.played[i], box = kind && element(kind === "mp4" ? "video" : "audio", "", {src: `clips/${i}.${kind}`, controls: true, loop: true});
  box?.setAttribute("aria-label", "What it plays");
  return kind === "mp4" ? [box] : [picture(i, null, 2 * A.side), ...(box ? [box] : [])];
}

// One cluster, and one image of it
function choose(c, i = -1) {
  chosen = c;
  looked = i;
  const at = by("detail");
  at.replaceChildren(element("h2", `Cluster ${A.cluster[c]}`));
  if (titleOf(c)) at.append(element("p", titleOf(c), {className: "title"}));
  at.append(element("p", `${sizes(c)}; mean cosine to its centre ${A.cohesion[c]}`));
  if (i >= 0) {
    const about = element("p");
    at.append(element("h3", "The image"), ...played(i), about);
    known(i).then(one => about.textContent = [...one.places.map(at => `key ${at.key} · ${A.parts ? `${A.sets[at.set].name}: ` : ""}${at.shard}`), one.group, one.text].filter(Boolean).join(" · "));
  }
  at.append(element("h3", "Its most typical images"), pictures(nearest(c, A.show), j => choose(c, j)));
  const buttons = element("div", "", {className: "buttons"});
  buttons.append(element("button", "Show on the map", {type: "button", onclick: () => { goTo(A.disc[3 * c], A.disc[3 * c + 1], 3 * A.disc[3 * c + 2] + 4); by("stage").scrollIntoView({block: "nearest"}); }}),
    element("button", "Select its images", {type: "button", onclick: () => select(nearest(c, Infinity), `cluster ${A.cluster[c]}`)}));
  at.append(buttons, element("h3", "Leave it out of training"));
  for (const [s, set] of A.sets.entries()) {
    if (A.parts && !(A.parts[3 * c + 1] + A.parts[3 * c + 2 * s])) continue;
    const list = A.keys ? `${location.protocol === "file:" ? decodeURI(new URL(".", location.href).pathname) : ""}${set.keys}/${A.cluster[c]}.csv` : `${set.keys}.csv`;
    const of = A.parts ? ` of ${set.name}` : "";
    if (A.keys) at.append(element("p")), at.lastChild.append(element("a", `The keys of its images${of}`, {href: `${set.keys}/${A.cluster[c]}.csv`, download: `cluster-${A.cluster[c]}.csv`}));
    const make = A.keys ? "" : `seer-pipe atlas-keys ${quoted(set.names)} ${A.cluster[c]} --out ${set.keys}.csv\n`;
    at.append(commandBox(`${make}seer-ingest exclude ${quoted(set.data)} --keys ${quoted(list)}`, `Command for the cluster${of}`));
  }
  by("near").replaceChildren(...A.near[c].map(other => card(other, "div")));
  redraw();
}
