"use strict";
// What every part of the page uses, and its figures. Loaded before pairs.js.
const zephyr = (() => {
  const state = { range: null, smoothing: 0, axis: "step", runs: new Set(), splits: new Set() };
  const themed = []; // callbacks for a change of the colour scheme
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  let plotly = null; // a promise of the library
  let figures = {}; // of the page, by name, in light colours
  let palette = []; // pairs of colours: on a light and on a dark ground
  let syncing = false;

  // The text of a payload that `assets.compressed(name, ...)` stored.
  async function unpack(name) {
    const element = document.querySelector(`script[data-payload="${CSS.escape(name)}"]`);
    if (!element) throw new Error(`this page holds no ${name}`);
    const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // The Plotly library, unpacked when it is first needed.
  function load() {
    plotly ??= unpack("plotly").then((source) => {
      const script = document.createElement("script");
      script.textContent = source;
      document.head.append(script);
      return window.Plotly;
    });
    return plotly;
  }

  const isDark = () => dark.matches && !printing;
  const variable = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Settings of a Plotly layout for the colour scheme of now; `axis` goes into each of its axes.
  function layout() {
    const [text, muted, line, raised] = ["--text", "--muted", "--line", "--raised"].map(variable);
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: muted, size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: raised, bordercolor: line, font: { color: text } },
      axis: { gridcolor: line, linecolor: line, tickcolor: line, zerolinecolor: line },
    };
  }

  // A figure in the colours of the scheme.
  function recolored(figure) {
    let text = JSON.stringify(figure);
    if (isDark()) for (const [light, night] of palette) text = text.replaceAll(light, night);
    return JSON.parse(text);
  }

  // Exponential moving average, corrected for its start; a gap stays a gap.
  function smooth(values, weight) {
    let mean = 0;
    let seen = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      seen += 1;
      return mean / (1 - weight ** seen);
    });
  }

  const isCurve = (figure) => figure.data.some((trace) => trace.meta?.epochs);

  // The traces of a figure under the page's controls.
  function traces(figure) {
    const found = [];
    for (const trace of figure.data) {
      const meta = trace.meta ?? {};
      trace.visible = !state.runs.has(meta.run) && !state.splits.has(meta.split);
      if (meta.epochs && state.axis === "epoch") trace.x = meta.epochs;
      found.push(trace);
      if (!meta.smooth || !state.smoothing || trace.mode !== "lines") continue;
      found.push({
        ...trace,
        y: smooth(trace.y, state.smoothing),
        name: `${trace.name}, smoothed`,
      });
      trace.opacity = 0.25;
    }
    return found;
  }

  // Widths on A4 and Letter, whose layout a figure can't measure before it is printed.
  const PAPER = { wide: 690, narrow: 330 };
  const options = {
    displayModeBar: false,
    responsive: true,
    doubleClick: "reset+autosize",
    showTips: false, // they would lie over the controls
  };

  // The range of the heights of curves between two steps, with some room; undefined without one.
  function heights(figure, type) {
    const [from, to] = state.range;
    const shown = figure.data.filter((trace) => trace.visible !== false && trace.meta?.epochs);
    const values = shown
      .flatMap((trace) => trace.y.filter((_, n) => trace.x[n] >= from && trace.x[n] <= to))
      .filter((value) => value !== null)
      .map((value) => (type === "log" ? Math.log10(value) : value));
    if (!values.length) return undefined;
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 0.1;
    return [low - room, high + room];
  }

  // A figure of which everything is turned off keeps its axes, and says so.
  function emptied(element, shown) {
    for (const [name, range] of Object.entries(element.ranges ?? {})) {
      shown[name] = { ...shown[name], range, autorange: false };
    }
    const words = { text: "turned off in the legend", showarrow: false, xref: "paper", yref: "paper" };
    shown.annotations = [{ ...words, x: 0.5, y: 0.35, font: { size: 13 } }];
  }

  const isOff = (figure) => figure.data.every((trace) => trace.visible === false);

  function keepRanges(element) {
    const axes = ["xaxis", "yaxis"].map((name) => [name, element._fullLayout[name]?.range]);
    element.ranges = Object.fromEntries(axes.filter(([, range]) => range).map(([n, r]) => [n, [...r]]));
  }

  function draw(element) {
    const figure = recolored(figures[element.dataset.figure]);
    const { axis, ...colors } = layout();
    const shown = { ...figure.layout, ...colors };
    for (const name of Object.keys(shown).filter((key) => /^[xy]axis/.test(key))) {
      shown[name] = { ...shown[name], ...axis };
    }
    figure.data = traces(figure);
    if (isCurve(figure)) {
      shown.xaxis.title = { text: state.axis };
      const hover = state.axis === "epoch" ? "%{x:.3~f}" : "%{x:,d}";
      shown.xaxis.unifiedhovertitle = { text: `${state.axis} ${hover}` };
      const zoomed = state.range && !shown.yaxis.range ? heights(figure, shown.yaxis.type) : null;
      if (zoomed) shown.yaxis.range = zoomed;
      shown.xaxis.range = state.range ? [...state.range] : undefined;
      shown.xaxis.autorange = !state.range;
    }
    if (window.matchMedia("(pointer: coarse)").matches) shown.dragmode = false;
    if (printing) shown.width = element.closest("figure.all") ? PAPER.wide : PAPER.narrow;
    if (element.clientWidth < 420) shown.margin = { ...shown.margin, l: 48, r: 8 };
    if (isOff(figure)) emptied(element, shown);
    return window.Plotly.react(element, figure.data, shown, options).then(() => {
      if (!isOff(figure)) keepRanges(element);
    });
  }

  const plots = () => [...document.querySelectorAll("[data-figure]")];
  const curves = () => plots().filter((element) => isCurve(figures[element.dataset.figure]));

  async function redraw(elements = plots()) {
    syncing = true;
    try {
      // All at once: a print does not wait for a promise.
      await Promise.all(elements.map(draw));
    } finally {
      syncing = false;
    }
  }

  // All curves have the range of steps of the one that was zoomed.
  async function zoomed(event) {
    if (syncing) return;
    if ("xaxis.range[0]" in event) state.range = [event["xaxis.range[0]"], event["xaxis.range[1]"]];
    else if ("xaxis.range" in event) state.range = event["xaxis.range"];
    else if ("xaxis.autorange" in event) state.range = null;
    else return;
    await showRange();
  }

  // Draws all curves over the range, and tells it in its fields.
  async function showRange() {
    for (const [i, name] of ["from", "to"].entries()) {
      const field = document.querySelector(`#${name}`);
      field.value = state.range ? Number(Number(state.range[i]).toPrecision(4)) : "";
    }
    await redraw(curves());
  }

  // The fields of the range: a zoom without a mouse.
  function typed() {
    const [from, to] = ["#from", "#to"].map((id) => document.querySelector(id).value);
    if (from === "" && to === "") state.range = null;
    else if (from !== "" && to !== "" && Number(from) !== Number(to)) {
      state.range = [Number(from), Number(to)].sort((a, b) => a - b);
    } else return;
    showRange();
  }

  function listen() {
    const slider = document.querySelector("#smoothing");
    const smoothed = () => {
      state.smoothing = Number(slider.value);
      slider.parentElement.querySelector("output").value = state.smoothing
        ? state.smoothing.toFixed(2)
        : "off";
    };
    slider?.addEventListener("input", () => {
      smoothed();
      redraw(curves());
    });
    const axis = document.querySelector("#axis");
    axis?.addEventListener("change", () => {
      state.axis = axis.value;
      state.range = null;
      showRange();
    });
    document.querySelector("#reset")?.addEventListener("click", () => {
      Object.assign(state, { range: null, axis: "step" });
      state.runs.clear();
      state.splits.clear();
      for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", "true");
      axis.value = "step";
      slider.value = "0";
      smoothed();
      showRange().then(() => redraw());
    });
    for (const id of ["#from", "#to"]) {
      document.querySelector(id)?.addEventListener("change", typed);
    }
    for (const link of document.querySelectorAll("[data-view]")) {
      link.addEventListener("click", () => window.zephyr.showPairs?.(link.dataset.view));
    }
    for (const chip of document.querySelectorAll(".chip")) {
      const [hidden, key] =
        "run" in chip.dataset
          ? [state.runs, Number(chip.dataset.run)]
          : [state.splits, chip.dataset.split];
      chip.addEventListener("click", () => {
        const hide = !hidden.delete(key);
        if (hide) hidden.add(key);
        chip.setAttribute("aria-pressed", String(!hide));
        redraw();
      });
    }
  }

  function onTheme(callback) {
    themed.push(callback);
  }

  async function changeTheme() {
    const drawn = redraw();
    for (const callback of themed) callback();
    await drawn;
  }

  // A figure or section that a link names is opened and reached also inside <details>.
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target?.scrollIntoView();
    target?.classList.add("shown");
    setTimeout(() => target?.classList.remove("shown"), 1600);
  }

  async function start() {
    for (const swatch of document.querySelectorAll("[style*='--swatch']")) {
      swatch.dataset.light = swatch.style.getPropertyValue("--swatch");
    }
    palette = JSON.parse(await unpack("palette"));
    figures = JSON.parse(await unpack("figures"));
    const swatches = () => {
      for (const swatch of document.querySelectorAll("[data-light]")) {
        const pair = palette.find(([light]) => light === swatch.dataset.light);
        swatch.style.setProperty("--swatch", pair ? pair[isDark() ? 1 : 0] : swatch.dataset.light);
      }
    };
    swatches();
    themed.push(swatches);
    if (plots().length) await load();
    for (const element of plots()) {
      await draw(element);
      if (isCurve(figures[element.dataset.figure])) element.on("plotly_relayout", zoomed);
      await new Promise((done) => setTimeout(done)); // let the browser paint between figures
    }
    listen();
    dark.addEventListener("change", changeTheme);
    window.addEventListener("hashchange", reveal);
    window.addEventListener("beforeprint", () => {
      printing = true;
      changeTheme();
    });
    window.addEventListener("afterprint", async () => {
      printing = false;
      await changeTheme();
      for (const element of plots()) window.Plotly.Plots.resize(element); // to its column again
    });
    if (location.hash) reveal();
    document.documentElement.dataset.ready = "yes";
  }

  document.addEventListener("DOMContentLoaded", () =>
    start().catch((error) => {
      const notice = document.createElement("p");
      notice.className = "notice";
      notice.textContent = `The figures can't be drawn in this browser: ${error.message}`;
      document.querySelector("main").prepend(notice);
      console.error(error);
    }),
  );
  return { unpack, plotly: load, layout, onTheme, redraw };
})();
window.zephyr = zephyr;
