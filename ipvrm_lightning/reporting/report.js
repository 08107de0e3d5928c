"use strict";
// The browser of solutions. Texts come from models and data sets: they are only ever set as text, never as markup.
(() => {
  const source = document.getElementById("solutions-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PAGE = 50;
  const SIGNS = { right: "✓", wrong: "✗", missed: "○" };
  const byId = (id) => document.getElementById(id);
  const [list, shown, more, readout] = ["list", "shown", "more", "readout"].map(byId);
  const [subset, protocol, origin] = ["subset", "protocol", "origin"].map(byId);
  let limit = PAGE;

  function element(tag, options = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (name === "text") made.textContent = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function drawing(tag, options) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
    return made;
  }

  const sigmoid = (value) => 1 / (1 + Math.exp(-value));
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toPrecision(3);
  const stepName = (index) => (index < 0 ? "none" : `step ${index + 1}`);

  function found(solution) {
    return solution.found[protocol.value][origin.value];
  }

  function verdict(solution) {
    const [predicted] = found(solution);
    if (predicted === solution.label) return "right";
    return predicted < 0 ? "missed" : "wrong";
  }

  function update() {
    readout.hidden = true;
    const wanted = new Set([...document.querySelectorAll("[name=verdict]:checked")].map((box) => box.value));
    const open = new Set([...list.querySelectorAll("details[open]")].map((details) => details.dataset.key));
    const ofSubset = data.solutions.filter((one) => !subset.value || one.subset === subset.value);
    const counts = { right: 0, wrong: 0, missed: 0 };
    for (const one of ofSubset) counts[verdict(one)] += 1;
    for (const place of document.querySelectorAll("[data-count]")) place.textContent = `(${counts[place.dataset.count]})`;
    const chosen = ofSubset.filter((one) => wanted.has(verdict(one)));
    list.replaceChildren(...chosen.slice(0, limit).map(entry));
    more.hidden = chosen.length <= limit;
    for (const details of list.querySelectorAll("details")) details.open = open.has(details.dataset.key);
    const first = Math.min(limit, chosen.length);
    shown.textContent = `${first} of ${chosen.length} that fit, of ${data.solutions.length} on this page.`;
  }

  function entry(solution) {
    const kind = verdict(solution);
    const where = `labelled: ${stepName(solution.label)} · predicted: ${stepName(found(solution)[0])}`;
    const details = element(
      "details", { "data-key": data.solutions.indexOf(solution) },
      element(
        "summary", {},
        element("span", { class: "verdict", text: `${SIGNS[kind]} ${kind}` }),
        element("span", { class: "name", text: `${solution.subset} / ${solution.id}` }),
        element("span", { class: "where", text: where }),
      ),
    );
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(body(solution));
    });
    return element("li", { "data-verdict": kind, "data-subset": solution.subset }, details);
  }

  function body(solution) {
    const parts = element("div", { class: "body" });
    const [, threshold] = found(solution);
    const answer = { true: "right", false: "wrong" }[solution.answer] ?? "not known";
    const fact = `Final answer: ${answer}. A step is called wrong where its ${protocol.value} is below ${threshold}.`;
    parts.append(element("p", { class: "note", text: fact }));
    if (solution.tokens) {
      parts.append(element("div", { class: "prompt", text: solution.prompt.trim(), role: "region", "aria-label": "Problem", tabindex: "0" }));
      parts.append(...curve(solution));
    }
    for (const part of stepsOf(solution)) parts.append(step(solution, part));
    return parts;
  }

  // Runs of tokens of one step. White space between two steps stays with the first of them.
  function stepsOf(solution) {
    if (!solution.tokens) return solution.lengths.map((_, index) => ({ index, tokens: [] }));
    const parts = [];
    solution.tokens.forEach((text, token) => {
      const last = parts[parts.length - 1];
      const index = solution.steps[token];
      const joins = last && (last.index === index || (index < 0 && text.trim() === ""));
      if (joins) last.tokens.push(token);
      else parts.push({ index, tokens: [token] });
    });
    return parts;
  }

  function step(solution, part) {
    const { index, tokens } = part;
    const predicted = found(solution)[0];
    const head = element("h3", {}, element("b", { text: index < 0 ? "Outside the steps" : `Step ${index + 1}` }));
    const box = element("section", { class: "step" }, head);
    if (index >= 0 && index === solution.label) {
      box.classList.add("labelled");
      head.append(element("span", { class: "flag label", text: "first error: labelled" }));
    }
    if (index >= 0 && index === predicted) {
      box.classList.add("predicted");
      head.append(element("span", { class: "flag prediction", text: "first error: predicted" }));
    }
    if (tokens.length) {
      const before = tokens[0] ? sigmoid(solution.values[tokens[0] - 1]) : 0.5;
      const after = sigmoid(solution.values[tokens[tokens.length - 1]]);
      const change = Math.round(100 * after) - Math.round(100 * before);
      head.style.setProperty("--value", percent(after).replace(" ", ""));
      const moved = tokens[0] && change ? ` (${change < 0 ? "▼" : "▲"} ${Math.abs(change)})` : "";
      head.append(element("span", { text: `value ${percent(after)}${moved}` }));
    }
    if (index >= 0) head.append(element("span", { text: `${protocol.value} ${solution.scores[protocol.value][index]}` }));
    if (tokens.length) box.append(shaded(solution, tokens, head.textContent));
    else box.append(element("p", { class: "note", text: `${solution.lengths[index]} characters` }));
    return box;
  }

  function shaded(solution, tokens, name) {
    const row = element("div", { class: "tokens", role: "group", tabindex: "0", "aria-label": `${name}. Arrow keys read the tokens.` });
    for (const token of tokens) {
      const advantage = solution.advantages[token];
      const size = Math.min(1, Math.abs(advantage) / data.scale);
      const made = element("span", { class: `token ${advantage < 0 ? "down" : "up"}`, title: `TD advantage ${signed(advantage)}` });
      made.style.setProperty("--shade", `${Math.round(60 * size)}%`);
      if (size > 0.4) made.classList.add("strong");
      const text = solution.tokens[token];
      if (text.trim() === "") made.append(element("span", { class: "sign", text: text === "" ? "◦" : text.replace(/\n/g, "⏎") }));
      else made.textContent = text;
      made.dataset.token = token;
      row.append(made);
    }
    const point = (span) => {
      for (const other of list.querySelectorAll(".token.current")) other.classList.remove("current");
      span.classList.add("current");
      const token = Number(span.dataset.token);
      const value = percent(sigmoid(solution.values[token]));
      readout.hidden = false;
      readout.textContent = `“${solution.tokens[token].trim() || "white space"}”: TD advantage ${signed(solution.advantages[token])}, value after it ${value}`;
    };
    row.addEventListener("click", (event) => {
      const span = event.target.closest(".token");
      if (span) point(span);
    });
    row.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const current = [...row.children].findIndex((span) => span.classList.contains("current"));
      point(row.children[Math.max(0, Math.min(row.children.length - 1, current + move))]);
    });
    return row;
  }

  // Probability of ending right after each token; a line where the labelled first error begins, a dashed one where the predicted does.
  function curve(solution) {
    const values = solution.values.map(sigmoid);
    const count = values.length;
    const svg = drawing("svg", { class: "spark", viewBox: "-0.5 -1 101 102", preserveAspectRatio: "none", role: "img" });
    const at = (token) => (100 * (token + 0.5)) / count;
    svg.append(drawing("line", { class: "half", x1: 0, x2: 100, y1: 50, y2: 50 }));
    for (const [kind, index] of [["labelled", solution.label], ["predicted", found(solution)[0]]]) {
      const start = index < 0 ? -1 : solution.steps.indexOf(index);
      if (start >= 0) svg.append(drawing("line", { class: kind, x1: (100 * start) / count, x2: (100 * start) / count, y1: 0, y2: 100 }));
    }
    const points = values.map((value, token) => `${at(token).toFixed(2)},${(100 - 100 * value).toFixed(2)}`).join(" ");
    svg.append(drawing("polyline", { class: "line", points }));
    const lowest = values.indexOf(Math.min(...values));
    const words = `Value ${percent(values[0])} after the first token, ${percent(values[count - 1])} at the end, lowest ${percent(values[lowest])} in ${stepName(solution.steps[lowest])}.`;
    svg.setAttribute("aria-label", words);
    const note = `${words} The height is 0 to 100 %. Solid line: labelled first error; dashed line: predicted.`;
    return [svg, element("p", { class: "note", text: note })];
  }

  const option = (value, text = value) => element("option", { value, text });
  subset.append(...[...new Set(data.solutions.map((one) => one.subset))].map((name) => option(name)));
  protocol.append(...data.protocols.map((name) => option(name)));
  origin.append(...data.origins.map(([name, text]) => option(name, text)));
  const restart = () => {
    limit = PAGE;
    update();
  };
  byId("filters").addEventListener("change", restart);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const before = list.children.length;
    limit += PAGE;
    update();
    list.children[before]?.querySelector("summary").focus();
  });
  update();
})();
