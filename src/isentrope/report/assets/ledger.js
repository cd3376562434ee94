/* The ledger's pictures: predicted against measured change, and bars to both sides of zero. Texts reach the page through plain() and textContent. */
(() => {
"use strict";

(window.isentropeDrawers ||= []).push(({ base, config, number, onHover, reads, rgba, role, short, showTip, state }) => {

const THIRDS = { early: "entropy-1", middle: "entropy-2", late: "entropy-3" };

// --- predicted against measured

function drawAgreement(element, id, spec) {
  const theory = spec.theories[Number(state[`theory:${id}`] || 0)];
  const layout = base(element, { l: 58, r: 14, t: 30, b: 46 }, spec.x.replace("{theory}", theory.title), spec.y);
  const near = state[`range:${id}`] === "small";
  const shown = spec.measured.map((value, at) => at).filter(at => number(theory.predicted[at]) && number(spec.measured[at]));
  const part = near ? 0.5 : 1;  // of the updates, the smallest changes first
  const reach = values => {
    const kept = values.slice().sort((one, other) => Math.abs(one) - Math.abs(other)).slice(0, Math.max(2, Math.ceil(part * values.length)));
    const low = Math.min(0, ...kept), high = Math.max(0, ...kept), room = 0.08 * ((high - low) || 1e-12);
    return [low - room, high + room];
  };
  const predicted = shown.map(at => theory.predicted[at]), measured = shown.map(at => spec.measured[at]);
  const across = reach(theory.own ? [...predicted, ...measured] : predicted), up = theory.own ? across : reach(measured);
  Object.assign(layout, { hovermode: "closest", hoverdistance: 24 });
  Object.assign(layout.xaxis, { range: across, showgrid: true, exponentformat: "power", nticks: 5 });
  Object.assign(layout.yaxis, { range: up, exponentformat: "power" });
  const cross = { color: role("rule"), width: 1 };
  layout.shapes.push({ type: "line", x0: across[0], x1: across[1], y0: 0, y1: 0, line: cross, layer: "below" }, { type: "line", x0: 0, x1: 0, y0: up[0], y1: up[1], line: cross, layer: "below" });
  if (theory.own) {
    layout.shapes.push({ type: "line", x0: across[0], y0: across[0], x1: across[1], y1: across[1], line: { color: role("muted"), width: 1, dash: "dot" }, layer: "below" });
    layout.annotations.push({ text: "dotted: measured = predicted", x: 1, y: 0, xref: "paper", yref: "paper", xanchor: "right", yanchor: "bottom", showarrow: false, font: { size: 12, color: role("muted") } });
  }
  if (number(theory.slope)) {
    const at = x => theory.intercept + theory.slope * x;
    layout.shapes.push({ type: "line", x0: across[0], y0: at(across[0]), x1: across[1], y1: at(across[1]), line: { color: role("ink"), width: 1.3 }, layer: "below" });
  }
  const traces = Object.entries(THIRDS).map(([third, colour]) => {
    const rows = shown.filter(at => spec.third[at] === third);
    return { type: "scatter", mode: "markers", x: rows.map(at => theory.predicted[at]), y: rows.map(at => spec.measured[at]), customdata: rows, hoverinfo: "none", cliponaxis: true,
      marker: { size: 9, color: role(colour), opacity: 0.9, line: { width: 0.8, color: role("card") } } };
  });
  Object.entries(THIRDS).forEach(([third, colour], at) => layout.annotations.push({
    text: `<span style="color:${role(colour)}">●</span> ${third}`, xref: "paper", yref: "paper", x: 0, y: 1, xshift: 8, yshift: -8 - 17 * at, xanchor: "left", yanchor: "top", showarrow: false, font: { size: 12, color: role("ink") },
  }));
  return Plotly.react(element, traces, layout, config).then(() => onHover(element, (event, x, y) => {
    const at = event.points[0].customdata;
    showTip(x, y, `update ${spec.step[at]}`, [["measured", reads(spec.measured[at], "nats")], [theory.title, reads(theory.predicted[at], "nats")], ["opening entropy", reads(spec.opening[at], "nats")]]);
  }));
}

// --- bars to both sides of zero

function drawBars(element, id, spec) {
  const layout = base(element, { l: 14 + 7 * Math.max(...spec.label.map(text => text.length)), r: 24, t: 30, b: 40 }, spec.x, "");
  const largest = Math.max(...spec.value.map(Math.abs), 1e-12), low = Math.min(0, ...spec.value), high = Math.max(0, ...spec.value);
  Object.assign(layout, { hovermode: "closest", bargap: 0.35 });
  Object.assign(layout.xaxis, { range: [low - (low < 0 ? 0.3 * largest : 0), high + (high > 0 ? 0.3 * largest : 0)], showline: false, ticks: "", showgrid: true, exponentformat: "power", nticks: 5 });
  Object.assign(layout.yaxis, { autorange: "reversed", showgrid: false, tickfont: { size: 12, color: role("ink") }, tickmode: "array", tickvals: spec.label.map((_, at) => at), ticktext: spec.label });
  layout.shapes.push({ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: role("rule"), width: 1 } });
  const trace = {
    type: "bar", orientation: "h", y: spec.label.map((_, at) => at), x: spec.value, hoverinfo: "none", cliponaxis: false,
    marker: { color: spec.value.map(value => role(value < 0 ? "learn" : "entropy")) },
    text: spec.value.map(value => (value > 0 ? "+" : "") + short(value, 2)), textposition: "outside", textfont: { size: 11.5, color: role("muted") },
  };
  return Plotly.react(element, [trace], layout, config).then(() => onHover(element, (event, x, y) => {
    const at = event.points[0].pointIndex;
    showTip(x, y, spec.label[at], [["sum of its tokens' parts", reads(spec.value[at], "nats")], ["of the batch's account", number(spec.share[at]) ? `${short(100 * spec.share[at], 3)} %` : "—"], ["of the tokens", `${short(100 * spec.tokens[at], 3)} %`]]);
  }));
}

return { agreement: drawAgreement, bars: drawBars };
});
})();
