// One pane: a frame with what one model said about it. Text from models only ever becomes text nodes.
import { agreementWords, coverWords, problemWords, rate, truthOf } from "./words.js";

/** `el("p.small", {title}, ...children)`: an element with attributes, listeners (`onclick`) and children; null children are left out. */
export function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Lays an element over a part of the frame; what sticks out is cut off. */
function lay(node, box, { width, height }) {
  const [x1, x2] = [box[0], box[2]].map((x) => Math.min(Math.max(x / width, 0), 1));
  const [y1, y2] = [box[1], box[3]].map((y) => Math.min(Math.max(y / height, 0), 1));
  Object.assign(node.style, { left: `${100 * x1}%`, top: `${100 * y1}%`, width: `${100 * (x2 - x1)}%`, height: `${100 * (y2 - y1)}%` });
  node.classList.toggle("low", y1 < 0.12);
  node.classList.toggle("far", x1 > 0.6);
  return node;
}

/** The frame with what is drawn into it. `pane` may be null: the frame alone. */
export function picture(frame, pane) {
  const one = pane?.one, figure = el("figure.shot");
  figure.style.setProperty("--ratio", frame.width / frame.height);
  const box = one && (one.box_px ? `a box, labelled ${one.answer ?? "no answer"}` : "no box");
  const alt = [frame.title, box, pane?.cover ? "the first box is painted over" : null].filter(Boolean).join("; ");
  figure.append(el("img", { src: pane?.covered ?? frame.url, alt, draggable: "false" }));
  if (pane?.cover) figure.append(lay(el("div.covered", {}, el("span", {}, "covered")), pane.cover, frame));
  if (!one) return figure;
  const truth = truthOf(frame, one);
  if (truth) figure.append(lay(el("div.true"), truth.box_px, frame));
  if (one.box_px) figure.append(lay(el("div.predicted", {}, el("span", {}, one.answer ?? "no answer")), one.box_px, frame));
  figure.append(el("div.pointed", { hidden: true }));
  return figure;
}

/** The rationale; what it names points to its place in the picture. `known`: name -> box found by an earlier question. */
function rationale(one, figure, frame, known) {
  const quote = el("blockquote"), letters = Array.from(one.rationale), pointed = figure.querySelector(".pointed");
  let at = 0;
  for (const span of one.spans) {
    const box = span.box_px ?? known(span.name), text = letters.slice(span.start, span.end).join("");
    quote.append(letters.slice(at, span.start).join(""));
    at = span.end;
    if (!box) { quote.append(el("span.named", {}, text)); continue; }
    const show = (on) => () => {
      pointed.hidden = !on;
      if (on) lay(pointed, box, frame);
      pointed.classList.toggle("part", span.kind === "place" || span.kind === "half");
    };
    const hands = { onpointerenter: show(true), onpointerleave: show(false), onfocus: show(true), onblur: show(false), onclick: show(true) };
    const attributes = { type: "button", "data-kind": span.kind, "aria-label": `${text}: show in the picture` };
    quote.append(el("button.named", { ...attributes, ...hands }, text));
  }
  quote.append(letters.slice(at).join(""));
  return quote;
}

function mark({ ok, title, lines }, kind = "") {
  const name = ok === null ? "open" : ok ? "agree" : "disagree";
  return el(`p.mark.${name}${kind}`, {}, el("b", {}, title), ...lines.map((line) => el("span", {}, line)));
}

function confidence(one) {
  const bar = el("i");
  bar.style.width = `${100 * one.confidence}%`;
  const title = "The model's own probability of this wording of the answer, after its rationale. Not calibrated.";
  const track = el("span.track", { "aria-hidden": "true" }, bar);
  return el("p.confidence", { title }, `confidence ${rate(one.confidence)}`, track, el("small", {}, "its own, not calibrated"));
}

/** A pane as an element. `on`: what its buttons do; `known`: see above. */
export function paneNode(frame, pane, on, known) {
  const { one, reply } = pane, figure = picture(frame, pane);
  const { id, stage } = pane.model, time = reply ? `${(reply.ms / 1000).toFixed(2)} s` : null;
  const about = [stage !== id ? stage : null, pane.cover ? "box covered" : null, time].filter(Boolean).join(" · ");
  const top = el("div.top", {}, el("p.who", {}, el("b", {}, id), about)), said = el("div.said");
  const attributes = { "aria-label": `${id}${pane.cover ? ", box covered" : ""}`, "aria-busy": String(!one && !pane.failure) };
  const node = el("article.pane", attributes, top, figure, said);
  if (!one) top.append(el("p.answer.none", {}, pane.failure ? "no reply" : "…"));
  if (pane.failure) said.append(el("p.mark.disagree.failed", {}, el("b", {}, pane.failure)));
  if (!one) return node;
  const truth = truthOf(frame, one);
  top.append(el(`p.answer${one.answer === null ? ".none" : ""}`, {}, one.answer ?? "no answer"));
  if (truth) top.append(el("p.truth", { title: "What was drawn: the truth of this sample scene" }, `drawn: ${truth.answer}`));
  if (one.confidence !== null) top.append(confidence(one));
  if (pane.cover) top.append(mark({ ok: null, ...coverWords(pane.first, one) }, ".cover"));
  if (one.rationale) said.append(rationale(one, figure, frame, known));
  said.append(mark(agreementWords(one)));
  if (!one.known_form) said.append(el("p.small", {}, "A form of question that the model was never asked in training."));
  if (one.problems.length) {
    const summary = el("summary", {}, `The reply has faults: ${problemWords(one.problems)}`);
    said.append(el("details.problems", {}, summary, el("code", {}, one.text)));
  }
  if (pane.again) said.append(el("p.small", {}, "Asked again with the box covered: see the next one."));
  else if (one.box_px && !pane.cover) {
    const attributes = { type: "button", "aria-keyshortcuts": "c", onclick: () => on.cover(pane) };
    said.append(el("p", {}, el("button", attributes, "Cover the box and ask again")));
  }
  return node;
}
