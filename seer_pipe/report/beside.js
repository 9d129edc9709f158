// Two sets on one map: which images both have, and which only one.
const STATES = A.parts && bytes(A.points.by_set), stateOf = i => STATES[i];
const isIn = (i, s) => !A.parts || STATES[i] === 1 || STATES[i] === 2 * s;
if (A.parts) {
  const part = element("select", "", {id: "part"}), [first, second] = A.sets.map(set => set.name), label = element("label", "Show");
  const names = [`only in ${first}`, "in both", `only in ${second}`];
  part.append(element("option", "both sets", {value: ""}), ...names.map((name, state) => element("option", name, {value: state})));
  part.onchange = () => {
    if (part.value === "") { select(null); by("said").textContent = ""; return; }
    const images = [...Array(N).keys()].filter(i => stateOf(i) === Number(part.value));
    if (images.length) showOnMap(images, names[part.value]);
    else { select(null); by("said").textContent = `No image is ${names[part.value]}.`; }
  };
  label.append(part);
  by("colour").parentElement.after(label);
  A.cluster.forEach((_, c) => {
    const [gone, both, come] = A.parts.slice(3 * c, 3 * c + 3), all = gone + both + come;
    (A.went ??= []).push(gone / all);
    (A.came ??= []).push(come / all);
  });
  by("order").append(element("option", `most only in ${second} first`, {value: "came"}), element("option", `most only in ${first} first`, {value: "went"}));
  by("colour").value = "set";
  by("colour").onchange();
}
