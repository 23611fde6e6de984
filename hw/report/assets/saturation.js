/* Shows how the size of queries and keys saturates the softmax, with and without the scale: question 8(c).
 *
 * The widget starts from {q: [queries][most], k: [keys][most] draws; d_k: {start, least, most, step}}.
 */
(() => {
  "use strict";

  const { say, drawn, html, row, root, words, wide, sub, scroller, table, step, folded, plot, slider } = hw;

  hw.widget("saturation", (start) => {
    const [q, k] = [drawn(start.q), drawn(start.k)];
    const { least, most } = start.d_k;
    const xs = Array.from({ length: most - least + 1 }, (_, i) => least + i);
    const curves = xs.map((d) => hw.saturation(q, k, d));
    const names = {
      variance: say("variance"),
      entropy: say("entropy"),
      largest: say("largest"),
      jacobian: say("jacobian"),
    };
    const [scaled, unscaled] = [say("scaled"), say("unscaled")];
    function work({ d_k: dK }, level) {
      const found = curves[xs.indexOf(dK)];
      const figure = (what) =>
        plot({
          title: `${names[what][0].toUpperCase()}${names[what].slice(1)}`,
          description: say("saturation_plot_text", {
            least,
            most,
            d_k: dK,
            scaled: hw.text(found.scaled[what], 3),
            unscaled: hw.text(found.unscaled[what], 3),
          }),
          xs,
          xName: "d_k",
          mark: dK,
          series: [
            { name: scaled, values: curves.map((c) => c.scaled[what]) },
            { name: unscaled, values: curves.map((c) => c.unscaled[what]) },
          ],
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
      const nodes = [
        step(
          level,
          dK === 1 ? say("one_component") : say("many_components", { d_k: dK }),
          say("draws_text", { queries: q.length, keys: k.length }),
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
          table(say("means_title", { d_k: dK }), ["", scaled, unscaled], rows),
        ),
        step(
          level,
          say("plots_title"),
          "",
          [],
          html("div", { class: "play-pair" }, ["largest", "jacobian"].map(figure)),
        ),
        folded(
          say("curves_as_table"),
          scroller(
            say("saturation_table_title"),
            table(say("saturation_table_title"), say("saturation_table_header"), all),
          ),
        ),
      ];
      const ratio = found.scaled.jacobian / found.unscaled.jacobian;
      const summary = say("saturation_summary", {
        d_k: dK,
        unscaled: hw.text(found.unscaled.largest, 3),
        scaled: hw.text(found.scaled.largest, 3),
        ratio: hw.text(ratio, 3),
      });
      return { summary, nodes };
    }
    return {
      legend: say("saturation_legend"),
      fields: [slider("d_k", say("d_k_label"), start.d_k)],
      work,
    };
  });
})();
