// The groups of the run. What lists and filters need is here at once; replies are unpacked when their step is looked at.
const readRun = () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chunks = JSON.parse(document.getElementById("chunks").textContent);
  const groups = data.groups.map(([step, place, question, kind, low, mean, high, allEqual, marked, replies]) =>
    ({ step, place, question, kind, low, mean, high, allEqual: Boolean(allEqual), marked, replies }));
  const unpacked = new Map();
  const unpack = async (step) => {
    const bytes = Uint8Array.from(atob(chunks[step]), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const whole = async (group) => {
    if (!unpacked.has(group.step)) unpacked.set(group.step, unpack(group.step));
    return (await unpacked.get(group.step))[group.place];
  };
  return { ...data, groups, marks: data.marks.map(([mark]) => mark), meaning: Object.fromEntries(data.marks), whole };
};

// Name -> whether a group is shown. A mark of one reply is enough.
const filtersOf = (run) => new Map([
  ["all", () => true],
  ...run.marks.map((mark, i) => [mark, (group) => group.marked[i] > 0]),
  ["all equal", (group) => group.allEqual],
]);

const ORDERS = {
  "worst first": (a, b) => a.mean - b.mean || a.high - b.high,
  "widest spread": (a, b) => (b.high - b.low) - (a.high - a.low),
  "as asked": (a, b) => a.step - b.step || a.place - b.place,
};

// Share of the groups of each recorded step that a filter finds.
const sharesOf = (run, filters) => {
  const series = {};
  for (const [name, holds] of filters) {
    if (name === "all") continue;
    series[name] = run.steps.map((step, i) => {
      const asked = run.groups.filter((group) => group.step === i);
      return [step, asked.filter(holds).length / asked.length];
    });
  }
  return series;
};

// Replies with the same words stand together, the best first.
const distinct = (replies) => {
  const found = new Map();
  for (const reply of replies) {
    const same = found.get(reply.text);
    if (same) same.times += 1;
    else found.set(reply.text, { ...reply, times: 1 });
  }
  return [...found.values()].sort((a, b) => b.advantage - a.advantage || b.reward - a.reward);
};

// A text in runs: words that the best text has at that place too ("same"), words of its own ("own"), and words of the
// best text that are left out and not replaced ("lacks"). Longest common subsequence; blanks go with the word before.
const differences = (text, best) => {
  const words = (of) => of.match(/<\/?\w+>|[^\s<]+\s*|\s+|<\s*/g) || [];
  const a = words(text), b = words(best), alike = (i, j) => a[i].trim() === b[j].trim();
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      rows[i][j] = alike(i, j) ? rows[i + 1][j + 1] + 1 : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  const runs = [];
  let own = [], lacks = [];
  const close = () => {
    if (own.length) runs.push({ kind: "own", words: own });
    else if (lacks.length) runs.push({ kind: "lacks", words: lacks });
    own = [];
    lacks = [];
  };
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && alike(i, j)) {
      close();
      runs.push({ kind: "same", words: [a[i]] });
      i += 1;
      j += 1;
    } else if (j >= b.length || (i < a.length && rows[i + 1][j] >= rows[i][j + 1])) own.push(a[i++]);
    else lacks.push(b[j++]);
  }
  close();
  return runs;
};
