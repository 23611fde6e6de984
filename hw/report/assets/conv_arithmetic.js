/* Computes a CNN's sizes and reads the layer language, exactly as hw.ops.conv_arithmetic does.
 *
 * All functions are pure and use no document. They count in BigInt, because products of sizes exceed 2^53.
 * tests/report/test_play.py compares them with Python's.
 */
(() => {
  "use strict";

  const { say, shorten, wordsOf, UserError } = hw;

  /** A layer does not fit: `reports` holds the layers before it, `index` counts from 0. */
  class LayerError extends UserError {
    constructor(sentence, values, reports, index) {
      super(sentence, values);
      Object.assign(this, { reports, index });
    }
  }

  const floorDiv = (a, b) => (a < 0n && a % b !== 0n ? a / b - 1n : a / b);
  const ceilDiv = (a, b) => -floorDiv(-a, b);
  const least = (...numbers) => numbers.reduce((a, b) => (b < a ? b : a));
  const most = (...numbers) => numbers.reduce((a, b) => (b > a ? b : a));
  const product = (numbers) => numbers.reduce((a, b) => a * b, 1n);

  /** Pixels from the first to the last that a dilated kernel touches. */
  const span = (kernel, dilation = 1n) => (kernel - 1n) * dilation + 1n;

  function resolvePadding(padding, n, kernel, stride, dilation) {
    if (padding === "valid") return [0n, 0n];
    if (padding !== "same") return [padding, padding];
    const total = most((ceilDiv(n, stride) - 1n) * stride + span(kernel, dilation) - n, 0n);
    return [total / 2n, total - total / 2n];
  }

  function outputSize(n, kernel, stride, [lo, hi], dilation, ceil) {
    const room = lo + n + hi - span(kernel, dilation);
    const out = ceil
      ? least(ceilDiv(room, stride) + 1n, ceilDiv(lo + n, stride))
      : floorDiv(room, stride) + 1n;
    if (out < 1n) {
      throw new UserError("window_does_not_fit", { span: span(kernel, dilation), lo, n, hi });
    }
    return out;
  }

  const checkPositive = (fields) => {
    for (const [name, value] of Object.entries(fields)) {
      const number = least(...[value].flat());
      if (number < 1n) throw new UserError("less_than_1", { name, number });
    }
  };
  const checkGroups = (groups, channels, side) => {
    if (channels % groups) throw new UserError("groups_do_not_divide", { groups, channels, side });
  };

  /** Slides a window over both axes of an image: r ← r + (k − 1) d j, j ← j s. */
  function slide(x, layer) {
    if (x.output.length !== 3) throw new UserError("window_over_vector");
    const found = [0, 1].map((axis) => {
      const [n, k, s, d] = [x.output[axis], layer.kernel[axis], layer.stride[axis], layer.dilation[axis]];
      const rule = typeof layer.padding === "string" ? layer.padding : layer.padding[axis];
      const pad = resolvePadding(rule, n, k, s, d);
      const out = outputSize(n, k, s, pad, d, layer.ceil);
      const end = (out - 1n) * s + span(k, d) - pad[0];
      const jump = x.jump[axis];
      const field = x.receptiveField[axis] + (k - 1n) * d * jump;
      return { out, pad, field, jump: jump * s, discarded: most(n - most(end, 0n), 0n) };
    });
    return {
      output: [...found.map((axis) => axis.out), x.output[2]],
      receptiveField: found.map((axis) => axis.field),
      jump: found.map((axis) => axis.jump),
      padding: found.map((axis) => axis.pad),
      discarded: found.map((axis) => axis.discarded),
    };
  }

  const report = (name, fields) => {
    const filled = {
      name,
      weights: 0n,
      biases: 0n,
      macs: 0n,
      receptiveField: null,
      jump: null,
      padding: null,
      discarded: null,
      ...fields,
    };
    return { ...filled, params: filled.weights + filled.biases, elements: product(filled.output) };
  };

  const KINDS = {
    conv: {
      number: "channels",
      options: ["kN", "sN", "pN", "dN", "gN", "same", "valid", "nobias"],
      check(layer) {
        const { channels, kernel, stride, dilation, groups } = layer;
        checkPositive({ channels, kernel, stride, dilation, groups });
        checkGroups(groups, channels, say("output"));
      },
      report(layer, x, name) {
        const slid = slide(x, layer);
        const [height, width, cIn] = slid.output;
        checkGroups(layer.groups, cIn, say("input"));
        const weights = product(layer.kernel) * (cIn / layer.groups) * layer.channels;
        return report(name, {
          ...slid,
          output: [height, width, layer.channels],
          weights,
          biases: layer.bias ? layer.channels : 0n,
          macs: height * width * weights,
        });
      },
    },
    pool: {
      number: "kernel",
      options: ["sN", "pN", "same", "valid", "ceil"],
      check({ kernel, stride, padding }) {
        checkPositive({ window: kernel, stride });
        if (typeof padding === "string") return;
        padding.forEach((p, axis) => {
          const most = kernel[axis] / 2n;
          if (p > most) throw new UserError("padding_too_large", { padding: p, window: kernel[axis] });
        });
      },
      report: (layer, x, name) => report(name, slide(x, layer)),
    },
    avgpool: null, // as pool, below
    flatten: {
      number: null,
      options: [],
      check() {},
      report: (layer, x, name) => report(name, { output: [product(x.output)] }),
    },
    dense: {
      number: "units",
      options: ["nobias"],
      check: ({ units }) => checkPositive({ units }),
      report(layer, x, name) {
        if (x.output.length !== 1) throw new UserError("dense_on_image");
        const weights = x.output[0] * layer.units;
        const biases = layer.bias ? layer.units : 0n;
        return report(name, { output: [layer.units], weights, biases, macs: weights });
      },
    },
  };
  KINDS.avgpool = KINDS.pool;

  const OPTIONS = {
    kN: ["kernel"],
    sN: ["stride"],
    pN: ["padding"],
    dN: ["dilation"],
    gN: ["groups"],
    same: ["padding", "same"],
    valid: ["padding", "valid"],
    ceil: ["ceil", true],
    nobias: ["bias", false],
  };
  const SINGLE = ["channels", "units", "groups"];
  const MOST_DIGITS = 6;

  const quote = (word) => `"${shorten(JSON.stringify(word).slice(1, -1).replaceAll('\\"', '"'))}"`;

  function integers(word) {
    const parts = word.split("x");
    if (parts.some((part) => part.length > MOST_DIGITS)) {
      throw new UserError("too_many_digits", { word: quote(word), most: MOST_DIGITS });
    }
    return parts.map(BigInt);
  }

  function optionValue(field, word) {
    const numbers = integers(word);
    if (!SINGLE.includes(field)) return numbers.length === 2 ? numbers : [numbers[0], numbers[0]];
    if (numbers.length === 2) throw new UserError("not_one_number", { field, word: quote(word) });
    return numbers[0];
  }

  function parseLayer(word) {
    const kind = Object.keys(KINDS).find((name) => word.startsWith(name));
    if (!kind) {
      const kinds = Object.keys(KINDS).join(", ");
      throw new UserError("unknown_layer", { word: quote(word), kinds });
    }
    const { number, options, check } = KINDS[kind];
    let rest = word.slice(kind.length);
    const fields = {};
    const spelt = {};
    if (number) {
      const match = /^[0-9]+(?:x[0-9]+)?/.exec(rest);
      if (!match) throw new UserError("number_is_missing", { kind });
      fields[number] = optionValue(number, match[0]);
      rest = rest.slice(match[0].length);
    }
    while (rest) {
      const match = /^(?:same|valid|ceil|nobias|[kspdg][0-9]+(?:x[0-9]+)?)/.exec(rest);
      const part = match ? match[0] : rest;
      const option = part.replace(/[0-9]+(?:x[0-9]+)?/g, "N");
      if (!match || !options.includes(option)) {
        const unread = quote(part);
        if (!options.length) throw new UserError("no_options", { word: unread, kind });
        throw new UserError("unknown_option", { word: unread, options: options.join(", ") });
      }
      const [field, value] = OPTIONS[option];
      if (field in spelt) {
        throw new UserError("given_twice", { field, first: quote(spelt[field]), second: quote(part) });
      }
      spelt[field] = part;
      fields[field] = value ?? optionValue(field, part.slice(1));
      rest = rest.slice(part.length);
    }
    if (kind === "conv" && !fields.kernel) {
      throw new UserError("kernel_is_missing", { word });
    }
    const stride = kind === "conv" ? [1n, 1n] : fields.kernel; // windows of a pool do not overlap by default
    const layer = {
      word,
      kind,
      stride,
      padding: "valid",
      dilation: [1n, 1n],
      groups: 1n,
      bias: true,
      ceil: false,
      ...fields,
    };
    check(layer);
    return layer;
  }

  /** Reads a network in the layer language (see hw.ops.layer_language). */
  function parseLayers(spec) {
    const layers = wordsOf(spec).map((word, index) => {
      try {
        return parseLayer(word);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        const { message } = error;
        throw new UserError("layer_is_wrong", { number: index + 1, word: quote(word), message });
      }
    });
    if (!layers.length) throw new UserError("no_layers");
    return layers;
  }

  /** Reads an image's height x width x channels. */
  function parseInput(word) {
    if (!/^[0-9]+x[0-9]+x[0-9]+$/.test(word)) {
      throw new UserError("not_an_input", { word: quote(word) });
    }
    const [height, width, channels] = integers(word);
    checkPositive({ height, width, channels });
    return [height, width, channels];
  }

  /** A report for each layer: name, output, weights, biases, params, macs, elements, receptiveField, jump,
   * padding, discarded, as in hw.ops.conv_arithmetic.LayerReport. Throws LayerError at the first that
   * does not fit. */
  function traceCnn(image, layers) {
    let x = report("input", { output: image, receptiveField: [1n, 1n], jump: [1n, 1n] });
    const reports = [];
    layers.forEach((layer, index) => {
      try {
        x = KINDS[layer.kind].report(layer, x, layer.word);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        const [number, word, shape] = [index + 1, quote(layer.word), x.output.join("x")];
        const { message } = error;
        throw new LayerError("layer_does_not_fit", { number, word, shape, message }, reports, index);
      }
      reports.push(x);
    });
    return reports;
  }

  Object.assign(hw, { LayerError, span, parseInput, parseLayers, traceCnn });
})();
