// The viewer: a list of groups by step, filter and order, and the chosen group with its frame and replies.
(() => {
  const run = readRun(), filters = filtersOf(run), PAGE = 60;
  const at = (id) => document.getElementById(id);
  const state = { step: 0, scope: "all steps", filter: "all", order: "worst first", kind: "all", number: 0 };
  const kinds = ["all", ...new Set(run.groups.map((group) => group.kind))];
  let found = [], shown = 0, focus = () => {}, asked = 0;

  const pick = (step) => set({ step: run.steps.indexOf(step), scope: "this step", number: 0 });
  const curves = [
    drawCurves(at("curves"), "Reward and its parts", run.curves, run.steps, pick),
    drawCurves(at("curves"), "Share of groups with …", sharesOf(run, filters), run.steps, pick),
  ];

  const inScope = (group) => (state.scope === "all steps" || group.step === state.step) && (state.kind === "all" || group.kind === state.kind);

  // The slider stays the same element, so that it can be dragged while all else is drawn anew.
  const slide = element("label", "slide"), slider = element("input"), told = element("output");
  Object.assign(slider, { type: "range", id: "step", min: 0, max: run.steps.length - 1 });
  slider.addEventListener("input", () => set({ step: Number(slider.value), scope: "this step", number: 0 }));
  slide.append(element("span", "", "Step"), slider, told);

  const controls = () => {
    const bar = element("div", "tools");
    bar.append(slide);
    choice(bar, "Show", "scope", ["this step", "all steps"].map((name) => [name, name]), state.scope, (scope) => set({ scope, number: 0 }));
    choice(bar, "Order", "order", Object.keys(ORDERS).map((name) => [name, name]), state.order, (order) => set({ order, number: 0 }));
    if (kinds.length > 2) choice(bar, "Kind", "kind", kinds.map((name) => [name, name]), state.kind, (kind) => set({ kind, number: 0 }));
    const worst = element("button", "worst", "Worst group of the run");
    worst.type = "button";
    worst.addEventListener("click", toWorst);
    const groups = run.groups.filter(inScope);
    const names = [...filters].map(([name, holds]) => [name, `${name} ${groups.filter(holds).length}`]);
    const chips = choice(element("div"), "Groups with", "filter", names, state.filter, (filter) => set({ filter, number: 0 }));
    for (const chip of chips.querySelectorAll("button")) chip.title = run.meaning[chip.dataset.value] || "";
    chips.append(worst);
    at("controls").replaceChildren(bar, chips);
  };
  const toWorst = () => set({ scope: "all steps", filter: "all", kind: "all", order: "worst first", number: 0 });

  const row = (group, i) => {
    const item = element("li", "entry"), button = element("button");
    button.type = "button";
    button.dataset.number = i;
    const facts = element("span", "facts"), bar = element("span", "span"), range = element("i", "range"), mean = element("i", "mean");
    range.style.left = `${100 * group.low}%`;
    range.style.width = `${100 * (group.high - group.low)}%`;
    mean.style.left = `${100 * group.mean}%`;
    bar.append(range, mean);
    bar.title = `rewards from ${rate(group.low, 2)} to ${rate(group.high, 2)}, mean ${rate(group.mean, 2)}`;
    facts.append(`step ${run.steps[group.step]} · ${group.kind}`, element("b", "", rate(group.mean, 2)));
    button.append(element("span", "question", group.question), bar, facts);
    const badges = element("span", "badges");
    if (group.allEqual) badges.append(element("span", "badge equal", "all equal"));
    group.marked.forEach((count, k) => { if (count) badges.append(element("span", "badge", `${run.marks[k]} ${count}`)); });
    button.append(badges);
    button.addEventListener("click", () => choose(i));
    item.append(button);
    return item;
  };
  const grow = () => {
    at("groups").append(...found.slice(shown, shown + PAGE).map((group, i) => row(group, shown + i)));
    shown = Math.min(shown + PAGE, found.length);
    at("more").hidden = shown >= found.length;
  };

  const choose = (number) => {
    state.number = number;
    while (number >= shown && shown < found.length) grow();
    for (const old of at("groups").querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
    const button = at("groups").querySelector(`[data-number="${number}"]`);
    if (button) {
      button.setAttribute("aria-current", "true");
      const list = at("list").getBoundingClientRect(), place = button.getBoundingClientRect();
      if (place.top < list.top || place.bottom > list.bottom) at("list").scrollTop += place.top - list.top - 60;
    }
    show(found[number]);
  };

  const show = async (group) => {
    const turn = ++asked;
    if (!group) {
      at("detail").replaceChildren(element("p", "nothing", "No group matches. Choose another filter, or all steps."));
      focus = () => {};
      return;
    }
    let whole;
    try {
      whole = await run.whole(group);
    } catch (error) {
      at("detail").replaceChildren(element("p", "nothing", `This browser cannot unpack the groups (${error.message}); a current one can.`));
      return;
    }
    // Another group may have been asked for in the meantime.
    if (turn !== asked) return;
    state.step = group.step;
    slider.value = group.step;
    told.textContent = run.steps[group.step];
    slider.setAttribute("aria-valuetext", `step ${run.steps[group.step]}`);
    curves.forEach((mark) => mark(run.steps[group.step]));
    at("detail").replaceChildren(...detail(group, whole));
  };

  const detail = (group, whole) => {
    const replies = distinct(whole.replies), { frame, front } = drawFrame(whole, replies, run.pictures);
    const head = element("div", "top"), list = element("ol", "replies"), left = element("div", "left");
    const truths = element("p", "answers");
    for (const { answer } of whole.true) truths.append(element("span", "chip true", answer));
    head.append(element("h2", "", whole.question), truths);
    if (whole.all_equal) head.append(element("p", "equal", "All rewards are equal: this group teaches nothing."));
    const mirrored = whole.flip === "none" ? "" : ` · mirrored${whole.flip === "both" ? " both ways" : ` ${whole.flip}ly`}`;
    head.append(element("p", "id", `step ${whole.step} · ${whole.kind}${mirrored} · ${whole.id} · group ${state.number + 1} of ${found.length}`));
    replies.forEach((reply, i) => {
      const card = replyCard(reply, i, replies, whole, run);
      card.classList.toggle("hit", reply.marks.includes(state.filter));
      for (const [name, number] of [["pointerenter", i], ["pointerleave", null], ["focus", i], ["blur", null]]) card.addEventListener(name, () => front(number));
      list.append(card);
    });
    const key = element("p", "key-line");
    key.append(element("span", "k truth", "true box"), element("span", "k worse", "advantage below 0: made rarer"), element("span", "k better", "above 0: made likelier"), element("span", "soft", "Point at a reply to see its box alone."));
    const toggle = element("button", "objects", "Annotated objects");
    toggle.type = "button";
    toggle.setAttribute("aria-pressed", "false");
    toggle.addEventListener("click", () => toggle.setAttribute("aria-pressed", String(frame.classList.toggle("all"))));
    key.append(toggle);
    left.append(frame, key);
    focus = (number) => { if (list.children[number]) list.children[number].focus(); };
    const body = element("div", "body");
    body.append(left, list);
    return [head, body];
  };

  const set = (changes) => {
    const dragged = document.activeElement === slider;
    Object.assign(state, changes);
    controls();
    if (dragged) slider.focus();
    found = run.groups.filter((group) => inScope(group) && filters.get(state.filter)(group)).sort(ORDERS[state.order]);
    shown = 0;
    at("groups").replaceChildren();
    at("list").scrollTop = 0;
    at("count").textContent = `${found.length} of ${run.groups.length} groups`;
    grow();
    choose(state.number);
  };

  const byKey = {
    ArrowLeft: () => set({ step: Math.max(state.step - 1, 0), scope: "this step", number: 0 }),
    ArrowRight: () => set({ step: Math.min(state.step + 1, run.steps.length - 1), scope: "this step", number: 0 }),
    ArrowUp: () => choose(Math.max(state.number - 1, 0)),
    ArrowDown: () => choose(Math.min(state.number + 1, found.length - 1)),
    w: toWorst,
    Escape: () => set({ scope: "all steps", filter: "all", kind: "all", number: 0 }),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.id === "step") return;
    const act = byKey[event.key] || (/^[1-9]$/.test(event.key) ? () => focus(Number(event.key) - 1) : null);
    if (!act) return;
    event.preventDefault();
    act();
  });
  // What sticks to the top stands below the controls, however many lines they take.
  new ResizeObserver(() => document.body.style.setProperty("--top", `${at("controls").offsetHeight}px`)).observe(at("controls"));
  at("more").addEventListener("click", grow);
  set({});
})();
