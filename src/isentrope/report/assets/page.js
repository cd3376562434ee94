/* Draws the page's pictures from the JSON in #charts. Text from the run reaches the page through textContent, or through plain()
   where Plotly takes it: nothing that a model wrote is ever parsed as HTML. */
(() => {
"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const root = document.documentElement;
const tip = document.getElementById("tip");
const coarse = matchMedia("(pointer: coarse)");
const state = {};  // what the switches say, by name

// --- small tools

const role = name => getComputedStyle(root).getPropertyValue("--" + name).trim();
const font = () => getComputedStyle(document.body).fontFamily;
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%/g, "&#37;");
const number = value => typeof value === "number" && Number.isFinite(value);
const drawn = text => text.replace(/ /g, "␣").replace(/\n/g, "↵") || "(empty)";
const minus = text => text.replace(/-/g, "−");

function rgba(colour, alpha) {
  const part = at => parseInt(colour.slice(at, at + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${alpha.toFixed(3)})`;
}

function mix(one, other, share) {
  const part = at => Math.round(parseInt(one.slice(at, at + 2), 16) * (1 - share) + parseInt(other.slice(at, at + 2), 16) * share);
  return `rgb(${part(1)},${part(3)},${part(5)})`;
}

function short(value, digits = 3) {
  if (!number(value)) return "—";
  if (Number.isInteger(value) && Math.abs(value) < 1e4) return minus(String(value));
  if (Math.abs(value) >= 1000) return minus(Math.round(value).toLocaleString("en"));
  if (Math.abs(value) < 1e-4) return minus(value.toExponential(digits - 1));
  value = Number(value.toPrecision(digits));  // first, so that 99.97 is 100 and not 100.0
  const size = Math.abs(value);
  return minus(value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
}

function reads(value, unit) {
  if (!number(value)) return "—";
  if (unit === "percent") return `${short(100 * value)} %`;
  return unit === "nats" ? `${short(value)} nats` : short(value);
}

function node(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  return made;
}

// --- the tooltip: one for the page, filled with text nodes

function showTip(x, y, title, rows, { code = false, note = "", more = null } = {}) {
  tip.replaceChildren();
  tip.append(node("b", code ? "code" : "", title));
  const listed = (rows, className) => {
    const list = node("dl", className);
    for (const [name, value, colour] of rows) {
      const term = node("dt");
      if (colour) { const patch = node("i"); patch.style.background = colour; term.append(patch); }
      term.append(name);
      list.append(term, node("dd", "", value));
    }
    return list;
  };
  tip.append(listed(rows, ""));
  if (more) tip.append(node("p", "", more.title), listed(more.rows, "code"));
  if (note) tip.append(node("p", "", note));
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), gap = 14;
  const left = x + gap + box.width > innerWidth ? x - gap - box.width : x + gap;
  const top = y + gap + box.height > innerHeight ? y - gap - box.height : y + gap;
  tip.style.left = `${Math.max(6, Math.min(left, innerWidth - box.width - 6))}px`;
  tip.style.top = `${Math.max(6, top)}px`;
}

const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", event => { if (event.key === "Escape") hideTip(); });

function onHover(element, show) {
  element.removeAllListeners("plotly_hover");
  element.removeAllListeners("plotly_unhover");
  element.on("plotly_hover", event => {
    const at = event.event.touches ? event.event.touches[0] : event.event;
    show(event, at.clientX, at.clientY);
  });
  element.on("plotly_unhover", hideTip);
}

// --- what all charts share

function base(element, margin, xTitle, yTitle) {
  const narrow = element.clientWidth < 460;
  const text = { family: font(), size: 12, color: role("muted") };
  const axis = { gridcolor: role("grid"), zeroline: false, automargin: false, ticks: "", ticklabelstandoff: 5, tickfont: { size: 11.5 }, nticks: narrow ? 5 : 8, fixedrange: coarse.matches };
  return {
    width: element.clientWidth, height: element.clientHeight, margin, font: text, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    hovermode: "x", hoverdistance: -1, dragmode: coarse.matches ? false : "zoom", separators: ".,",
    xaxis: { ...axis, showgrid: false, ticks: "outside", ticklen: 4, tickcolor: role("rule"), linecolor: role("rule"), showline: true, title: { text: plain(xTitle), standoff: 6, font: { size: 12 } } },
    yaxis: { ...axis, nticks: 6, fixedrange: true },
    annotations: [{ text: plain(yTitle), xref: "paper", yref: "paper", x: 0, y: 1, xshift: -margin.l + 4, yshift: 8, xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12 } }],
    shapes: [],
  };
}

const config = { displayModeBar: false, responsive: false, doubleClick: "reset", showTips: false };

function spread(labels, height, gap) {
  // Labels at their values' heights, moved apart until none overlaps; all stay inside.
  labels.reverse().sort((one, other) => one.at - other.at);  // equal values keep the order of their series, the last one lowest
  for (let round = 0; round < 60; round++) {
    for (let i = 1; i < labels.length; i++) {
      const over = gap - (labels[i].at - labels[i - 1].at);
      if (over > 0.1) { labels[i].at += over / 2; labels[i - 1].at -= over / 2; }
    }
    for (const label of labels) label.at = Math.max(0, Math.min(height, label.at));
  }
}

// --- lines with bands

function drawLines(element, id, spec) {
  const factor = spec.unit === "percent" ? 100 : 1, log = state[`scale:${id}`] === "log";
  const scaled = values => values.map(value => number(value) ? value * factor : null);
  const labelled = spec.series.filter(series => series.label);
  const longest = Math.max(0, ...labelled.map(series => series.label.length));
  const margin = { l: 46, r: longest ? 34 + 6.6 * longest : 12, t: 30, b: 44 };
  const layout = base(element, margin, spec.x, spec.y);
  const all = spec.series.flatMap(series => scaled([...series.y, ...(series.low || []), ...(series.high || [])])).filter(number);
  let bottom = Math.min(...all), top = Math.max(...all, spec.top === null ? -Infinity : spec.top * factor);
  if (!all.length) { bottom = 0; top = 1; }
  const room = 0.05 * ((top - bottom) || Math.abs(top) || 1);
  let floor = -Infinity;
  if (log) {
    const means = scaled(spec.series[spec.series.length - 1].y).filter(value => number(value) && value > 0);
    floor = Math.min(...means, top) / 20;
    layout.yaxis = { ...layout.yaxis, type: "log", range: [Math.log10(floor), Math.log10(top * 1.15)], dtick: 1 };
  } else {
    layout.yaxis.range = [spec.zero && bottom >= 0 ? (spec.rule === null ? 0 : -room) : bottom - room, top + (spec.top === null || top > spec.top * factor ? room : room / 2)];
  }
  const clipped = value => number(value) ? Math.max(value, floor) : null;
  const traces = [];
  const first = Math.min(...spec.series.flatMap(series => series.x)), last = Math.max(...spec.series.flatMap(series => series.x));
  layout.xaxis.range = first === last ? [first - 1, last + 1] : [first, last + 0.004 * (last - first)];
  if (last - first <= 8 && spec.series.every(series => series.x.every(Number.isInteger))) Object.assign(layout.xaxis, { tick0: 0, dtick: 1 });  // no half updates or layers
  for (const series of spec.series) {
    if (!series.low) continue;
    const low = scaled(series.low), high = scaled(series.high);
    const kept = series.x.map((_, at) => at).filter(at => number(low[at]) && number(high[at]));
    const there = kept.map(at => series.x[at]);
    traces.push({
      type: "scatter", mode: "lines", x: [...there, ...there.slice().reverse()], y: [...kept.map(at => clipped(high[at])), ...kept.slice().reverse().map(at => clipped(low[at]))],
      fill: "toself", fillcolor: rgba(role(series.colour), 0.15), line: { width: 0 }, hoverinfo: "skip",
    });
    if (!series.width && kept.length > 20) nameBand(layout, series, there, kept.map(at => clipped(high[at])), log);
  }
  for (const series of spec.series) {
    if (!series.width) continue;
    const colour = role(series.colour);
    traces.push({
      type: "scatter", mode: series.points ? "markers" : series.marks ? "lines+markers" : "lines", x: series.x, y: scaled(series.y).map(clipped), hoverinfo: "none", opacity: series.faint ? 0.4 : 1,
      line: { color: colour, width: series.width, dash: series.dash }, marker: { color: colour, size: series.width + 3 },
    });
  }
  drawSpans(layout, spec.spans || [], last);
  if (spec.rule !== null) layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: spec.rule * factor, y1: spec.rule * factor, line: { color: role("muted"), width: 1 } });
  const height = element.clientHeight - margin.t - margin.b, [low, high] = layout.yaxis.range;
  const labels = labelled.map(series => {
    const value = scaled(series.y).filter(number).pop();
    const put = log ? Math.log10(Math.max(value, floor)) : value;
    return { text: series.label, colour: role(series.colour), sign: series.dash === "dot" ? "┅" : "━", at: height * (put - low) / (high - low) };
  }).filter(label => number(label.at));
  spread(labels, height, 15);
  for (const label of labels) {
    const sign = `<span style="color:${label.colour}">${label.sign}</span> `;  // the colour as a mark, the words in ink: pale lines keep readable names
    layout.annotations.push({ text: sign + plain(label.text), xref: "paper", yref: "paper", x: 1, y: label.at / height, xshift: 5, xanchor: "left", yanchor: "middle", showarrow: false, font: { size: 12, color: role("ink") } });
  }
  Object.assign(layout.xaxis, { showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: role("muted"), spikesnap: "data" });
  return Plotly.react(element, traces, layout, config).then(() => onHover(element, (event, x, y) => {
    const where = event.points[0].x;
    const rows = spec.series.flatMap(series => {
      const at = nearest(series.x, where);
      const reach = series.low && number(series.low[at]) && number(series.high[at]) ? `${short(series.low[at] * factor)} to ${short(series.high[at] * factor)}` : "";
      if (!series.width) return [[series.band, reach || "—", rgba(role(series.colour), 0.35)]];
      return [[series.name, reads(series.y[at], spec.unit) + (reach ? `  (${reach})` : ""), role(series.colour)]];
    });
    const note = spec.series.find(series => series.width && series.low);
    showTip(x, y, `${spec.x.split(",")[0]} ${where.toLocaleString("en")}`, rows, { note: note ? `in brackets: ${note.band}` : "" });
  }));
}

function nameBand(layout, series, x, high, log) {
  // A band's name stands just above its upper edge, clear of it over the name's own width.
  const at = Math.round(0.2 * x.length), edge = Math.max(...high.slice(at, Math.round(0.45 * x.length)));
  layout.annotations.push({ text: plain(series.band), x: x[at], y: log ? Math.log10(edge) : edge, xref: "x", yref: "y", xanchor: "left", yanchor: "bottom", showarrow: false, bgcolor: rgba(role("card"), 0.55), borderpad: 1, font: { size: 11.5, color: role("ink") } });
}

function drawSpans(layout, spans, last) {
  // Stretches of the x axis with their names, each name on a line of its own from the top, so that none overlaps another.
  const names = [...new Set(spans.map(span => span.name))];
  for (const span of spans) {
    layout.shapes.push({ type: "rect", xref: "x", yref: "paper", x0: span.first, x1: Math.max(span.last, span.first + last / 200), y0: 0, y1: 1, fillcolor: rgba(role("bad"), 0.07), line: { width: 0 }, layer: "below" });
    layout.shapes.push({ type: "line", xref: "x", yref: "paper", x0: span.first, x1: span.first, y0: 0, y1: 1, line: { color: role("bad"), width: 1, dash: "dot" } });
    layout.annotations.push({ text: plain(span.name), x: span.first, y: 1 - 0.075 * names.indexOf(span.name), xref: "x", yref: "paper", xanchor: span.first > 0.7 * last ? "right" : "left", yanchor: "top", showarrow: false, font: { size: 11.5, color: role("ink") } });
  }
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, at) => { if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = at; });
  return best;
}

// --- entropy by update and position

function drawMap(element, id, spec) {
  const layout = base(element, { l: 46, r: 64, t: 30, b: 44 }, spec.x, spec.y);
  const scale = [[0, mix(role("card"), role("entropy-1"), 0.16)], [0.35, mix(role("card"), role("entropy-1"), 0.8)], [0.7, role("entropy-2")], [1, role("entropy-3")]];
  Object.assign(layout, { hovermode: "closest" });
  Object.assign(layout.yaxis, { autorange: "reversed", showgrid: false });
  const trace = {
    type: "heatmap", x: spec.steps, y: spec.positions, z: spec.values, zmin: 0, zmax: spec.top || 1, colorscale: scale, hoverinfo: "none", hoverongaps: false,
    colorbar: { thickness: 10, outlinewidth: 0, len: 1.06, x: 1.02, ticks: "", nticks: 5, title: { text: "nats", side: "top", font: { size: 11.5 } }, tickfont: { size: 11.5 } },
  };
  return Plotly.react(element, [trace], layout, config).then(() => onHover(element, (event, x, y) => {
    const point = event.points[0];
    showTip(x, y, `update ${point.x}, position ${point.y}`, [["mean entropy", reads(point.z, "nats")]]);
  }));
}

// --- S against N

function drawPressure(element, id, spec) {
  const dots = spec.phases[Number(state[`phase:${id}`] || 0)];
  const every = name => spec.phases.flatMap(phase => phase[name]).filter(number);
  const layout = base(element, { l: 50, r: 70, t: 30, b: 44 }, spec.x, spec.y);
  const right = Math.max(0.05, ...every("N")) * 1.08, low = Math.min(-0.02, ...every("S")) - 0.12 * Math.max(0.05, ...every("S")), high = Math.max(0.05, ...every("S")) * 1.12;
  const reach = Math.max(1e-9, ...every("advantage").map(Math.abs)), most = Math.max(1e-30, ...every("push").map(Math.abs));
  Object.assign(layout, { hovermode: "closest", hoverdistance: 24 });
  Object.assign(layout.xaxis, { range: [-0.02 * right, right] });
  Object.assign(layout.yaxis, { range: [low, high] });
  const end = Math.min(right, high);
  layout.shapes.push({ type: "path", path: `M 0,0 L ${end},${end} L ${end},${high} L 0,${high} Z`, fillcolor: rgba(role("learn"), 0.045), line: { width: 0 }, layer: "below" });
  layout.shapes.push({ type: "line", x0: 0, y0: 0, x1: end, y1: end, line: { color: role("muted"), width: 1, dash: "dot" }, layer: "below" });
  layout.shapes.push({ type: "line", x0: 0, y0: 0, x1: right, y1: 0, line: { color: role("rule"), width: 1 }, layer: "below" });
  const word = (text, x, y, xanchor, yanchor) => layout.annotations.push({ text, x, y, xref: "x", yref: "y", xanchor, yanchor, showarrow: false, font: { size: 12, color: role("muted") }, align: "left" });
  word("S > N: entropy falls if rewarded", 0.012 * right, high * 0.985, "left", "top");
  word("S &lt; N: entropy rises if rewarded", right * 0.995, low, "right", "bottom");
  const trace = {
    type: "scatter", mode: "markers", x: dots.N, y: dots.S, hoverinfo: "none", cliponaxis: false,
    marker: {
      size: dots.push.map(value => 3.5 + (element.clientWidth < 460 ? 10 : 16) * Math.sqrt(Math.abs(value || 0) / most)), opacity: 0.72, color: dots.advantage.map(value => number(value) ? value : 0), cmin: -reach, cmax: reach,
      colorscale: [[0, role("minus")], [0.38, mix(role("middle"), role("minus"), 0.85)], [0.49, mix(role("middle"), role("minus"), 0.45)], [0.5, role("middle")], [0.51, mix(role("middle"), role("plus"), 0.45)], [0.62, mix(role("middle"), role("plus"), 0.85)], [1, role("plus")]], line: { width: 0.6, color: role("card") },
      colorbar: { thickness: 10, outlinewidth: 0, len: 0.9, x: 1.02, ticks: "", nticks: 5, title: { text: "A", side: "top", font: { size: 12 } }, tickfont: { size: 11.5 } },
    },
  };
  if (!dots.advantage.some(value => value)) layout.annotations.push({ text: "All advantages of these tokens are 0: nothing pushed.", x: 0.5, y: 0.5, xref: "paper", yref: "paper", showarrow: false, font: { size: 13, color: role("ink") } });
  nameTokens(element, layout, dots, [-0.02 * right, right], [low, high]);
  return Plotly.react(element, [trace], layout, config).then(() => onHover(element, (event, x, y) => {
    const at = event.points[0].pointIndex;
    showTip(x, y, drawn(dots.text[at]), signals(name => dots[name] && dots[name][at], { update: dots.step[at], position: dots.position[at] }), { code: true });
  }));
}

function nameTokens(element, layout, dots, [left, right], [low, high]) {
  // Names of the tokens with the largest pushes, as long as they stay clear of one another.
  const width = element.clientWidth - layout.margin.l - layout.margin.r, height = element.clientHeight - layout.margin.t - layout.margin.b, boxes = [], named = new Set();
  const ink = role("ink");
  for (let at = 0; at < Math.min(60, dots.N.length) && boxes.length < (width < 420 ? 5 : 9); at++) {
    const text = drawn(dots.text[at]).slice(0, 14);
    if (!number(dots.N[at]) || !number(dots.S[at]) || named.has(text) || !dots.push[at]) continue;
    const x = width * (dots.N[at] - left) / (right - left), y = height * (high - dots.S[at]) / (high - low);
    const box = { x0: x + 6, x1: x + 14 + 7.4 * text.length, y0: y - 9, y1: y + 9 };
    if (box.x1 > width || box.y0 < 22 || box.y1 > height - 22 || boxes.some(other => box.x0 < other.x1 && other.x0 < box.x1 && box.y0 < other.y1 && other.y0 < box.y1)) continue;
    boxes.push(box);
    named.add(text);
    layout.annotations.push({ text: plain(text), x: dots.N[at], y: dots.S[at], xref: "x", yref: "y", xshift: 9, xanchor: "left", yanchor: "middle", showarrow: false, bgcolor: rgba(hex("card"), 0.6), borderpad: 1, font: { size: 11.5, color: ink, family: getComputedStyle(root).getPropertyValue("--mono") } });
  }
}

const hex = name => { const colour = role(name); return colour.length === 4 ? "#" + [...colour.slice(1)].map(letter => letter + letter).join("") : colour; };

function signals(value, { update, position }) {
  const rows = [["update", short(update)], ["position", short(position)]];
  for (const [name, title] of [["entropy", "entropy H, nats"], ["S", "S, nats"], ["N", "N, nats"], ["p", "probability p"], ["advantage", "advantage A"], ["weight", "weight w"], ["push", "push, per unit of η"]]) {
    const found = value(name);
    if (found !== undefined) rows.push([title, short(found)]);
  }
  return rows;
}

// --- samples

const samples = { cards: [] };

function buildSamples(element, spec) {
  samples.spec = spec;
  samples.cards = spec.items.map(item => {
    const card = node("article", "sample");
    const head = node("header");
    head.append(node("span", `outcome ${item.outcome}`, { right: "✓ right", wrong: "✗ wrong", unknown: "not judged" }[item.outcome]));
    const facts = [`update ${item.step}`, item.reward === null ? null : `reward ${short(item.reward)}`, item.length === null ? null : `${item.length} tokens`, item.entropy === null ? null : `mean entropy ${short(item.entropy, 2)} nats`,
      item.advantage === null ? null : `advantage ${item.advantage > 0 ? "+" : ""}${short(item.advantage, 2)}`, item.truncated ? "cut off" : null, item.origin === "policy" ? null : item.origin];
    for (const fact of facts) if (fact) head.append(node("span", "", fact));
    card.append(head, node("div", "prompt", item.prompt || "(empty prompt)"));
    const text = node("div", "completion");
    if (item.tokens) fillSample(text, item); else { text.textContent = item.completion || "(empty completion)"; card.title = "No token rows of this response are on the tape."; }
    card.append(text);
    if (item.answer) card.append(node("div", "prompt", `answer taken: ${item.answer}`));
    return { card, item };
  });
}

function fillSample(text, item) {
  const tokens = item.tokens;
  item.spans = fillTokens(text, tokens, "completion", at => {
    const touched = Object.keys(tokens.touched).filter(link => tokens.touched[link][at]).map(link => samples.spec.links[link]);
    const rows = signals(name => tokens.columns[name] && tokens.columns[name][at], { update: item.step, position: tokens.position[at] });
    return [rows, { note: touched.length ? `touched by ${touched.join(", ")}` : "" }];
  });
}

function fillTokens(text, tokens, what, explain) {
  // A span per token; `explain(at)` gives the rows of its tooltip and what else stands there. Returns the spans.
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", `${what}; arrow keys move from token to token`);
  const spans = [];
  let before = -1;
  tokens.text.forEach((written, at) => {
    if (tokens.position[at] > before + 1) text.append(node("span", "gap", "…"));
    before = tokens.position[at];
    const span = node("span", "tok");
    written.split("\n").forEach((line, part) => {
      if (part) span.append(node("span", "mark", "↵"), "\n");
      if (line) span.append(line);
    });
    if (!written) span.append(node("span", "mark", "∅"));
    spans.push(span);
    text.append(span);
  });
  if (tokens.cut) text.append(node("span", "gap", ` … ${tokens.cut.toLocaleString("en")} more tokens`));
  let here = -1;
  const mark = at => {
    if (spans[here]) spans[here].classList.remove("here");
    if (spans[at]) spans[at].classList.add("here");
    here = at;
  };
  const show = at => {
    mark(at);
    const boxes = spans[at].getClientRects(), box = boxes[boxes.length - 1];  // a token may go over a line's end
    const [rows, options] = explain(at);
    showTip(box.left, box.bottom - 8, drawn(tokens.text[at]), rows, { code: true, ...options });
  };
  const clear = () => { if (spans[here]) spans[here].classList.remove("here"); hideTip(); };
  const order = new Map(spans.map((span, at) => [span, at]));
  const find = event => order.get(event.target.closest(".tok")) ?? -1;
  text.addEventListener("pointerover", event => { const at = find(event); if (at >= 0) show(at); else clear(); });
  text.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") clear(); });
  text.addEventListener("click", event => { const at = find(event); if (at >= 0) show(at); });
  text.addEventListener("blur", clear);
  text.addEventListener("keydown", event => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move || !spans.length) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(spans.length - 1, here + move));
    spans[at].scrollIntoView({ block: "nearest", behavior: "instant" });
    show(at);
  });
  return spans;
}

function tint(mode, value, scales) {
  if (!number(value)) return "";
  const depth = Number(role("tint"));
  if (mode === "entropy") return rgba(role("entropy"), depth * Math.min(1, value / (scales.entropy || 1)));
  if (mode === "weight") return value === 1 ? "" : value < 1 ? rgba(role("minus"), depth * Math.min(1, 1 - value)) : rgba(role("plus"), depth * Math.min(1, value - 1));
  const share = Math.min(1, Math.abs(value) / (scales[mode] || 1)), [below, above] = mode === "push" ? ["learn", "entropy"] : ["minus", "plus"];
  return rgba(role(value < 0 ? below : above), depth * share);
}

function drawSamples(element, id, spec) {
  if (samples.spec !== spec) buildSamples(element, spec);
  const mode = state.colour || "entropy", outcome = state.outcome || "all", when = state.when || "all", scales = spec.scales;
  const shown = samples.cards.filter(({ item }) => (outcome === "all" || item.outcome === outcome) && (when === "all" || item.phase === when));
  for (const { item } of shown) {
    if (!item.tokens) continue;
    const column = item.tokens.columns[mode] || [];
    item.spans.forEach((span, at) => {
      span.style.backgroundColor = tint(mode, column[at], scales);
      span.classList.toggle("off", mode === "weight" && column[at] === 0);
    });
  }
  element.replaceChildren(...(shown.length ? shown.map(({ card }) => card) : [node("p", "missing", "No such sample is on the tape.")]));
  const key = document.getElementById("samples-key"), ramp = node("span", "ramp"), top = scales[mode];
  const ends = { entropy: ["0", `${short(top, 2)} nats and more`], weight: ["0 (removed, struck through)", "2 and more; 1 is left white"], advantage: [short(-top, 2), `+${short(top, 2)}`], push: [`${short(-top, 2)} (lowers entropy)`, `+${short(top, 2)} (raises it)`] }[mode];
  const stops = { entropy: [0, 1], weight: [0, 1, 2], advantage: [-1, 0, 1], push: [-1, 0, 1] }[mode].map(value => tint(mode, mode === "weight" ? value : value * (top || 1), scales) || "rgba(0,0,0,0)");
  ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  key.replaceChildren(node("span", "", ends[0]), ramp, node("span", "", ends[1]));
  return Promise.resolve();
}

// --- the page

const drawers = { lines: drawLines, map: drawMap, pressure: drawPressure, samples: drawSamples };
const tools = { base, config, drawn, fillTokens, mix, node, number, onHover, reads, rgba, role, short, showTip, state };
for (const further of window.isentropeDrawers || []) Object.assign(drawers, further(tools));  // other pages bring further kinds of charts

function draw(id) {
  const element = document.getElementById(id), spec = charts[id];
  return element && spec ? drawers[spec.kind](element, id, spec) : Promise.resolve();
}

async function drawAll() {
  root.dataset.ready = "no";
  for (const id of Object.keys(charts)) {
    await draw(id);
    await new Promise(done => setTimeout(done));  // the page stays alive between two pictures
  }
  root.dataset.ready = "yes";
}

for (const group of document.querySelectorAll("[data-switch]")) {
  const name = group.dataset.switch, buttons = [...group.querySelectorAll("button")];
  state[name] = buttons[0].dataset.value;
  group.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    state[name] = button.dataset.value;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    draw(name.includes(":") ? name.split(":")[1] : "samples-list");
  });
}

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", drawAll);
document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  drawAll();
});

let width = innerWidth, timer = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;  // a phone's address bar changes the height only
  width = innerWidth;
  clearTimeout(timer);
  timer = setTimeout(drawAll, 120);
});

drawAll();
})();
