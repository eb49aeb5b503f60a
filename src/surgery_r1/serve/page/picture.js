// Canvases: a frame with a box painted over, and the sheet that is saved.
import { agreementWords, coverWords, rate } from "./words.js";

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const INK = "#0b0f14", PAPER = "#f2f4f7", SOFT = "#a9b4c0", BOX = "#ff9f1c";
const NOTICE = "Research use only. Not a medical device.";

export function loadImage(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

/** The frame with a box painted over in its mean colour, as the server paints it: an object URL to be shown. */
export async function coverBox(frame, [x1, y1, x2, y2]) {
  const canvas = new OffscreenCanvas(frame.width, frame.height), context = canvas.getContext("2d");
  context.drawImage(await loadImage(frame.url), 0, 0);
  const { data } = context.getImageData(0, 0, frame.width, frame.height), sums = [0, 0, 0];
  for (let i = 0; i < data.length; i += 4) for (let c = 0; c < 3; c++) sums[c] += data[i + c];
  context.fillStyle = `rgb(${sums.map((sum) => Math.round((4 * sum) / data.length))})`;
  context.fillRect(x1, y1, x2 - x1, y2 - y1);
  return URL.createObjectURL(await canvas.convertToBlob());
}

/** What stands beneath a pane's picture: lines as [font, colour, text]. */
function caption(pane) {
  const { one } = pane, lines = [[`600 15px ${FONT}`, SOFT, `${pane.model.id}${pane.cover ? ", box covered" : ""}`]];
  if (!one) return [...lines, [`15px ${FONT}`, PAPER, pane.failure ?? "no reply yet"]];
  lines.push([`600 30px ${FONT}`, PAPER, one.answer ?? "no answer"]);
  if (one.confidence !== null) lines.push([`15px ${FONT}`, SOFT, `confidence ${rate(one.confidence)} (its own, not calibrated)`]);
  if (one.rationale) lines.push([`17px ${FONT}`, PAPER, one.rationale]);
  const marks = [...(pane.cover ? [coverWords(pane.first, one)] : []), agreementWords(one)];
  for (const { title, lines: more } of marks) {
    lines.push([`600 15px ${FONT}`, PAPER, title], ...more.map((text) => [`15px ${FONT}`, SOFT, text]));
  }
  return lines;
}

/** Lines of a text that fit a width. */
function wrap(context, text, width) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (lines.at(-1) && context.measureText(longer).width > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

/** Writes [font, colour, text] lines from `y` down, or with `dry` only measures; the y beneath them. */
function write(context, lines, x, y, width, dry = false) {
  for (const [font, colour, text] of lines) {
    const size = parseInt(font.match(/(\d+)px/)[1], 10);
    Object.assign(context, { font, fillStyle: colour, textBaseline: "top" });
    for (const line of wrap(context, text, width)) {
      if (!dry) context.fillText(line, x, y, width);
      y += size * 1.4;
    }
    y += 4;
  }
  return y;
}

function drawBox(context, box, label, scale, x, y, width, height) {
  const [x1, y1, x2, y2] = box.map((value, i) => Math.min(Math.max(value * scale, 0), i % 2 ? height : width));
  for (const [colour, thick, dash] of [[INK, 6, []], [BOX, 4, [12, 8]]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: thick });
    context.setLineDash(dash);
    context.strokeRect(x + x1, y + y1, x2 - x1, y2 - y1);
  }
  context.setLineDash([]);
  Object.assign(context, { font: `600 18px ${FONT}`, textBaseline: "middle" });
  const wide = context.measureText(label).width + 14, left = x + Math.min(x1, width - wide);
  const top = y + (y1 > 28 ? y1 - 28 : Math.min(y2, height - 28));
  context.fillStyle = BOX;
  context.fillRect(left, top, wide, 28);
  context.fillStyle = INK;
  context.fillText(label, left + 7, top + 14);
}

/** A result as one picture with boxes and captions, as a PNG blob. */
export async function sheet(result) {
  const { frame, panes } = result, gap = 24, width = panes.length > 1 ? 640 : 900;
  const scale = width / frame.width, height = Math.round(frame.height * scale);
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  const captions = panes.map(caption), head = [[`600 24px ${FONT}`, PAPER, result.question]];
  canvas.width = gap + panes.length * (width + gap);
  const across = canvas.width - 2 * gap, top = write(context, head, 0, gap, across, true) + 8;
  const beneath = Math.max(...captions.map((lines) => write(context, lines, 0, 0, width, true)));
  canvas.height = top + height + 14 + beneath + 50;
  context.fillStyle = INK;
  context.fillRect(0, 0, canvas.width, canvas.height);
  write(context, head, gap, gap, across);
  for (const [i, pane] of panes.entries()) {
    const x = gap + i * (width + gap);
    context.drawImage(await loadImage(pane.covered ?? frame.url), x, top, width, height);
    if (pane.one?.box_px) drawBox(context, pane.one.box_px, pane.one.answer ?? "no answer", scale, x, top, width, height);
    write(context, captions[i], x, top + height + 14, width);
  }
  write(context, [[`15px ${FONT}`, SOFT, `${frame.name} · surgery-r1 · ${NOTICE}`]], gap, canvas.height - 36, across);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** A result as JSON: the server's own replies, without the frame. */
export function record(result) {
  const { frame, panes, question } = result;
  const { name, width, height } = frame;
  const replies = panes.map(({ model, reply, cover, failure = null }) => ({ model: model.id, covered_px: cover ?? null, ...(reply ?? { failure }) }));
  const whole = { question, frame: { name, width, height }, asked: result.asked, replies, notice: NOTICE };
  return new Blob([JSON.stringify(whole, null, 2)], { type: "application/json" });
}
