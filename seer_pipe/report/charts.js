"use strict";
// Zoom and crosshair over all charts of a page whose x counts the same. The lines are in the SVG, in the units of the
// data: what is read here is read off their paths, and zooming moves the viewBox.
const SVG = "http://www.w3.org/2000/svg";
const charts = [...document.querySelectorAll(".chart")].map(read);

function make(parent, name, attributes) {
  const element = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function read(box) {
  const drawing = box.querySelector(".drawing"), plot = box.querySelector(".plot"), axes = box.querySelector(".axes");
  const [x, top, wide, tall] = plot.getAttribute("viewBox").split(" ").map(Number);
  const place = Object.fromEntries(["x", "y", "width", "height"].map(name => [name, +plot.getAttribute(name)]));
  const series = [...plot.querySelectorAll(".line, .dot")].map(path => ({
    name: path.dataset.name,
    points: path.getAttribute("d").slice(1).split("L").map(pair => pair.split(/[ h]/).map(Number)).map(([x, y]) => [x, -y]),
  }));
  const lines = [...plot.querySelectorAll(".mark")].map(path => ({
    name: path.textContent, y: -path.getAttribute("d").split(/[ H]/)[1],
  }));
  const happened = [...plot.querySelectorAll(".happened")].map(path => ({
    x: +path.getAttribute("d").slice(1).split(" ")[0], what: path.textContent,
  }));
  const values = box.appendChild(document.createElement("div"));
  values.className = "values";
  values.hidden = true;
  box.tabIndex = 0;
  const chosen = make(drawing, "rect", {class: "chosen", y: place.y, height: place.height, width: 0});
  const cross = make(drawing, "path", {class: "cross", d: ""});
  return {box, plot, axes, place, series, lines, happened, values, chosen, cross, axesOfAll: axes.innerHTML,
    across: box.dataset.across, percent: "percent" in box.dataset, all: [x, x + wide], low: -top - tall, high: -top};
}

const kin = across => charts.filter(chart => chart.across === across);
const end = across => Math.max(...kin(across).map(chart => chart.all[1]));
const views = {};  // of each kind of x: the part that is shown; none: all
const view = chart => views[chart.across] ?? chart.all;

function tell(chart, value) {
  return chart.percent ? `${(100 * value).toFixed(1)}%` : String(+value.toPrecision(4));
}

function short(value) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (value >= size) return +(value / size).toPrecision(5) + letter;
  return String(+value.toPrecision(5));
}

function ticks(low, high, wanted = 4) {
  const power = 10 ** Math.floor(Math.log10((high - low) / wanted));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(step => (high - low) / step <= wanted);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  return found;
}

function zoom(across, from, to) {
  if (to - from >= end(across) * (1 - 1e-9) || !(to > from)) delete views[across];
  else views[across] = [Math.max(0, from), Math.min(end(across), to)];
  kin(across).forEach(draw);
  for (const form of document.querySelectorAll(`.zoom[data-across="${across}"]`))
    [form.elements.from.value, form.elements.to.value] = (views[across] ?? [0, end(across)]).map(x => +x.toPrecision(6));
}

function draw(chart) {
  const {place, plot, axes} = chart, [from, to] = view(chart);
  hide(chart);
  plot.classList.toggle("whole", !views[chart.across]);
  if (!views[chart.across]) {
    plot.setAttribute("viewBox", `${from} ${-chart.high} ${to - from} ${chart.high - chart.low}`);
    axes.innerHTML = chart.axesOfAll;
    return;
  }
  const inside = ([x], n, all) => x >= from && x <= to || all[n + 1]?.[0] > from && x < from || all[n - 1]?.[0] < to && x > to;
  const seen = chart.series.flatMap(one => one.points.filter(inside).map(point => point[1]));
  let [low, high] = seen.length ? [Math.min(...seen), Math.max(...seen)] : [chart.low, chart.high];
  const slack = (high - low) / 10 || Math.abs(high) / 20 || (chart.high - chart.low) / 10;
  [low, high] = [Math.max(chart.low, low - slack), Math.min(chart.high, high + slack)];
  plot.setAttribute("viewBox", `${from} ${-high} ${to - from} ${high - low}`);
  const across = x => place.x + (x - from) / (to - from) * place.width, down = y => place.y + (high - y) / (high - low) * place.height;
  axes.replaceChildren();
  for (const tick of ticks(low, high)) {
    make(axes, "path", {class: "grid", d: `M${place.x} ${down(tick)}h${place.width}`});
    make(axes, "text", {x: place.x - 5, y: down(tick), dy: 4, "text-anchor": "end"}).textContent = tell(chart, tick);
  }
  for (const tick of ticks(from, to))
    make(axes, "text", {x: across(tick), y: place.y + place.height + 18, "text-anchor": tick > to - (to - from) / 20 ? "end" : "middle"})
      .textContent = short(tick);
  for (const line of chart.lines)
    if (line.y >= low && line.y <= high)
      make(axes, "text", {class: "marked", x: place.x + place.width, y: down(line.y), dy: -4, "text-anchor": "end"}).textContent = line.name;
}

function hide(chart) {
  chart.values.hidden = true;
  chart.cross.setAttribute("d", "");
  chart.chosen.setAttribute("width", 0);
}

function nearest(points, x) {
  return points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
}

function crosshair(across, x) {
  for (const chart of kin(across)) {
    const {place} = chart, [from, to] = view(chart), at = place.x + (x - from) / (to - from) * place.width;
    if (x > chart.all[1] || !chart.series.length) { hide(chart); continue; }
    chart.cross.setAttribute("d", `M${at} ${place.y}v${place.height}`);
    const near = chart.happened.filter(one => Math.abs(one.x - x) < (to - from) / 60).map(one => one.what);
    const told = chart.series.map(({name, points}) => `${name} ${tell(chart, nearest(points, x)[1])}`);
    const lines = chart.lines.map(({name, y}) => `${name} ${tell(chart, y)}`);
    chart.values.replaceChildren(...[`${across} ${short(x)}`, ...told, ...lines, ...near].map(text => {
      const row = document.createElement("div");
      row.textContent = text;
      return row;
    }));
    chart.values.hidden = false;
    const left = at < place.x + place.width / 2;
    Object.assign(chart.values.style, {left: left ? "auto" : "15%", right: left ? "2%" : "auto"});
    chart.at = x;
  }
}

for (const chart of charts) {
  const {box, place, across} = chart, drawing = box.querySelector(".drawing"), wide = drawing.viewBox.baseVal.width;
  const xs = [...new Set(chart.series.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
  let begun = null;
  const under = event => {
    const rect = drawing.getBoundingClientRect(), [from, to] = view(chart);
    const at = ((event.clientX - rect.left) / rect.width * wide - place.x) / place.width;
    return from + Math.min(1, Math.max(0, at)) * (to - from);
  };
  const step = x => xs.length ? xs.reduce((best, one) => Math.abs(one - x) < Math.abs(best - x) ? one : best) : x;
  box.addEventListener("pointerdown", event => { begun = under(event); box.setPointerCapture(event.pointerId); });
  box.addEventListener("pointermove", event => {
    const x = under(event);
    crosshair(across, step(x));
    if (begun === null) return;
    for (const one of kin(across)) {
      const [from, to] = view(one), scale = one.place.width / (to - from);
      one.chosen.setAttribute("x", one.place.x + (Math.min(begun, x) - from) * scale);
      one.chosen.setAttribute("width", Math.abs(x - begun) * scale);
    }
  });
  box.addEventListener("pointerup", event => {
    const x = under(event), [from, to] = view(chart), first = begun;
    begun = null;
    if (first !== null && Math.abs(x - first) > (to - from) / 50) zoom(across, Math.min(first, x), Math.max(first, x));
  });
  box.addEventListener("pointercancel", () => { begun = null; kin(across).forEach(hide); });
  box.addEventListener("pointerleave", () => begun === null && kin(across).forEach(hide));
  box.addEventListener("dblclick", () => zoom(across, 0, end(across)));
  box.addEventListener("keydown", event => {
    const [from, to] = view(chart), at = Math.min(to, Math.max(from, chart.at ?? to)), index = xs.indexOf(step(at));
    if (event.ctrlKey || event.metaKey || event.altKey || !xs.length) return;
    const move = {ArrowLeft: -1, ArrowRight: 1, Home: -xs.length, End: xs.length}[event.key];
    const factor = {"+": .5, "=": .5, "-": 2, "−": 2}[event.key];
    if (move) crosshair(across, xs[Math.min(xs.length - 1, Math.max(0, index + move))]);
    else if (factor) {
      const left = Math.max(0, at - (at - from) * factor);
      zoom(across, left, left + (to - from) * factor);
      crosshair(across, step(at));
    } else if (event.key === "0" || event.key === "Escape") zoom(across, 0, end(across));
    else return;
    event.preventDefault();
    const status = document.querySelector(`.zoom[data-across="${across}"] [role=status]`);
    if (status) status.textContent = [...chart.values.children].map(row => row.textContent).join(", ");
  });
  box.addEventListener("blur", () => kin(across).forEach(hide));
}

for (const form of document.querySelectorAll(".zoom")) {
  const {across} = form.dataset;
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("change", () => zoom(across, +form.elements.from.value, +form.elements.to.value));
  form.querySelector("button").addEventListener("click", () => zoom(across, 0, end(across)));
  zoom(across, 0, end(across));
}
