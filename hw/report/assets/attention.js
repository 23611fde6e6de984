/* Works attention and its gradients on a reader's own matrices, for questions 6 and 8.
 *
 * The widget starts from {q, k, v, dout: matrices as typed; mask: "none" or "causal"; scaled: bool}.
 */
(() => {
  "use strict";

  const { say, MOST_LINES, math, mathWith, row, fraction, root, power, words, wide, sub } = hw;
  const { number, factor, times, table, step, at } = hw;

  const MOST_TERMS = 8; // of a sum that is written out

  const transposed = (base) => power(base, words("T"));

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

  // The brackets are borders, because without a mathematical font bracket characters do not grow.
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

  function tableOfMatrix(title, values, rowName, columnName) {
    const header = ["", ...values[0].map((_, j) => `${columnName} ${j + 1}`)];
    return table(
      title,
      header,
      values.map((r, i) => [`${rowName} ${i + 1}`, ...r]),
    );
  }

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
    const [query, key] = [say("query"), say("key")];
    const all = q.flatMap((a, i) => k.map((b, j) => [i, j]));
    const masked = mask === "causal" ? ` ${say("masked_text")}` : "";
    const nodes = [
      step(
        level,
        say("scores_title"),
        say("scores_text"),
        all.slice(0, MOST_LINES + 1).map(([i, j]) => {
          const name = row(sub("s", i + 1, j + 1), "=", sub("q", i + 1), "·", sub("k", j + 1));
          const [a, b] = [exact.q[i], exact.k[j]];
          const total = a.reduce((sum, x, d) => hw.plus(sum, hw.timesOf(x, b[d])), {
            n: 0n,
            d: 1n,
          });
          return sumOfProducts(name, a, b, total);
        }),
        tableOfMatrix("S", found.scores, query, key),
      ),
    ];
    if (scaled) {
      nodes.push(
        step(
          level,
          say("scaled_title", { d_k: dK }),
          say("scaled_text", { d_k: dK, root: hw.text(Math.sqrt(dK)) }),
          all.map(([i, j]) => {
            const [s, z] = [found.scores[i][j], found.scaled[i][j]];
            return row(sub("z", i + 1, j + 1), "=", fraction(number(s), root(dK)), "=", number(z));
          }),
          tableOfMatrix("Z", found.scaled, query, key),
        ),
      );
    }
    nodes.push(
      step(
        level,
        say("weights_title", { scores: scaled ? "Z" : "S" }),
        say("weights_text") + masked,
        found.visible.flatMap((seen, i) => {
          const raised = found.exponentials[i].slice(0, seen);
          return [
            row(
              words(say("exponentials_of_row", { row: i + 1 })),
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
              words(say("sum")),
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
        tableOfMatrix("A", found.weights, query, key),
      ),
      step(
        level,
        say("output_title"),
        say("output_text"),
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
        tableOfMatrix("O", found.output, query, say("column")),
      ),
      step(
        level,
        say("shape_title", { n_q: queries, d_v: dV }),
        say("shape_text", { n_q: queries, n_k: keys, d_v: dV }),
      ),
    );
    if (upstream)
      nodes.push(...gradientSteps(level, { q, k, v, upstream, scaled, weights: found.weights }));
    const numbers =
      queries * dV <= 24
        ? found.output.map((r) => r.map((x) => hw.text(x)).join(" ")).join("; ")
        : say("see_below");
    return { summary: say("attention_summary", { shape: times(queries, dV), numbers }), nodes };
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
    const shown = (name, values) => tableOfMatrix(`∂L/∂${name}`, values, say("row"), say("column"));
    const divided = scaled ? "/√d_k" : "";
    const transposeOf = (parts) => power(row("(", parts, ")"), words("T"));
    return [
      step(
        level,
        say("dV_title"),
        say("dV_text"),
        line("V", [transposed("A"), by("O")], product(flipped(weights), upstream), found.dv),
        shown("V", found.dv),
      ),
      step(
        level,
        say("dA_title"),
        say("dA_text"),
        line("A", [by("O"), transposed("V")], product(upstream, flipped(v)), found.da),
        shown("A", found.da),
      ),
      step(
        level,
        say("dZ_title"),
        `${say("dZ_text")} ${say("softmax_digits_text")}`,
        [row(by("Z"), "=", "A", "∘", "(", by("A"), "−", words("rowsum"), "(", "A", "∘", by("A"), ")", ")")],
        shown("Z", found.dz),
      ),
      step(
        level,
        say("dQ_title", { divided }),
        say("dQ_text", { divided }),
        line("Q", [scale(), by("Z"), "K"], scaledProduct(found.dz, k), found.dq),
        shown("Q", found.dq),
      ),
      step(
        level,
        say("dK_title", { divided }),
        say("dK_text"),
        line("K", [scale(), transposeOf(by("Z")), "Q"], scaledProduct(flipped(found.dz), q), found.dk),
        shown("K", found.dk),
      ),
    ];
  }

  hw.widget("attention", (start) => ({
    legend: say("attention_legend"),
    fields: [
      {
        name: "q",
        label: say("q_label"),
        kind: "text",
        start: start.q,
        hint: say("q_hint"),
      },
      {
        name: "k",
        label: say("k_label"),
        kind: "text",
        start: start.k,
        hint: say("k_hint"),
      },
      { name: "v", label: say("v_label"), kind: "text", start: start.v },
      {
        name: "dout",
        label: say("dout_label"),
        kind: "text",
        start: start.dout,
        hint: say("dout_hint"),
      },
      {
        name: "mask",
        label: say("mask_label"),
        kind: "choice",
        start: start.mask,
        options: { none: say("no_mask"), causal: say("causal_mask") },
      },
      { name: "scaled", label: say("scaled_label"), kind: "check", start: start.scaled },
    ],
    work: attentionWork,
  }));
})();
