// A frame with the boxes of a group. An advantage is told three ways: colour (orange to blue), thickness, dashes.
const NEUTRAL = [200, 206, 214], BETTER = [64, 168, 255], WORSE = [255, 138, 31];

const shareOf = (reply, replies) => {
  const most = Math.max(...replies.map((one) => Math.abs(one.advantage)));
  return most > 1e-3 ? reply.advantage / most : 0;
};
const colourOf = (share) => {
  const end = share < 0 ? WORSE : BETTER;
  return `rgb(${NEUTRAL.map((from, i) => Math.round(from + (end[i] - from) * Math.min(1, 0.25 + Math.abs(share)) * (share ? 1 : 0))).join(" ")})`;
};
const strokeOf = (share) => ({ stroke: colourOf(share), "stroke-width": (3 + 2 * share).toFixed(1), ...(share < 0 ? { "stroke-dasharray": "7 4" } : {}) });

const FLIPS = { horizontal: "scale(-1, 1)", vertical: "scale(1, -1)", both: "scale(-1, -1)" };

// A word beside a box, at the first of its corners that is free.
const tag = (svg, words, box, fill, size, taken, [width, height]) => {
  const w = size * (0.62 * words.length + 0.7), h = size * 1.35;
  const [x1, y1, x2, y2] = box;
  const spots = [[x1, y1 - h], [x2 - w, y1 - h], [x1, y2], [x2 - w, y2], [x1, y1], [x2 - w, y2 - h], [x1 + w * 1.2, y1 - h], [x1, y1 + h]]
    .map(([x, y]) => [Math.min(Math.max(x, 0), width - w), Math.min(Math.max(y, 0), height - h)]);
  const free = spots.find(([x, y]) => !taken.some(([a, b, c, d]) => x < a + c && a < x + w && y < b + d && b < y + h)) || spots[0];
  taken.push([...free, w, h]);
  const group = shape(svg, "g", { class: "tag" });
  shape(group, "rect", { x: free[0], y: free[1], width: w, height: h, rx: size * 0.25, fill });
  shape(group, "text", { x: free[0] + w / 2, y: free[1] + h * 0.74, "text-anchor": "middle", "font-size": size }, words);
  return group;
};

// The picture, and a function that brings one reply's box (or, with null, all) to the front.
const drawFrame = (group, replies, pictures) => {
  const size = [group.width, group.height], font = group.width / 32;
  const frame = element("div", "frame");
  frame.style.aspectRatio = `${group.width} / ${group.height}`;
  frame.style.maxWidth = `calc((100vh - 200px) * ${group.width / group.height})`;
  const picture = element("div", `picture ${Object.hasOwn(pictures, group.frame) ? pictures[group.frame] : "blank"}`);
  if (FLIPS[group.flip]) picture.style.transform = FLIPS[group.flip];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${group.width} ${group.height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "true boxes white; boxes of replies in colours by advantage, numbered as the replies are");
  const taken = [], labels = document.createElementNS(SVG, "g");
  const others = shape(svg, "g", { class: "others" });
  for (const { name, box_px: box } of group.objects) {
    rect(others, "other", box);
    tag(others, name, box, "#0b0f14b0", font * 0.8, [], size);
  }
  // The best boxes are drawn last, the true one beneath all.
  for (const { box_px: box } of group.true) {
    if (!box) continue;
    rect(svg, "case", box).setAttribute("stroke-width", 6);
    rect(svg, "truth", box);
    tag(labels, "true", box, "#ffffff", font, taken, size);
  }
  const drawn = replies.map((reply, i) => [reply, i]).reverse().filter(([reply]) => reply.box_px).map(([reply, i]) => {
    const share = shareOf(reply, replies), part = shape(svg, "g", { class: "reply", "data-reply": i });
    const look = strokeOf(share), [x1, y1, x2, y2] = reply.box_px;
    rect(part, "case", reply.box_px).setAttribute("stroke-width", Number(look["stroke-width"]) + 2);
    shape(part, "rect", { class: "box", x: x1, y: y1, width: x2 - x1, height: y2 - y1, ...look });
    const label = tag(labels, String(i + 1), reply.box_px, colourOf(share), font, taken, size);
    label.dataset.reply = i;
    return [part, label];
  }).flat();
  svg.append(labels);
  frame.append(picture, svg);
  const front = (number) => {
    svg.classList.toggle("one", number !== null);
    // Which object a box fits better is seen, not told.
    svg.classList.toggle("mistaken", number !== null && replies[number].marks.includes("wrong referent"));
    for (const part of drawn) part.classList.toggle("front", Number(part.dataset.reply) === number);
  };
  return { frame, front };
};
