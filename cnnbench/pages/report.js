"use strict";
// Sorting, filters, ratios to a baseline, highlighting, and the comparison of two networks. The page is complete
// without this script. Texts from records are only ever set as textContent, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TABLE = document.getElementById("results");
const HEADS = [...TABLE.tHead.rows[0].cells];
const TITLES = HEADS.map((head) => head.textContent);
const ROWS = [...TABLE.querySelectorAll("tr[data-net]")];
const LABELS = new Set([...TABLE.tBodies].map(labelOf).concat(DATA.rows.map((row) => row.label)));

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function option(value, text) {
  return make("option", { value }, text);
}

function labelOf(body) {
  return body.querySelector(".group th").textContent;
}

// Return an option that names a network. A closed list shows it without the heading of its group, so it has the data
// set too where the page has several.
function networkOption(value, title, label, seed) {
  const on = LABELS.size > 1 ? ` on ${label}` : "";
  return option(value, `${title}${on}${seedWords(seed)}`);
}

function seedWords(seed) {
  return seed === null ? "" : `, seed ${seed}`;
}

// ---- values behind the cells

function value(row, index) {
  const text = row.cells[index].dataset.value;
  return text === undefined ? null : Number(text);
}

function three(number) {
  return Number(number.toPrecision(3)).toString();
}

// ---- sorting

function sortBy(index) {
  const head = HEADS[index];
  // The first click puts the best on top; without a better side, or for names, the smallest.
  const first = head.dataset.better === "more" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const cell of HEADS) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    const [x, y] = [value(a, index), value(b, index)];
    if (x === null && y === null) {
      const texts = [a, b].map((row) => row.cells[index].textContent);
      return sign * texts[0].localeCompare(texts[1], undefined, { numeric: true });
    }
    // Rows without a value come last in both orders.
    if (x === null || y === null) return x === null ? 1 : -1;
    return sign * (x - y);
  };
  for (const body of TABLE.tBodies) {
    body.append(...[...body.rows].filter((row) => row.dataset.net !== undefined).sort(compare));
  }
}

// The button lies over the title: a browser that prints repeats the text of a heading on each page, but no button.
for (const [index, head] of HEADS.entries()) {
  const button = make("button", { type: "button", "aria-label": `Sort by ${TITLES[index]}` });
  button.addEventListener("click", () => sortBy(index));
  head.append(button);
}

// ---- filters: words of a row, and conditions such as "params<5M"

const FACTORS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, "%": 1, ms: 1, "": 1 };
const CONDITION = /^([^<>=!\s]+?)(<=|>=|<|>|=)(\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+(?:\.\d+)?)([a-zA-Z%]*)$/;
const TESTS = {
  "<": (a, b) => a < b,
  ">": (a, b) => a > b,
  "<=": (a, b) => a <= b,
  ">=": (a, b) => a >= b,
  "=": (a, b) => Math.abs(a - b) <= 0.005 * Math.abs(b), // the table shows three digits
};

function plain(text) {
  return text.toLowerCase().replace(/[^a-z0-9]/g, "");
}

function column(word) {
  const wanted = plain(word);
  const titles = TITLES.map(plain);
  const exact = titles.indexOf(wanted);
  return exact >= 0 ? exact : titles.findIndex((title) => wanted && title.startsWith(wanted));
}

// Return a function that says whether a row meets a word of the search, or an error message.
function condition(word) {
  if (!/[<>=!]/.test(word)) {
    const wanted = word.toLowerCase();
    return (row) => `${row.dataset.text} ${row.dataset.label}`.includes(wanted);
  }
  const parts = word.match(CONDITION);
  if (!parts) return `"${word}" is no condition; write a column, one of < > <= >= = and a number, such as params<5M`;
  const index = column(parts[1]);
  if (index < 0) return `there is no column "${parts[1]}"; the columns are ${TITLES.join(", ")}`;
  if (!(parts[4] in FACTORS)) return `"${word}": "${parts[4]}" is no unit; the units are k, M, G, T, % and ms`;
  const { kind, better } = HEADS[index].dataset;
  let limit = Number(parts[3].replaceAll(",", "")) * FACTORS[parts[4]];
  if (kind === "share") {
    if (better === "more" && limit > 0 && limit < 1) return `"${word}": write per cent, such as ${parts[1]}>=${100 * limit}`;
    limit /= 100; // stored as a share, shown in per cent
  }
  return (row) => {
    const found = value(row, index);
    return found !== null && TESTS[parts[2]](found, limit);
  };
}

function filter(text) {
  const closed = text.replace(/\s*(<=|>=|<|>|=)\s*/g, "$1"); // "params < 5M" is one condition
  const conditions = closed.split(/\s+/).filter(Boolean).map(condition);
  const wrong = conditions.find((entry) => typeof entry === "string");
  const hits = document.getElementById("hits");
  let shown = 0;
  for (const row of ROWS) {
    // What cannot be read hides nothing, so that the rows of an earlier search do not pass for its result.
    row.hidden = !wrong && !conditions.every((test) => test(row));
    shown += !row.hidden;
  }
  for (const body of TABLE.tBodies) {
    const rows = [...body.rows].filter((row) => row.dataset.net !== undefined);
    body.hidden = rows.every((row) => row.hidden);
  }
  // Points, curves and their keys are those of a network on one data set: the one of the row that they name.
  const mark = (body, net) => `${body.id} ${net}`;
  const visible = new Set(ROWS.filter((row) => !row.hidden).map((row) => mark(row.parentNode, row.dataset.net)));
  for (const element of document.querySelectorAll("[data-row]")) {
    const row = document.getElementById(element.dataset.row);
    element.style.visibility = visible.has(mark(row.parentNode, element.dataset.net)) ? "" : "hidden";
  }
  hits.textContent = wrong ?? (conditions.length ? `${shown} of ${ROWS.length} rows` : "");
}

// ---- ratios to a baseline

function showRatios(anchor) {
  for (const old of TABLE.querySelectorAll("small.ratio")) old.remove();
  const base = anchor && document.getElementById(anchor);
  if (!base) return;
  for (const row of ROWS) {
    // Only rows that were measured on the same data, under the same settings and on the same machine compare.
    const alike = row.parentNode === base.parentNode && row.dataset.conditions === base.dataset.conditions;
    if (!alike || row === base) continue;
    for (const [index, head] of HEADS.entries()) {
      const [own, other] = [value(row, index), value(base, index)];
      if (own === null || other === null || !head.dataset.better) continue;
      let text = null;
      if (head.dataset.kind === "share") {
        const points = 100 * (own - other);
        text = `${points < 0 ? "\u2212" : "+"}${Math.abs(points).toFixed(1)}`;
      } else if (other > 0) {
        text = `\u00d7${three(own / other)}`;
      }
      if (text !== null) row.cells[index].append(make("small", { class: "ratio" }, text));
    }
  }
}

// ---- the tools above the table

function buildTools() {
  for (const [index, body] of [...TABLE.tBodies].entries()) body.id = `data-${index}`;
  for (const row of ROWS) {
    row.dataset.label = labelOf(row.parentNode).toLowerCase();
    row.dataset.text = row.dataset.net.toLowerCase();
  }
  const search = make("input", { type: "search", id: "search", placeholder: "resnet  params<5M  latency<5" });
  search.addEventListener("input", () => filter(search.value));
  const baseline = make("select", { id: "baseline" }, option("", "none"));
  for (const body of TABLE.tBodies) {
    const members = ROWS.filter((row) => row.parentNode === body);
    const group = make("optgroup", { label: labelOf(body) });
    for (const row of members) {
      const seed = row.cells[HEADS.findIndex((head) => head.dataset.key === "seed")];
      group.append(networkOption(row.id, row.dataset.net, labelOf(body), seed ? seed.textContent : null));
    }
    baseline.append(group);
  }
  baseline.addEventListener("change", () => showRatios(baseline.value));
  const boxes = HEADS.slice(1).map((head, place) => {
    const box = make("input", { type: "checkbox" });
    box.checked = head.dataset.folded === undefined;
    const show = () => {
      for (const row of [TABLE.tHead.rows[0], ...ROWS]) row.cells[place + 1].hidden = !box.checked;
    };
    box.addEventListener("change", show);
    show();
    return make("label", {}, box, TITLES[place + 1]);
  });
  const columns = make("details", {}, make("summary", {}, "Columns"), make("fieldset", {}, make("legend", { class: "unseen" }, "Columns that are shown"), ...boxes));
  document.getElementById("tools").append(
    make("div", {}, make("label", { for: "search" }, "Search, or conditions on columns"), search),
    make("div", {}, make("label", { for: "baseline" }, "Ratios to"), baseline),
    columns,
    make("p", { id: "hits", role: "status" }),
  );
  document.getElementById("tools").hidden = false;
}

// ---- the fastest network that reaches an accuracy

// A question mark for a suspect time stands behind the unit, as in the sentences above.
function latency(row, index) {
  const text = row.cells[index].firstChild.textContent;
  return text.endsWith("?") ? `${text.slice(0, -1)}\u00a0ms?` : `${text}\u00a0ms`;
}

function fastest(body, percent) {
  const index = HEADS.findIndex((head) => head.dataset.key === "latency_ms_median");
  const known = ROWS.filter((row) => row.parentNode === body && row.dataset.settled !== undefined);
  const enough = known.filter((row) => Number(row.dataset.settled) >= percent / 100);
  if (!enough.length) {
    const best = Math.max(...known.map((row) => Number(row.dataset.settled)));
    return `No network here reaches that; the highest accuracy is ${(100 * best).toFixed(2)}\u00a0%.`;
  }
  // The seeds of a network share one timing, so one row stands for it. Times are ranked under the settings and on the
  // machine that most of these rows have; rows of others are counted.
  const timed = enough.filter((row) => value(row, index) !== null);
  const counts = new Map();
  for (const { dataset } of timed) counts.set(dataset.conditions, (counts.get(dataset.conditions) ?? 0) + 1);
  const most = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a))[0];
  const ranked = new Map();
  for (const row of timed) {
    if (row.dataset.conditions === most && !ranked.has(row.dataset.net)) ranked.set(row.dataset.net, row);
  }
  const accuracy = (row) => `${row.dataset.net}, ${(100 * row.dataset.settled).toFixed(2)}\u00a0%`;
  const words = [...ranked.values()].sort((a, b) => value(a, index) - value(b, index)).slice(0, 3)
    .map((row) => `${accuracy(row)}, ${latency(row, index)}`);
  const sentences = words.length ? [`${words.join("; then ")}.`] : [];
  const untimed = enough.filter((row) => value(row, index) === null && !ranked.has(row.dataset.net));
  if (untimed.length) sentences.push(`Without a latency: ${[...new Set(untimed.map(accuracy))].join("; ")}.`);
  const others = timed.length - (counts.get(most) ?? 0);
  if (others) sentences.push(`${others} more rows were measured on another machine or under other settings.`);
  return sentences.join(" ");
}

function buildQuestion() {
  const place = document.getElementById("ask");
  const bodies = [...TABLE.tBodies].filter((body) => body.querySelectorAll("tr[data-settled]").length > 1);
  if (!place || !bodies.length || !HEADS.some((head) => head.dataset.key === "latency_ms_median")) return;
  const limit = make("input", { id: "limit", type: "number", min: "0", max: "100", step: "0.1" });
  const data = make("select", { id: "data-set" });
  for (const [index, body] of bodies.entries()) {
    data.append(option(index, labelOf(body)));
  }
  const words = make("output", { for: "limit data-set" });
  const update = () => { words.textContent = limit.value === "" ? "" : fastest(bodies[data.value], Number(limit.value)); };
  let typed = false;
  const choose = () => {
    // A number that the reader has typed stays.
    if (typed) return update();
    const settled = [...bodies[data.value].querySelectorAll("tr[data-settled]")].map((row) => Number(row.dataset.settled));
    limit.value = 5 * Math.floor(20 * Math.max(...settled));
    return update();
  };
  limit.addEventListener("input", () => { typed = true; update(); });
  data.addEventListener("change", choose);
  data.value = bodies.length - 1;
  place.append(
    make("div", {}, make("label", { for: "limit" }, "Fastest with at least \u2026 %"), limit),
    make("div", {}, make("label", { for: "data-set" }, "on"), data),
    words,
  );
  place.hidden = false;
  choose();
}

// ---- highlighting: rows, points and curves of a network belong together

const TIP = make("div", { id: "tip", hidden: "", "aria-hidden": "true" });
document.body.append(TIP);
const MATES = new Map();
for (const element of document.querySelectorAll("[data-net]")) {
  const mates = MATES.get(element.dataset.net) ?? [];
  mates.push(element);
  MATES.set(element.dataset.net, mates);
}
let lit = null;

function light(name) {
  if (name === lit) return;
  for (const element of MATES.get(lit) ?? []) element.classList.remove("on");
  for (const element of MATES.get(name) ?? []) element.classList.add("on");
  lit = name;
}

function tell(element, x, y) {
  const text = element?.dataset.words;
  TIP.hidden = !text;
  if (!text) return;
  TIP.textContent = text;
  const box = TIP.getBoundingClientRect();
  TIP.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  TIP.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
}

// The browser's own tooltip of a point would repeat ours after a while.
for (const point of document.querySelectorAll(".pt[title]")) {
  point.dataset.words = point.title;
  point.removeAttribute("title");
}
document.addEventListener("pointermove", (event) => {
  const element = event.target.closest?.("[data-net]");
  light(element?.dataset.net ?? null);
  tell(element, event.clientX, event.clientY);
});
document.addEventListener("focusin", (event) => light(event.target.closest("[data-net]")?.dataset.net ?? null));
document.addEventListener("click", (event) => {
  const target = event.target.closest?.("[data-row]")?.dataset.row;
  if (target) location.hash = target;
});

// ---- names of points: on a narrow screen, some need another side, and some have no room (`_with_sides` in panels.py)

function arrange(plot) {
  const room = plot.getBoundingClientRect();
  const taken = [...plot.querySelectorAll(".pt")].map((point) => point.getBoundingClientRect());
  for (const name of plot.querySelectorAll(".pt b")) {
    if (name.dataset.side === undefined) name.dataset.side = name.className;
    const wanted = name.dataset.side;
    if (wanted.includes("hidden")) continue;
    const point = name.parentNode.getBoundingClientRect();
    const isFree = (side) => {
      name.className = side;
      const box = name.getBoundingClientRect();
      if (box.left < room.left - 20 || box.right > room.right + 8) return false;
      return !taken.some((other) => other.left !== point.left && box.left < other.right && other.left < box.right
        && box.top < other.bottom && other.top < box.bottom);
    };
    const side = [wanted, ...DATA.sides].find(isFree);
    if (side) taken.push(name.getBoundingClientRect());
    else name.className = "right hidden";
  }
}

const WIDTHS = new ResizeObserver((entries) => entries.forEach((entry) => arrange(entry.target)));
for (const plot of document.querySelectorAll(".plot")) WIDTHS.observe(plot);

// ---- tables and pictures that are wider than their place

// Return a line that says so while it is true. The region gets it as its description, which a screen reader reads.
function scrollCue(region) {
  const what = region.querySelector("table") ? "table" : "picture";
  const cue = make("p", { class: "cue", hidden: "" }, `The ${what} scrolls sideways \u2192`);
  const watch = new ResizeObserver(() => {
    cue.hidden = region.scrollWidth <= region.clientWidth + 1;
    if (cue.hidden) region.removeAttribute("aria-description");
    else region.setAttribute("aria-description", `The ${what} scrolls sideways`);
  });
  watch.observe(region);
  watch.observe(region.firstElementChild);
  return cue;
}

for (const region of document.querySelectorAll(".scroll")) region.before(scrollCue(region));

function scrollRegion(label, table) {
  const region = make("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, table);
  return make("div", {}, scrollCue(region), region);
}

// ---- two networks side by side

for (const row of DATA.rows) row.name = row.title + seedWords(row.seed);
const WITH_COUNTS = new Map(DATA.rows.map((row) => [row.anchor, row]));

function shade(difference, total) {
  const share = Math.abs(difference) / Math.max(1, total);
  const level = share >= 0.1 ? 3 : share >= 0.03 ? 2 : share > 0 ? 1 : 0;
  return level ? `${difference > 0 ? "p" : "m"}${level}` : "";
}

function signed(number) {
  return number > 0 ? `+${number}` : number < 0 ? `\u2212${-number}` : "";
}

function differenceMatrix(first, second) {
  const names = DATA.classes[first.label];
  const head = make("tr", {}, make("td"));
  for (const name of names) head.append(make("th", { scope: "col", title: name }, name));
  const body = make("tbody");
  for (const [index, name] of names.entries()) {
    const line = make("tr", {}, make("th", { scope: "row", title: name }, name));
    const total = imagesOf(second, index);
    for (const place of names.keys()) {
      const difference = second.counts[index][place] - first.counts[index][place];
      line.append(make("td", { class: shade(difference, total) }, signed(difference)));
    }
    body.append(line);
  }
  const caption = make("caption", {}, `Images of ${second.name} minus images of ${first.name}`);
  return make("table", { class: "matrix" }, caption, make("thead", {}, head), body);
}

function right(row) {
  return row.counts.reduce((sum, line, index) => sum + line[index], 0);
}

function recalls(first, second, shared) {
  const names = DATA.classes[first.label];
  const changes = names.map((name, index) => {
    const total = imagesOf(first, index);
    return { name, index, total, a: first.counts[index][index] / total, b: second.counts[index][index] / total };
  }).filter((change) => change.total > 0);
  changes.sort((x, y) => Math.abs(y.b - y.a) - Math.abs(x.b - x.a));
  const head = make("tr", {}, make("th", { scope: "col", class: "text" }, "Class"));
  for (const title of [first.name, second.name, "Difference, points", "95 % interval"]) {
    head.append(make("th", { scope: "col" }, title));
  }
  const body = make("tbody");
  for (const change of changes) {
    const [low, high] = newcombe(change.a, change.b, change.total, shared?.[change.index]);
    const texts = [`${(100 * change.a).toFixed(1)}\u00a0%`, `${(100 * change.b).toFixed(1)}\u00a0%`,
      points(change.b - change.a), `${points(low)} to ${points(high)}`];
    body.append(make("tr", {}, make("th", { scope: "row" }, change.name), ...texts.map((text) => make("td", {}, text))));
  }
  const caption = make("caption", {}, "Share of each class classified right");
  return make("table", { class: "narrow" }, caption, make("thead", {}, head), body);
}

// Return what must be known of the table of classes. It is no caption, which would scroll sideways with the table.
function recallsNote(shared) {
  const method = shared ? "for two shares of the same images (Newcombe 1998, paired data, method 10): it counts which images both networks get right."
    : "for two shares of different images (Newcombe 1998), since this page does not know which images both networks get right; for the same images it is usually too wide.";
  return `The largest difference comes first. The interval is that ${method} It is not corrected for the number of classes.`;
}

function points(share) {
  return `${share < 0 ? "\u2212" : "+"}${Math.abs(100 * share).toFixed(1)}`;
}

// Wilson's interval of a share of n images (Wilson 1927).
function wilson(share, n) {
  const z = 1.959963984540054;
  const middle = (share + z * z / (2 * n)) / (1 + z * z / n);
  const half = z / (1 + z * z / n) * Math.sqrt(share * (1 - share) / n + z * z / (4 * n * n));
  return [middle - half, middle + half];
}

// Correlation of two networks being right, over n images of which they get shares a and b right, and both get `both`
// right. A positive one has a correction for continuity (Newcombe 1998, paired data, method 10).
function correlation(a, b, n, both) {
  const [onlyA, onlyB] = [Math.round(a * n) - both, Math.round(b * n) - both];
  const cross = both * (n - both - onlyA - onlyB) - onlyA * onlyB;
  const scale = n * n * Math.sqrt(a * (1 - a) * b * (1 - b));
  if (scale === 0) return 0;
  return (cross > 0 ? Math.max(0, cross - n / 2) : cross) / scale;
}

// Newcombe's interval of the difference b - a of two shares of n images each. For the same images, `both` is the number
// that both networks get right (Newcombe 1998, Statistics in Medicine 17, 2635, method 10). Without it the images
// count as different ones, and the correlation as 0 (the same year and volume, 873, method 10 there too).
function newcombe(a, b, n, both) {
  const [[lowA, highA], [lowB, highB]] = [wilson(a, n), wilson(b, n)];
  const shared = both === undefined ? 0 : correlation(a, b, n, both);
  const reach = (x, y) => Math.sqrt(Math.max(0, x * x + y * y - 2 * shared * x * y));
  return [b - a - reach(b - lowB, highA - a), b - a + reach(highB - b, a - lowA)];
}

// ---- images that two networks both get right

function imagesOf(row, index) {
  return row.counts[index].reduce((sum, count) => sum + count, 0);
}

// Return the number of images of each class that both networks get right; null if the page does not know which.
function sharedRights(first, second) {
  if (!first.right || !second.right || first.right.sequence !== second.right.sequence) return null;
  const [a, b] = [first, second].map((row) => atob(row.right.bits));
  let image = 0; // those of the first class come first
  return first.counts.map((_, index) => {
    let both = 0;
    for (const end = image + imagesOf(first, index); image < end; image += 1) {
      both += ((a.charCodeAt(image >> 3) & b.charCodeAt(image >> 3)) >> (7 - (image & 7))) & 1;
    }
    return both;
  });
}

// ---- test images on which two networks disagree

const SAMPLES = 24;

function samples(first, second) {
  const sheet = DATA.images[first.label];
  if (!sheet || !first.said || !second.said) return [];
  const names = DATA.classes[first.label];
  const list = make("ul", { class: "samples" });
  for (const [place, number] of sheet.numbers.entries()) {
    if (first.said[place] === second.said[place]) continue;
    const image = make("span", { class: "image", role: "img", "aria-label": `test image ${number}` });
    const [column, line] = [place % sheet.columns, Math.floor(place / sheet.columns)];
    image.style.backgroundImage = `url("${sheet.uri}")`;
    image.style.backgroundSize = `${100 * sheet.columns}% ${100 * sheet.lines}%`;
    // Per cent of a background are those of the room that is left beside it.
    const share = (index, count) => (count > 1 ? 100 * index / (count - 1) : 0);
    image.style.backgroundPosition = `${share(column, sheet.columns)}% ${share(line, sheet.lines)}%`;
    const answer = (row) => {
      const isRight = row.said[place] === sheet.true[place];
      return make("div", { class: isRight ? "right" : "wrong" }, `${row.name}: ${names[row.said[place]]} ${isRight ? "\u2713" : "\u2717"}`);
    };
    list.append(make("li", {}, image, make("div", {}, `${names[sheet.true[place]]} (no. ${number})`), answer(first), answer(second)));
  }
  const count = list.children.length;
  const words = count ? `${count} of the ${sheet.numbers.length} test images that the networks of this run answer most differently:`
    : "They agree on the test images that the networks of this run answer most differently.";
  // The first pictures are enough for a look; the others unfold.
  const rest = make("ul", { class: "samples" });
  rest.append(...[...list.children].slice(SAMPLES));
  const more = rest.children.length ? [make("details", {}, make("summary", {}, `${rest.children.length} more`), rest)] : [];
  return [make("h3", {}, "Images on which they disagree"), make("p", { class: "lead" }, words), list, ...more];
}

function verdict(first, second) {
  const found = DATA.verdicts.find(([a, b]) =>
    (a === first.network && b === second.network) || (a === second.network && b === first.network));
  return found ? [make("p", {}, found[2])] : [];
}

function accuracyWords(row) {
  const total = row.counts.flat().reduce((sum, count) => sum + count, 0);
  return `${row.name} ${(100 * right(row) / total).toFixed(2)}\u00a0%${row.training}`;
}

function compare(first, second, place) {
  const sentence = `Right on the test images of ${first.label}: ${accuracyWords(first)}; ${accuracyWords(second)}.`;
  const matrix = scrollRegion("Difference of two confusion matrices", differenceMatrix(first, second));
  const shared = sharedRights(first, second);
  const classes = scrollRegion("Accuracy by class of two networks", recalls(first, second, shared));
  const note = "Blue: the second network puts more images here; orange: fewer. On the diagonal, more is better.";
  const tables = make("div", { class: "charts" }, make("div", {}, matrix, make("p", { class: "lead" }, note)),
    make("div", {}, classes, make("p", { class: "lead" }, recallsNote(shared))));
  place.replaceChildren(make("p", {}, sentence), ...verdict(first, second), tables, ...samples(first, second));
}

function buildComparison() {
  const labels = new Map();
  for (const row of DATA.rows) labels.set(row.label, [...(labels.get(row.label) ?? []), row]);
  const groups = [...labels.values()].filter((rows) => rows.length > 1);
  if (!groups.length) return;
  const section = document.getElementById("two");
  const rowOption = (row) => networkOption(row.anchor, row.title, row.label, row.seed);
  const first = make("select", { id: "first" });
  const second = make("select", { id: "second" });
  for (const rows of groups) {
    const group = make("optgroup", { label: rows[0].label });
    group.append(...rows.map(rowOption));
    first.append(group);
  }
  const place = make("div", { "aria-live": "polite" });
  const update = () => compare(WITH_COUNTS.get(first.value), WITH_COUNTS.get(second.value), place);
  const offer = () => {
    const row = WITH_COUNTS.get(first.value);
    const rows = labels.get(row.label).filter((other) => other !== row);
    const before = second.value;
    second.replaceChildren(...rows.map(rowOption));
    if (rows.some((other) => other.anchor === before)) second.value = before;
    update();
  };
  first.addEventListener("change", offer);
  second.addEventListener("change", update);
  const tools = make("div", { class: "tools" },
    make("div", {}, make("label", { for: "first" }, "First network"), first),
    make("div", {}, make("label", { for: "second" }, "Second network"), second));
  section.append(tools, place);
  section.hidden = false;
  const link = make("li", {}, make("a", { href: "#two" }, "Two networks"));
  document.querySelector("nav a[href='#columns']").parentNode.before(link);
  offer();
}

buildTools();
buildQuestion();
buildComparison();
