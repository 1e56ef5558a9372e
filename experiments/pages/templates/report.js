"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "5 2", "1 2"];
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 512, LEFT = 46, RIGHT = 496, HEIGHT = 170, TOP = 12;  // of a chart, in its own units

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function inUnit(value, unit) {
  const shown = unit.factor * value;
  return shown.toFixed(unit.factor !== 1 || unit.name === "%" || Math.abs(shown) >= 100 ? 1 : 3);
}

function score(cell) {
  const unit = data.units[cell.unit];
  const interval = cell.lo === null ? "" : ` [${inUnit(cell.lo, unit)}, ${inUnit(cell.hi, unit)}]`;
  return inUnit(cell.value, unit) + interval;
}

function scoreTable(cells) {
  const head = ["task", "split", "metric", "score", "unit", "n", "seeds"];
  const body = cells.map(cell => {
    const link = element("a", {href: `#row-${cell.keys[0]}`, title: `rows ${cell.keys.join(", ")}: digests, versions, seconds`}, score(cell));
    const parts = [cell.task, cell.split, cell.metric, link, data.units[cell.unit].words, cell.n ? String(cell.n) : "", String(cell.keys.length)];
    return element("tr", {}, ...parts.map((each, i) => element("td", [3, 5, 6].includes(i) ? {class: "number"} : {}, each)));
  });
  const titles = head.map((each, i) => element("th", [3, 5, 6].includes(i) ? {class: "number", scope: "col"} : {scope: "col"}, each));
  return element("table", {}, element("thead", {}, element("tr", {}, ...titles)), element("tbody", {}, ...body));
}

function reported(point, task) {
  return point.cells.find(cell => cell.task === task && cell.split === data.split);
}

// Round numbers from below the lowest to above the highest: 1, 2 or 5 times a power of ten apart.
function ticks(low, high) {
  const rough = ((high - low) || Math.abs(high) || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(times => times * power >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({length: last - first + 1}, (_, i) => ({value: (first + i) * step, text: ((first + i) * step).toFixed(digits)}));
}

// Tasks by the unit of their scores: a chart has an axis for each unit.
function byUnit(tasks, series) {
  const groups = new Map();
  tasks.forEach((task, number) => {
    const cell = series.points.map(point => reported(point, task)).find(Boolean);
    if (!cell) return;
    const unit = data.units[cell.unit], id = JSON.stringify(unit);
    if (!groups.has(id)) groups.set(id, {unit, tasks: []});
    groups.get(id).tasks.push({task, number, metric: cell.metric});
  });
  return [...groups.values()];
}

function panel(svg, pair, series, at, {unit, tasks}, top) {
  const x = share => LEFT + (RIGHT - LEFT) * share;
  const cells = series.points.flatMap(point => tasks.map(({task}) => reported(point, task)).filter(Boolean));
  const marks = ticks(...[Math.min, Math.max].map((pick, i) => unit.factor * pick(...cells.map(cell => (i ? cell.hi : cell.lo) ?? cell.value))));
  const low = marks[0].value, high = marks[marks.length - 1].value;
  const y = value => top + HEIGHT - HEIGHT * (unit.factor * value - low) / (high - low);
  marks.forEach(({value, text}) => {
    const height = y(value / unit.factor);
    svg.append(shape("line", {x1: LEFT, x2: RIGHT, y1: height, y2: height, class: "grid"}));
    svg.append(shape("text", {x: LEFT - 6, y: height + 4, "text-anchor": "end"}, text));
  });
  svg.append(shape("line", {x1: x(at.share), x2: x(at.share), y1: top, y2: top + HEIGHT + 4, class: "cursor"}));
  tasks.forEach(({task, number}) => {
    const points = series.points.filter(point => reported(point, task));
    const corner = (point, name) => `${x(point.share)},${y(reported(point, task)[name])}`;
    const banded = points.filter(point => reported(point, task).lo !== null);
    const group = shape("g", {class: `t${number % DASHES.length}`});
    group.append(shape("polygon", {points: [...banded.map(point => corner(point, "hi")), ...banded.map(point => corner(point, "lo")).reverse()].join(" ")}));
    group.append(shape("polyline", {points: points.map(point => corner(point, "value")).join(" "), "stroke-dasharray": DASHES[number % DASHES.length]}));
    for (const point of points) group.append(shape("circle", {cx: x(point.share), cy: y(reported(point, task).value), r: point === at ? 6 : 3.5}));
    svg.append(group);
  });
}

function chart(pair, series, at, choose) {
  const groups = byUnit(pair.tasks, series), gap = 24;
  const legend = groups.flatMap(group => group.tasks.map(each => ({...each, unit: group.unit})));
  const bottom = TOP + groups.length * (HEIGHT + gap), height = bottom + 34 + 15 * legend.length;
  const svg = shape("svg", {viewBox: `0 0 ${WIDTH} ${height}`, class: "chart", role: "img"});
  svg.append(shape("title", {}, `Scores of ${pair.tasks.join(" and ")} from the ${pair.first} to the ${pair.second} expert`));
  if (!groups.length) return svg;
  groups.forEach((group, i) => panel(svg, pair, series, at, group, TOP + i * (HEIGHT + gap)));
  const base = bottom - gap;
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(shape("text", {x: LEFT + (RIGHT - LEFT) * share, y: base + 17, "text-anchor": "middle"}, share.toFixed(2)));
  }
  svg.append(shape("text", {x: LEFT, y: base + 32}, `← ${short(pair.first)}`));
  svg.append(shape("text", {x: RIGHT, y: base + 32, "text-anchor": "end"}, `${short(pair.second)} →`));
  svg.append(shape("text", {x: (LEFT + RIGHT) / 2, y: base + 32, "text-anchor": "middle"}, `share of ${short(pair.second)}`));
  legend.forEach(({task, number, metric, unit}, i) => {
    const line = base + 52 + 15 * i;
    svg.append(shape("line", {x1: LEFT, x2: LEFT + 26, y1: line - 4, y2: line - 4, class: `legend t${number % DASHES.length}`, "stroke-dasharray": DASHES[number % DASHES.length]}));
    svg.append(shape("text", {x: LEFT + 32, y: line}, `${short(task, 30)}, ${data.split}: ${short(metric, 30)}${unit.words ? ` (${unit.words})` : ""}`));
  });
  svg.addEventListener("click", event => {
    const box = svg.getBoundingClientRect(), share = (WIDTH * (event.clientX - box.left) / box.width - LEFT) / (RIGHT - LEFT);
    choose(nearest(series.points, share));
  });
  return svg;
}

function short(text, longest = 18) {
  return text.length > longest ? `${text.slice(0, longest / 2)}…${text.slice(1 - longest / 2)}` : text;
}

function frame(box, kind) {
  const [x0, y0, x1, y1] = box.map(value => 100 * value);
  return element("div", {class: `box ${kind}`, style: `left:${x0}%;top:${y0}%;width:${x1 - x0}%;height:${y1 - y0}%`});
}

function sampleCard(sample) {
  const card = element("div", {class: sample.is_video || sample.table ? "sample video" : "sample"});
  if (sample.image) {
    const image = element("div", {class: "image"}, element("img", {src: data.images[sample.image], alt: sample.title ?? sample.name}));
    if (sample.reference_box) image.append(frame(sample.reference_box, "right"));
    if (sample.box) image.append(frame(sample.box, ""));
    card.append(image);
  }
  if (sample.title) card.append(element("div", {class: "quiet"}, sample.title));
  if (sample.prompt) card.append(element("div", {}, sample.prompt));
  if (sample.reference_box) {
    card.append(element("div", {}, sample.box ? "solid blue: its box, dashed orange: the right one" : "it gave no box"));
    return card;
  }
  const said = sample.title === undefined ? sample.answer || "(nothing)" : sample.text;
  if (said) card.append(element("div", {}, "says: ", element("strong", {}, said)));
  if (sample.table) {
    const lines = sample.table.map(line => element("tr", {}, ...line.map(each => element("td", {}, each))));
    card.append(element("div", {class: "wide"}, element("table", {}, element("tbody", {}, ...lines))));
  }
  if (sample.reference) card.append(element("div", {class: "quiet"}, `right: ${sample.reference}`));
  return card;
}

function sampleParts(point) {
  const found = point.cells.flatMap(cell => cell.keys.filter(key => Object.hasOwn(data.samples, key)).map(key => [cell, data.samples[key]]));
  if (!found.length) return [element("p", {class: "quiet"}, `No sample answers of this point. ${data.make_samples}`)];
  return found.flatMap(([cell, samples]) => [
    element("h3", {}, `What it answers: ${cell.task}, ${cell.split}`),
    element("div", {class: "samples"}, ...samples.map(sampleCard)),
  ]);
}

function saveParts(point) {
  const parts = [];
  if (point.command) parts.push(element("pre", {}, element("code", {}, point.command)));
  if (point.about) parts.push(element("p", {class: "quiet"}, point.about));
  return parts.length ? [element("div", {}, "Save this model:"), ...parts] : [];
}

function nearest(points, share) {
  let best = 0;
  points.forEach((point, i) => { if (Math.abs(point.share - share) < Math.abs(points[best].share - share)) best = i; });
  return best;
}

function picker(id, title, names) {
  const select = element("select", {id}, ...names.map((name, i) => element("option", {value: i}, name)));
  const label = element("label", {for: id}, `${title} `);
  const box = element("span", {}, label, select);
  box.hidden = names.length < 2;
  return {select, box};
}

const idOf = pair => `${pair.first}/${pair.second}`;
let follow = () => {};

if (data.pairs.length) {
  const pairs = picker("pair", "Experts", data.pairs.map(pair => `${pair.first} → ${pair.second}`));
  const kinds = picker("series", "Series", []);
  const slider = element("input", {type: "range", id: "ratio", min: 0, step: 1});
  const title = element("label", {for: "ratio"}), words = element("output", {for: "ratio"});
  const side = element("div", {class: "side"}), save = element("div"), others = element("details"), gallery = element("details");
  const summaries = [element("summary"), element("summary")], inside = [element("div", {class: "wide"}), element("div")];
  others.append(summaries[0], inside[0]);
  gallery.append(summaries[1], inside[1]);
  const here = () => {
    const pair = data.pairs[pairs.select.value], series = pair.series[kinds.select.value];
    return {pair, series, point: series.points[slider.value]};
  };
  const show = () => {
    const {pair, series, point} = here();
    title.textContent = `Share of ${pair.second}`;
    slider.setAttribute("aria-valuetext", point.label);
    words.textContent = point.label;
    const own = point.cells.filter(cell => pair.tasks.includes(cell.task)), rest = point.cells.filter(cell => !own.includes(cell));
    side.replaceChildren(chart(pair, series, point, choose), element("div", {class: "wide"}, scoreTable(own)));
    save.replaceChildren(...saveParts(point));
    others.hidden = !rest.length;
    summaries[0].textContent = `Scores on other tasks (${new Set(rest.map(cell => cell.task)).size})`;
    inside[0].replaceChildren(scoreTable(rest));
    summaries[1].textContent = "What it answers";
    gallery.hidden = !Object.keys(data.samples).length && !data.make_samples;
    inside[1].replaceChildren(...sampleParts(point));
  };
  const remember = () => {
    const {pair, series, point} = here();
    history.replaceState(null, "", `#${new URLSearchParams({pair: idOf(pair), series: series.name, ratio: point.share})}`);
  };
  const choose = index => { slider.value = index; show(); remember(); };
  const go = (number, name, share) => {
    const pair = data.pairs[number];
    pairs.select.value = number;
    kinds.select.replaceChildren(...pair.series.map((series, i) => element("option", {value: i}, series.name)));
    kinds.box.hidden = pair.series.length < 2;
    kinds.select.value = Math.max(0, pair.series.findIndex(series => series.name === name));
    const points = pair.series[kinds.select.value].points;
    slider.max = points.length - 1;
    slider.value = nearest(points, share);
    show();
  };
  slider.addEventListener("input", () => choose(slider.value));
  kinds.select.addEventListener("change", () => { const {pair, series, point} = here(); go(data.pairs.indexOf(pair), series.name, point?.share ?? 0.5); remember(); });
  pairs.select.addEventListener("change", () => { go(Number(pairs.select.value), "", 0.5); remember(); });
  const controls = element("div", {class: "controls"}, pairs.box, kinds.box, title, slider, words);
  document.getElementById("pairs").append(controls, side, save, others, gallery);
  go(0, "", 0.5);
  follow = place => {
    const number = data.pairs.findIndex(pair => idOf(pair) === place.get("pair"));
    if (number < 0) return;
    go(number, place.get("series"), Number(place.get("ratio") ?? 0.5));
    document.getElementById("explorer").scrollIntoView();
  };
}

function arrive() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return follow(new URLSearchParams(location.hash.slice(1)));
  for (let each = target.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
  target.scrollIntoView({block: target.matches("tr") ? "center" : "start"});
}

window.addEventListener("hashchange", arrive);
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));
if (location.hash) arrive();
