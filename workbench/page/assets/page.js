async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (byte) => byte.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

new Function(await unpack("library"))(); // gives window.vega
const { charts, cards, samples } = JSON.parse(await unpack("data"));
const table = document.getElementById("table");
const filters = document.getElementById("filters");
const views = new Map(); // what each figure shows now
const ORDER = { process: "process", at: "sample", time: "seconds" };
const DISTRIBUTION = { process: "process", share: "share of the samples", time: "seconds, at most" };
const CLOCKS = {
  process: "process", clock: "clock", low: "least MHz", median: "median MHz", high: "greatest MHz",
  earlier: "earlier half's median", later: "later half's median",
};
const COURSE = { process: "process", at: "seconds", mhz: "MHz", watts: "W" };
let visible = new Set();
let turn = 0; // how often the page was filtered

// Colours are variables of the style sheet, so a change of theme draws nothing anew; but text is measured before
// it is drawn, so its font is named.
const font = getComputedStyle(document.documentElement).fontFamily;
const config = { style: { text: { font }, "guide-label": { font }, "guide-title": { font } } };

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function draw(figure, card) {
  tabulate(figure.querySelector(".scroll"), card.columns, card.data.rows);
  const tooltip = (_, event, __, datum) => point(event, datum, card.columns);
  const container = make("div"); // gets a role and a label of Vega's, the drawing itself keeps its own
  figure.querySelector(".drawing").replaceChildren(container);
  views.get(figure)?.finalize();
  const options = { renderer: "svg", container, logLevel: 1, tooltip };
  const view = new vega.View(vega.parse(charts[card.chart], config), options);
  for (const [name, rows] of Object.entries(card.data)) view.data(name, rows);
  views.set(figure, view);
  await view.runAsync();
}

function point(event, datum, columns) {
  const tip = document.getElementById("tip");
  tip.hidden = !datum;
  if (!datum) return;
  const lines = Object.entries(columns).filter(([name]) => datum[name] !== undefined);
  tip.replaceChildren(...lines.map(([name, label]) => {
    const line = make("div", `${label}: `);
    line.append(make("b", datum[name]));
    return line;
  }));
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

function tabulate(place, columns, rows) {
  const [head, body, result] = [make("thead"), make("tbody"), make("table")];
  head.append(make("tr"));
  head.firstChild.append(...Object.values(columns).map((label) => make("th", label, { scope: "col" })));
  body.append(...rows.map((row) => {
    const line = make("tr");
    line.append(...Object.keys(columns).map((name) => make("td", row[name] ?? "-")));
    return line;
  }));
  result.append(head, body);
  place.replaceChildren(result);
}

async function drawCards() {
  const mine = ++turn;
  const figures = [...document.querySelectorAll("[data-card]")];
  for (const figure of figures) figure.hidden = !cards[figure.dataset.card].members.some((row) => visible.has(row));
  for (const figure of figures) {
    const card = cards[figure.dataset.card];
    if (figure.hidden) continue;
    const seen = (row) => row.row === undefined || visible.has(row.row);
    const data = Object.fromEntries(Object.entries(card.data).map(([name, rows]) => [name, rows.filter(seen)]));
    const shown = data.rows.map((row) => row.row).join();
    if (figure.dataset.shown === shown) continue;
    figure.dataset.shown = shown;
    if (!data.rows.length) {
      figure.querySelector(".drawing")?.replaceChildren();
      continue;
    }
    await draw(figure, { ...card, data });
    if (turn !== mine) return; // filtered anew meanwhile
  }
  document.documentElement.dataset.drawn = mine;
}

function filter() {
  const wanted = [...new FormData(filters)].filter(([, value]) => value);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) row.hidden = !wanted.every(([name, value]) => row.dataset[name] === value);
  visible = new Set(rows.filter((row) => !row.hidden).map((row) => Number(row.dataset.row)));
  document.getElementById("count").textContent = `${visible.size} of ${rows.length} rows`;
  drawCards();
  offerSamples();
}

function sort(button) {
  const heading = button.parentElement;
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const value = (row) => row.cells[heading.cellIndex].dataset.value;
  const order = new Intl.Collator("en", { numeric: true });
  const compare = (one, other) => {
    if (one === "" || other === "") return (one === "") - (other === ""); // no number: last either way
    const numbers = [Number(one), Number(other)];
    const difference = numbers.some(Number.isNaN) ? order.compare(one, other) : numbers[0] - numbers[1];
    return descending ? -difference : difference;
  };
  body.append(...[...body.rows].sort((one, other) => compare(value(one), value(other))));
}

function offerSamples() {
  const pick = document.getElementById("pick");
  const before = pick.value;
  const offered = samples.filter((each) => visible.has(each.row));
  pick.replaceChildren(...offered.map((each) => make("option", each.title, { value: each.row })));
  if (offered.some((each) => String(each.row) === before)) pick.value = before;
  drawSamples();
}

function drawSamples() {
  const row = Number(document.getElementById("pick").value || -1);
  const chosen = samples.find((each) => each.row === row);
  for (const name of ["order", "distribution", "clocks", "course"]) document.getElementById(name).hidden = true;
  document.getElementById("samples-text").textContent = chosen ? describe(chosen) : "No row here has samples.";
  if (!chosen) return;
  const inOrder = [], shares = [], course = [];
  chosen.processes.forEach((run, index) => {
    const process = index + 1;
    run.samples.forEach((time, place) => inOrder.push({ process, at: run.at?.[place] ?? place, time }));
    const seen = run.clocks?.course;
    seen?.at_s.forEach((at, place) => course.push({ process, at, mhz: seen.sm_mhz[place], watts: seen.power_w[place] }));
    run.quantiles.forEach((time, place) => shares.push({ process, time, share: place / (run.quantiles.length - 1) }));
  });
  show("order", ORDER, { rows: inOrder });
  show("distribution", DISTRIBUTION, { rows: shares });
  const [ranges, halves] = clocksOf(chosen);
  if (ranges.length) show("clocks", CLOCKS, { rows: ranges, halves });
  if (course.length) show("course", COURSE, { rows: course });
}

function describe(chosen) {
  const counts = chosen.processes.map((run) => run.count).join(", ");
  const taken = `${chosen.title}: ${counts} samples in ${chosen.processes.length} processes, in the order they were taken.`;
  if (!clocksOf(chosen)[0].length) return `${taken} Its record holds no clocks.`;
  const most = (name) => Math.max(...chosen.processes.map((run) => run.clocks?.[name]?.high ?? -Infinity));
  const seen = [["power_w", "W"], ["temperature_c", "°C"]].filter(([name]) => isFinite(most(name)));
  return seen.length ? `${taken} Up to ${seen.map(([name, unit]) => `${Math.round(most(name))} ${unit}`).join(", ")}.` : taken;
}

function clocksOf(chosen) {
  const ranges = [], halves = [];
  chosen.processes.forEach((run, index) => {
    for (const [name, clock] of [["sm_mhz", "SM"], ["memory_mhz", "memory"]]) {
      const seen = run.clocks?.[name];
      if (!seen) continue;
      const [earlier, later] = seen.halves ?? [seen.median, seen.median];
      const range = { process: index + 1, clock, earlier, later, ...seen, line: `${clock} ${index}` };
      ranges.push(range);
      halves.push({ ...range, process: index + 0.85, mhz: earlier }, { ...range, process: index + 1.15, mhz: later });
    }
  });
  return [ranges, halves];
}

function show(name, columns, data) {
  const figure = document.getElementById(name);
  figure.hidden = false;
  draw(figure, { chart: name, columns, data });
}

function nameTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const other = theme === "dark" ? "light" : "dark";
  document.getElementById("theme").textContent = `${other[0].toUpperCase()}${other.slice(1)} theme`;
  return other;
}

document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = nameTheme();
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
filters.addEventListener("change", filter);
filters.addEventListener("reset", () => setTimeout(filter));
filters.addEventListener("submit", (event) => event.preventDefault());
table.tHead.addEventListener("click", (event) => event.target.closest("button") && sort(event.target.closest("button")));
document.getElementById("pick").addEventListener("change", drawSamples);
nameTheme();
filter();
