// Cards of the gallery: a question with the prediction of one system, or of all side by side.
const shot = (item, one, pictures) => {
  const svg = document.createElementNS(SVG, "svg");
  const picture = Object.hasOwn(pictures, item.frame) ? pictures[item.frame] : "blank";
  svg.setAttribute("class", `shot ${picture}`);
  svg.setAttribute("viewBox", `0 0 ${item.size[0]} ${item.size[1]}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "true box solid, predicted box dashed");
  if (one.trueBox) rect(svg, "true", one.trueBox);
  if (one.box) { rect(svg, "under", one.box); rect(svg, "predicted", one.box); }
  return svg;
};

// What a system said of a question, and what is right and wrong in it.
const said = (one) => {
  const parts = [], answers = element("p", "answers");
  answers.append(element("span", "chip true", one.true),
    element("span", one.right ? "chip right" : "chip wrong", one.answer === null ? "no answer" : one.answer),
    element("span", "iou", one.iou === null ? "" : `IoU ${rate(one.iou)}`));
  const outcome = element("p", "outcome", one.outcome || "");
  if (one.wrongReferent) outcome.append(" · ", element("b", "", "wrong referent"), ": the box fits another object better");
  if (one.contradicts) outcome.append(" · ", element("b", "", "rationale says"), ` ${one.contradicts}`);
  parts.push(answers, outcome);
  if (one.reasoning) parts.push(element("blockquote", "", one.reasoning));
  if (one.problems !== undefined) {
    const problems = element("p", "problems", one.problems);
    if (one.text) problems.append(": ", element("code", "", one.text));
    parts.push(problems);
  }
  return parts;
};

const cardOfOne = (item, model, models, pictures) => {
  const figure = element("figure", "card"), caption = element("figcaption");
  caption.append(element("p", "question", item.question), ...said(item.by[model]));
  const others = item.by.map((other, i) => other && i !== model
    ? `${models[i]}: ${other.answer === null ? "no answer" : other.answer} ${other.right ? "✓" : "✗"}${other.iou === null ? "" : ` IoU ${rate(other.iou)}`}` : null);
  if (others.some(Boolean)) caption.append(element("p", "others", others.filter(Boolean).join(" · ")));
  caption.append(element("p", "id", `${item.id} · ${models[model]}`));
  figure.append(shot(item, item.by[model], pictures), caption);
  return figure;
};

const cardOfAll = (item, models, pictures) => {
  const card = element("article", "card together"), row = element("div", "systems");
  item.by.forEach((one, i) => {
    const figure = element("figure", "system"), caption = element("figcaption");
    caption.append(element("h4", one && wentRight(one) ? "went-right" : "went-wrong", models[i]));
    if (one) figure.append(shot(item, one, pictures));
    caption.append(...(one ? said(one) : [element("p", "problems", "not asked")]));
    figure.append(caption);
    row.append(figure);
  });
  const head = element("header");
  head.append(element("p", "question", item.question), element("p", "id", item.id));
  card.append(head, row);
  return card;
};

// Right answer and box; in sets without boxes, right answer.
const wentRight = (one) => (one.iou === null ? one.right : one.outcome === "coherent");

// What became of a question from one system to another, failures first.
const CHANGES = ["right → wrong", "wrong → wrong", "wrong → right", "right → right"];
const changeOf = (before, after) => `${wentRight(before) ? "right" : "wrong"} → ${wentRight(after) ? "right" : "wrong"}`;
