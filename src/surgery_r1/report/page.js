"use strict";
// The gallery. Text from models only ever becomes text nodes; nothing is computed here, only shown and filtered.
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const cards = document.getElementById("cards"), more = document.getElementById("more");
  const count = document.getElementById("count"), filters = document.getElementById("filters");
  const PAGE = 24, SVG = "http://www.w3.org/2000/svg";
  const state = { group: 0, model: data.models[0].length - 1, kind: "all", answer: "all", outcome: "all", parts: "all" };
  let shown = 0, found = [];

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const rect = (svg, className, box) => {
    const node = document.createElementNS(SVG, "rect");
    node.setAttribute("class", className);
    const [x1, y1, x2, y2] = box;
    for (const [name, value] of [["x", x1], ["y", y1], ["width", x2 - x1], ["height", y2 - y1]]) node.setAttribute(name, value);
    svg.append(node);
  };
  const rate = (value) => value.toFixed(3).replace(/^0/, "");

  const OUTCOMES = {
    all: () => true,
    coherent: (one) => one.outcome === "coherent",
    "not coherent": (one) => one.outcome !== "coherent",
    "right answer, wrong box": (one) => one.outcome === "right answer, wrong box",
    "wrong referent": (one) => one.wrongReferent,
    "rationale contradicts answer": (one) => one.contradicts !== undefined,
    unreadable: (one) => one.problems !== undefined,
  };
  // Which of rationale, answer and box are right: what occurs, the largest first.
  const tally = new Map();
  for (const item of data.items) for (const one of item.by) if (one && one.rightParts) tally.set(one.rightParts, (tally.get(one.rightParts) || 0) + 1);
  const PARTS = ["all", ...[...tally.keys()].sort((a, b) => tally.get(b) - tally.get(a))];
  const matches = (item) => {
    const one = item.group === state.group && item.by[state.model];
    return one && (state.kind === "all" || item.kind === state.kind)
      && (state.parts === "all" || one.rightParts === state.parts)
      && (state.answer === "all" || one.right === (state.answer === "right")) && OUTCOMES[state.outcome](one);
  };

  const card = (item) => {
    const one = item.by[state.model], models = data.models[item.group];
    const figure = element("figure", "card"), caption = element("figcaption");
    const svg = document.createElementNS(SVG, "svg");
    const picture = Object.hasOwn(data.pictures, item.frame) ? data.pictures[item.frame] : "blank";
    svg.setAttribute("class", `shot ${picture}`);
    svg.setAttribute("viewBox", `0 0 ${item.size[0]} ${item.size[1]}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "true box solid, predicted box dashed");
    if (one.trueBox) rect(svg, "true", one.trueBox);
    if (one.box) { rect(svg, "under", one.box); rect(svg, "predicted", one.box); }
    const answers = element("p", "answers");
    answers.append(element("span", "chip true", one.true),
      element("span", one.right ? "chip right" : "chip wrong", one.answer === null ? "no answer" : one.answer),
      element("span", "iou", one.iou === null ? "" : `IoU ${rate(one.iou)}`));
    const outcome = element("p", "outcome", one.outcome || "");
    if (one.wrongReferent) outcome.append(" · ", element("b", "", "wrong referent"), ": the box fits another object better");
    if (one.contradicts) outcome.append(" · ", element("b", "", "rationale says"), ` ${one.contradicts}`);
    caption.append(element("p", "question", item.question), answers, outcome);
    if (one.reasoning) caption.append(element("blockquote", "", one.reasoning));
    if (one.problems !== undefined) {
      const problems = element("p", "problems", one.problems);
      if (one.text) problems.append(": ", element("code", "", one.text));
      caption.append(problems);
    }
    const others = item.by.map((other, i) => other && i !== state.model
      ? `${models[i]}: ${other.answer === null ? "no answer" : other.answer} ${other.right ? "✓" : "✗"} IoU ${rate(other.iou)}` : null);
    if (others.some(Boolean)) caption.append(element("p", "others", others.filter(Boolean).join(" · ")));
    caption.append(element("p", "id", `${item.id} · ${models[state.model]}`));
    figure.append(svg, caption);
    return figure;
  };

  const grow = () => {
    cards.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(shown + PAGE, found.length);
    more.hidden = shown >= found.length;
    count.textContent = `${found.length} questions match; ${shown} shown.`;
  };
  const refresh = () => { found = data.items.filter(matches); shown = 0; cards.replaceChildren(); grow(); };

  const choice = (title, key, options) => {
    if (options.length < 2) return;
    const set = element("div", "set");
    set.setAttribute("role", "group");
    set.setAttribute("aria-label", title);
    set.append(element("span", "", title));
    for (const [value, label] of options) {
      const button = element("button", "", label);
      button.type = "button";
      button.dataset.key = key;
      button.dataset.value = String(value);
      button.setAttribute("aria-pressed", String(state[key] === value));
      button.addEventListener("click", () => {
        state[key] = value;
        if (key === "group") state.model = Math.min(state.model, data.models[value].length - 1);
        build();
        refresh();
      });
      set.append(button);
    }
    filters.append(set);
  };
  const build = () => {
    filters.replaceChildren();
    choice("Set", "group", data.groups.map((name, i) => [i, name]));
    choice("Model", "model", data.models[state.group].map((name, i) => [i, name]));
    choice("Kind", "kind", ["all", ...data.kinds].map((name) => [name, name]));
    choice("Answer", "answer", ["all", "right", "wrong"].map((name) => [name, name]));
    choice("Coherence", "outcome", Object.keys(OUTCOMES).map((name) => [name, name]));
    choice("Right", "parts", PARTS.map((name) => [name, name]));
    filters.hidden = false;
  };
  more.addEventListener("click", grow);
  build();
  refresh();
})();
