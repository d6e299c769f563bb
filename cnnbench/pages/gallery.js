"use strict";
// The explorer of a convolution, and the mark of the part on screen in the contents. The page is complete without this
// script. All numbers are computed as torch does: the kernel is not flipped.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function grid(side, value) {
  return Array.from({ length: side }, (_, i) => Array.from({ length: side }, (_, j) => value(i, j)));
}

// Return a number as text, with a minus sign in place of a hyphen.
function text(number) {
  return String(number).replace("-", "\u2212");
}

// ---- pictures and filters, by the values of their menus

const PICTURES = {
  square: (n, i, j) => Number([i, j].every((at) => at >= Math.floor(n / 3) && at < n - Math.floor(n / 3))),
  ramp: (n, i, j) => i + j + 1,
  checks: (n, i, j) => (i + j) % 2,
  digits: (n, i, j) => (7 * i + 3 * j + i * j) % 10,
};
const FILTERS = {
  vertical: (k, i, j) => Math.sign(2 * j - k + 1),
  horizontal: (k, i) => Math.sign(2 * i - k + 1),
  surround: (k, i, j) => FILTERS.copy(k, i, j) * k * k - 1,
  sum: () => 1,
  copy: (k, i, j) => Number(i === Math.floor(k / 2) && j === Math.floor(k / 2)),
};

// ---- arithmetic

// Return the number of windows along a side of n pixels; 0 if none fits.
function windows(n, { kernel, stride, padding, dilation }) {
  const free = n + 2 * padding - dilation * (kernel - 1) - 1;
  return free < 0 ? 0 : Math.floor(free / stride) + 1;
}

function padded(picture, padding) {
  const side = picture.length + 2 * padding;
  return grid(side, (i, j) => picture[i - padding]?.[j - padding] ?? 0);
}

// Return what the window reads at a step: place in the padded input, its value, and the weight that it meets.
function taps(step, input, kernel, settings) {
  const count = windows(input.length - 2 * settings.padding, settings);
  const [row, column] = [Math.floor(step / count), step % count];
  return kernel.flatMap((weights, i) => weights.map((weight, j) => {
    const y = row * settings.stride + i * settings.dilation;
    const x = column * settings.stride + j * settings.dilation;
    return { y, x, value: input[y][x], weight };
  }));
}

function sum(terms) {
  return terms.reduce((total, { value, weight }) => total + value * weight, 0);
}

// Return the receptive field, the distance of neighbouring units and the size of the map after each of some layers.
function fields(layers, n, settings) {
  const rows = [];
  let [field, jump, map] = [1, 1, n];
  for (let layer = 1; layer <= layers; layer++) {
    field += settings.dilation * (settings.kernel - 1) * jump;
    jump *= settings.stride;
    map = map && windows(map, settings);
    rows.push({ layer, field, jump, map });
  }
  return rows;
}

// ---- the explorer

function explorer(root) {
  const at = (name) => root.querySelector(`#x-${name}`);
  const number = (name) => Number(at(name).value);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let [timer, input, kernel, settings, count] = [null, [], [], {}, 0];

  function table(name, rows, cell) {
    const element = at(name);
    element.style.setProperty("--columns", rows.length);
    // A phone gives a grid of many columns its whole width; with still more, a cell has no room for the weight.
    element.parentNode.classList.toggle("wide", rows.length > 8);
    element.parentNode.classList.toggle("dense", rows.length > 10);
    element.tBodies[0].replaceChildren(...rows.map((row, i) => {
      return make("tr", {}, ...row.map((value, j) => {
        const made = make("td", { "data-value": value }, text(value));
        cell?.(made, i, j, value);
        return made;
      }));
    }));
  }

  // Read the settings and draw everything but the window.
  function change() {
    stop();
    const n = number("size");
    settings = {};
    for (const name of ["kernel", "stride", "padding", "dilation"]) settings[name] = number(name);
    for (const slider of root.querySelectorAll("input[type=range]")) showValue(slider);
    count = windows(n, settings);
    input = padded(grid(n, (i, j) => PICTURES[at("picture").value](n, i, j)), settings.padding);
    kernel = grid(settings.kernel, (i, j) => FILTERS[at("filter").value](settings.kernel, i, j));
    drawInput(n);
    table("weights", kernel);
    drawOutput();
    drawFields(n);
    at("formula").textContent = formula(n);
    at("step").max = Math.max(1, count * count);
    at("step").value = 1;
    for (const name of ["step", "back", "next", "play"]) at(name).disabled = count === 0;
    step();
  }

  function showValue(slider) {
    root.querySelector(`output[for=${slider.id}]`).textContent = slider.value;
  }

  function drawInput(n) {
    const read = new Set();
    for (let place = 0; place < count * count; place++) {
      for (const { y, x } of taps(place, input, kernel, settings)) read.add(`${y},${x}`);
    }
    const inside = (i) => i >= settings.padding && i < settings.padding + n;
    let unread = 0;
    table("input", input, (cell, i, j) => {
      const own = inside(i) && inside(j);
      cell.classList.toggle("zero", !own);
      cell.classList.toggle("unread", count > 0 && own && !read.has(`${i},${j}`));
      unread += cell.classList.contains("unread");
    });
    const one = unread === 1;
    at("unread").textContent = unread === 0 ? "" :
      `${unread} of the ${n * n} pixels ${one ? "is" : "are"} read by no window, so ${one ? "it has" : "they have"} ` +
      "no influence on the output; the stripes mark them.";
  }

  function drawOutput() {
    const values = grid(count, (i, j) => sum(taps(i * count + j, input, kernel, settings)));
    const bound = Math.max(1, ...values.flat().map(Math.abs));
    table("output", values, (cell, i, j, value) => {
      if (value) cell.style.setProperty("--share", `${Math.round(45 * Math.abs(value) / bound)}%`);
      if (value) cell.classList.add(value > 0 ? "plus" : "minus");
      cell.addEventListener("click", () => show(i * count + j + 1));
    });
  }

  function formula(n) {
    const { kernel: k, stride: s, padding: p, dilation: d } = settings;
    const reach = d * (k - 1) + 1;
    if (count === 0) {
      return `The window is ${reach} pixels wide and does not fit into ${n} + 2\u00b7${p} = ${n + 2 * p} pixels: there is ` +
        "no output. Make the kernel or the dilation smaller, or the input or its padding larger.";
    }
    const free = n + 2 * p - reach;
    return `Output size = \u230a(n + 2p \u2212 d\u00b7(k \u2212 1) \u2212 1) / s\u230b + 1 = ` +
      `\u230a(${n} + 2\u00b7${p} \u2212 ${d}\u00b7(${k} \u2212 1) \u2212 1) / ${s}\u230b + 1 = \u230a${free} / ${s}\u230b + 1 = ${count}`;
  }

  function drawFields(n) {
    const rows = fields(number("layers"), n, settings);
    at("fields").tBodies[0].replaceChildren(...rows.map(({ layer, field, jump, map }) => {
      const cells = [field, jump, map || "does not fit"].map((value) => make("td", {}, text(value)));
      return make("tr", {}, make("th", { scope: "row" }, String(layer)), ...cells);
    }));
    const jumps = rows.map(({ jump }) => jump / settings.stride).join(" + ");
    at("growth").textContent = `Receptive field = 1 + d\u00b7(k \u2212 1)\u00b7(1 + s + s\u00b2 + \u2026) = ` +
      `1 + ${settings.dilation}\u00b7(${settings.kernel} \u2212 1)\u00b7(${jumps}) = ${rows.at(-1).field} pixels`;
  }

  // Draw the window at the present step, and write out its sum.
  function step() {
    showValue(at("step"));
    const place = number("step") - 1;
    const terms = count ? taps(place, input, kernel, settings) : [];
    for (const cell of root.querySelectorAll(".tap")) cell.classList.remove("tap");
    for (const cell of root.querySelectorAll("[data-weight]")) delete cell.dataset.weight;
    for (const { y, x, weight } of terms) {
      const cell = at("input").rows[y].cells[x];
      cell.classList.add("tap");
      cell.dataset.weight = text(weight);
    }
    for (const [index, cell] of [...at("output").querySelectorAll("td")].entries()) {
      cell.classList.toggle("now", index === place);
      cell.classList.toggle("later", timer !== null && index > place);
    }
    const brackets = (value) => value < 0 ? `(${text(value)})` : text(value);
    const products = terms.filter(({ weight }) => weight !== 0).map(({ value, weight }) => `${text(value)}\u00b7${brackets(weight)}`);
    at("sum").textContent = count === 0 ? "" :
      `Row ${Math.floor(place / count) + 1}, column ${place % count + 1} of the output: ` +
      `${products.join(" + ") || "all weights are 0"} = ${text(sum(terms))}`;
  }

  function show(place) {
    stop();
    at("step").value = place;
    step();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    at("play").textContent = "Play";
    // A screen reader hears the sums of single steps, not all of those that play.
    at("sum").setAttribute("aria-live", "polite");
    for (const cell of root.querySelectorAll(".later")) cell.classList.remove("later");
  }

  function play() {
    if (timer !== null) {
      stop();
      return;
    }
    at("sum").setAttribute("aria-live", "off");
    at("play").textContent = "Pause";
    // At the end it begins again.
    if (number("step") >= count * count) at("step").value = 1;
    timer = setInterval(() => {
      if (number("step") >= count * count) {
        stop();
        return;
      }
      at("step").value = number("step") + 1;
      step();
    }, 500);
    step();
  }

  for (const name of ["size", "kernel", "stride", "padding", "dilation", "layers", "picture", "filter"]) {
    at(name).addEventListener("input", change);
  }
  at("step").addEventListener("input", () => show(number("step")));
  at("back").addEventListener("click", () => show(number("step") - 1));
  at("next").addEventListener("click", () => show(number("step") + 1));
  at("play").addEventListener("click", play);
  const motion = () => {
    at("play").hidden = still.matches;
    if (still.matches) stop();
  };
  still.addEventListener("change", motion);
  motion();
  change();
  root.hidden = false;
}

// ---- the contents

function followParts() {
  const links = new Map();
  for (const link of document.querySelectorAll("#contents a")) links.set(link.hash.slice(1), link);
  // The part that crosses a line a third of the way down the window is the one that is read.
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const link = links.get(target.id);
      if (!isIntersecting) link.removeAttribute("aria-current");
      else link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-33% 0px -66% 0px" });
  for (const part of document.querySelectorAll("section[id]")) {
    if (links.has(part.id)) observer.observe(part);
  }
}

const EXPLORER = document.getElementById("explorer");
if (EXPLORER) explorer(EXPLORER);
followParts();
