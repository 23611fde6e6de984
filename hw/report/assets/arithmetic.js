/* The page's arithmetic: what hw.answers and hw.ops compute, for numbers that a reader types.
 *
 * Pure functions, no document. A test compares them with Python's (tests/report/test_play.py).
 * Numbers as typed are exact fractions {n, d} of BigInt; matrices of numbers are arrays of rows;
 * the CNN counts in BigInt, since products of sizes outgrow 2^53. Sums of products keep their
 * rounding errors (`dot`): a softmax raises the error of a score to the power of e.
 */
globalThis.hw = (() => {
  "use strict";

  /** A mistake the reader can mend: one line. */
  class UserError extends Error {}

  /** A layer does not fit: `reports` holds the layers before it, `index` counts from 0. */
  class LayerError extends UserError {
    constructor(message, reports, index, word) {
      super(message);
      Object.assign(this, { reports, index, word });
    }
  }

  // Exact fractions.

  const abs = (n) => (n < 0n ? -n : n);

  function fraction(n, d = 1n) {
    let [a, b] = [abs(n), d];
    while (b) [a, b] = [b, a % b];
    return { n: n / (a || 1n), d: d / (a || 1n) };
  }

  const isFraction = (x) => typeof x === "object" && typeof x.n === "bigint";
  const isZero = (x) => x.n === 0n;
  const plus = (x, y) => fraction(x.n * y.d + y.n * x.d, x.d * y.d);
  const timesOf = (x, y) => fraction(x.n * y.n, x.d * y.d);

  /** The nearest float64. */
  function toNumber({ n, d }) {
    const bits = (x) => abs(x).toString(2).length;
    // A quotient of 65 bits or more whose last bit says whether anything was left: Number() rounds it right.
    const shift = bits(d) - bits(n) + 66;
    const [top, bottom] = shift >= 0 ? [n << BigInt(shift), d] : [n, d << BigInt(-shift)];
    const odd = top % bottom === 0n ? 0n : 1n;
    const scaled = Number(abs(top / bottom) | odd);
    const half = Math.trunc(shift / 2); // in two steps, for 2^-shift alone may be too small
    return (n < 0n ? -1 : 1) * (scaled * 2 ** -half * 2 ** -(shift - half));
  }

  // Reading: the grammar and the limits of hw.answers.notation.

  const NUMBER = new RegExp(
    "^([+-]?)(?:(\\d{1,40})/(\\d{1,40})|(?:(\\d{1,40})(?:\\.(\\d{0,40})|(\\d{0,40}))|\\.(\\d{1,40}))" +
      "(?:e([+-]?\\d{1,3}))?)$",
    "i",
  );
  const MOST_EXPONENT = 300;
  const MOST_ENTRIES = 4096;
  const MOST_SCORES = 100_000;

  const shorten = (text) => (text.length <= 40 ? text : text.slice(0, 37) + "...");
  const wordsOf = (text) => text.trim().split(/\s+/).filter(Boolean);

  /** What NUMBER has matched. */
  function exactly([
    ,
    sign,
    top,
    bottom,
    whole = "",
    decimals = "",
    more = "",
    bare = decimals,
    exponent = "0",
  ]) {
    const one = sign === "-" ? -1n : 1n;
    if (bottom !== undefined) return fraction(one * BigInt(top), BigInt(bottom));
    const integer = one * BigInt(whole + more + bare);
    const power = Number(exponent) - bare.length;
    return power < 0 ? fraction(integer, 10n ** BigInt(-power)) : fraction(integer * 10n ** BigInt(power));
  }

  /** An integer, a decimal or a fraction such as 1/3, exactly. */
  function parseNumber(text, where) {
    const word = text.trim();
    const match = NUMBER.exec(word);
    const shown = `'${shorten(word)}'`;
    if (!match) throw new UserError(`${where}: ${shown} is no number (3, -0.5, 2e-3, 1/3)`);
    const [bottom, exponent = "0"] = [match[3], match[8]];
    if (Math.abs(Number(exponent)) > MOST_EXPONENT) {
      throw new UserError(`${where}: ${shown} is too large or too small for a float64`);
    }
    if (bottom !== undefined && BigInt(bottom) === 0n) {
      throw new UserError(`${where}: ${shown} divides by zero`);
    }
    return exactly(match);
  }

  /** A matrix of fractions: `;` ends a row, entries are separated by blanks or commas. */
  function parseMatrix(text, name) {
    const rows = [];
    text
      .trim()
      .replace(/;+$/, "")
      .split(";")
      .forEach((piece, i) => {
        const parts = piece.split(",").map(wordsOf);
        if (parts.length > 1 && parts.some((part) => part.length > 1)) {
          throw new UserError(
            `${name}: '${piece.trim()}' mixes commas and blanks: one of them, please; decimals have a point`,
          );
        }
        const words = parts.flat();
        if (!words.length) {
          throw new UserError(`${name}: row ${i + 1} is empty (rows end with ';', as in "1 2; 3 4")`);
        }
        rows.push(words.map((w, j) => parseNumber(w, `${name}, row ${i + 1}, entry ${j + 1}`)));
        if (words.length !== rows[0].length) {
          throw new UserError(
            `${name}: row ${i + 1} has ${words.length} entries, row 1 has ${rows[0].length}`,
          );
        }
      });
    if (rows.length * rows[0].length > MOST_ENTRIES) {
      const count = rows.length * rows[0].length;
      throw new UserError(`${name}: ${count} entries are more than ${MOST_ENTRIES}`);
    }
    return rows;
  }

  /** A matrix of fractions as float64. */
  function toNumbers(matrix, name) {
    const numbers = matrix.map((row) => row.map(toNumber));
    if (!numbers.flat().every(Number.isFinite)) {
      throw new UserError(`${name}: a number is too large for a float64`);
    }
    return numbers;
  }

  // Writing: the significant digits of hw.answers.notation.

  /** C's %.{digits}g. */
  function general(x, digits) {
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x > 0 ? "inf" : "-inf";
    if (x === 0) return Object.is(x, -0) ? "-0" : "0";
    let [mantissa, power] = Math.abs(x)
      .toExponential(digits - 1)
      .split("e");
    // Exactly between two, C takes the even one, toExponential the larger.
    const [exact] = Math.abs(x).toExponential(60).split("e");
    const kept = exact.replace(".", "").slice(0, digits);
    if (/^50*$/.test(exact.replace(".", "").slice(digits)) && Number(kept.at(-1)) % 2 === 0) {
      mantissa = kept[0] + "." + kept.slice(1);
      power = Math.abs(x).toExponential(60).split("e")[1];
    }
    const sign = x < 0 ? "-" : "";
    const figures = mantissa.replace(".", "").replace(/0+$/, "");
    const at = Number(power);
    if (at < -4 || at >= digits) {
      const size = String(Math.abs(at)).padStart(2, "0");
      const point = figures.length > 1 ? "." + figures.slice(1) : "";
      return `${sign}${figures[0]}${point}e${at < 0 ? "-" : "+"}${size}`;
    }
    if (at < 0) return `${sign}0.${"0".repeat(-at - 1)}${figures}`;
    const whole = figures.slice(0, at + 1).padEnd(at + 1, "0");
    return sign + whole + (figures.length > at + 1 ? "." + figures.slice(at + 1) : "");
  }

  /** A number in plain text: exact if it is short, else so many significant digits; never rounded to
   * nothing (1.75e-07 stays so), nor to something rounder than it is (0.9999998246 is not 1). */
  function text(value, digits = 6) {
    if (typeof value === "bigint") return value.toString();
    if (isFraction(value)) {
      if (value.d === 1n && abs(value.n) < 10n ** 15n) return value.n.toString();
      const decimal = general(toNumber(value), digits);
      const match = NUMBER.exec(decimal);
      const read = match && exactly(match);
      if (read && read.n === value.n && read.d === value.d) return decimal;
      const short = abs(value.n) < 10n ** 6n && value.d < 10n ** 6n;
      return short ? `${value.n}/${value.d}` : decimal;
    }
    if (!Number.isFinite(value)) return general(value, digits);
    if (Number.isInteger(value) && Math.abs(value) < 1e15) return String(value + 0);
    const plain = general(value, digits);
    const off = Math.abs(value - Number(plain)) / Math.abs(value);
    const kept = plain
      .split("e")[0]
      .replace(".", "")
      .replace(/^[-0]+/, "").length;
    return off > 1e-14 && kept <= digits - 3 ? general(value, 3 - Math.floor(Math.log10(off))) : plain;
  }

  const SUBSCRIPTS = {
    "-": "₋",
    ",": ",",
    ...Object.fromEntries([..."₀₁₂₃₄₅₆₇₈₉"].map((s, i) => [i, s])),
  };

  /** Indices as small figures: (3, 1) -> ₃₁; with a comma where one has two digits. */
  function subscript(...indices) {
    const joined = indices.join(indices.some((i) => i > 9) ? "," : "");
    return [...joined].map((c) => SUBSCRIPTS[c]).join("");
  }

  // Sums of products.

  function twoSum(a, b) {
    const sum = a + b;
    const part = sum - a;
    return [sum, a - (sum - part) + (b - part)];
  }

  function twoProduct(a, b) {
    const split = (x) => {
      const c = 134217729 * x; // 2^27 + 1: halves of 26 bits
      const high = c - (c - x);
      return [high, x - high];
    };
    const product = a * b;
    const [ah, al] = split(a);
    const [bh, bl] = split(b);
    return [product, ah * bh - product + ah * bl + al * bh + al * bl];
  }

  /** Σ a_i b_i as [nearest float64, what is left], as if computed in twice the digits.
   * Source: Ogita, Rump & Oishi 2005, "Accurate sum and dot product", algorithm 5.3. */
  function dot(a, b) {
    let [high, low, plain] = [0, 0, 0];
    for (let i = 0; i < a.length; i++) {
      const [product, lost] = twoProduct(a[i], b[i]);
      const [sum, left] = twoSum(high, product);
      high = sum;
      low += lost + left;
      plain += a[i] * b[i];
    }
    // Splitting a huge number overflows where the number itself does not.
    return Number.isFinite(high + low) ? twoSum(high, low) : [plain, 0];
  }

  const transpose = (m) => m[0].map((_, j) => m.map((row) => row[j]));
  /** Σ_j a_ij b_kj: rows with rows. */
  const rowsByRows = (a, b) => a.map((x) => b.map((y) => dot(x, y)[0]));
  const multiply = (a, b) => rowsByRows(a, transpose(b));

  /** ‖matrix‖₂, by turning its columns against each other until they are orthogonal.
   * Source: Hestenes 1958; Golub & Van Loan, "Matrix Computations", section 8.6.3. */
  function spectralNorm(matrix) {
    const largest = Math.max(...matrix.flat().map(Math.abs));
    if (largest === 0 || !Number.isFinite(largest)) return largest;
    const columns = transpose(matrix).map((column) => column.map((x) => x / largest));
    const inner = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
    for (let sweep = 0, turned = true; turned && sweep < 60; sweep++) {
      turned = false;
      for (let p = 0; p < columns.length; p++) {
        for (let q = p + 1; q < columns.length; q++) {
          const [a, b] = [columns[p], columns[q]];
          const [aa, bb, ab] = [inner(a, a), inner(b, b), inner(a, b)];
          if (Math.abs(ab) <= 1e-16 * Math.sqrt(aa * bb)) continue;
          turned = true;
          const zeta = (bb - aa) / (2 * ab);
          const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
          const c = 1 / Math.hypot(1, t);
          columns[p] = a.map((x, i) => c * (x - t * b[i]));
          columns[q] = a.map((x, i) => c * (t * x + b[i]));
        }
      }
    }
    return largest * Math.max(...columns.map((column) => Math.sqrt(inner(column, column))));
  }

  // Attention: hw.ops.attention.

  /** Throws where Q [n_q, d_k], K [n_k, d_k], V [n_k, d_v] do not fit, naming the sizes that differ. */
  function checkAttention(q, k, v, mask = "none", dout = null) {
    if (q[0].length !== k[0].length) {
      throw new UserError(`Q has ${q[0].length} columns, K has ${k[0].length}: both must be d_k`);
    }
    if (k.length !== v.length) {
      throw new UserError(`K has ${k.length} rows, V has ${v.length}: one value belongs to each key`);
    }
    if (mask === "causal" && q.length > k.length) {
      throw new UserError(
        `causal mask: query 1 of ${q.length} sees none of ${k.length} keys (aligned at the end)`,
      );
    }
    for (const [what, columns] of [
      ["scores", k.length],
      ["outputs", v[0].length],
    ]) {
      if (q.length * columns > MOST_SCORES) {
        throw new UserError(
          `${q.length} × ${columns} ${what} are more than 100,000; give smaller matrices`,
        );
      }
    }
    if (dout && (dout.length !== q.length || dout[0].length !== v[0].length)) {
      throw new UserError(
        `dout is ${dout.length} × ${dout[0].length}, the output ${q.length} × ${v[0].length}: ` +
          "they must be alike",
      );
    }
  }

  const finite = (what, matrix) => {
    if (!matrix.flat().every(Number.isFinite)) throw new UserError(`${what} are too large for a float64`);
    return matrix;
  };

  /** softmax(scale · Q Kᵀ) V and every step on the way.
   *
   * mask: "none", or "causal", by which query i sees keys 0 … i + n_k − n_q.
   * Returns scores, scaled, visible (how many keys each query sees), largest (of a row's visible scaled
   * scores), exponentials (of the differences from it), totals, weights, output.
   */
  function attention(q, k, v, { mask = "none", scaled = true } = {}) {
    checkAttention(q, k, v, mask);
    const root = scaled ? Math.sqrt(q[0].length) : 1;
    const pairs = q.map((x) => k.map((y) => dot(x, y)));
    const scores = finite(
      "scores",
      pairs.map((row) => row.map(([high]) => high)),
    );
    const z = scores.map((row) => row.map((s) => s / root));
    const visible = q.map((_, i) => (mask === "causal" ? i + k.length - q.length + 1 : k.length));
    const top = z.map((row, i) => row.slice(0, visible[i]).reduce((b, x, j) => (x > row[b] ? j : b), 0));
    const exponentials = pairs.map((row, i) =>
      row.map(([high, low], j) =>
        j < visible[i] ? Math.exp((high - row[top[i]][0] + (low - row[top[i]][1])) / root) : 0,
      ),
    );
    const totals = exponentials.map((row) => row.reduce((sum, x) => sum + x, 0));
    const weights = exponentials.map((row, i) => row.map((x) => x / totals[i]));
    const output = finite("outputs", multiply(weights, v));
    const largest = z.map((row, i) => row[top[i]]);
    return { scores, scaled: z, visible, largest, exponentials, totals, weights, output };
  }

  /** The gradients of L from dout = ∂L/∂output, with the forward pass's weights.
   *
   * dz_i = a_i (δ_i − Σ_j a_j δ_j), δ = da − da at the row's largest weight: a saturated row keeps its
   * digits (hw.ops.attention.softmax_backward takes another constant away, to the same end). */
  function attentionBackward(q, k, v, weights, dout, { scaled = true } = {}) {
    checkAttention(q, k, v, "none", dout);
    const root = scaled ? Math.sqrt(q[0].length) : 1;
    const pairs = dout.map((x) => v.map((y) => dot(x, y)));
    const dz = weights.map((a, i) => {
      const [high, low] = pairs[i][a.indexOf(Math.max(...a))];
      const delta = pairs[i].map(([h, l]) => h - high + (l - low));
      const [mean] = dot(a, delta);
      return a.map((x, j) => x * (delta[j] - mean));
    });
    const divided = (m) => m.map((row) => row.map((x) => x / root));
    return {
      dv: finite("gradients", multiply(transpose(weights), dout)),
      da: finite(
        "gradients",
        pairs.map((row) => row.map(([h]) => h)),
      ),
      dz: finite("gradients", dz),
      dq: finite("gradients", divided(multiply(dz, k))),
      dk: finite("gradients", divided(multiply(transpose(dz), q))),
    };
  }

  /** What the size of a query and a key does to the softmax, from the first dK components of drawn ones.
   *
   * Returns for scaled and unscaled scores: their variance, and means over the queries of the weights'
   * entropy in nats, the largest weight and the Frobenius norm of diag(a) − a aᵀ. */
  function saturation(q, k, dK) {
    const [first, second] = [q, k].map((m) => m.map((row) => row.slice(0, dK)));
    const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;
    const measure = (scaled) => {
      const found = attention(first, second, second, { scaled });
      const rows = found.weights.map((a, i) => {
        const best = a.indexOf(Math.max(...a));
        const others = a.map((_, j) => a.reduce((sum, x, m) => (m === j ? sum : sum + x), 0)); // 1 − a_j
        const rest = found.exponentials[i].reduce((sum, x, j) => (j === best ? sum : sum + x), 0);
        // Sums of positive terms alone: of a saturated row nothing cancels.
        const entropy = a.reduce((sum, x, j) => sum + x * (found.largest[i] - found.scaled[i][j]), 0);
        const squares = a.reduce(
          (sum, x, j) => a.reduce((s, y, m) => s + (x * (m === j ? others[j] : y)) ** 2, sum),
          0,
        );
        return {
          entropy: Math.log1p(rest) + entropy,
          largest: a[best],
          jacobian: Math.sqrt(squares),
        };
      });
      const scores = found.scaled.flat();
      const middle = mean(scores);
      return {
        variance: mean(scores.map((x) => (x - middle) ** 2)),
        entropy: mean(rows.map((row) => row.entropy)),
        largest: mean(rows.map((row) => row.largest)),
        jacobian: mean(rows.map((row) => row.jacobian)),
      };
    };
    return { scaled: measure(true), unscaled: measure(false) };
  }

  // The recurrent network: hw.answers.unrolled_rnn, hw.ops.rnn.

  /** The unrolled graph: nodes by kind and time, edges with the weight that they carry. */
  function unrolledGraph(steps) {
    const nodes = [{ id: "h0", kind: "h", time: 0, label: "h₀ = 0" }];
    const edges = [];
    for (let t = 1; t <= steps; t++) {
      for (const kind of "xhy") nodes.push({ id: kind + t, kind, time: t, label: kind + subscript(t) });
      edges.push(
        { from: `x${t}`, to: `h${t}`, weight: "W_xh" },
        { from: `h${t - 1}`, to: `h${t}`, weight: "W_hh" },
        { from: `h${t}`, to: `y${t}`, weight: "W_hy" },
      );
    }
    return { nodes, edges };
  }

  /** h_T as one expression of x_1 … x_T. */
  function nested(steps) {
    let plain = "";
    for (let t = 1; t <= steps; t++) {
      plain = `tanh(W_xh x${subscript(t)}${plain && ` + W_hh ${plain}`} + b_h)`;
    }
    return `h${subscript(steps)} = ${plain}`;
  }

  /** ‖∂h_T/∂h_t‖₂ for t = 0 … T of h_t = f(drive_t + W h_{t−1}), h_0 = 0, W = radius · whh.
   *
   * kind: "tanh", or "linear", by which f is nothing. Returns norms; bounds, Π max f'(a_r) · σ_max^(T−t);
   * sigma, σ_max of W. */
  function jacobianNorms({ whh, radius, drive, kind, steps }) {
    const w = whh.map((row) => row.map((x) => radius * x));
    const sigma = spectralNorm(w);
    let h = whh.map(() => 0);
    const slopes = [];
    for (let t = 0; t < steps; t++) {
      const a = w.map((row, n) => drive[t][n] + dot(row, h)[0]);
      h = kind === "linear" ? a : a.map(Math.tanh);
      // tanh' = 1/cosh², for 1 − h² of a saturated unit has few digits left.
      slopes.push(a.map((x) => (kind === "linear" ? 1 : Math.cosh(x) ** -2)));
    }
    let product = whh.map((_, i) => whh.map((_, j) => (i === j ? 1 : 0)));
    const norms = [1];
    const bounds = [1];
    for (let t = steps; t >= 1; t--) {
      product = multiply(
        product,
        w.map((row, n) => row.map((x) => slopes[t - 1][n] * x)),
      );
      norms.unshift(spectralNorm(product));
      bounds.unshift(bounds[0] * Math.max(...slopes[t - 1]) * sigma);
    }
    return { norms, bounds, sigma };
  }

  // A CNN: hw.ops.conv_arithmetic, letter for letter.

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
      throw new UserError(
        `a window spanning ${span(kernel, dilation)} pixels does not fit ` +
          `in ${lo} + ${n} + ${hi} (padding + input + padding)`,
      );
    }
    return out;
  }

  const checkPositive = (fields) => {
    for (const [name, value] of Object.entries(fields)) {
      const smallest = least(...[value].flat());
      if (smallest < 1n) throw new UserError(`${name} must be at least 1, not ${smallest}`);
    }
  };
  const checkGroups = (groups, channels, side) => {
    if (channels % groups)
      throw new UserError(`${groups} groups do not divide ${channels} ${side} channels`);
  };

  /** Slides a window over both axes of a picture: r ← r + (k − 1) d j, j ← j s. */
  function slide(x, layer) {
    if (x.output.length !== 3) {
      throw new UserError("a window slides over a picture, not a vector; put it before flatten");
    }
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
        checkGroups(groups, channels, "output");
      },
      report(layer, x, name) {
        const slid = slide(x, layer);
        const [height, width, cIn] = slid.output;
        checkGroups(layer.groups, cIn, "input");
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
          if (p > kernel[axis] / 2n) {
            throw new UserError(`padding ${p} is more than half of the window ${kernel[axis]}`);
          }
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
        if (x.output.length !== 1) throw new UserError("dense takes a vector; put flatten before it");
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
  const place = (index, word) => `layer ${index + 1} ${quote(word)}`;

  function integers(word) {
    const parts = word.split("x");
    if (parts.some((part) => part.length > MOST_DIGITS)) {
      throw new UserError(`${quote(word)} is too large; a number has at most ${MOST_DIGITS} digits`);
    }
    return parts.map(BigInt);
  }

  function optionValue(field, word) {
    const numbers = integers(word);
    if (!SINGLE.includes(field)) return numbers.length === 2 ? numbers : [numbers[0], numbers[0]];
    if (numbers.length === 2) throw new UserError(`${field} is one number, not ${quote(word)}`);
    return numbers[0];
  }

  function parseLayer(word) {
    const kind = Object.keys(KINDS).find((name) => word.startsWith(name));
    if (!kind)
      throw new UserError(`cannot read ${quote(word)}; layers are ${Object.keys(KINDS).join(", ")}`);
    const { number, options, check } = KINDS[kind];
    let rest = word.slice(kind.length);
    const fields = {};
    const spelt = {};
    if (number) {
      const match = /^[0-9]+(?:x[0-9]+)?/.exec(rest);
      if (!match) throw new UserError(`"${kind}" needs a number right after it, as in "${kind}2"`);
      fields[number] = optionValue(number, match[0]);
      rest = rest.slice(match[0].length);
    }
    while (rest) {
      const match = /^(?:same|valid|ceil|nobias|[kspdg][0-9]+(?:x[0-9]+)?)/.exec(rest);
      const part = match ? match[0] : rest;
      const option = part.replace(/[0-9]+(?:x[0-9]+)?/g, "N");
      if (!match || !options.includes(option)) {
        const known = options.length ? `options are ${options.join(", ")}` : `${kind} has no options`;
        throw new UserError(`cannot read ${quote(part)}; ${known}`);
      }
      const [field, value] = OPTIONS[option];
      if (field in spelt) {
        throw new UserError(`${field} is given twice, as ${quote(spelt[field])} and ${quote(part)}`);
      }
      spelt[field] = part;
      fields[field] = value ?? optionValue(field, part.slice(1));
      rest = rest.slice(part.length);
    }
    if (kind === "conv" && !fields.kernel) {
      throw new UserError(`a convolution needs the size of its kernel, as in "${word}k3"`);
    }
    const stride = kind === "conv" ? [1n, 1n] : fields.kernel; // without a stride, windows of a pool tile
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

  /** Reads a network in the layer language (see hw.ops.conv_arithmetic). */
  function parseLayers(spec) {
    const layers = wordsOf(spec).map((word, index) => {
      try {
        return parseLayer(word);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        throw new UserError(`${place(index, word)}: ${error.message}`);
      }
    });
    if (!layers.length) {
      throw new UserError('no layers; write them as in "conv16k5same pool2 flatten dense100"');
    }
    return layers;
  }

  /** Reads a picture's height x width x channels. */
  function parseInput(word) {
    if (!/^[0-9]+x[0-9]+x[0-9]+$/.test(word)) {
      throw new UserError(`input ${quote(word)} is not height x width x channels, as in 128x128x3`);
    }
    const [height, width, channels] = integers(word);
    checkPositive({ height, width, channels });
    return [height, width, channels];
  }

  /** A report for each layer: name, output, weights, biases, params, macs, elements, receptiveField, jump,
   * padding, discarded, as in hw.ops.conv_arithmetic.LayerReport. Throws LayerError at the first that
   * does not fit. */
  function traceCnn(picture, layers) {
    let x = report("input", { output: picture, receptiveField: [1n, 1n], jump: [1n, 1n] });
    const reports = [];
    layers.forEach((layer, index) => {
      try {
        x = KINDS[layer.kind].report(layer, x, layer.word);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        const where = `${place(index, layer.word)} on ${x.output.join("x")}`;
        throw new LayerError(`${where}: ${error.message}`, reports, index, layer.word);
      }
      reports.push(x);
    });
    return reports;
  }

  return Object.freeze({
    UserError,
    LayerError,
    isZero,
    plus,
    timesOf,
    toNumber,
    toNumbers,
    parseNumber,
    parseMatrix,
    text,
    subscript,
    spectralNorm,
    checkAttention,
    attention,
    attentionBackward,
    saturation,
    unrolledGraph,
    nested,
    jacobianNorms,
    span,
    parseInput,
    parseLayers,
    traceCnn,
  });
})();
