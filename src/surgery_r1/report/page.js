// The gallery: nothing is computed here, only shown, failures first, and filtered.
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const cards = document.getElementById("cards"), more = document.getElementById("more");
  const count = document.getElementById("count"), filters = document.getElementById("filters");
  const PAGE = 24;
  const state = { group: 0, kind: "all", tool: "all", answer: "all", outcome: "all", parts: "all", change: "all" };
  const compare = () => {
    state.model = data.models[state.group].length - 1;
    state.before = Math.max(state.model - 1, 0);
    state.view = state.model > 0 ? "side by side" : "one";
  };
  compare();
  let shown = 0, found = [];

  const OUTCOMES = {
    all: () => true,
    coherent: (one) => one.outcome === "coherent",
    "not coherent": (one) => one.outcome !== "coherent",
    "right answer, wrong box": (one) => one.outcome === "right answer, wrong box",
    "wrong referent": (one) => one.wrongReferent,
    "rationale contradicts answer": (one) => one.contradicts !== undefined,
    "rationale does not fit box": (one) => one.rationaleOffBox === true,
    "answer does not fit box": (one) => one.answerOffBox === true,
    unreadable: (one) => one.problems !== undefined,
  };
  const TOOLS = [...new Set(data.items.map((item) => item.tool).filter(Boolean))].sort();
  // Which of rationale, answer and box are right: what occurs, the largest first.
  const tally = new Map();
  for (const item of data.items) for (const one of item.by) if (one && one.rightParts) tally.set(one.rightParts, (tally.get(one.rightParts) || 0) + 1);
  const PARTS = ["all", ...[...tally.keys()].sort((a, b) => tally.get(b) - tally.get(a))];
  const change = (item) => {
    const before = item.by[state.before], after = item.by[state.model];
    return before && after ? changeOf(before, after) : null;
  };
  const matchesButChange = (item) => {
    const one = item.group === state.group && item.by[state.model];
    return one && (state.kind === "all" || item.kind === state.kind) && (state.tool === "all" || item.tool === state.tool)
      && (state.parts === "all" || one.rightParts === state.parts)
      && (state.answer === "all" || one.right === (state.answer === "right")) && OUTCOMES[state.outcome](one);
  };
  const matches = (item) => matchesButChange(item) && (state.change === "all" || change(item) === state.change);

  const grow = () => {
    const models = data.models[state.group];
    const card = (item) => state.view === "one" ? cardOfOne(item, state.model, models, data.pictures) : cardOfAll(item, models, data.pictures);
    cards.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(shown + PAGE, found.length);
    more.hidden = shown >= found.length;
    count.textContent = `${found.length} questions match; ${shown} shown.`;
  };
  const refresh = () => {
    found = data.items.filter(matches);
    if (state.view !== "one") found.sort((a, b) => CHANGES.indexOf(change(a)) - CHANGES.indexOf(change(b)));
    else found.sort((a, b) => wentRight(a.by[state.model]) - wentRight(b.by[state.model]));
    shown = 0;
    cards.classList.toggle("wide", state.view !== "one");
    cards.style.setProperty("--wide", `${270 * data.models[state.group].length}px`);
    cards.replaceChildren();
    grow();
  };

  const offer = (title, key, options) => {
    if (options.length < 2) return;
    const set = choice(filters, title, key, options, state[key], (value) => {
      state[key] = value;
      if (key === "group") compare();
      if (state.before === state.model) state.before = state.model ? state.model - 1 : 1;
      build();
      refresh();
    });
    if (key === "change") set.title = "right: an accepted answer, and a box with an IoU of at least .5";
  };
  const build = () => {
    filters.replaceChildren();
    const models = data.models[state.group], several = models.length > 1;
    const named = (names) => names.map((name) => [name, name]);
    const numbered = (names) => names.map((name, i) => [i, name]);
    offer("Set", "group", numbered(data.groups));
    if (several) offer("Show", "view", named(["side by side", "one"]));
    offer("Model", "model", numbered(models));
    if (several) {
      offer("Compared with", "before", numbered(models).filter(([i]) => i !== state.model));
      const asked = data.items.filter(matchesButChange).map(change);
      offer(`${models[state.before]} → ${models[state.model]}`, "change", [["all", "all"], ...CHANGES.map((name) => [name, `${name} ${asked.filter((one) => one === name).length}`])]);
    }
    offer("Kind", "kind", named(["all", ...data.kinds]));
    if (TOOLS.length) offer("Tool", "tool", named(["all", ...TOOLS]));
    offer("Answer", "answer", named(["all", "right", "wrong"]));
    offer("Coherence", "outcome", named(Object.keys(OUTCOMES)));
    offer("Right", "parts", named(PARTS));
    filters.hidden = false;
  };
  more.addEventListener("click", grow);
  build();
  refresh();
})();
