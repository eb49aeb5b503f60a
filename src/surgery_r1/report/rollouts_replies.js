// A reply as a card: what it earned, where it differs from the best one, and what is wrong with it.
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

const bars = (reply, parts) => {
  const list = element("dl", "bars");
  for (const part of parts) {
    const value = reply.rewards[part], row = element("div", value === null || value === undefined ? "none" : "");
    const track = element("dd", ""), bar = element("i");
    bar.style.width = `${100 * (value || 0)}%`;
    track.append(bar);
    row.append(element("dt", "", part), track, element("dd", "value", row.className ? "–" : rate(value, 2)));
    if (row.className) row.title = "does not apply to this question";
    list.append(row);
  }
  return list;
};

const textOf = (reply, best) => {
  const text = element("p", "text");
  if (!reply.text) text.append(element("em", "", "(empty)"));
  for (const { kind, words } of differences(reply.text, best.text)) {
    const part = kind === "same" ? text : element(kind === "lacks" ? "del" : "mark");
    for (const word of words) part.append(/^<\/?\w+>$/.test(word) ? element("span", "label", word) : word);
    if (kind === "lacks") part.title = "in the best reply, not in this one";
    if (kind !== "same") text.append(part);
  }
  return text;
};

const reasons = (reply) => ({
  disagreement: [
    reply.conclusion && reply.answer && reply.conclusion !== reply.answer ? `the rationale ends at ${reply.conclusion}, the answer is ${reply.answer}` : "",
    reply.answer_fits_box === false ? "the answer does not fit its own box" : "",
  ].filter(Boolean).join("; "),
  "wrong referent": "another object fits the box better",
  "format lost": reply.problems.join(", "),
  "right answer, wrong box": "",
});

const replyCard = (reply, number, replies, group, run) => {
  const card = element("li", "reply");
  card.tabIndex = 0;
  card.dataset.reply = number;
  const share = shareOf(reply, replies);
  card.style.setProperty("--hue", colourOf(share));
  card.style.setProperty("--edge", `${(5 + 3 * share).toFixed(1)}px`);
  const head = element("p", "head");
  const swatch = element("b", "swatch", String(number + 1));
  head.append(swatch, element("b", "advantage", signed(reply.advantage)), element("span", "soft", `reward ${rate(reply.reward, 2)}`));
  const answer = element("span", reply.answer_right ? "chip right" : "chip wrong", reply.answer === null ? "no answer" : reply.answer);
  head.append(answer);
  if (reply.iou !== null) head.append(element("span", "soft", reply.box_px ? `IoU ${rate(reply.iou, 2)}` : "no box"));
  if (reply.times > 1) head.append(element("span", "times", `×${reply.times}`));
  card.append(head, bars(reply, run.parts), textOf(reply, replies[0]));
  const why = reasons(reply);
  for (const mark of reply.marks) {
    const line = element("p", "fault");
    line.title = run.meaning[mark];
    line.append(element("b", "", mark), why[mark] ? `: ${why[mark]}` : "");
    card.append(line);
  }
  return card;
};
