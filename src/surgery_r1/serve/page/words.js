// What the API says, in words for people. Nothing here touches the page.

/** A failed request as a sentence or two. `failure` is the server's `error`, or nothing where no server answered. */
export function errorWords(failure, retryAfter) {
  if (!failure) return "The server does not answer. Is surgery-r1 serve still running?";
  const again = retryAfter ? `Try again in ${retryAfter} s` : failure.fix;
  return [failure.message, again].filter(Boolean).map(sentence).join(" ");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Whether rationale, answer and box fit each other: `{ok, title, lines}`; ok is null where nothing can be compared. */
export function agreementWords(one) {
  const { conclusion, box_place: place, disagree, ...flags } = one.agreement;
  const lines = {
    rationale_answer: `The rationale ends at ${conclusion}, the answer is ${one.answer}.`,
    answer_box: `The answer is ${one.answer}, the box lies ${place}.`,
    rationale_box: `The rationale ends at ${conclusion}, the box lies ${place}.`,
    names_subject: `The rationale does not name ${one.subject}, which was asked about.`,
  };
  if (disagree.length) return { ok: false, title: "Its parts disagree", lines: disagree.map((name) => lines[name]) };
  if (flags.rationale_answer && flags.answer_box) return { ok: true, title: "Rationale, answer and box agree", lines: [] };
  const aside = ["For this question the box says nothing about the answer."];
  if (flags.rationale_answer) return { ok: true, title: "Rationale and answer agree", lines: aside };
  if (flags.answer_box) return { ok: true, title: "Answer and box agree", lines: [] };
  return { ok: null, title: "Nothing to compare with each other", lines: [] };
}

/** What covering the box has changed. */
export function coverWords(before, after) {
  const said = (one) => one.answer ?? "no answer";
  const same = before.answer === after.answer;
  const title = `${same ? "Same" : "Another"} answer with the box covered: ${same ? "" : `${said(before)} → `}${said(after)}`;
  const overlap = iou(before.box_px, after.box_px);
  const where = overlap >= 0.5 ? "It still points to what is covered." : "It points elsewhere now.";
  const box = after.box_px ? where : "It points nowhere now.";
  return { same, title, lines: [box, ...(same && after.answer !== null ? ["This answer did not need what lies in the box."] : [])] };
}

/** Problems of a reply: the codec's codes, read as words. */
export const problemWords = (codes) => codes.map((code) => code.replaceAll("_", " ")).join(", ");

/** The truth about a drawn scene's question: `{answer, box_px}`, or null where it is not known. */
export function truthOf(frame, one) {
  const found = (frame.objects ?? []).filter((seen) => seen.name === one.subject);
  if (found.length !== 1) return null;
  const answer = { location: found[0].location, state: found[0].state, organ: found[0].name }[one.kind];
  return answer ? { answer, box_px: found[0].box_px } : null;
}

export const rate = (value) => value.toFixed(2).replace(/^0/, "");

export function iou(a, b) {
  if (!a || !b) return 0;
  const area = ([x1, y1, x2, y2]) => Math.max(0, x2 - x1) * Math.max(0, y2 - y1);
  const inner = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return inner / (area(a) + area(b) - inner);
}
