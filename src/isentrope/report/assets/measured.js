/* Charts of the page that `isentrope measure` writes, beside those of page.js, which calls this with its tools. Text from the file and
   token names of the model reach the page through textContent alone. */
(() => {
"use strict";

(window.isentropeDrawers ||= []).push(({ base, config, drawn, fillTokens, mix, node, number, onHover, reads, rgba, role, short, showTip, state }) => {

const percent = share => number(share) ? `${short(100 * share, 2)} %` : "—";
const HUES = { entropy: "entropy", varentropy: "plus", surprise: "learn" };

// --- the text

function tint(mode, value, scale) {
  if (!number(value) || !scale) return "";
  const hue = HUES[mode] || (value < 0 ? "minus" : "plus");
  return rgba(role(hue), Number(role("tint")) * Math.min(1, Math.abs(value) / scale));
}

function explain(spec, at) {
  const columns = spec.columns, value = name => columns[name][at];
  if (!number(value("entropy")) && !number(value("p"))) return [[["position", short(spec.position[at] + 1)]], { note: "Nothing comes before it, so nothing is predicted." }];
  const rows = [["token", short(spec.position[at] + 1)], ["entropy H", reads(value("entropy"), "nats")], ["varentropy", `${short(value("varentropy"))} nats²`], ["S of the token", reads(value("S"), "nats")],
    ["surprise −ln p", reads(value("surprise"), "nats")], ["probability p", percent(value("p"))], ["rank", number(value("rank")) ? `${(value("rank") + 1).toLocaleString("en")} of ${spec.vocabulary.toLocaleString("en")}` : "—"]];
  const likely = spec.top[at].map((name, place) => [drawn(spec.names[name]), percent(spec.shares[at][place])]);
  return [rows, { more: { title: "most likely here", rows: likely } }];
}

const built = new Map();

function drawReading(element, id, spec) {
  if (!built.has(id)) {
    const spans = fillTokens(element, spec, "the text", at => explain(spec, at));
    spans.forEach((span, at) => {
      span.classList.toggle("unread", !number(spec.columns.p[at]));
      if (!spec.text[at]) { span.classList.add("part"); span.firstChild.textContent = "·"; }
    });
    built.set(id, spans);
  }
  const mode = state[`colour:${id}`] || "entropy", column = spec.columns[mode], scale = spec.scales[mode];
  built.get(id).forEach((span, at) => { span.style.backgroundColor = tint(mode, column[at], scale); });
  const key = document.getElementById(`${id}-key`), ramp = node("span", "ramp"), signed = mode === "S", unit = mode === "varentropy" ? "nats²" : "nats";
  const stops = (signed ? [-1, 0, 1] : [0, 1]).map(share => tint(mode, share * (scale || 1), scale || 1) || "rgba(0,0,0,0)");
  ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  key.replaceChildren(node("span", "", signed ? `${short(-scale, 2)} and less` : "0"), ramp, node("span", "", `${short(scale, 2)} ${unit} and more`));
  return Promise.resolve();
}

// --- layer x head

function drawHeads(element, id, spec) {
  const mode = state[`as:${id}`] || "share", share = mode === "share";
  const layout = base(element, { l: 46, r: 64, t: 30, b: 44 }, spec.x, spec.y);
  const count = spec.entropy[0].length, depth = spec.entropy.length;
  const ratio = spec.entropy.map((row, layer) => row.map((value, head) => number(value) && spec.ceiling[layer][head] > 0 ? value / spec.ceiling[layer][head] : null));
  const scale = [[0, mix(role("card"), role("entropy-1"), 0.16)], [0.35, mix(role("card"), role("entropy-1"), 0.8)], [0.7, role("entropy-2")], [1, role("entropy-3")]];
  const every = size => Math.max(1, Math.ceil(size / 12));
  Object.assign(layout, { hovermode: "closest" });
  Object.assign(layout.yaxis, { showgrid: false, tick0: 1, dtick: every(depth), range: [0.5, depth + 0.5] });
  Object.assign(layout.xaxis, { tick0: 1, dtick: every(count), range: [0.5, count + 0.5] });
  const numbered = size => Array.from({ length: size }, (_, at) => at + 1);
  const trace = {
    type: "heatmap", x: numbered(count), y: numbered(depth), z: share ? ratio : mode === "nats" ? spec.entropy : spec.sinkless, zmin: 0, zmax: share ? 1 : spec.top, colorscale: scale, hoverinfo: "none", hoverongaps: false, xgap: 1, ygap: 1,
    colorbar: { thickness: 10, outlinewidth: 0, len: 1.04, x: 1.02, ticks: "", nticks: 6, title: { text: share ? "share" : "nats", side: "top", font: { size: 11.5 } }, tickfont: { size: 11.5 } },
  };
  return Plotly.react(element, [trace], layout, config).then(() => onHover(element, (event, x, y) => {
    const { x: head, y: layer } = event.points[0], value = spec.entropy[layer - 1][head - 1], ceiling = spec.ceiling[layer - 1][head - 1];
    showTip(x, y, `layer ${layer}, head ${head}`, [["mean entropy", reads(value, "nats")], ["mean ceiling", reads(ceiling, "nats")], ["share of the ceiling", percent(ratio[layer - 1][head - 1])], ["without the first token", reads(spec.sinkless[layer - 1][head - 1], "nats")], ["exp(mean H)", `${short(Math.exp(value), 2)} keys`]]);
  }));
}

return { reading: drawReading, heads: drawHeads };
});
})();
