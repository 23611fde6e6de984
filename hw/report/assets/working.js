/* Builds the parts of a working: elements, mathematics, tables, steps and curves. It computes no results.
 *
 * Text that a reader typed enters the page only as text nodes.
 */
(() => {
  "use strict";

  const { say } = hw;

  const MOST_LINES = 36; // of working in one step; the table beside it has every entry

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

  // Mathematics. Strings become identifiers, operators or numbers by their content. A node can stand in only
  // one place, so a part that is used twice is a function here.

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

  function sub(base, ...indices) {
    const joined = indices.flatMap((i, place) => (place && indices.some((k) => k > 9) ? [",", i] : [i]));
    return math("msub", atom(base), row(joined));
  }

  /** Formats a number of any kind with the digits of `hw.text`. */
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

  // Parts of a working.

  const times = (...sizes) => sizes.join(" × ");

  /** A region that scrolls sideways instead of the page; the keyboard reaches it. */
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

  /** A step: heading, explanation, lines of working and further nodes. */
  function step(level, title, text, lines = [], ...more) {
    const shown = lines.slice(0, MOST_LINES).map((line) => mathWith("math", { display: "block" }, line));
    const rest = lines.length - shown.length;
    const content = [...shown, ...more.filter(Boolean)];
    return html(
      "section",
      { class: "play-step" },
      html(`h${level}`, {}, title),
      text ? html("p", {}, text) : [],
      content.length ? scroller(say("working", { title }), content) : [],
      rest > 0 ? html("p", {}, say("left_out", { count: rest })) : [],
    );
  }

  const folded = (title, content) => html("details", {}, html("summary", {}, title), content);

  // Figures. Every curve has its own dashes and marks, since some readers cannot see its colour.

  const STYLES = [
    { colour: "var(--accent)", dash: null, mark: "circle" },
    { colour: "var(--accent-2)", dash: "6 4", mark: "square" },
  ];

  function markOf({ mark, colour }, x, y) {
    return mark === "circle"
      ? svg("circle", { cx: x, cy: y, r: 3.2, fill: colour })
      : svg("rect", { x: x - 3, y: y - 3, width: 6, height: 6, fill: colour });
  }

  /** A drawing with a title and a description, which a screen reader reads out. */
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

  Object.assign(hw, {
    MOST_LINES,
    newId,
    html,
    svg,
    math,
    mathWith,
    row,
    fraction,
    root,
    power,
    words,
    wide,
    sub,
    number,
    factor,
    times,
    scroller,
    table,
    step,
    folded,
    drawing,
    plot,
  });
})();
