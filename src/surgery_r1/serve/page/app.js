// The page: which frame, which checkpoints, what is asked, and what was asked before. All of it is gone with the window.
import { el, paneNode, picture } from "./pane.js";
import { coverBox, loadImage, record, sheet } from "./picture.js";
import { agreementWords, coverWords, errorWords, rate } from "./words.js";

const $ = (id) => document.getElementById(id);
const MOST_MODELS = 3;
/** Kinds whose suggested questions differ in one name: what stands before those names. */
const TITLES = { location: "Where is", state: "State of" };
const HINT = [
  "Ask about this frame, or take a suggested question.",
  "The model answers, points with a box and says why. What it names is linked to the picture; where rationale, answer and box disagree, the page says so.",
];
const state = { models: [], chosen: [], forms: [], frames: [], frame: null, history: [], shown: null, token: null, limits: {} };

/** A line beneath the question; `heard`: only for those who do not see what it says elsewhere on the page. */
const say = (text, { wrong = false, heard = false } = {}) => {
  $("status").textContent = text;
  $("status").className = wrong ? "wrong" : heard ? "unseen" : "";
};

// ---- the server

async function api(path, body) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", headers, body } : { headers });
  } catch {
    throw new Error(errorWords(null));
  }
  if (response.status === 401 && (await askToken())) return api(path, body);
  const reply = await response.json().catch(() => ({}));
  if (response.ok) return reply;
  const failure = reply.error ?? { message: `the server replied ${response.status}` };
  throw new Error(errorWords(failure, response.headers.get("Retry-After")));
  return reply;
}

let asking = null;
/** Asks for the token once, however many requests were refused; whether one was given. */
function askToken() {
  asking ??= new Promise((done) => {
    const dialog = $("token");
    $("token-text").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      state.token = $("token-text").value.trim();
      done(Boolean(state.token));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// ---- frames

async function openFile(file) {
  if (!file) return;
  const { body_bytes: most } = state.limits, mib = (bytes) => bytes / 2 ** 20;
  if (most && file.size > most) {
    return say(`${file.name} has ${mib(file.size).toFixed(1)} MiB; the server takes ${mib(most).toFixed(0)}.`, { wrong: true });
  }
  const url = URL.createObjectURL(file);
  try {
    const { naturalWidth: width, naturalHeight: height } = await loadImage(url);
    addFrame({ title: file.name, name: file.name, url, width, height, file, questions: state.forms });
    show(null, state.frames.at(-1));
    say(`${state.frame.title}, ${width} × ${height} pixels. It goes to the server of this page when you ask.`);
    $("question").focus();
  } catch {
    URL.revokeObjectURL(url);
    say(`${file.name} is no picture that this browser can read. PNG and JPEG are.`, { wrong: true });
  }
}

function addFrame(frame) {
  state.frames.push(frame);
  const { title } = frame, onclick = () => show(null, frame);
  const attributes = { type: "button", title, "aria-label": title, "aria-pressed": "false", onclick };
  frame.button = el("button.frame", attributes, el("img", { src: frame.url, alt: "" }));
  $("frames").append(frame.button);
}

// ---- asking

const latest = () => state.history.find((result) => result.frame === state.frame);

async function ask(text) {
  const question = text.trim();
  if (!question) return $("question").focus();
  if (!state.frame) return say("Open a frame first.", { wrong: true });
  $("question").value = question;
  const panes = state.chosen.map((id) => ({ model: state.models.find((model) => model.id === id) }));
  const result = { question, frame: state.frame, panes, asked: new Date().toISOString() };
  state.history.unshift(result);
  show(result);
  say(`Asking ${state.chosen.join(", ")} …`, { heard: true });
  await Promise.all(panes.map((pane) => askPane(result, pane)));
  tell(result, panes);
}

async function askPane(result, pane) {
  const body = new FormData(), { frame } = result;
  if (frame.file) body.append("image", frame.file);
  else body.append("sample", frame.sample);
  body.append("question", result.question);
  body.append("model", pane.model.id);
  if (pane.cover) body.append("cover", JSON.stringify([pane.cover]));
  try {
    pane.reply = await api("v1/answer", body);
    pane.one = pane.reply.answers[0];
  } catch (error) {
    pane.failure = error.message;
  }
  if (state.shown === result) pane.node.replaceWith(drawn(result, pane));
  drawHistory();
}

async function cover(result, panes) {
  const todo = panes.filter((pane) => pane.one?.box_px && !pane.cover && !pane.again);
  if (!todo.length) return;
  const added = todo.map((pane) => (pane.again = { model: pane.model, cover: pane.one.box_px, first: pane.one }));
  for (const pane of added) pane.covered = await coverBox(result.frame, pane.cover);
  for (const pane of todo) result.panes.splice(result.panes.indexOf(pane) + 1, 0, pane.again);
  show(result);
  say("Asking again with the box covered …", { heard: true });
  await Promise.all(added.map((pane) => askPane(result, pane)));
  tell(result, added);
}

/** Says what was replied, for those who do not see it. */
function tell(result, panes) {
  if (state.shown !== result) return;
  say(panes.map(({ model, one, failure, cover: covered, first }) => {
    if (!one) return `${model.id}: ${failure}`;
    if (covered) return `${model.id}: ${coverWords(first, one).title}.`;
    const sure = one.confidence === null ? "" : `, confidence ${rate(one.confidence)}`;
    return `${model.id}: ${one.answer ?? "no answer"}${sure}. ${agreementWords(one).title}.`;
  }).join(" "), { heard: true });
}

// ---- what is shown

const save = (blob, result, ending) => {
  const name = `${result.frame.name} ${result.question}`.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 80);
  const link = el("a", { href: URL.createObjectURL(blob), download: `surgery-r1_${name}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`Saved ${link.download}.`);
};
const savePicture = async (result) => save(await sheet(result), result, "png");
const saveRecord = (result) => save(record(result), result, "json");

/** Where a tool lies by what the same model said about it in an earlier question on the frame. */
const finder = (result, pane) => (name) => state.history.filter((other) => other.frame === result.frame).flatMap((other) => other.panes)
  .find((other) => other.model === pane.model && !other.cover && other.one?.subject === name && other.one.box_px)?.one.box_px;

function drawn(result, pane) {
  pane.node = paneNode(result.frame, pane, { cover: (first) => cover(result, [first]) }, finder(result, pane));
  return pane.node;
}

const unasked = (frame) => el("article.pane", {}, picture(frame),
  el("div.said.hint", {}, el("p.who", {}, frame.title), ...HINT.map((text) => el("p", {}, text))));

const head = (result) => el("div.head", {}, el("h2", {}, result.question), el("p.actions", {},
  el("button", { type: "button", "aria-keyshortcuts": "s", onclick: () => savePicture(result) }, "Save picture"),
  el("button", { type: "button", "aria-keyshortcuts": "j", onclick: () => saveRecord(result) }, "Save JSON")));

/** Shows a result, or a frame of which nothing was asked yet. */
function show(result, frame = result.frame) {
  const other = frame !== state.frame;
  state.shown = result;
  state.frame = frame;
  for (const each of state.frames) each.button.setAttribute("aria-pressed", String(each === frame));
  if (other) {
    drawSuggested();
    say("");
    frame.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const panes = result ? result.panes.map((pane) => drawn(result, pane)) : [unasked(frame)];
  $("result").replaceChildren(result ? head(result) : "", el(`div.panes.of${Math.min(panes.length, 4)}`, {}, ...panes));
  if (result) $("question").value = result.question;
  drawHistory();
}

function drawSuggested() {
  const groups = new Map();
  for (const asked of state.frame.questions) groups.set(asked.kind, [...(groups.get(asked.kind) ?? []), asked]);
  let key = 0;
  const chip = ({ question, kind, subject }) => {
    const keys = ++key < 10 ? key : null, onclick = () => ask(question);
    const text = kind in TITLES ? subject.replaceAll("_", " ") : kind === "organ" ? "What organ?" : question;
    return el("button.chip", { type: "button", "aria-label": question, title: question, "aria-keyshortcuts": keys, onclick }, text);
  };
  const set = ([kind, all]) => el("div.set", {}, kind in TITLES ? el("span", {}, TITLES[kind]) : null, ...all.map(chip));
  $("suggested").replaceChildren(...[...groups].map(set));
}

function drawHistory() {
  $("history").hidden = !state.history.length;
  $("history").querySelector("ol").replaceChildren(...state.history.map((result) => {
    const replies = result.panes.map(({ model, one, failure, cover: covered }) => {
      const odd = one && agreementWords(one).ok === false ? ", its parts disagree" : "";
      return `${model.id}${covered ? ", covered" : ""}: ${one ? (one.answer ?? "no answer") + odd : failure ? "failed" : "…"}`;
    });
    const onclick = () => {
      show(result);
      $("result").focus();
      $("result").scrollIntoView({ block: "nearest" });
    };
    const words = el("span", {}, el("b", {}, result.question), el("small", {}, [result.frame.name, ...replies].join(" · ")));
    const current = result === state.shown ? "true" : null;
    return el("li", {}, el("button.past", { type: "button", "aria-current": current, onclick }, el("img", { src: result.frame.url, alt: "" }), words));
  }));
}

function drawModels() {
  const all = state.models.map((model) => model.id);
  const chip = (id) => el("button.chip", { type: "button", "aria-pressed": String(state.chosen.includes(id)), onclick: () => choose(id) }, id);
  $("models").hidden = all.length < 2;
  $("models").replaceChildren(el("span", {}, "ask"), ...all.map(chip));
}

/** Asks a checkpoint too, or no longer. */
function choose(id) {
  const on = !state.chosen.includes(id), all = state.models.map((model) => model.id);
  const wanted = all.filter((other) => (other === id ? on : state.chosen.includes(other)));
  if (!wanted.length) return say("One checkpoint at least is asked.", { wrong: true });
  if (wanted.length > MOST_MODELS) return say(`${MOST_MODELS} checkpoints at most stand side by side.`, { wrong: true });
  state.chosen = wanted;
  for (const button of $("models").querySelectorAll("button")) button.setAttribute("aria-pressed", String(wanted.includes(button.textContent)));
  say(`${wanted.join(", ")} ${wanted.length > 1 ? "are" : "is"} asked from now on.`);
}

// ---- hands

const step = (by) => {
  const next = state.history[state.history.indexOf(state.shown) - by];
  if (next) show(next);
};
const KEYS = {
  "/": () => $("question").select(),
  "?": () => $("keys").showModal(),
  c: () => state.shown && cover(state.shown, state.shown.panes),
  o: () => $("file").click(),
  n: () => state.frames.length && show(null, state.frames[(state.frames.indexOf(state.frame) + 1) % state.frames.length]),
  s: () => state.shown && savePicture(state.shown),
  j: () => state.shown && saveRecord(state.shown),
  "[": () => step(-1),
  "]": () => step(1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, dialog") || !$("keys-on").checked) return;
  const chosen = /^[1-9]$/.test(event.key) ? $("suggested").querySelectorAll("button")[event.key - 1] : null;
  const act = chosen ? () => chosen.click() : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
$("question").addEventListener("keydown", (event) => event.key === "Escape" && event.target.blur());
$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask($("question").value); });
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", (event) => { openFile(event.target.files[0]); event.target.value = ""; });
$("help").addEventListener("click", () => $("keys").showModal());
$("forget").addEventListener("click", () => {
  for (const pane of state.history.flatMap((result) => result.panes)) if (pane.covered) URL.revokeObjectURL(pane.covered);
  for (const own of state.frames.filter((frame) => frame.file)) {
    own.button.remove();
    URL.revokeObjectURL(own.url);
  }
  state.frames = state.frames.filter((frame) => !frame.file);
  state.history = [];
  show(null, state.frames[0]);
  say("Forgotten, with the frames of your own.");
  $("question").focus();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) { event.preventDefault(); openFile(file); }
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("drop").hidden = name === "drop" || (name === "dragleave" && !event.relatedTarget);
    if (name === "drop") openFile(event.dataTransfer.files[0]);
  });
}

async function start() {
  const [about, samples, forms] = await Promise.all(["v1/models", "v1/samples", "v1/suggest"].map((path) => api(path)));
  Object.assign(state, { models: about.models, chosen: [about.default], limits: about.limits ?? {}, forms: forms.questions });
  $("question").maxLength = state.limits.question_chars ?? 500;
  $("forms").replaceChildren(...state.forms.map(({ question }) => el("option", { value: question })));
  drawModels();
  for (const { id, url, ...rest } of samples.samples) addFrame({ ...rest, name: rest.title.split(":")[0], url: url.replace(/^\//, ""), sample: id });
  if (state.frames.length) show(null, state.frames[0]);
}
start().catch((error) => say(error.message, { wrong: true }));
