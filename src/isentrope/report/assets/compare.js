/* Charts of the page that `isentrope compare` writes, beside those of page.js, which calls this with its tools. Names of methods are
   what a user typed: they reach the page through plain() in Plotly and textContent elsewhere. */
(() => {
"use strict";

(window.isentropeDrawers ||= []).push(({ base, config, number, onHover, reads, role, short, showTip }) => {

const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%/g, "&#37;");

function drawFront(element, id, spec) {
  // Arms in the plane of entropy and reward; the line joins those that no other arm beats in both.
  const layout = base(element, { l: 46, r: 18, t: 30, b: 44 }, spec.x, spec.y);
  const every = name => spec.points.flatMap(point => [point[name], ...(point[`${name}s`] || [])]).filter(number);
  const span = values => { const low = Math.min(...values), high = Math.max(...values), room = 0.1 * ((high - low) || Math.abs(high) || 1); return [low - room, high + room]; };
  const [left, right] = span(every("x")), [low, high] = span(every("y").map(value => 100 * value));
  Object.assign(layout, { hovermode: "closest", hoverdistance: 24 });
  Object.assign(layout.xaxis, { range: [left, right] });
  Object.assign(layout.yaxis, { range: [low, high] });
  const hue = { baseline: "ink", method: "learn", placebo: "muted" };
  const kinds = ["placebo", "method", "baseline"].map(kind => spec.points.filter(point => point.role === kind)).filter(points => points.length);
  const spans = (points, name, scale) => ({
    type: "data", symmetric: false, thickness: 1, width: 0, color: role(hue[points[0].role]),
    array: points.map(point => point[`${name}s`] ? scale * (point[`${name}s`][1] - point[name]) : 0), arrayminus: points.map(point => point[`${name}s`] ? scale * (point[name] - point[`${name}s`][0]) : 0),
  });
  const traces = [{ type: "scatter", mode: "lines", x: spec.front.map(at => spec.points[at].x), y: spec.front.map(at => 100 * spec.points[at].y), line: { color: role("entropy"), width: 2, dash: "dot" }, hoverinfo: "skip" }];
  for (const points of kinds) traces.push({
    type: "scatter", mode: "markers", x: points.map(point => point.x), y: points.map(point => 100 * point.y), hoverinfo: "none", opacity: points[0].role === "placebo" ? 0.65 : 1,
    marker: { size: points[0].role === "baseline" ? 12 : 9, symbol: points[0].role === "placebo" ? "circle-open" : points[0].role === "baseline" ? "diamond" : "circle", color: role(hue[points[0].role]) },
    error_x: spans(points, "x", 1), error_y: spans(points, "y", 100),
  });
  nameArms(element, layout, spec, [left, right], [low, high]);
  return Plotly.react(element, traces, layout, config).then(() => onHover(element, (event, x, y) => {
    const found = event.points[0], point = kinds[found.curveNumber - 1][found.pointIndex];
    const across = name => point[`${name}s`] ? `  (${short(name === "y" ? 100 * point.ys[0] : point.xs[0])} to ${short(name === "y" ? 100 * point.ys[1] : point.xs[1])})` : "";
    showTip(x, y, point.name, [["pass@1", reads(point.y, "percent") + across("y")], ["entropy", reads(point.x, "nats") + across("x")], ["seeds", String(point.seeds)]], { note: point.note });
  }));
}

function nameArms(element, layout, spec, [left, right], [low, high]) {
  // Names beside their points where they stand clear of points and of one another; placebos have theirs in the tooltip.
  const width = element.clientWidth - layout.margin.l - layout.margin.r, height = element.clientHeight - layout.margin.t - layout.margin.b;
  const place = point => [width * (point.x - left) / (right - left), height * (high - 100 * point.y) / (high - low)];
  const boxes = spec.points.map(point => { const [x, y] = place(point); return [x - 6, y - 6, x + 6, y + 6]; });
  const clear = box => box[0] > -4 && box[2] < width + 12 && boxes.every(other => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
  for (const point of [...spec.points].sort((a, b) => (b.role === "baseline") - (a.role === "baseline"))) {
    if (point.role === "placebo") continue;
    const [x, y] = place(point), long = 6.3 * point.name.length;
    for (const [dx, dy, anchor] of [[9, 0, "left"], [-9, 0, "right"], [0, -15, "center"], [0, 15, "center"]]) {
      const from = anchor === "left" ? x + dx : anchor === "right" ? x + dx - long : x - long / 2;
      const box = [from, y + dy - 7, from + long, y + dy + 7];
      if (!clear(box)) continue;
      boxes.push(box);
      layout.annotations.push({ text: plain(point.name), x: point.x, y: 100 * point.y, xref: "x", yref: "y", xshift: dx, yshift: -dy, xanchor: anchor, yanchor: "middle", showarrow: false, font: { size: 12, color: role("ink") } });
      break;
    }
  }
}

return { front: drawFront };
});
})();
