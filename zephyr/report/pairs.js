"use strict";
// The table of pairs. What is stored of each run is described in pairs_data.py; texts of rows go
// into the page by textContent only.
(() => {
  const MANY_CELLS = 4_000_000; // of the table that compares two texts; above it words are counted
  const LITTLE = 0.3; // share of words in common, below which only words of one text are marked
  const REWARDS = new Set(["last", "first", "reward"]); // columns that are coloured below 0
  const byId = (name) => document.getElementById(`pairs-${name}`);
  if (!byId("table")) return;

  const views = JSON.parse(byId("rule").dataset.views);
  const heads = [...byId("table").querySelectorAll("th")];
  const runs = []; // by number, once they are read
  const state = { run: null, view: "wrong", sort: "suspicion", descending: true, page: 0 };
  let rows = []; // pairs that are shown, in order
  const opened = new Set();

  // ---- what is stored ----

  function unpackColumn(column) {
    const planes = Uint8Array.from(atob(column.float ?? column.int), (c) => c.charCodeAt(0));
    const length = planes.length / 4;
    const bytes = new Uint8Array(planes.length);
    for (let plane = 0; plane < 4; plane++)
      for (let i = 0; i < length; i++) bytes[4 * i + plane] = planes[plane * length + i];
    return column.float === undefined ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer);
  }

  function unpackNames(stored) {
    const codes = unpackColumn(stored.codes);
    return { names: stored.names, codes };
  }

  async function readRun(number) {
    const [stored, lines] = await Promise.all([
      zephyr.unpack(`pairs-${number}`).then(JSON.parse),
      zephyr.unpack(`pairs-texts-${number}`),
    ]);
    const run = { ...stored, columns: {}, texts: new Map(), found: null };
    for (const [name, column] of Object.entries(stored.numbers))
      run.columns[name] = unpackColumn(column);
    for (const [name, column] of Object.entries(stored.names))
      run.names[name] = unpackNames(column);
    for (const line of lines.split("\n").filter(Boolean)) {
      const [pair, id, prompt, chosen, rejected, visits] = JSON.parse(line);
      run.texts.set(pair, { id, prompt, chosen, rejected, visits });
    }
    addDerived(run);
    return run;
  }

  // The columns that follow from others, as pairs_data.derived has them.
  function addDerived(run) {
    const { visits, margin, chosen_tokens, rejected_tokens, score_chosen, score_rejected } =
      run.columns;
    const count = run.ids.length;
    for (const name of ["first", "last", "mean", "best", "fell", "moved", "longer", "better"])
      run.columns[name] = new Float64Array(count);
    run.starts = new Int32Array(count);
    const of = run.columns;
    for (let pair = 0, start = 0; pair < count; start += visits[pair], pair++) {
      run.starts[pair] = start;
      const own = margin.subarray(start, start + visits[pair]);
      of.first[pair] = own[0];
      of.last[pair] = own[own.length - 1];
      of.mean[pair] = own.reduce((sum, value) => sum + value, 0) / own.length;
      of.best[pair] = Math.max(...own);
      of.fell[pair] = of.best[pair] - of.last[pair];
      of.moved[pair] = own.reduce((sum, value, n) => sum + Math.abs(value - (n ? own[n - 1] : 0)), 0);
      of.longer[pair] = chosen_tokens[pair] - rejected_tokens[pair];
      of.better[pair] = score_chosen[pair] - score_rejected[pair];
    }
  }

  // ---- which pairs, in which order ----

  function within(value, limit) {
    if (limit.low !== null && !(limit.above ? value > limit.low : value >= limit.low)) return false;
    return limit.high === null || value <= limit.high;
  }

  function filters() {
    const view = views.find((view) => view.key === state.view);
    const limits = [...(view?.limits ?? [])];
    const low = byId("low").value;
    const high = byId("high").value;
    if (low !== "" || high !== "")
      limits.push({
        column: byId("range").value,
        low: low === "" ? null : Number(low),
        high: high === "" ? null : Number(high),
      });
    if (byId("sign").value === "above") limits.push({ column: "last", low: 0, high: null, above: true });
    if (byId("sign").value === "below") limits.push({ column: "last", low: null, high: 0 });
    return { limits, source: byId("source").value, query: byId("query").value.trim().toLowerCase() };
  }

  // The text that a search looks into, of each pair.
  function searched(run) {
    run.found ??= run.ids.map((id, pair) => {
      const text = run.texts.get(pair);
      return (text ? [id, text.id, text.prompt, text.chosen, text.rejected].join("\n") : id).toLowerCase();
    });
    return run.found;
  }

  function hasText(run, pair, query) {
    if (searched(run)[pair].includes(query)) return true;
    const [head, tail, more] = run.ids[pair].toLowerCase().split("…"); // a cut id
    return tail !== undefined && more === undefined && query.startsWith(head) && query.endsWith(tail);
  }

  function matching(run, { limits, source, query }) {
    const found = [];
    for (let pair = 0; pair < run.ids.length; pair++) {
      if (!limits.every((limit) => within(run.columns[limit.column][pair], limit))) continue;
      if (source !== "" && run.names.source.codes[pair] !== Number(source)) continue;
      if (query === "" || hasText(run, pair, query)) found.push(pair);
    }
    return found;
  }

  // Numbers and texts that a column sorts by.
  function sortValues(run, name) {
    if (name === "pair") return run.ids;
    if (name !== "source") return run.columns[name];
    const { names, codes } = run.names.source;
    return Array.from(codes, (code) => names[code]);
  }

  // Values that are not finite come last, equal ones in the order of the run.
  function sorted(pairs, values, descending) {
    const sign = descending ? -1 : 1;
    const rank = (value) => (Number.isNaN(value) ? 1 : 0);
    return pairs.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x < y) return -sign;
      if (x > y) return sign;
      return rank(x) - rank(y) || a - b;
    });
  }

  // ---- drawing ----

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    const { dataset, attributes, ...others } = properties;
    Object.assign(made, others);
    Object.assign(made.dataset, dataset);
    for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // Control characters are shown as their pictures (U+2400 and on), other text as it is.
  const visible = (text) =>
    text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) =>
      c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)));

  function format(value, digits) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const shown = Math.abs(value).toLocaleString("en", {
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    });
    return Number(value.toFixed(digits)) < 0 ? `−${shown}` : shown;
  }

  const scoreText = (value) => String(Number(value.toFixed(2)));

  function signed(value, digits) {
    const shown = format(value, digits);
    return value > 0 && /[1-9∞]/.test(shown) ? `+${shown}` : shown;
  }

  function update({ keepPage = false } = {}) {
    const run = state.run;
    rows = sorted(matching(run, filters()), sortValues(run, state.sort), state.descending);
    if (!keepPage) state.page = 0;
    drawControls(run);
    drawRows(run);
  }

  function drawControls(run) {
    const view = views.find((view) => view.key === state.view);
    for (const button of byId("table").querySelectorAll("[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    byId("rule").textContent = view.rule;
    const total = run.ids.length;
    const count = rows.length.toLocaleString("en");
    byId("count").textContent = `${count} of ${total.toLocaleString("en")} pairs.`;
    for (const head of heads) {
      const key = head.dataset.column;
      const order = state.descending ? "descending" : "ascending";
      if (key === state.sort) head.setAttribute("aria-sort", order);
      else head.removeAttribute("aria-sort");
      head.classList.toggle("pairs-sorted", key === state.sort);
    }
    byId("sort").value = state.sort;
  }

  function drawRows(run) {
    const size = Number(byId("size").value);
    const pages = Math.max(1, Math.ceil(rows.length / size));
    state.page = Math.min(state.page, pages - 1);
    const shown = rows.slice(state.page * size, (state.page + 1) * size);
    opened.clear();
    byId("rows").replaceChildren(...(shown.length ? shown.map((pair) => drawRow(run, pair)) : [noRow()]));
    byId("page").textContent = `Page ${state.page + 1} of ${pages.toLocaleString("en")}`;
    byId("back").disabled = state.page === 0;
    byId("next").disabled = state.page === pages - 1;
  }

  const noRow = () =>
    element("tr", {}, element("td", { colSpan: heads.length, className: "pairs-none", textContent: "No pair matches." }));

  function drawRow(run, pair) {
    const row = element("tr", { className: "pairs-row", dataset: { pair } });
    for (const head of heads) {
      const { column, digits } = head.dataset;
      const cell = column === "pair" ? pairCell(run, pair) : valueCell(run, pair, column, digits);
      cell.classList.toggle("pairs-sorted", column === state.sort);
      cell.dataset.column = column;
      cell.hidden = head.hidden;
      row.append(cell);
    }
    return row;
  }

  function pairCell(run, pair) {
    const text = run.texts.get(pair);
    const start = text ? visible(text.prompt.slice(0, 200)) : "";
    const button = element(
      "button",
      { type: "button", className: "pairs-open", attributes: { "aria-expanded": "false" } },
      text
        ? element("bdi", { className: "pairs-start", textContent: start.replace(/\s+/g, " ") || "(empty prompt)" })
        : element("span", { className: "muted", textContent: "text not stored here" }),
      element("bdi", { className: "pairs-id", textContent: visible(text?.id ?? run.ids[pair]) }),
    );
    return element("th", { scope: "row" }, button);
  }

  function valueCell(run, pair, column, digits) {
    if (column === "source") {
      const { names, codes } = run.names.source;
      return element("td", {}, element("bdi", { textContent: visible(names[codes[pair]]) }));
    }
    const shown = format(run.columns[column][pair], Number(digits));
    const below = REWARDS.has(column) && shown.startsWith("−");
    const className = below ? "pairs-number pairs-below" : "pairs-number";
    return element("td", { className, textContent: shown });
  }

  // ---- an opened pair ----

  function toggle(row) {
    const pair = Number(row.dataset.pair);
    const button = row.querySelector(".pairs-open");
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", String(open));
    if (!open) {
      opened.delete(pair);
      row.nextElementSibling.remove();
      button.removeAttribute("aria-controls");
      return;
    }
    const detail = drawDetail(state.run, pair);
    button.setAttribute("aria-controls", detail.id);
    row.after(detail);
    opened.add(pair);
    drawChart(state.run, pair);
  }

  function drawDetail(run, pair) {
    const text = run.texts.get(pair);
    const cell = element("td", { colSpan: heads.filter((head) => !head.hidden).length });
    cell.append(text ? drawTexts(run, pair, text) : noText());
    cell.append(
      element(
        "div",
        { className: "pairs-facts" },
        element("div", { id: `pairs-chart-${pair}`, className: "pairs-chart" }),
        drawVisits(run, pair, text),
      ),
      drawNumbers(run, pair),
      drawLineage(run, pair, text),
    );
    return element("tr", { className: "pairs-detail", id: `pairs-detail-${pair}` }, cell);
  }

  const noText = () =>
    element("p", { className: "muted", textContent: "This page does not store the texts of this pair." });

  function drawTexts(run, pair, text) {
    const marks = differences(text.chosen, text.rejected);
    const prompt = element("div", { className: "pairs-prompt" }, element("h4", { textContent: "Prompt" }), textBlock([{ text: text.prompt }]));
    const sides = element(
      "div",
      { className: "pairs-sides" },
      drawSide(run, pair, "chosen", marks.chosen),
      drawSide(run, pair, "rejected", marks.rejected),
    );
    const note = element("p", { className: "muted pairs-marks", textContent: marks.note });
    return element("div", { className: "pairs-texts" }, prompt, sides, note);
  }

  function drawSide(run, pair, side, parts) {
    const { names, codes } = run.names[`${side}_model`];
    const score = run.columns[`score_${side}`][pair];
    const facts = [`${format(run.columns[`${side}_tokens`][pair], 0)} tokens`];
    if (!Number.isNaN(score)) facts.unshift(`score ${scoreText(score)}`);
    if (names[codes[pair]] !== "not known") facts.unshift(visible(names[codes[pair]]));
    const title = side === "chosen" ? "Chosen" : "Rejected";
    return element(
      "div",
      { className: `pairs-side pairs-${side}` },
      element("h4", {}, title, element("bdi", { className: "muted", textContent: ` ${facts.join(" · ")}` })),
      textBlock(parts),
    );
  }

  function textBlock(parts) {
    const block = element("div", { className: "pairs-text", dir: "auto", tabIndex: 0, attributes: { role: "group" } });
    for (const { text, only } of parts)
      block.append(only ? element("mark", { textContent: visible(text) }) : visible(text));
    if (!block.textContent) block.append(element("i", { className: "muted", textContent: "(empty)" }));
    return block;
  }

  // Rows of the table of visits, and its heads; step and epoch are stored with texts only.
  function visitCells(run, pair, text) {
    const start = run.starts[pair];
    const margins = run.columns.margin.subarray(start, start + run.columns.visits[pair]);
    if (!text) return [["Visit", "Margin"], ...Array.from(margins, (margin, n) => [format(n + 1, 0), signed(margin, 3)])];
    const names = ["Step", "Epoch", "Loss", "Margin", "Chosen", "Rejected", "log p chosen", "log p rejected"];
    const lines = text.visits.map(([step, epoch, loss, chosen, rejected, logChosen, logRejected], n) => [
      format(step, 0), format(epoch, 2), format(loss, 3), signed(margins[n], 3),
      signed(chosen, 3), signed(rejected, 3), format(logChosen, 1), format(logRejected, 1),
    ]);
    return [names, ...lines];
  }

  function drawVisits(run, pair, text) {
    const [names, ...lines] = visitCells(run, pair, text);
    const row = (tag, cells) => element("tr", {}, ...cells.map((textContent) => element(tag, { textContent })));
    const caption = element("caption", { textContent: "Each visit, just before its update" });
    const body = element("tbody", {}, ...lines.map((cells) => row("td", cells)));
    const table = element("table", {}, caption, element("thead", {}, row("th", names)), body);
    return element("div", { className: "pairs-visits" }, table);
  }

  function drawNumbers(run, pair) {
    const list = element("dl", { className: "pairs-values" });
    for (const head of heads) {
      const { column, digits } = head.dataset;
      if (digits === "None" || head.hidden) continue;
      const value = format(run.columns[column][pair], Number(digits));
      list.append(
        element("div", {}, element("dt", { textContent: head.textContent }), element("dd", { textContent: value })),
      );
    }
    return list;
  }

  // A word as a POSIX shell reads it.
  const quoted = (word) => (/^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

  function lineageCommand(run, id) {
    return id.startsWith("-")
      ? `zephyr lineage --run ${run.folder} -- ${quoted(id)}`
      : `zephyr lineage ${quoted(id)} --run ${run.folder}`;
  }

  function drawLineage(run, pair, text) {
    const name = (key) => run.names[key].names[run.names[key].codes[pair]];
    const [chosen, rejected] = [name("chosen_model"), name("rejected_model")];
    const sentences = [];
    if (chosen !== "not known" || rejected !== "not known")
      sentences.push(`Answered by ${chosen} (chosen) and ${rejected} (rejected).`);
    const [better, worse] = [run.columns.score_chosen[pair], run.columns.score_rejected[pair]];
    if (!Number.isNaN(better) && !Number.isNaN(worse))
      sentences.push(`Judged ${scoreText(better)} against ${scoreText(worse)}.`);
    sentences.push(`Source ${name("source")}, read from ${run.files.join(", ")}.`);
    const lineage = element(
      "div",
      { className: "pairs-lineage" },
      element("h4", { textContent: "Lineage" }),
      element("p", { textContent: visible(sentences.join(" ")) }),
    );
    const id = text?.id ?? run.ids[pair];
    if (text || !id.includes("…")) lineage.append(commandLine(lineageCommand(run, id)));
    return lineage;
  }

  function commandLine(command) {
    const copy = element("button", { type: "button", textContent: "Copy" });
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(command);
      copy.textContent = "Copied";
    });
    return element("p", { className: "pairs-command" }, element("code", { textContent: visible(command) }), copy);
  }

  function chartTraces(run, pair) {
    const start = run.starts[pair];
    const margins = Array.from(run.columns.margin.subarray(start, start + run.columns.visits[pair]));
    const visits = run.texts.get(pair)?.visits;
    const x = visits ? visits.map(([step]) => step) : margins.map((_, n) => n + 1);
    const style = getComputedStyle(document.documentElement);
    const line = (name, y, variable, dash) => {
      const color = style.getPropertyValue(variable).trim();
      return { x, y, name, mode: "lines+markers", line: { color, dash, width: 2 }, marker: { color, size: 7 }, hovertemplate: "%{y:+.3f}" };
    };
    const traces = [line("margin", margins, "--accent", "solid")];
    if (visits) {
      traces.push(line("chosen", visits.map((visit) => visit[3]), "--chosen", "dash"));
      traces.push(line("rejected", visits.map((visit) => visit[4]), "--rejected", "dot"));
    }
    return traces;
  }

  async function drawChart(run, pair) {
    const { axis, ...colors } = zephyr.layout();
    const layout = {
      ...colors,
      height: 250,
      margin: { l: 60, r: 12, t: 8, b: 46 },
      hovermode: "x unified",
      showlegend: true,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      xaxis: { ...axis, title: { text: run.texts.has(pair) ? "step" : "visit", standoff: 6 }, rangemode: "tozero" },
      yaxis: { ...axis, title: { text: "reward" }, zeroline: true, zerolinewidth: 2 },
    };
    const Plotly = await zephyr.plotly();
    const place = document.getElementById(`pairs-chart-${pair}`);
    if (place) await Plotly.react(place, chartTraces(run, pair), layout, { displayModeBar: false, responsive: true });
  }

  // ---- words that only one of two texts has ----

  const WORD = /\s+|[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]|[\p{L}\p{M}\p{N}_'’]+|[^]/gu;
  const wordsOf = (text) => text.match(WORD) ?? [];
  const isSpace = (word) => /^\s/.test(word);

  function differences(chosen, rejected) {
    const [left, right] = [wordsOf(chosen), wordsOf(rejected)];
    const [a, b] = [left, right].map((words) => words.filter((word) => !isSpace(word)));
    let common = a.length * b.length <= MANY_CELLS ? commonWords(a, b) : null;
    const share = common ? (2 * common.count) / Math.max(1, a.length + b.length) : 0;
    let note = "Underlined: words that only this response has in this place.";
    if (share < LITTLE) {
      common = wordsOfBoth(a, b);
      note = "The responses have little in common. Underlined: words that the other one never uses.";
    }
    return { chosen: marked(left, common.a), rejected: marked(right, common.b), note };
  }

  // Longest common subsequence; for each word whether it is in it.
  function commonWords(a, b) {
    const width = b.length + 1;
    const lengths = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        lengths[i * width + j] = a[i] === b[j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    const found = { a: new Uint8Array(a.length), b: new Uint8Array(b.length), count: lengths[0] };
    for (let i = 0, j = 0; i < a.length && j < b.length; ) {
      if (a[i] === b[j]) {
        found.a[i++] = 1;
        found.b[j++] = 1;
      } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
      else j++;
    }
    return found;
  }

  function wordsOfBoth(a, b) {
    const lower = (words) => words.map((word) => word.toLowerCase());
    const [left, right] = [lower(a), lower(b)];
    const [inLeft, inRight] = [new Set(left), new Set(right)];
    return { a: left.map((word) => inRight.has(word)), b: right.map((word) => inLeft.has(word)) };
  }

  // Words joined again; a stretch of words that only one text has is one part.
  function marked(words, inBoth) {
    const parts = [];
    let n = 0;
    let gap = "";
    for (const word of words) {
      if (isSpace(word)) {
        gap = word;
        continue;
      }
      const only = !inBoth[n++];
      const last = parts.at(-1);
      if (last && last.only === only) last.text += gap + word;
      else parts.push({ text: gap, only: false }, { text: word, only });
      gap = "";
    }
    parts.push({ text: gap, only: false });
    return parts.filter((part) => part.text);
  }

  // ---- what a person does ----

  function showView(key) {
    const view = views.find((view) => view.key === key) ?? views.at(-1);
    Object.assign(state, { view: view.key, sort: view.sort, descending: view.descending });
    update();
  }

  function sortBy(column, descending) {
    Object.assign(state, { sort: column, descending });
    update();
  }

  async function showRun(number) {
    runs[number] ??= await readRun(number);
    const run = (state.run = runs[number]);
    const { names } = run.names.source;
    const sources = names.map((name, code) => element("option", { value: String(code), textContent: visible(name) }));
    byId("source").replaceChildren(element("option", { value: "", textContent: "any" }), ...sources);
    byId("source").parentElement.hidden = names.length < 2;
    hideEmptyColumns(run);
    for (const view of views)
      document.querySelector(`#view-${view.key} span`).textContent = matching(run, { ...view, source: "", query: "" }).length.toLocaleString("en");
    const stored = run.texts.size;
    const more = stored < run.readable ? `; zephyr pairs ${run.folder} writes all` : "";
    const gone = run.readable < run.ids.length ? "; rows of the others can't be read again" : "";
    byId("stored").textContent = more || gone
      ? `Texts of ${stored.toLocaleString("en")} pairs are stored here${more || gone}.`
      : "";
    byId("notes").replaceChildren(...run.notes.map((note) => element("li", { textContent: visible(note) })));
    showView(firstView(run));
  }

  const firstView = (run) =>
    views.find((view) => matching(run, { ...view, source: "", query: "" }).length)?.key ?? "all";

  function hideEmptyColumns(run) {
    for (const head of heads) {
      const { column } = head.dataset;
      head.hidden =
        (column === "source" && run.names.source.names.length < 2) ||
        (column === "better" && run.columns.better.every(Number.isNaN));
      const meaning = byId("table").querySelector(`.pairs-legend [data-column="${column}"]`);
      if (meaning) meaning.hidden = head.hidden;
    }
  }

  function listen() {
    const views = byId("table").querySelector(".pairs-views");
    views.addEventListener("click", ({ target }) => {
      const button = target.closest("[data-view]");
      if (button) showView(button.dataset.view);
    });
    for (const head of heads)
      head.firstElementChild.addEventListener("click", () => {
        const { column, digits } = head.dataset;
        sortBy(column, column === state.sort ? !state.descending : digits !== "None");
      });
    byId("sort").addEventListener("change", () => sortBy(byId("sort").value, state.descending));
    byId("turn").addEventListener("click", () => sortBy(state.sort, !state.descending));
    byId("run").addEventListener("change", () => showRun(Number(byId("run").value)));
    listenToFilters();
    listenToRows();
    zephyr.onTheme(() => opened.forEach((pair) => drawChart(state.run, pair)));
  }

  function listenToFilters() {
    const form = byId("table").querySelector("form");
    let waiting = 0;
    form.addEventListener("input", ({ target }) => {
      if (target.id === "pairs-sort") return;
      clearTimeout(waiting);
      waiting = setTimeout(update, target.type === "search" ? 150 : 0);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(update, 0));
    const turn = (by) => {
      state.page += by;
      drawRows(state.run);
    };
    byId("back").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    byId("size").addEventListener("change", () => turn(-state.page));
  }

  function listenToRows() {
    byId("rows").addEventListener("click", ({ target }) => {
      const row = target.closest(".pairs-row");
      if (row && !String(getSelection())) toggle(row);
    });
    byId("rows").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step || !event.target.matches(".pairs-open")) return;
      const buttons = [...byId("rows").querySelectorAll(".pairs-open")];
      buttons[buttons.indexOf(event.target) + step]?.focus();
      event.preventDefault();
    });
  }

  zephyr.showPairs = (view) => {
    showView(view);
    document.getElementById("pairs").scrollIntoView();
  };
  listen();
  showRun(0).then(() => {
    byId("table").hidden = false;
  });
})();
