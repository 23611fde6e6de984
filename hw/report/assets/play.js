/* The page's widgets: what a reader edits, and the working that follows. No arithmetic is here: see `hw`.
 *
 * For every `div` of class "play" that is hidden and has data-play="NAME", with NAME one of WIDGETS at the end, this
 * builds the controls and the working inside it and shows it. data-level="N" says at which level the
 * element's headings begin (4 if it does not). Text that a reader typed enters the page as text nodes alone.
 *
 * Start values come from <script type="application/json" id="play-data">, written by hw.report.play:
 *
 *   per          draws are sent as whole numbers: a draw is number / per
 *   attention    q, k, v, dout: matrices as typed; mask: "none" or "causal"; scaled: bool
 *   cnn          input: "128x128x3"; layers: words of the layer language
 *   unrolled     steps: SLIDER
 *   vanishing    networks: [{name, whh: [n][n] of spectral radius 1, drive: [T][n] draws, radius: start}];
 *                kind: "tanh" or "linear"; radius: {least, most, step}; steps: SLIDER
 *   saturation   q: [queries][most], k: [keys][most] draws; d_k: SLIDER
 *
 * where SLIDER is {start, least, most, step}.
 */
(() => {
  "use strict";

  const MOST_LINES = 36; // of working in one step; the table beside it has every entry
  const MOST_TERMS = 8; // of a sum that is written out
  const MOST_LAYERS = 100;
  const PAUSE = 350; // ms after the last key until a text is read

  let serial = 0;
  const newId = (what) => `play-${what}-${++serial}`;

  // Elements. Children are nodes or text.

  function element(namespace, tag, attributes = {}, ...children) {
    const node = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity));
    return node;
  }
  const html = (tag, ...rest) => element("http://www.w3.org/1999/xhtml", tag, ...rest);
  const svg = (tag, ...rest) => element("http://www.w3.org/2000/svg", tag, ...rest);
  const mathWith = (...rest) => element("http://www.w3.org/1998/Math/MathML", ...rest);
  const math = (tag, ...children) => mathWith(tag, {}, ...children);

  // Mathematics. Strings become identifiers, operators or numbers by what they hold. A node stands in one
  // place only: what is used twice is a function here.

  const OPERATOR = /^[-+−=·×/(),;⌊⌋⌈⌉[\]{}∘∂√…⋯|‖≤<′]+$/u;

  function atom(part) {
    if (part instanceof Node) return part;
    const word = String(part);
    if (OPERATOR.test(word)) return math("mo", word);
    return math(/^[\d.]+$/.test(word) ? "mn" : "mi", word);
  }
  const row = (...parts) => math("mrow", ...parts.flat(Infinity).map(atom));
  const fraction = (top, bottom) => math("mfrac", row(top), row(bottom));
  const root = (...parts) => math("msqrt", row(...parts));
  const power = (base, exponent) => math("msup", atom(base), row(exponent));
  const words = (text) => math("mtext", text);
  const wide = () => mathWith("mspace", { width: "1em" });
  const transposed = (base) => power(base, words("T"));

  function sub(base, ...indices) {
    const joined = indices.flatMap((i, place) => (place && indices.some((k) => k > 9) ? [",", i] : [i]));
    return math("msub", atom(base), row(joined));
  }

  /** A number of any kind, its digits as `hw.text` has them. */
  function number(value) {
    const plain = hw.text(value);
    if (plain.startsWith("-")) return row("−", positive(plain.slice(1)));
    return positive(plain);
  }

  function positive(plain) {
    if (plain.includes("/")) return math("mfrac", ...plain.split("/").map((n) => math("mn", n)));
    if (!plain.includes("e")) return math("mn", plain);
    const [mantissa, exponent] = plain.split("e").map(Number);
    const ten = power("10", exponent < 0 ? ["−", -exponent] : [exponent]);
    return row(math("mn", plain.split("e")[0] || mantissa), "·", ten);
  }

  function factor(value) {
    const plain = hw.text(value);
    return plain.startsWith("-") || plain.includes("/") ? row("(", number(value), ")") : number(value);
  }

  /** name = a·b + c·d = total, the middle of a long sum left out. */
  function sumOfProducts(name, left, right, total) {
    const long = left.length > MOST_TERMS;
    const term = (i) => [i ? "+" : [], factor(left[i]), "·", factor(right[i])];
    const indices = [...left.keys()];
    const shown = long
      ? [...indices.slice(0, 4).map(term), "+", "⋯", term(left.length - 1)]
      : indices.map(term);
    return row(name, "=", shown, "=", number(total));
  }

  // The brackets are borders: without a mathematical font, characters do not grow with what they hold.
  const bracketed = (values) =>
    mathWith(
      "mtable",
      { class: "play-matrix" },
      values.map((r) =>
        math(
          "mtr",
          r.map((x) => math("mtd", number(x))),
        ),
      ),
    );
  const over = (top, bottom) => ["(", top, ")", "/", bottom];

  // Parts of a working.

  /** A region that scrolls by itself, so that the page never does; reached by the keyboard. */
  const scroller = (label, ...content) =>
    html("div", { class: "play-scroll", role: "region", tabindex: "0", "aria-label": label }, ...content);

  function table(title, header, rows) {
    const cell = (value, i) =>
      i === 0
        ? html("th", { scope: "row" }, String(value))
        : html("td", {}, typeof value === "string" ? value : hw.text(value));
    return html(
      "table",
      {},
      html("caption", {}, title),
      html(
        "thead",
        {},
        html(
          "tr",
          {},
          header.map((h) => (h ? html("th", { scope: "col" }, h) : html("td"))),
        ),
      ),
      html(
        "tbody",
        {},
        rows.map((r) => html("tr", {}, r.map(cell))),
      ),
    );
  }

  function tableOfMatrix(title, values, rowName, columnName) {
    const header = ["", ...values[0].map((_, j) => `${columnName} ${j + 1}`)];
    return table(
      title,
      header,
      values.map((r, i) => [`${rowName} ${i + 1}`, ...r]),
    );
  }

  /** A heading, why, the lines of working and what belongs to them. */
  function step(level, title, text, lines = [], ...more) {
    const shown = lines.slice(0, MOST_LINES).map((line) => mathWith("math", { display: "block" }, line));
    const rest = lines.length - shown.length;
    const content = [...shown, ...more.filter(Boolean)];
    return html(
      "section",
      { class: "play-step" },
      html(`h${level}`, {}, title),
      text ? html("p", {}, text) : [],
      content.length ? scroller(`Working: ${title}`, content) : [],
      rest > 0
        ? html("p", {}, `${rest} more lines like these are left out; the table has every number.`)
        : [],
    );
  }

  const folded = (title, content) => html("details", {}, html("summary", {}, title), content);

  // Figures. Every curve has a dash and a mark of its own beside its colour.

  const STYLES = [
    { colour: "var(--accent)", dash: null, mark: "circle" },
    { colour: "var(--accent-2)", dash: "6 4", mark: "square" },
  ];

  function markOf({ mark, colour }, x, y) {
    return mark === "circle"
      ? svg("circle", { cx: x, cy: y, r: 3.2, fill: colour })
      : svg("rect", { x: x - 3, y: y - 3, width: 6, height: 6, fill: colour });
  }

  /** An image with a title and a description, both read out. */
  function drawing(width, height, title, description, content, attributes = {}) {
    const [titleId, descriptionId] = [newId("title"), newId("desc")];
    return svg(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-labelledby": `${titleId} ${descriptionId}`,
        ...attributes,
      },
      svg("title", { id: titleId }, title),
      svg("desc", { id: descriptionId }, description),
      content,
    );
  }

  /** Round numbers from about `low` to about `high`, some five of them. */
  function ticksOf(low, high) {
    const rough = (high - low || 1) / 5;
    const size = 10 ** Math.floor(Math.log10(rough));
    const apart = size * [1, 2, 5, 10].find((m) => m * size >= rough);
    const first = Math.floor(low / apart + 1e-9);
    const count = Math.max(Math.ceil(high / apart - 1e-9) - first, 1);
    return Array.from({ length: count + 1 }, (_, i) => Number(((first + i) * apart).toPrecision(12)));
  }

  /** Curves over xs. series: [{name, values}]; mark: the x that the reader has chosen. */
  function plot({ title, description, xs, xName, series, logarithmic = false, mark = null }) {
    const [width, height, left, right, top, bottom] = [380, 270, 58, 12, 46, 38];
    const scale = (y) => (logarithmic ? Math.log10(y) : y);
    const drawn = (y) => !logarithmic || y > 0;
    const values = series
      .flatMap((s) => s.values)
      .filter(drawn)
      .map(scale);
    let ticks = ticksOf(Math.min(...values, 0), Math.max(...values, logarithmic ? 0 : 1e-9));
    if (logarithmic) ticks = ticks.filter(Number.isInteger);
    if (ticks.length < 2) ticks = [ticks[0] ?? 0, (ticks[0] ?? 0) + 1];
    const [low, high] = [Math.min(ticks[0], ...values), Math.max(ticks.at(-1), ...values)];
    const [xLow, xHigh] = [xs[0], xs.at(-1)];
    const px = (x) => left + ((x - xLow) / (xHigh - xLow || 1)) * (width - left - right);
    const py = (y) => height - bottom - ((y - low) / (high - low)) * (height - top - bottom);
    const label = (y) => (logarithmic ? `10${superscript(y)}` : hw.text(y));
    const xTicks = ticksOf(xLow, xHigh).filter((x) => x >= xLow && x <= xHigh);
    const content = [
      ticks.map((y) => [
        svg("line", { class: "play-grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
        svg("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, label(y)),
      ]),
      xTicks.map((x) =>
        svg("text", { x: px(x), y: height - bottom + 16, "text-anchor": "middle" }, hw.text(x)),
      ),
      svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xName),
      mark === null
        ? []
        : svg("line", {
            class: "play-mark",
            x1: px(mark),
            x2: px(mark),
            y1: top,
            y2: height - bottom,
          }),
      series.map((s, i) => {
        const style = STYLES[i];
        const points = xs.map((x, j) => [x, s.values[j]]).filter(([, y]) => drawn(y));
        const places = points.map(([x, y]) => [px(x), py(scale(y))]);
        const few = places.filter((_, j) => j % Math.ceil(places.length / 12) === 0);
        const at = left + i * 160;
        return [
          svg("polyline", {
            points: places.map((p) => p.map((v) => v.toFixed(2)).join(",")).join(" "),
            fill: "none",
            stroke: style.colour,
            "stroke-width": 2,
            "stroke-dasharray": style.dash,
          }),
          few.map(([x, y]) => markOf(style, x, y)),
          svg("line", {
            x1: at,
            x2: at + 28,
            y1: 28,
            y2: 28,
            stroke: style.colour,
            "stroke-width": 2,
            "stroke-dasharray": style.dash,
          }),
          markOf(style, at + 14, 28),
          svg("text", { x: at + 34, y: 32 }, s.name),
        ];
      }),
      svg("text", { class: "play-figure-title", x: left, y: 14, "aria-hidden": "true" }, title),
    ];
    return html("figure", { class: "play-figure" }, drawing(width, height, title, description, content));
  }

  const superscript = (n) => [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");

  // The unrolled graph. A weight is told by its label, its dash and its arrow's head as well as its colour.

  const WEIGHTS = {
    W_xh: {
      colour: "var(--accent)",
      dash: null,
      head: "M0,0 L8,4 L0,8 z",
      name: "solid line, filled head",
    },
    W_hh: {
      colour: "var(--accent-2)",
      dash: "7 4",
      head: "M0,4 L4,0 L8,4 L4,8 z",
      name: "dashes, diamond",
    },
    W_hy: { colour: "var(--ink)", dash: "2 4", head: "M0,0 L8,4 L0,8", name: "dots, open head" },
  };

  function graphFigure(steps) {
    const graph = hw.unrolledGraph(steps);
    const [apart, left, height] = [104, 46, 292];
    const rows = { y: 44, h: 142, x: 240 };
    const width = left + steps * apart + 60;
    const place = (node) => [left + node.time * apart, rows[node.kind]];
    const nodes = Object.fromEntries(graph.nodes.map((node) => [node.id, node]));
    const heads = {};
    const definitions = Object.entries(WEIGHTS).map(([weight, style]) => {
      heads[weight] = newId("head");
      const open = weight === "W_hy";
      return svg(
        "marker",
        {
          id: heads[weight],
          viewBox: "-1 -1 10 10",
          refX: 8,
          refY: 4,
          markerWidth: 10,
          markerHeight: 10,
          orient: "auto",
          markerUnits: "userSpaceOnUse",
        },
        svg("path", { d: style.head, fill: open ? "none" : style.colour, stroke: style.colour }),
      );
    });
    const radius = 20;
    const edges = graph.edges.map(({ from, to, weight }) => {
      const [[x1, y1], [x2, y2]] = [place(nodes[from]), place(nodes[to])];
      const [dx, dy] = [Math.sign(x2 - x1), Math.sign(y2 - y1)];
      const style = WEIGHTS[weight];
      const across = dy === 0;
      return [
        svg("line", {
          x1: x1 + dx * radius,
          y1: y1 + dy * radius,
          x2: x2 - dx * (radius + 1),
          y2: y2 - dy * (radius + 1),
          stroke: style.colour,
          "stroke-width": 2,
          "stroke-dasharray": style.dash,
          "marker-end": `url(#${heads[weight]})`,
        }),
        labelled(
          (x1 + x2) / 2 + (across ? 0 : 8),
          (y1 + y2) / 2 + (across ? -9 : 4),
          "W",
          weight.slice(2),
          across ? "middle" : "start",
        ),
      ];
    });
    const circles = graph.nodes.map((node) => {
      const [x, y] = place(node);
      return [
        node.kind === "h"
          ? svg("circle", { class: "play-node", cx: x, cy: y, r: radius })
          : svg("rect", { class: "play-node", x: x - 20, y: y - 20, width: 40, height: 40, rx: 4 }),
        labelled(x, y + 5, node.kind, node.time, "middle"),
        node.time === 0 ? svg("text", { x, y: y + 38, "text-anchor": "middle" }, "= 0") : [],
      ];
    });
    const description =
      `Inputs x₁ to x${hw.subscript(steps)} below, hidden states in the middle, outputs above. Every input ` +
      "goes to its hidden state by W_xh, every hidden state to the next by W_hh and to its output by W_hy: " +
      "the same three matrices at all times.";
    const content = [svg("defs", {}, definitions), edges, circles];
    const attributes = { class: "play-graph", width, height };
    return html(
      "figure",
      { class: "play-figure" },
      drawing(
        width,
        height,
        `The RNN unrolled for ${counted(steps, "step")}`,
        description,
        content,
        attributes,
      ),
    );
  }

  function labelled(x, y, letter, index, anchor) {
    return svg(
      "text",
      { x, y, "text-anchor": anchor },
      letter,
      svg("tspan", { dy: 4, "font-size": "0.75em" }, String(index)),
    );
  }

  const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

  // What a widget is made of.

  /** Runs `read`; a mistake in it belongs to that field. */
  function at(field, read) {
    try {
      return read();
    } catch (error) {
      if (error instanceof hw.UserError) error.field ??= field;
      throw error;
    }
  }

  /** Controls for `fields`, and the working that `work(values, level)` makes of their values.
   *
   * A field is {name, label, kind, start, hint, broad}: kind "text"; "choice" with options {value: label};
   * "check"; "slider" with least, most, step. `changed(name, values, set)` may set other fields when one has
   * changed. `work` returns {summary, nodes}, and an error beside them where the working reaches only part
   * of the way. */
  function build(root, { legend, fields, work, changed = () => {} }) {
    const level = Number(root.dataset.level) || 4;
    const controls = {};
    const trouble = newId("error");
    const values = () =>
      Object.fromEntries(
        fields.map(({ name, kind }) => {
          const { input } = controls[name];
          if (kind === "check") return [name, input.checked];
          return [name, kind === "slider" ? Number(input.value) : input.value];
        }),
      );

    function set(name, value) {
      const { input, field, shown } = controls[name];
      if (field.kind === "check") input.checked = value;
      else input.value = String(value);
      if (shown) shown.textContent = hw.text(Number(input.value));
    }

    function control(field) {
      const id = newId(field.name);
      const hintId = field.hint && newId("hint");
      const errorId = newId("error");
      const common = { id, "aria-describedby": [hintId, errorId].filter(Boolean).join(" ") };
      const label = html("label", { for: id }, field.label);
      const error = html("span", { id: errorId, class: "play-error", role: "alert" });
      const hint = field.hint ? html("span", { id: hintId, class: "play-hint" }, field.hint) : [];
      let input;
      let shown = null;
      if (field.kind === "choice") {
        const options = Object.entries(field.options).map(([value, text]) =>
          html("option", { value }, text),
        );
        input = html("select", common, options);
      } else if (field.kind === "check") {
        input = html("input", { type: "checkbox", ...common });
      } else if (field.kind === "slider") {
        const { least: min, most: max, step: by } = field;
        input = html("input", { type: "range", min, max, step: by, ...common });
        // Read with the slider itself: it needs no announcement of its own.
        shown = html("output", { for: id, "aria-live": "off" });
      } else {
        input = html("input", {
          type: "text",
          autocomplete: "off",
          autocapitalize: "off",
          spellcheck: "false",
          ...common,
        });
      }
      controls[field.name] = { input, field, error, shown };
      const parts = field.kind === "check" ? [input, label] : [label, input, shown ?? []];
      return html(
        "div",
        { class: `play-field play-${field.kind}${field.broad ? " play-broad" : ""}` },
        parts,
        hint,
        error,
      );
    }

    const general = html("p", { id: trouble, class: "play-error", role: "alert" });
    const summary = html("output", { class: "play-result", "aria-live": "polite" });
    const reset = html("button", { type: "button", class: "play-reset" }, "Reset to the sheet");
    const working = html("div", { class: "play-working" });
    const fieldset = html("fieldset", {}, html("legend", {}, legend), fields.map(control), general, reset);

    function complain(error) {
      for (const { input, error: line } of Object.values(controls)) {
        input.removeAttribute("aria-invalid");
        if (line.textContent) line.textContent = "";
      }
      if (general.textContent) general.textContent = "";
      if (!error) return;
      const { input, error: line } = controls[error.field] ?? { error: general };
      input?.setAttribute("aria-invalid", "true");
      line.textContent = `Error: ${error.message}`;
    }

    /** What the reader had unfolded stays so, what was scrolled stays where it was. */
    function replaceWorking(nodes) {
      const all = (selector) => [...working.querySelectorAll(selector)];
      const opened = all("details").map((node) => node.open);
      const scrolled = all(".play-scroll").map((node) => node.scrollLeft);
      working.replaceChildren(...nodes);
      all("details").forEach((node, i) => (node.open = opened[i] ?? false));
      all(".play-scroll").forEach((node, i) => (node.scrollLeft = scrolled[i] ?? 0));
    }

    let before = null;
    function update() {
      const now = JSON.stringify(values());
      if (now === before) return;
      before = now;
      let made;
      try {
        made = work(values(), level);
      } catch (error) {
        if (!(error instanceof hw.UserError)) throw error;
        complain(error); // the last good working stays
        return;
      }
      complain(made.error);
      summary.textContent = made.summary;
      replaceWorking(made.nodes);
    }

    function start() {
      fields.forEach((field) => set(field.name, field.start));
      update();
    }

    let waiting = null;
    fieldset.addEventListener("input", (event) => {
      const [name, { field }] = Object.entries(controls).find(([, c]) => c.input === event.target);
      clearTimeout(waiting);
      if (field.kind === "text") {
        waiting = setTimeout(update, PAUSE);
        return;
      }
      set(name, values()[name]);
      changed(name, values(), set);
      update();
    });
    fieldset.addEventListener("change", () => {
      clearTimeout(waiting);
      update();
    });
    reset.addEventListener("click", () => {
      clearTimeout(waiting);
      start();
    });
    root.replaceChildren(fieldset, summary, working);
    start();
    root.hidden = false;
  }

  // Questions 6 and 8.

  const times = (...sizes) => sizes.join(" × ");

  function attentionWork(text, level) {
    const read = (name, shown) => at(name, () => hw.parseMatrix(text[name], shown));
    const exact = { q: read("q", "Q"), k: read("k", "K"), v: read("v", "V") };
    const dout = text.dout.trim() ? read("dout", "∂L/∂O") : null;
    const q = at("q", () => hw.toNumbers(exact.q, "Q"));
    const k = at("k", () => hw.toNumbers(exact.k, "K"));
    const v = at("v", () => hw.toNumbers(exact.v, "V"));
    const upstream = dout && at("dout", () => hw.toNumbers(dout, "∂L/∂O"));
    const { mask, scaled } = text;
    hw.checkAttention(q, k, v, mask, upstream);
    const found = hw.attention(q, k, v, { mask, scaled });
    const [queries, keys, dK, dV] = [q.length, k.length, q[0].length, v[0].length];
    const all = q.flatMap((a, i) => k.map((b, j) => [i, j]));
    const masked = mask === "causal" ? " Keys that the mask forbids get weight 0." : "";
    const nodes = [
      step(
        level,
        "Raw scores S = Q Kᵀ",
        "Entry (i, j) is the dot product of query i and key j: row i of Q with row j of K.",
        all.slice(0, MOST_LINES + 1).map(([i, j]) => {
          const name = row(sub("s", i + 1, j + 1), "=", sub("q", i + 1), "·", sub("k", j + 1));
          const [a, b] = [exact.q[i], exact.k[j]];
          const total = a.reduce((sum, x, d) => hw.plus(sum, hw.timesOf(x, b[d])), {
            n: 0n,
            d: 1n,
          });
          return sumOfProducts(name, a, b, total);
        }),
        tableOfMatrix("S", found.scores, "query", "key"),
      ),
    ];
    if (scaled) {
      nodes.push(
        step(
          level,
          `Scaled scores Z = S/√d_k, d_k = ${dK}`,
          `√${dK} = ${hw.text(Math.sqrt(dK))}. d_k is the number of columns of Q and K, not of V.`,
          all.map(([i, j]) => {
            const [s, z] = [found.scores[i][j], found.scaled[i][j]];
            return row(sub("z", i + 1, j + 1), "=", fraction(number(s), root(dK)), "=", number(z));
          }),
          tableOfMatrix("Z", found.scaled, "query", "key"),
        ),
      );
    }
    nodes.push(
      step(
        level,
        scaled ? "Weights A = softmax(Z), row by row" : "Weights A = softmax(S), row by row",
        "Each row is exponentiated and divided by its sum, so that it sums to 1. Taking the row's largest " +
          "score away first changes nothing, for it cancels, and keeps the exponentials from overflowing." +
          masked,
        found.visible.flatMap((seen, i) => {
          const raised = found.exponentials[i].slice(0, seen);
          return [
            row(
              words(`row ${i + 1}:`),
              wide(),
              raised
                .slice(0, MOST_TERMS)
                .map((p, j) => [
                  j ? [",", wide()] : [],
                  power("e", [number(found.scaled[i][j]), "−", factor(found.largest[i])]),
                  "=",
                  number(p),
                ]),
              raised.length > MOST_TERMS ? [",", "⋯"] : [],
              ",",
              wide(),
              words("sum"),
              "=",
              number(found.totals[i]),
            ),
            ...raised.map((p, j) =>
              row(
                sub("a", i + 1, j + 1),
                "=",
                fraction(number(p), number(found.totals[i])),
                "=",
                number(found.weights[i][j]),
              ),
            ),
          ];
        }),
        tableOfMatrix("A", found.weights, "query", "key"),
      ),
      step(
        level,
        "Output O = A V",
        "Row i of the output is the mean of the rows of V, weighted by row i of A.",
        found.output
          .flatMap((r, i) => r.map((o, e) => [i, e, o]))
          .slice(0, MOST_LINES + 1)
          .map(([i, e, o]) =>
            sumOfProducts(
              sub("o", i + 1, e + 1),
              found.weights[i],
              exact.v.map((r) => r[e]),
              o,
            ),
          ),
        tableOfMatrix("O", found.output, "query", "column"),
      ),
      step(
        level,
        `The output is ${times(queries, dV)}: n_q × d_v`,
        `(${times(queries, dK)})(${times(dK, keys)}) = ${times(queries, keys)} scores, and weights of the ` +
          `same shape, meet ${times(keys, dV)} values: (${times(queries, keys)})(${times(keys, dV)}) = ` +
          `${times(queries, dV)}. d_k is summed away.`,
      ),
    );
    if (upstream)
      nodes.push(...gradientSteps(level, { q, k, v, upstream, scaled, weights: found.weights }));
    const summary =
      `Output, ${times(queries, dV)}: ` +
      (queries * dV <= 24
        ? found.output.map((r) => r.map((x) => hw.text(x)).join(" ")).join("; ")
        : "see below");
    return { summary, nodes };
  }

  function gradientSteps(level, { q, k, v, upstream, scaled, weights }) {
    const found = hw.attentionBackward(q, k, v, weights, upstream, { scaled });
    const by = (name) => fraction(["∂", "L"], ["∂", name]);
    const scale = () => (scaled ? [fraction("1", root(sub("d", "k")))] : []);
    const flipped = (m) => m[0].map((_, j) => m.map((r) => r[j]));
    const small = [q, k, v].every((m) => m.length * m[0].length <= 16);
    const product = (left, right) => ["=", bracketed(left), bracketed(right)];
    const divisor = () => (scaled ? [fraction("1", root(q[0].length))] : []);
    const scaledProduct = (left, right) => ["=", divisor(), bracketed(left), bracketed(right)];
    const line = (name, formula, numbers, result) => [
      row(by(name), "=", formula, small ? [numbers, "=", bracketed(result)] : []),
    ];
    const shown = (name, values) => tableOfMatrix(`∂L/∂${name}`, values, "row", "column");
    const divided = scaled ? "/√d_k" : "";
    const transposeOf = (parts) => power(row("(", parts, ")"), words("T"));
    return [
      step(
        level,
        "dV = Aᵀ dO",
        "O = A V, that is o_ie = Σ_j a_ij v_je: v_je reaches every o_ie with weight a_ij.",
        line("V", [transposed("A"), by("O")], product(flipped(weights), upstream), found.dv),
        shown("V", found.dv),
      ),
      step(
        level,
        "dA = dO Vᵀ",
        "The same sum seen from its other factor: a_ij reaches o_ie with weight v_je.",
        line("A", [by("O"), transposed("V")], product(upstream, flipped(v)), found.da),
        shown("A", found.da),
      ),
      step(
        level,
        "dZ = A ∘ (dA − rowsum(A ∘ dA))",
        "The softmax's Jacobian of row i is diag(a_i) − a_i a_iᵀ. Computed after dA at the row's largest " +
          "weight is taken away from all of the row, which changes nothing, for the weights sum to 1, and " +
          "keeps the digits of a saturated row.",
        [row(by("Z"), "=", "A", "∘", "(", by("A"), "−", words("rowsum"), "(", "A", "∘", by("A"), ")", ")")],
        shown("Z", found.dz),
      ),
      step(
        level,
        `dQ = dZ K${divided}`,
        "q_id reaches every z_ij of its row, each with weight k_jd" + divided + ".",
        line("Q", [scale(), by("Z"), "K"], scaledProduct(found.dz, k), found.dq),
        shown("Q", found.dq),
      ),
      step(
        level,
        `dK = dZᵀ Q${divided}`,
        "The same sum from its other factor.",
        line("K", [scale(), transposeOf(by("Z")), "Q"], scaledProduct(flipped(found.dz), q), found.dk),
        shown("K", found.dk),
      ),
    ];
  }

  const attentionWidget = (start) => ({
    legend: "Your own attention",
    fields: [
      {
        name: "q",
        label: "Q, a row a query",
        kind: "text",
        start: start.q,
        hint: 'Rows end with ";".',
      },
      {
        name: "k",
        label: "K, a row a key",
        kind: "text",
        start: start.k,
        hint: "Numbers: 3, -0.5, 2e-3, 1/3.",
      },
      { name: "v", label: "V, a row a value", kind: "text", start: start.v },
      {
        name: "dout",
        label: "∂L/∂O, for the gradients",
        kind: "text",
        start: start.dout,
        hint: "Empty: no gradients.",
      },
      {
        name: "mask",
        label: "Mask",
        kind: "choice",
        start: start.mask,
        options: { none: "none", causal: "causal, aligned at the end" },
      },
      { name: "scaled", label: "scale by 1/√d_k", kind: "check", start: start.scaled },
    ],
    work: attentionWork,
  });

  // Question 1.

  function sizeLine(axis, n, layer, report) {
    const [[lo, hi], out] = [report.padding[axis], report.output[axis]];
    const stride = layer.stride[axis];
    const wideness = hw.span(layer.kernel[axis], layer.dilation[axis]);
    const padded = lo || hi ? [lo, "+", n, "+", hi] : [n];
    const quotient = over([...padded, "−", wideness], stride);
    const name = [words(["height", "width"][axis]), "="];
    const left = report.discarded[axis];
    const note = left ? [",", wide(), words(`${left} at the end seen by no window`)] : [];
    if (!layer.ceil) return row(name, "⌊", quotient, "⌋", "+", "1", "=", out, note);
    const inside = lo ? over([lo, "+", n], stride) : [n, "/", stride];
    return row(
      name,
      words("min"),
      "(",
      "⌈",
      quotient,
      "⌉",
      "+",
      "1",
      ",",
      "⌈",
      inside,
      "⌉",
      ")",
      "=",
      out,
      note,
    );
  }

  const joined = (numbers) => numbers.map((n, i) => (i ? ["·", n] : [n]));

  function layerLines(layer, before, report) {
    const bias = report.biases ? ["+", report.biases] : [];
    if (layer.kind === "flatten")
      return [row(words("elements"), "=", joined(before), "=", report.output[0])];
    if (layer.kind === "dense") {
      const weights = joined([before[0], layer.units]);
      return [
        row(words("parameters"), "=", weights, bias, "=", report.params),
        row(words("multiply-accumulates"), "=", weights, "=", report.macs),
      ];
    }
    const lines = [0, 1].map((axis) => sizeLine(axis, before[axis], layer, report));
    if (layer.kind !== "conv") {
      return [...lines, row(words("channels"), "=", before[2], ",", wide(), words("each pooled alone"))];
    }
    const group = layer.groups === 1n ? before[2] : ["(", before[2], "/", layer.groups, ")"];
    const weights = joined([...layer.kernel, group, layer.channels]);
    return [
      ...lines,
      row(words("channels"), "=", layer.channels, ",", wide(), words("one a filter")),
      row(words("parameters"), "=", weights, bias, "=", report.params),
      row(
        words("multiply-accumulates"),
        "=",
        joined(report.output.slice(0, 2)),
        "·",
        weights,
        "=",
        report.macs,
      ),
    ];
  }

  function cnnWork(text, level) {
    const picture = at("input", () => hw.parseInput(text.input.trim()));
    const layers = at("layers", () => hw.parseLayers(text.layers));
    if (layers.length > MOST_LAYERS) {
      const error = new hw.UserError(`${layers.length} layers are more than the ${MOST_LAYERS} shown here`);
      throw Object.assign(error, { field: "layers" });
    }
    let reports;
    let failure = null;
    try {
      reports = hw.traceCnn(picture, layers);
    } catch (error) {
      if (!(error instanceof hw.LayerError)) throw error;
      reports = error.reports; // the table goes up to the layer that fails
      failure = Object.assign(error, { field: "layers" });
    }
    const before = [picture, ...reports.map((r) => r.output)];
    const nodes = reports.map((report, i) =>
      step(
        level,
        `Layer ${i + 1}, ${report.name}: ${times(...report.output)}`,
        "",
        layerLines(layers[i], before[i], report),
      ),
    );
    const pair = (numbers) => (numbers ? times(...numbers) : "–");
    const bytes = (shape) => 4n * shape.reduce((a, b) => a * b, 1n);
    const rows = [
      ["input", pair(picture), 0n, 0n, "1 × 1", "1 × 1", bytes(picture)],
      ...reports.map((r) => [
        r.name,
        pair(r.output),
        r.params,
        r.macs,
        pair(r.receptiveField),
        pair(r.jump),
        bytes(r.output),
      ]),
    ];
    const sum = (field) => reports.reduce((total, r) => total + r[field], 0n);
    if (!failure) rows.push(["all layers", "", sum("params"), sum("macs"), "", "", ""]);
    const header = [
      "layer",
      "output",
      "parameters",
      "multiply-accumulates",
      "receptive field",
      "stride",
      "bytes, float32",
    ];
    nodes.push(
      step(
        level,
        failure ? `As far as layer ${failure.index}` : "Everything together",
        failure
          ? failure.message
          : "A receptive field is what one output can see of the picture; the stride is how far apart " +
              "neighbouring outputs look.",
        [],
        table("The network, layer by layer", header, rows),
      ),
    );
    const summary = failure
      ? `Stops at layer ${failure.index + 1}.`
      : `${before.map((shape) => times(...shape)).join(" → ")}; ${sum("params")} parameters`;
    return { summary, nodes, error: failure };
  }

  const cnnWidget = (start) => ({
    legend: "Your own CNN",
    fields: [
      {
        name: "input",
        label: "Picture",
        kind: "text",
        start: start.input,
        hint: "height x width x channels",
      },
      {
        name: "layers",
        label: "Layers",
        kind: "text",
        start: start.layers,
        broad: true,
        hint:
          "conv16k5 (sN pN dN gN same valid nobias), pool2 or avgpool2 (sN pN same valid ceil), flatten, " +
          "dense100 (nobias); 3x2 is height x width",
      },
    ],
    work: cnnWork,
  });

  // Question 3.

  function unrolledWork({ steps }, level) {
    const bias = () => ["+", sub("b", "h")];
    const whh = () => sub("W", "hh");
    const wxh = (t) => [sub("W", "xh"), sub("x", t)];
    const lines = Array.from({ length: steps }, (_, i) => i + 1).flatMap((t) => [
      row(sub("h", t), "=", "tanh", "(", wxh(t), "+", whh(), t === 1 ? "0" : sub("h", t - 1), bias(), ")"),
      row(sub("y", t), "=", sub("W", "hy"), sub("h", t), "+", sub("b", "y")),
    ]);
    let inner = [];
    for (let t = 1; t <= steps; t++) {
      inner = ["tanh", "(", wxh(t), t > 1 ? ["+", whh(), inner] : [], bias(), ")"];
    }
    const graph = hw.unrolledGraph(steps);
    const legend = Object.entries(WEIGHTS).map(([weight, { name }]) =>
      html("li", {}, `${weight}: ${name}`),
    );
    const edges = table(
      "Edges of the graph",
      ["from", "to", "weight"],
      graph.edges.map((edge) => [edge.from, edge.to, edge.weight]),
    );
    const nodes = [
      step(
        level,
        `The network unrolled for ${counted(steps, "step")}`,
        "At every time the same three matrices and two biases.",
        [],
        graphFigure(steps),
      ),
      html("ul", { class: "play-legend" }, legend),
      folded("The graph as a table", scroller("Edges of the graph", edges)),
      step(level, "Step by step", "", lines),
      step(
        level,
        `h${hw.subscript(steps)} as one expression`,
        "Each hidden state put into the next: every input up to now is inside, and one that came long ago " +
          "is under as many tanh and W_hh as steps have passed since.",
        [row(sub("h", steps), "=", inner)],
      ),
    ];
    const summary =
      `${hw.text(steps)} steps: ${graph.edges.length} edges, but only three matrices. ` +
      (steps <= 4 ? hw.nested(steps) : `x₁ lies under ${steps} tanh in h${hw.subscript(steps)}.`);
    return { summary, nodes };
  }

  const slider = (name, label, { start, least, most, step: by }) => ({
    name,
    label,
    kind: "slider",
    start,
    least,
    most,
    step: by,
  });

  const unrolledWidget = (start) => ({
    legend: "Unroll further",
    fields: [slider("steps", "Time steps T", start.steps)],
    work: unrolledWork,
  });

  // Question 4(b).

  const drawsOf = (matrix, per) => matrix.map((r) => r.map((x) => x / per));

  function vanishingWidget(start, { per }) {
    const networks = start.networks.map((network) => ({
      ...network,
      drive: drawsOf(network.drive, per),
    }));
    function work({ network, kind, radius, steps }, level) {
      const { whh, drive } = networks[Number(network)];
      const found = hw.jacobianNorms({ whh, drive, radius, kind, steps });
      const xs = found.norms.map((_, t) => t);
      const [first, bound] = [found.norms[0], found.bounds[0]];
      const peak = found.norms.indexOf(Math.max(...found.norms));
      const grown = found.norms[peak] > 1.001;
      const mean = first > 0 ? first ** (1 / steps) : 0;
      const fate = mean < 0.999 ? "shrinks" : mean > 1.001 ? "grows" : "keeps its size";
      const jacobian = (t) => ["‖", "∂", sub("h", steps), "/", "∂", sub("h", t), "‖"];
      const tail = kind === "tanh" ? ["∏", words("max"), "(", "1", "−", power("h", "2"), ")", "·"] : [];
      const remark =
        peak > 0 && peak < steps && grown
          ? ` On the way it reaches ${hw.text(found.norms[peak], 4)}, at t = ${peak}: a radius below 1 ` +
            "tells of the limit alone."
          : "";
      const nodes = [
        step(
          level,
          `Norm of ∂h_T/∂h_t, T = ${steps}`,
          "Each step back multiplies by " +
            (kind === "tanh" ? "diag(1 − h²) W" : "W") +
            "; the norm of the product is at most the product of the norms.",
          [
            row(sub("σ", "max"), "(", "W", ")", "=", number(found.sigma)),
            row(
              jacobian(0),
              "=",
              number(first),
              "≤",
              tail,
              power(sub("σ", "max"), [steps]),
              "=",
              number(bound),
            ),
          ],
          plot({
            title: "Norm of ∂h_T/∂h_t against t",
            description:
              `Logarithmic. From ${hw.text(first, 3)} at t = 0 to 1 at t = ${steps}; its bound from ` +
              `${hw.text(bound, 3)}.`,
            xs,
            xName: "time t",
            logarithmic: true,
            series: [
              { name: "norm", values: found.norms },
              { name: "σ_max bound", values: found.bounds },
            ],
          }),
        ),
        folded(
          "The curves as a table",
          scroller(
            "Norms against t",
            table(
              "Norms against t",
              ["t", "norm", "bound"],
              xs.map((t) => [t, found.norms[t], found.bounds[t]]),
            ),
          ),
        ),
      ];
      const summary =
        `Radius ${hw.text(radius)}, T = ${steps}: ‖∂h_T/∂h_0‖ = ${hw.text(first, 4)}. ` +
        `The gradient ${fate}, by a factor of ${hw.text(mean, 3)} a step.${remark}`;
      return { summary, nodes };
    }
    return {
      legend: "Make a gradient vanish",
      fields: [
        {
          name: "network",
          label: "Recurrent matrix W",
          kind: "choice",
          start: "0",
          options: Object.fromEntries(networks.map(({ name }, i) => [i, name])),
        },
        {
          name: "kind",
          label: "Units",
          kind: "choice",
          start: start.kind,
          options: { tanh: "tanh", linear: "linear" },
        },
        slider("radius", "Spectral radius of W", { start: networks[0].radius, ...start.radius }),
        slider("steps", "Time steps T", start.steps),
      ],
      work,
      changed(name, values, set) {
        if (name === "network") set("radius", networks[Number(values.network)].radius);
      },
    };
  }

  // Question 8(c).

  function saturationWidget(start, { per }) {
    const [q, k] = [drawsOf(start.q, per), drawsOf(start.k, per)];
    const { least, most } = start.d_k;
    const xs = Array.from({ length: most - least + 1 }, (_, i) => least + i);
    const curves = xs.map((d) => hw.saturation(q, k, d));
    const names = {
      variance: "variance of the scores",
      entropy: "entropy of the weights, nats",
      largest: "largest weight",
      jacobian: "norm of the softmax's Jacobian",
    };
    function work({ d_k: dK }, level) {
      const found = curves[xs.indexOf(dK)];
      const figure = (what) =>
        plot({
          title: `${names[what][0].toUpperCase()}${names[what].slice(1)}`,
          description:
            `Against d_k from ${least} to ${most}. At d_k = ${dK}: ` +
            `scaled ${hw.text(found.scaled[what], 3)}, unscaled ${hw.text(found.unscaled[what], 3)}.`,
          xs,
          xName: "d_k",
          mark: dK,
          series: ["scaled", "unscaled"].map((name) => ({
            name,
            values: curves.map((c) => c[name][what]),
          })),
        });
      const rows = Object.entries(names).map(([what, name]) => [
        name,
        found.scaled[what],
        found.unscaled[what],
      ]);
      const all = xs.map((d, i) => [
        d,
        ...["largest", "jacobian"].flatMap((what) => [curves[i].scaled[what], curves[i].unscaled[what]]),
      ]);
      const header = ["d_k", "largest, scaled", "unscaled", "Jacobian, scaled", "unscaled"];
      const nodes = [
        step(
          level,
          `Scores of ${counted(dK, "component")}`,
          `${q.length} queries and ${k.length} keys of independent draws, of mean 0 and variance 1: then ` +
            "Var(q·k) = d_k, and that of the scaled scores is 1. Means over the queries:",
          [
            row(
              words("Var"),
              "(",
              "q",
              "·",
              "k",
              ")",
              "=",
              sub("d", "k"),
              "=",
              dK,
              ",",
              wide(),
              words("Var"),
              "(",
              "q",
              "·",
              "k",
              "/",
              root(dK),
              ")",
              "=",
              "1",
            ),
          ],
          table(`At d_k = ${dK}`, ["", "scaled", "unscaled"], rows),
        ),
        step(
          level,
          "Against d_k",
          "",
          [],
          html("div", { class: "play-pair" }, ["largest", "jacobian"].map(figure)),
        ),
        folded(
          "The curves as a table",
          scroller("Curves against d_k", table("Curves against d_k", header, all)),
        ),
      ];
      const ratio = found.scaled.jacobian / found.unscaled.jacobian;
      const summary =
        `d_k = ${dK}: unscaled, the largest weight is ${hw.text(found.unscaled.largest, 3)} (scaled ` +
        `${hw.text(found.scaled.largest, 3)}); the softmax passes on ${hw.text(ratio, 3)} times as much ` +
        "with the scale as without.";
      return { summary, nodes };
    }
    return {
      legend: "Saturate a softmax",
      fields: [slider("d_k", "Size of a query and a key, d_k", start.d_k)],
      work,
    };
  }

  // The page.

  const WIDGETS = {
    attention: attentionWidget,
    cnn: cnnWidget,
    unrolled: unrolledWidget,
    vanishing: vanishingWidget,
    saturation: saturationWidget,
  };

  function begin() {
    const source = document.getElementById("play-data");
    if (!source) return;
    const data = JSON.parse(source.textContent);
    for (const place of document.querySelectorAll(".play[data-play]")) {
      const name = place.dataset.play;
      if (Object.hasOwn(WIDGETS, name)) build(place, WIDGETS[name](data[name], data));
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
