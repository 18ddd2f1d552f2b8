// The viewer of a gallery: a list of items, sorted, filtered, in pages; and one item, its layers under one zoom.
// All that it shows follows from the address after #. How the data lie: pipelines/gallery/site.py.
"use strict";
const $ = (id) => document.getElementById(id), all = (selector) => [...document.querySelectorAll(selector)];
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const fill = (select, names, chosen) =>
  select.replaceChildren(...names.map((name) => new Option(name || "\u2013", name, false, name === chosen)));
const shown = (number) => (!Number.isFinite(number) ? "\u2013" : number % 1 ? number.toPrecision(4) : String(number));
const site = JSON.parse($("site").textContent), groups = [...new Set(site.columns.map((column) => column.group))];

// The address, and what changes it: inputs by their id, buttons by their value, which is JSON. Keys press buttons.
const DEFAULTS = {
  item: "", n: "", page: "0", q: "", by: "", a: "", b: "", order: "worst", where: [],
  mode: "flip", layer: "", left: "", right: "", gain: "4", split: "50", zoom: "", x: "", y: "", hide: [],
};
let state = {}, saving, turns = 0, last = {};
function read() {
  const given = new URLSearchParams(location.hash.slice(1)), value = (name) => given.get(name) ?? DEFAULTS[name];
  for (const name in DEFAULTS) state[name] = Array.isArray(DEFAULTS[name]) ? given.getAll(name) : value(name);
}
function address(changes) {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...state, ...changes })) {
    if (Array.isArray(value)) value.forEach((one) => parts.append(name, one));
    else if (String(value) !== DEFAULTS[name]) parts.set(name, value);
  }
  return `#${parts}`;
}
function go(changes) { // Seen at once; in the address a little later, since browsers count its changes.
  Object.assign(state, changes);
  clearTimeout(saving);
  saving = setTimeout(() => history.replaceState(null, "", address({})), 150);
  return show();
}
const means = (button, changes) => Object.assign(button, { disabled: !changes, value: JSON.stringify(changes) });
const presses = (text, changes) => means(make("button", { type: "button", textContent: text }), changes);
onclick = ({ target }) => {
  if (target.closest("button[value]")) go(JSON.parse(target.closest("button[value]").value));
};
oninput = ({ target: { id, value } }) => { if (id in DEFAULTS) go({ [id]: value, page: "0" }); };
onsubmit = (event) => {
  event.preventDefault();
  const where = [...state.where, [...new FormData(event.target).values()].join("")];
  if (event.target.id === "narrow") go({ where, page: "0" });
};
onkeydown = (event) => {
  const typed = { range: /Arrow/, search: /./, number: /./, "select-one": /./ }[event.target.type]?.test(event.key);
  if (typed || event.ctrlKey || event.metaKey || event.altKey) return;
  if (state.item && event.key - 1 in pictures && !event.repeat) hold(event.key - 1);
  const meant = all("[data-keys]").find((one) => one.dataset.keys.split(" ").includes(event.key) && one.offsetParent);
  if (meant) event.preventDefault();
  meant?.[meant.id === "q" ? "focus" : "click"]();
};
onkeyup = onblur = () => { if (held !== null) hold(null); };
onresize = () => { if (item) place(); };
onhashchange = () => { clearTimeout(saving); read(); show(); };

// Data: scripts that call take().
const loaded = new Map(), take = (value) => (document.currentScript.taken = value);
function load(name) {
  const fetched = (done, fail) => {
    const onerror = () => fail(Error(`${name} is missing: load this page anew`));
    const script = make("script", { src: name, onerror, onload: () => done(script.taken, script.remove()) });
    document.head.append(script);
  };
  if (!loaded.has(name)) loaded.set(name, new Promise(fetched));
  return loaded.get(name);
}
async function row(n) {
  const page = n === undefined ? null : await load(site.rows[Math.floor(n / site.page)]);
  return page && { ...page, ...page.items[n % site.page], n, place: n % site.page };
}
const bytes = (packed) => Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
const numbers = async (column) => new Float32Array(bytes(await load(site.columns[column].data)).buffer);

// The order: which items, the worst first.
const find = (metric, group) => site.columns.findIndex((one) => one.name === metric && one.group === group);
const condition = (text) => text.match(/^(\d+)(\W)(.+)$/)?.slice(1) ?? [];
function systems() { // Those that can be sorted by, and which of them are: a and, for a difference, b.
  const able = groups.filter((group) => find(state.by, group) >= 0), a = able.includes(state.a) ? state.a : able[0];
  const others = able.filter((group) => group !== a);
  return { able, a, others, b: others.includes(state.b) ? state.b : "" };
}
async function quantity() { // A number of every item; good: 1 where the high ones are better, -1 where the low are.
  const { a, b } = systems(), first = find(state.by, a), name = [state.by, a, b].filter(Boolean).join(", ");
  if (first < 0) return null;
  const values = await numbers(first), other = b && (await numbers(find(state.by, b)));
  return { name, good: site.columns[first].good, values: b ? values.map((value, n) => value - other[n]) : values };
}
async function ordered() {
  const asked = JSON.stringify([state.q, state.where, state.by, state.a, state.b, state.order]);
  if (last.asked === asked) return last;
  const terms = state.q.toLowerCase().match(/\S+/g) ?? [], words = terms.length ? await load(site.words) : [];
  let items = [...Array(site.n).keys()].filter((n) => terms.every((term) => words[n].includes(term)));
  for (const [column, op, bound] of state.where.map(condition).filter(([column]) => site.columns[column])) {
    const values = await numbers(column);
    items = items.filter((n) => (op === "\u2265" ? values[n] >= bound : values[n] <= bound));
  }
  const by = await quantity(), sign = (by?.good || 1) * (state.order === "worst" ? 1 : -1), values = by?.values;
  if (by) items.sort((m, n) => isNaN(values[m]) - isNaN(values[n]) || sign * (values[m] - values[n]) || m - n);
  return (last = { asked, items, by });
}

// The list.
function table(id, numberOf, textOf) { // Fill a matrix of systems and metrics; the best of each metric is bold.
  for (const cell of all(`#${id} [data-column]`)) {
    const column = Number(cell.dataset.column), { name, good } = site.columns[column];
    const rivals = site.columns.flatMap((one, place) => (one.name === name ? [good * numberOf(place)] : []));
    const best = good && rivals.length > 1 && Math.max(...rivals.filter(Number.isFinite));
    cell.className = good && best === good * numberOf(column) ? "best" : "";
    cell.textContent = textOf(column);
  }
}
function controls(by) { // What the forms above the list say.
  const { able, a, others, b } = systems(), worst = state.order === "worst";
  fill($("a"), able, a);
  fill($("b"), ["", ...others], b);
  for (const id of ["a", "b"]) $(id).parentElement.hidden = able.length < 2;
  [$("by").value, $("order").hidden] = [state.by, !by];
  means($("order"), { order: worst ? "best" : "worst", page: "0" });
  $("order").textContent = `${(by?.good ? ["best", "worst"] : ["highest", "lowest"])[Number(worst)]} first`;
  $("where").replaceChildren(...state.where.map((text) => {
    const [column, op, bound] = condition(text), where = state.where.filter((other) => other !== text);
    return presses(`${site.columns[column]?.id} ${op} ${bound} \u00d7`, { where, page: "0" });
  }));
}
function card({ thumbs, place, width, key, facts, n }, by) {
  const image = make("img", { src: thumbs, alt: "", style: `top:${-100 * place}%` });
  const thumb = make("span", { className: "thumb", style: `aspect-ratio:${width}/${site.cell}` }, image);
  const value = by ? make("b", { title: by.name, textContent: shown(by.values[n]) }) : "";
  const name = make("span", { className: "name" }, make("span", { textContent: key, title: key }), value);
  const words = make("small", { textContent: Object.values(facts).join(" \u00b7 ") });
  return make("li", {}, make("a", { href: address({ item: key, n }) }, thumb, name, words));
}
async function showList(turn) {
  const { items, by } = await ordered(), pages = Math.max(1, Math.ceil(items.length / site.page));
  const page = Math.min(pages - 1, Math.max(0, Math.trunc(state.page) || 0)), first = page * site.page;
  const rows = await Promise.all(items.slice(first, first + site.page).map(row));
  if (turn !== turns) return;
  if ($("by")) controls(by);
  if (document.activeElement !== $("q")) $("q").value = state.q;
  const among = items.length < site.n ? `${items.length} found of ${site.n}` : site.n;
  $("count").textContent = rows.length ? `${first + 1}\u2013${first + rows.length} of ${among}` : `None of ${site.n}`;
  means($("before"), page > 0 && { page: page - 1 });
  means($("after"), page < pages - 1 && { page: page + 1 });
  $("cards").replaceChildren(...rows.map((one) => card(one, by)));
}

// One item; width and height are those of all its layers.
const panes = $("panes"), pen = make("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
let item = null, pictures = [], width = 1, height = 1, held = null, arranged = "";
const pick = (name, usual) => pictures.find((one) => one.name === name) ?? pictures.at(usual);
const current = () => pictures[held] ?? pick(state.layer, 0);
async function showOne(turn) {
  let n; // That of the address is a hint: the gallery may have been made anew.
  for (n of [Number(state.n), ...Array(site.n).keys()]) if (n < site.n && (await row(n)).key === state.item) break;
  const { items } = await ordered(), at = items.indexOf(n), beside = at < 0 ? [] : [items[at - 1], items[at + 1]];
  const [own, ...others] = await Promise.all([n, ...beside].map(row));
  if (own?.key !== state.item) throw Error(`There is no pair called ${state.item} here`);
  const data = await load(own.item), names = [own, ...others].flatMap((one) => one?.item ?? []);
  if (item !== data) await open(data, turn);
  if (turn !== turns) return;
  ["previous", "next"].forEach((id, side) => means($(id), others[side] && { item: others[side].key, n: beside[side] }));
  means($("back"), { item: "", n: "", zoom: "", x: "", y: "", page: Math.floor(Math.max(at, 0) / site.page) });
  $("place").textContent = at < 0 ? "" : `${at + 1} of ${items.length}`;
  refresh();
  for (const name of loaded.keys()) if (name.startsWith("data/item") && !names.includes(name)) loaded.delete(name);
  names.forEach(load);
}
async function open(data, turn) {
  const image = ({ name, png }) => make("img", { src: `data:image/png;base64,${png}`, alt: name, decoding: "sync" });
  const above = (name) => data.layers.filter(({ over }) => over === "*" || over === name).map(image);
  const found = data.layers.filter(({ over }) => over === null);
  const made = found.map((one) => ({ ...one, image: image(one), over: above(one.name) }));
  await Promise.all(made.map((one) => one.image.decode()));
  if (turn !== turns) return;
  [item, arranged, pictures, { width, height }] = [data, "", made, found[0]];
  [$("key").textContent, $("text").textContent] = [data.key, data.text];
  $("facts").replaceChildren(...Object.entries({ ...data.facts, size: `${width} \u00d7 ${height}` }).map((fact) =>
    make("div", {}, ...fact.map((textContent, at) => make(at ? "dd" : "dt", { textContent })))));
  table("values", (column) => data.values[column] ?? NaN, (column) => shown(data.values[column]));
  for (const id of ["left", "right"]) fill($(id), pictures.map((one) => one.name));
  $("layers").replaceChildren(...pictures.map(({ name }) =>
    make("li", {}, presses(name, { layer: name, mode: "flip" }), make("output"))));
  const overlays = new Set(pictures.flatMap((one) => one.over.map(({ alt }) => alt)));
  $("overlays").replaceChildren(...Array.from(overlays, (name) => presses(name, {})));
}
const box = (className, ...content) => make("div", { className }, ...content);
const stage = (...content) => Object.assign(box("stage", ...content), { style: `width:${width}px;height:${height}px` });
const pane = (label, ...content) => box("pane", ...content, make("b", { textContent: label }));
const layer = ({ image, over }) =>
  box("layer", image.cloneNode(), ...over.map((one) => Object.assign(one.cloneNode(), { className: "over" })));
const arrange = {
  flip: () => [pane("", stage(...pictures.map(layer)))],
  grid: () => pictures.map((one) => pane(one.name, stage(layer(one)))),
  slide: (left, right) => {
    const name = `${left.name} | ${right.name}`, sides = [left, right].map((one) => box("side", stage(layer(one))));
    const range = make("input", { type: "range", id: "split", step: 0.1, value: state.split, ariaLabel: name });
    return [pane(name, ...sides, range)];
  },
  diff: (left, right) => {
    const both = stage(left.image.cloneNode(), right.image.cloneNode());
    both.style.filter = `brightness(${state.gain})`;
    return [pane(`|${left.name} \u2212 ${right.name}| \u00d7 ${state.gain}`, both)];
  },
};
function refresh() { // Show what the address says; what is there already stays.
  const mode = held === null && state.mode in arrange ? state.mode : "flip";
  const [left, right] = [pick(state.left, 0), pick(state.right, -1)];
  const wanted = JSON.stringify([mode, left.name, right.name, state.gain]);
  if (wanted !== arranged) panes.replaceChildren(...arrange[mode](left, right));
  [arranged, $("one").dataset.mode] = [wanted, mode];
  if (mode === "flip") panes.querySelector("b").textContent = current().name;
  all("#panes .layer").forEach((one, at) => one.classList.toggle("current", pictures[at] === current()));
  all("#layers button").forEach((one, at) => (one.ariaPressed = mode === "flip" && pictures[at] === current()));
  for (const one of all("button[data-mode]")) one.ariaPressed = one.dataset.mode === mode;
  [$("left").value, $("right").value, $("gain").value] = [left.name, right.name, state.gain];
  const isOff = (name) => site.off.includes(name) !== state.hide.includes(name); // The address has what was switched.
  for (const one of all(".over")) one.hidden = isOff(one.alt);
  for (const one of $("overlays").children) {
    const others = state.hide.filter((name) => name !== one.textContent), switched = others.length < state.hide.length;
    means(one, { hide: switched ? others : [...others, one.textContent] }).ariaPressed = !isOff(one.textContent);
  }
  place();
}
const hold = (place) => { held = place; refresh(); };

// Zoom: screen pixels a pixel; x and y of the address are what lies in the middle of a pane.
function sight() {
  const { clientWidth: w, clientHeight: h } = panes.firstChild, fit = Math.min(w / width, h / height);
  const zoom = Math.min(64, Math.max(1 / 16, Number(state.zoom) || fit));
  const left = Math.round(w / 2 - (state.x || width / 2) * zoom);
  const top = Math.round(h / 2 - (state.y || height / 2) * zoom);
  return { zoom, h, left, top, x: (w / 2 - left) / zoom, y: (h / 2 - top) / zoom };
}
function place() {
  const { clientWidth, clientHeight, children: { length: n } } = panes;
  const columns = Math.min(n, Math.round(Math.sqrt((n * clientWidth * height) / (clientHeight * width))) || 1);
  const parts = (n, whole) => `repeat(${n}, ${Math.floor((whole - 3 * (n - 1)) / n)}px)`; // Whole: else it blurs.
  panes.style.gridTemplate = `${parts(Math.ceil(n / columns), clientHeight)} / ${parts(columns, clientWidth)}`;
  const { zoom, left, top, h } = sight(), power = Math.round(2 * Math.log2(zoom)) / 2;
  const now = { sight: `matrix(${zoom},0,0,${zoom},${left},${top})`, split: `${state.split}%`, high: `${h}px` };
  for (const name in now) panes.style.setProperty(`--${name}`, now[name]);
  panes.classList.toggle("near", zoom >= 2);
  $("actual").textContent = `${Math.round(zoom * 100)} %`;
  for (const [id, by] of [["in", 0.5], ["out", -0.5]]) means($(id), { zoom: 2 ** (power + by) });
}
function zoomTo(factor, from, to) { // What was `from` off the middle is then `to` off it.
  const { zoom, x, y } = sight(), next = Math.min(64, Math.max(1 / 16, zoom * factor));
  const middle = (at, axis, size) => Math.min(size, Math.max(0, at + from[axis] / zoom - to[axis] / next)).toFixed(2);
  go({ zoom: next, x: middle(x, 0, width), y: middle(y, 1, height) });
}
const touches = new Map();
const off = ({ offsetX, offsetY, target }) => [offsetX - target.clientWidth / 2, offsetY - target.clientHeight / 2];
const hand = ([[x, y], [u, v] = [x, y]]) => ({ at: [(x + u) / 2, (y + v) / 2], apart: Math.hypot(x - u, y - v) || 1 });
const inPane = (act) => (event) => { if (event.target.matches(".pane")) act(event); }; // Not the slider's handle.
panes.onpointerdown = inPane((event) => {
  event.target.setPointerCapture(event.pointerId);
  touches.set(event.pointerId, off(event));
  probe(event);
});
panes.onpointermove = inPane((event) => {
  if (!touches.has(event.pointerId)) return probe(event);
  const before = hand([...touches.values()]), after = hand([...touches.set(event.pointerId, off(event)).values()]);
  zoomTo(after.apart / before.apart, before.at, after.at);
  probe(event);
});
panes.onpointerup = panes.onpointercancel = (event) => touches.delete(event.pointerId);
panes.onwheel = inPane((event) => {
  event.preventDefault();
  const factor = 2 ** (-event.deltaY / (event.ctrlKey ? 100 : 300)); // Ctrl is what browsers say of a pinched pad.
  zoomTo(factor, off(event), off(event));
});
function probe({ offsetX, offsetY }) { // The values of all layers below the pointer.
  const { zoom, left, top } = sight(), x = Math.floor((offsetX - left) / zoom), y = Math.floor((offsetY - top) / zoom);
  const inside = x >= 0 && y >= 0 && x < width && y < height;
  $("at").textContent = inside ? `at ${x}, ${y}` : "";
  all("#layers output").forEach((output, place) => {
    pen.clearRect(0, 0, 1, 1);
    if (inside) pen.drawImage(pictures[place].image, x, y, 1, 1, 0, 0, 1, 1);
    const rgb = pen.getImageData(0, 0, 1, 1).data.slice(0, 3);
    output.textContent = inside ? (pictures[place].grey ? rgb[0] : rgb.join(" ")) : "";
    output.style.setProperty("--colour", `rgb(${rgb.join(" ")})`);
  });
}

// Which of the two views is shown.
async function show() {
  const turn = ++turns, one = state.item !== "", changed = $("list").hidden !== one;
  [$("one").hidden, $("list").hidden, $("alert").textContent] = [!one, one, ""];
  await (one ? showOne(turn) : showList(turn)).catch(({ message }) => { $("alert").textContent = message; });
  if (changed && one) $("key").focus();
}
$("about").open = innerWidth > 800;
table("means", (column) => site.columns[column].mean ?? NaN, (column) => site.columns[column].summary);
onhashchange();
