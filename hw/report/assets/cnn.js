/* Works a reader's own CNN layer by layer, for question 1.
 *
 * The widget starts from {input: as in "128x128x3"; layers: words of the layer language}.
 */
(() => {
  "use strict";

  const { say, row, words, wide, times, table, step, at } = hw;

  const MOST_LAYERS = 100;

  const over = (top, bottom) => ["(", top, ")", "/", bottom];

  function sizeLine(axis, n, layer, report) {
    const [[lo, hi], out] = [report.padding[axis], report.output[axis]];
    const stride = layer.stride[axis];
    const wideness = hw.span(layer.kernel[axis], layer.dilation[axis]);
    const padded = lo || hi ? [lo, "+", n, "+", hi] : [n];
    const quotient = over([...padded, "−", wideness], stride);
    const name = [words(say("axes")[axis]), "="];
    const left = report.discarded[axis];
    const note = left ? [",", wide(), words(say("unseen", { pixels: left }))] : [];
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
      return [row(words(say("elements")), "=", joined(before), "=", report.output[0])];
    if (layer.kind === "dense") {
      const weights = joined([before[0], layer.units]);
      return [
        row(words(say("parameters")), "=", weights, bias, "=", report.params),
        row(words(say("macs")), "=", weights, "=", report.macs),
      ];
    }
    const lines = [0, 1].map((axis) => sizeLine(axis, before[axis], layer, report));
    if (layer.kind !== "conv") {
      return [
        ...lines,
        row(words(say("channels")), "=", before[2], ",", wide(), words(say("pooled_alone"))),
      ];
    }
    const group = layer.groups === 1n ? before[2] : ["(", before[2], "/", layer.groups, ")"];
    const weights = joined([...layer.kernel, group, layer.channels]);
    return [
      ...lines,
      row(words(say("channels")), "=", layer.channels, ",", wide(), words(say("one_a_filter"))),
      row(words(say("parameters")), "=", weights, bias, "=", report.params),
      row(words(say("macs")), "=", joined(report.output.slice(0, 2)), "·", weights, "=", report.macs),
    ];
  }

  function cnnWork(text, level) {
    const image = at("input", () => hw.parseInput(text.input.trim()));
    const layers = at("layers", () => {
      const found = hw.parseLayers(text.layers);
      const [count, most] = [found.length, MOST_LAYERS];
      if (count > most) throw new hw.UserError("too_many_layers", { count, most });
      return found;
    });
    let reports;
    let failure = null;
    try {
      reports = hw.traceCnn(image, layers);
    } catch (error) {
      if (!(error instanceof hw.LayerError)) throw error;
      reports = error.reports; // the table goes up to the layer that fails
      failure = Object.assign(error, { field: "layers" });
    }
    const before = [image, ...reports.map((r) => r.output)];
    const nodes = reports.map((report, i) =>
      step(
        level,
        say("layer_title", { number: i + 1, word: report.name, shape: times(...report.output) }),
        "",
        layerLines(layers[i], before[i], report),
      ),
    );
    const pair = (numbers) => (numbers ? times(...numbers) : "–");
    const bytes = (shape) => 4n * shape.reduce((a, b) => a * b, 1n);
    const rows = [
      [say("input"), pair(image), 0n, 0n, "1 × 1", "1 × 1", bytes(image)],
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
    if (!failure) rows.push([say("all_layers"), "", sum("params"), sum("macs"), "", "", ""]);
    nodes.push(
      step(
        level,
        failure ? say("as_far_as", { number: failure.index }) : say("together_title"),
        failure ? failure.message : say("together_text"),
        [],
        table(say("layers_title"), say("layers_header"), rows),
      ),
    );
    const shapes = before.map((shape) => times(...shape)).join(" → ");
    const summary = failure
      ? say("stops_at", { number: failure.index + 1 })
      : say("network", { shapes, params: sum("params") });
    return { summary, nodes, error: failure };
  }

  hw.widget("cnn", (start) => ({
    legend: say("cnn_legend"),
    fields: [
      {
        name: "input",
        label: say("image_label"),
        kind: "text",
        start: start.input,
        hint: say("image_hint"),
      },
      {
        name: "layers",
        label: say("layers_label"),
        kind: "text",
        start: start.layers,
        broad: true,
        hint: say("layers_hint"),
      },
    ],
    work: cnnWork,
  }));
})();
