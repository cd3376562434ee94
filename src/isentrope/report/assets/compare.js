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
  // Names beside their points, clear of points, bars and one another; the baseline's always, by a line to it if need be. The rest is in the tooltips.
  const width = element.clientWidth - layout.margin.l - layout.margin.r, height = element.clientHeight - layout.margin.t - layout.margin.b;
  const across = x => width * (x - left) / (right - left), down = y => height * (high - 100 * y) / (high - low);
  const boxes = spec.points.flatMap(point => {
    const x = across(point.x), y = down(point.y), found = [[x - 6, y - 6, x + 6, y + 6]];
    if (point.xs) found.push([across(point.xs[0]), y - 1, across(point.xs[1]), y + 1]);
    if (point.ys) found.push([x - 1, down(point.ys[1]), x + 1, down(point.ys[0])]);
    return found;
  });
  const clear = box => box[0] > -4 && box[2] < width + 12 && box[1] > -4 && box[3] < height - 2 && boxes.every(other => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
  const near = [[9, -9], [-9, -9], [9, 10], [-9, 10], [9, 0], [-9, 0], [0, -16], [0, 16]];
  const far = [[24, 34], [-24, 34], [24, -34], [-24, -34], [30, 60], [-30, 60], [30, -60], [-30, -60], [40, 90], [-40, 90]];
  for (const point of [...spec.points].sort((one, other) => (other.role === "baseline") - (one.role === "baseline"))) {
    if (point.role === "placebo") continue;
    const long = 6.3 * point.name.length;
    for (const [dx, dy] of point.role === "baseline" ? [...near, ...far] : near) {
      const anchor = dx > 0 ? "left" : dx < 0 ? "right" : "center", x = across(point.x) + dx, y = down(point.y) + dy;
      const from = anchor === "left" ? x : anchor === "right" ? x - long : x - long / 2, box = [from, y - 7, from + long, y + 7];
      if (!clear(box)) continue;
      boxes.push(box);
      const at = { text: plain(point.name), x: point.x, y: 100 * point.y, xref: "x", yref: "y", xanchor: anchor, yanchor: "middle", font: { size: 12, color: role("ink") } };
      if (Math.abs(dy) > 20) Object.assign(at, { showarrow: true, arrowhead: 0, arrowwidth: 1, arrowcolor: role("muted"), ax: dx, ay: dy });
      else Object.assign(at, { showarrow: false, xshift: dx, yshift: -dy });
      layout.annotations.push(at);
      break;
    }
  }
}

return { front: drawFront };
});
})();
