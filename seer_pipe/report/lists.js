// The lists below the map, and the search.
function card(c, tag) {
  const box = element(tag, "", {className: "card"});
  const show = () => { choose(c); by("detail").scrollIntoView({block: "nearest"}); };
  box.append(element("button", `Cluster ${A.cluster[c]}`, {type: "button", onclick: show}));
  if (titleOf(c)) box.append(element("p", titleOf(c), {className: "title"}));
  box.append(element("p", sizes(c), {className: "faint"}), pictures(nearest(c, 4)));
  return box;
}
function showOnMap(images, what) {
  select(images, what);
  showAll();
  by("stage").scrollIntoView({block: "nearest"});
}
const chooseImage = i => { choose(HOME[i], i); goTo(X[i], Y[i], 16); by("stage").scrollIntoView({block: "nearest"}); };

let matching = [], listed = 0, asking = 0;
function more() {
  by("list").append(...matching.slice(listed, listed + 24).map(c => card(c, "li")));
  listed = Math.min(matching.length, listed + 24);
  by("more").hidden = listed === matching.length;
}
function list(wanted, holding) {  // the clusters that are called so, or that hold such images
  const order = by("order").value;
  matching = [...Array(k).keys()].filter(c => !wanted || String(A.cluster[c]) === wanted || holding?.has(c) ||
    A.group[c].toLowerCase().includes(wanted) || A.title[c].toLowerCase().includes(wanted));
  matching.sort((a, b) => order === "cohesion" ? A.cohesion[a] - A.cohesion[b] : A[order][b] - A[order][a]);
  by("found").textContent = `${numbers(matching.length)} of ${plural(k, "cluster")}`;
  by("list").replaceChildren();
  listed = 0;
  more();
}
async function search() {
  const wanted = by("find").value.trim().toLowerCase(), own = ++asking;
  list(wanted);
  if (!wanted) { if (mask) select(null); by("said").textContent = ""; return; }
  const found = [], all = await allChunks();
  if (own !== asking) return;  // something else is asked by now
  const holds = text => text.toLowerCase().includes(wanted);
  all.forEach((columns, number) => columns.key.forEach((key, at) => {
    if (holds(key) || holds(columns.group[at]) || holds(columns.text[at])) found.push(number * A.chunk + at);
  }));
  const named = new Set(matching);
  const called = found.length ? found : matching.flatMap(c => nearest(c, Infinity));
  list(wanted, new Set([...named, ...found.map(i => HOME[i])]));
  if (called.length) select(called, `found by “${by("find").value.trim()}”`);
  else { select(null); by("said").textContent = `Nothing is found by “${by("find").value.trim()}”.`; }
}
let waiting = 0;
by("find").oninput = () => { clearTimeout(waiting); waiting = setTimeout(search, 200); };
by("order").onchange = search;
by("tools").onsubmit = event => { event.preventDefault(); search(); };
by("more").onclick = more;

by("outliers").replaceWith(Object.assign(pictures(A.outliers, chooseImage), {id: "outliers"}));
by("repeats").append(...A.repeats.map(([times, images]) => {
  const box = element("li", "", {className: "card"});
  box.append(element("p", `${plural(times, "image")} that look alike`), pictures(images, chooseImage));
  return box;
}));
by("near-duplicates").hidden = !A.repeats.length;
const SETS = {outliers: [A.outliers, "outliers"], repeats: [A.repeats.flatMap(([, images]) => images), "near duplicates"]};
for (const button of document.querySelectorAll("[data-show]")) button.onclick = () => showOnMap(...SETS[button.dataset.show]);
A.asked.forEach(([file, images, homes], number) => {
  const box = element("div", "", {className: "card"}), own = element("span", "", {className: "picture"});
  own.setAttribute("role", "img");
  own.setAttribute("aria-label", file);
  own.style.cssText = `width:${A.side}px;height:${A.side}px;background-image:url("asked.jpg");background-position:0 ${-number * A.side}px`;
  const clusters = element("div", "", {className: "grid-list"});
  clusters.append(...homes.map(c => card(c, "div")));
  box.append(element("h3", file), own, pictures(images, chooseImage), clusters);
  by("asked").append(box);
  by("asked").hidden = false;
});
new ResizeObserver(redraw).observe(map);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { by("colour").onchange(); repaint(); });
if (k) choose(0);
list("");
draw();
