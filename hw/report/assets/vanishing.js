/* Shows the gradient of an RNN from the last hidden state back to the first, for question 4(b).
 *
 * The widget starts from {networks: [{name, whh: [n][n] of spectral radius 1, drive: [T][n] draws, radius:
 * first value}]; kind: "tanh" or "linear"; radius: {least, most, step}; steps: {start, least, most, step}}.
 */
(() => {
  "use strict";

  const { say, drawn, row, power, words, sub, number, scroller, table, step, folded, plot, slider } = hw;

  hw.widget("vanishing", (start) => {
    const networks = start.networks.map((network) => ({ ...network, drive: drawn(network.drive) }));
    function work({ network, kind, radius, steps }, level) {
      const { whh, drive } = networks[Number(network)];
      const found = hw.jacobianNorms({ whh, drive, radius, kind, steps });
      const xs = found.norms.map((_, t) => t);
      const [first, bound] = [found.norms[0], found.bounds[0]];
      const peak = found.norms.indexOf(Math.max(...found.norms));
      const grown = found.norms[peak] > 1.001;
      const mean = first > 0 ? first ** (1 / steps) : 0;
      const fate = mean < 0.999 ? say("shrinks") : mean > 1.001 ? say("grows") : say("keeps_its_size");
      const jacobian = (t) => ["‖", "∂", sub("h", steps), "/", "∂", sub("h", t), "‖"];
      const tail = kind === "tanh" ? ["∏", words("max"), "(", "1", "−", power("h", "2"), ")", "·"] : [];
      const remark =
        peak > 0 && peak < steps && grown
          ? ` ${say("grows_first", { norm: hw.text(found.norms[peak], 4), time: peak })}`
          : "";
      const nodes = [
        step(
          level,
          say("norms_title", { steps }),
          kind === "tanh" ? say("tanh_text") : say("linear_text"),
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
            title: say("norms_plot_title"),
            description: say("norms_plot_text", {
              first: hw.text(first, 3),
              steps,
              bound: hw.text(bound, 3),
            }),
            xs,
            xName: say("time"),
            logarithmic: true,
            series: [
              { name: say("norm"), values: found.norms },
              { name: say("bound"), values: found.bounds },
            ],
          }),
        ),
        folded(
          say("curves_as_table"),
          scroller(
            say("norms_table_title"),
            table(
              say("norms_table_title"),
              say("norms_table_header"),
              xs.map((t) => [t, found.norms[t], found.bounds[t]]),
            ),
          ),
        ),
      ];
      const said = say("vanishing_summary", {
        radius: hw.text(radius),
        steps,
        norm: hw.text(first, 4),
        fate,
        factor: hw.text(mean, 3),
      });
      return { summary: said + remark, nodes };
    }
    return {
      legend: say("vanishing_legend"),
      fields: [
        {
          name: "network",
          label: say("network_label"),
          kind: "choice",
          start: "0",
          options: Object.fromEntries(networks.map(({ name }, i) => [i, name])),
        },
        {
          name: "kind",
          label: say("units_label"),
          kind: "choice",
          start: start.kind,
          options: { tanh: "tanh", linear: say("linear") },
        },
        slider("radius", say("radius_label"), { start: networks[0].radius, ...start.radius }),
        slider("steps", say("steps_label"), start.steps),
      ],
      work,
      changed(name, values, set) {
        if (name === "network") set("radius", networks[Number(values.network)].radius);
      },
    };
  });
})();
