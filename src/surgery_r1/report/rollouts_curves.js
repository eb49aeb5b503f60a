// Lines over steps, in which a click chooses a recorded step. Colours after Okabe and Ito, told apart by dashes too.
const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b8794"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", ""];

const drawCurves = (parent, title, series, steps, choose) => {
  const names = Object.keys(series);
  if (!names.length) return () => {};
  const W = 640, H = 176, LEFT = 34, RIGHT = 178, TOP = 12, BOTTOM = 26;
  const all = names.flatMap((name) => series[name].map(([step]) => step)).concat(steps);
  const first = Math.min(...all), last = Math.max(...all);
  const x = (step) => LEFT + (W - LEFT - RIGHT) * (last > first ? (step - first) / (last - first) : 0.5);
  const y = (value) => TOP + (H - TOP - BOTTOM) * (1 - Math.min(Math.max(value, 0), 1));
  const figure = element("figure", "curve");
  figure.append(element("figcaption", "", title));
  const svg = shape(figure, "svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    shape(svg, "line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) });
    shape(svg, "text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value === 1 ? "1" : rate(value, 2));
  }
  for (const step of [...new Set([first, steps[Math.floor(steps.length / 2)], last])]) {
    shape(svg, "text", { class: "tick", x: x(step), y: H - 8, "text-anchor": "middle" }, step === first ? `step ${step}` : step);
  }
  const cursor = shape(svg, "line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  const labels = names.map((name, i) => {
    const points = series[name], own = name === "reward" ? "whole" : "";
    const look = own ? { class: "line whole" } : { class: "line", stroke: HUES[i % 7], "stroke-dasharray": DASHES[i % 7] };
    shape(svg, "polyline", { ...look, points: points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
    if (points.length === 1) shape(svg, "circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3, fill: HUES[i % 7] });
    return { name, look, at: y(points[points.length - 1][1]), own };
  }).sort((a, b) => a.at - b.at);
  // Names stand at the ends of their lines, pushed apart.
  labels.forEach((label, i) => { label.at = Math.max(label.at, i ? labels[i - 1].at + 15 : TOP + 4); });
  for (let i = labels.length - 1, floor = H - BOTTOM + 4; i >= 0; i--, floor -= 15) labels[i].at = Math.min(labels[i].at, floor);
  for (const { name, look, at, own } of labels) {
    shape(svg, "line", { ...look, x1: W - RIGHT + 8, x2: W - RIGHT + 26, y1: at, y2: at });
    shape(svg, "text", { class: `name ${own}`, x: W - RIGHT + 31, y: at + 4 }, name);
  }
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * W / box.width;
    return steps.reduce((best, step) => Math.abs(x(step) - at) < Math.abs(x(best) - at) ? step : best);
  };
  const tip = shape(svg, "title", {});
  const hover = shape(svg, "line", { class: "hover", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  svg.addEventListener("pointermove", (event) => {
    const step = nearest(event);
    hover.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) hover.setAttribute(end, x(step));
    const values = names.map((name) => [name, series[name].find(([at]) => at === step)]).filter(([, point]) => point);
    tip.textContent = [`step ${step}`, ...values.map(([name, [, value]]) => `${name} ${rate(value)}`)].join("\n");
  });
  svg.addEventListener("pointerleave", () => hover.setAttribute("visibility", "hidden"));
  svg.addEventListener("click", (event) => choose(nearest(event)));
  parent.append(figure);
  return (step) => {
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
  };
};
