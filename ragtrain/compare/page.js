"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const list = document.getElementById("list"), count = document.getElementById("count");
  const search = document.getElementById("search"), outcome = document.getElementById("outcome");
  const cause = document.getElementById("cause"), pair = document.getElementById("pair"), more = document.getElementById("more");
  const TONE = { fixed: "good", broken: "bad" };
  let shown = 0, found = [];

  data.runs.slice(1).forEach((name, i) => {
    const option = element("option", data.letters[0] + " against " + name);
    option.value = String(i + 1);
    pair.append(option);
  });
  pair.hidden = data.runs.length < 3;

  const outcomeOf = (a, b) => a[1] ? (b[1] ? "both right" : "broken") : (b[1] ? "fixed" : "both wrong");
  const causeOf = (a, b, what) => {
    if (what !== "fixed" && what !== "broken") return "";
    const right = what === "fixed" ? b : a, wrong = what === "fixed" ? a : b;
    if (right[2] === null || wrong[2] === null) return "unknown";
    return right[2] && !wrong[2] ? "retrieval" : "reader";
  };

  const side = (name, answered) => {
    const box = element("div", undefined, "side " + (answered[1] ? "right" : "wrong"));
    box.append(element("div", name, "dim"), element("div", answered[0] === "" ? "(nothing)" : answered[0], "answer"));
    if (answered[3] === null) {
      if (answered[4]) box.append(element("div", answered[4] + " passages, left out of this page for its size", "dim"));
      return box;
    }
    if (answered[3].length) {
      const passages = element("ol");
      for (const [place, hit] of answered[3]) {
        const [title, text] = data.passages[place];
        const item = element("li", undefined, hit ? "hit" : "");
        if (title) item.append(element("strong", title), " ");
        item.append(document.createTextNode(text));
        passages.append(item);
      }
      box.append(passages);
    }
    return box;
  };

  const card = (place) => {
    const [id, question, references] = data.questions[place];
    const b = Number(pair.value), left = data.answers[0][place], right = data.answers[b][place];
    const what = outcomeOf(left, right), who = causeOf(left, right, what);
    const made = element("details", undefined, "question"), summary = element("summary");
    summary.append(element("span", what, "tag " + (TONE[what] || "dim")), element("span", question || id));
    made.append(summary);
    made.addEventListener("toggle", () => {
      if (!made.open || made.children.length > 1) return;
      const body = element("div", undefined, "body"), head = element("div", undefined, "wide");
      head.append(element("span", "asked for: ", "dim"), element("span", references.join(" · ")),
        element("span", "  " + id + ({ retrieval: ", by retrieval", reader: ", by the reader" }[who] || ""), "dim"));
      body.append(head, side(data.letters[0] + " " + data.runs[0], left), side(data.letters[b] + " " + data.runs[b], right));
      made.append(body);
    }, { once: false });
    return made;
  };

  const extend = () => {
    found.slice(shown, shown + PAGE).forEach((place) => list.append(card(place)));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    count.textContent = found.length + " of " + data.questions.length + " questions";
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), b = Number(pair.value);
    found = [];
    data.questions.forEach((question, place) => {
      const left = data.answers[0][place], right = data.answers[b][place], what = outcomeOf(left, right);
      if (outcome.value && what !== outcome.value) return;
      if (cause.value && causeOf(left, right, what) !== cause.value) return;
      const text = [question[0], question[1], ...question[2], left[0], right[0]].join(" ").toLowerCase();
      if (words.every((word) => text.includes(word))) found.push(place);
    });
    list.textContent = "";
    shown = 0;
    extend();
  };
  let waiting;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  [outcome, cause, pair].forEach((each) => each.addEventListener("change", filter));
  more.addEventListener("click", extend);
  filter();
})();
