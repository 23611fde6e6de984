/* Computes what hw.answers and hw.ops compute, for numbers that a reader types.
 *
 * All functions are pure and use no document. tests/report/test_play.py compares them with Python's.
 * A typed number is an exact fraction {n, d} of BigInt; a matrix of numbers is an array of rows.
 * `dot` keeps the rounding errors of its products, because a softmax turns the absolute error of a score
 * into a relative error of its weight.
 */
(() => {
  "use strict";

  const { say, UserError } = hw;

  // Exact fractions.

  const abs = (n) => (n < 0n ? -n : n);

  function fraction(n, d = 1n) {
    let [a, b] = [abs(n), d];
    while (b) [a, b] = [b, a % b];
    return { n: n / (a || 1n), d: d / (a || 1n) };
  }

  const isFraction = (x) => typeof x === "object" && typeof x.n === "bigint";
  const plus = (x, y) => fraction(x.n * y.d + y.n * x.d, x.d * y.d);
  const timesOf = (x, y) => fraction(x.n * y.n, x.d * y.d);

  /** The nearest float64. */
  function toNumber({ n, d }) {
    const bits = (x) => abs(x).toString(2).length;
    // The quotient has 65 bits or more; its last bit says if there is a remainder. So Number() rounds it right.
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

  /** Parses a match of NUMBER. */
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
    const match = NUMBER.exec(text.trim());
    const word = shorten(text.trim());
    if (!match) throw new UserError("no_number", { where, word });
    const [bottom, exponent = "0"] = [match[3], match[8]];
    if (Math.abs(Number(exponent)) > MOST_EXPONENT) {
      throw new UserError("beyond_float64", { where, word });
    }
    if (bottom !== undefined && BigInt(bottom) === 0n) {
      throw new UserError("divides_by_zero", { where, word });
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
          throw new UserError("mixed_separators", { name, row: piece.trim() });
        }
        const words = parts.flat();
        const row = i + 1;
        if (!words.length) throw new UserError("empty_row", { name, row });
        rows.push(words.map((w, j) => parseNumber(w, say("entry", { name, row, entry: j + 1 }))));
        const [entries, first] = [words.length, rows[0].length];
        if (entries !== first) throw new UserError("ragged_rows", { name, row, entries, first });
      });
    const count = rows.length * rows[0].length;
    if (count > MOST_ENTRIES) throw new UserError("too_many_entries", { name, count, most: MOST_ENTRIES });
    return rows;
  }

  /** A matrix of fractions as float64. */
  function toNumbers(matrix, name) {
    const numbers = matrix.map((row) => row.map(toNumber));
    if (!numbers.flat().every(Number.isFinite)) {
      throw new UserError("number_too_large", { name });
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

  /** Formats a number as plain text: exact if it is short, else in so many significant digits. It never
   * rounds to zero (1.75e-07 stays) nor to a rounder number (0.9999998246 is not 1). */
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

  /** Returns Σ a_i b_i as [nearest float64, remainder], as if computed in twice the digits.
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

  /** Returns ‖matrix‖₂: rotates pairs of columns until all are orthogonal.
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
      throw new UserError("d_k_differs", { q: q[0].length, k: k[0].length });
    }
    if (k.length !== v.length) {
      throw new UserError("n_k_differs", { k: k.length, v: v.length });
    }
    if (mask === "causal" && q.length > k.length) {
      throw new UserError("query_sees_nothing", { queries: q.length, keys: k.length });
    }
    for (const [what, columns] of [
      [say("scores"), k.length],
      [say("outputs"), v[0].length],
    ]) {
      if (q.length * columns > MOST_SCORES) {
        const most = MOST_SCORES.toLocaleString("en");
        throw new UserError("too_many_scores", { rows: q.length, columns, what, most });
      }
    }
    if (dout && (dout.length !== q.length || dout[0].length !== v[0].length)) {
      const [rows, columns, n_q, d_v] = [dout.length, dout[0].length, q.length, v[0].length];
      throw new UserError("dout_differs", { rows, columns, n_q, d_v });
    }
  }

  const finite = (what, matrix) => {
    if (!matrix.flat().every(Number.isFinite)) throw new UserError("results_too_large", { what });
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
      say("scores"),
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
    const output = finite(say("outputs"), multiply(weights, v));
    const largest = z.map((row, i) => row[top[i]]);
    return { scores, scaled: z, visible, largest, exponentials, totals, weights, output };
  }

  /** The gradients of L from dout = ∂L/∂output, with the forward pass's weights.
   *
   * dz_i = a_i (δ_i − Σ_j a_j δ_j), δ = da − da at the row's largest weight: a saturated row keeps its
   * digits. (hw.ops.attention.softmax_backward subtracts another constant for the same reason.) */
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
      dv: finite(say("gradients"), multiply(transpose(weights), dout)),
      da: finite(
        say("gradients"),
        pairs.map((row) => row.map(([h]) => h)),
      ),
      dz: finite(say("gradients"), dz),
      dq: finite(say("gradients"), divided(multiply(dz, k))),
      dk: finite(say("gradients"), divided(multiply(transpose(dz), q))),
    };
  }

  /** Measures the softmax of random queries and keys that keep their first dK components.
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
        // All terms of these sums are positive, so nothing cancels in a saturated row.
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
    let inner = "";
    for (let t = 1; t <= steps; t++) {
      inner = `tanh(W_xh x${subscript(t)}${inner} + b_h)`;
      if (t < steps) inner = ` + W_hh ${inner}`;
    }
    return `h${subscript(steps)} = ${inner}`;
  }

  /** ‖∂h_T/∂h_t‖₂ for t = 0 … T of h_t = f(drive_t + W h_{t−1}), h_0 = 0, W = radius · whh.
   *
   * kind: "tanh", or "linear", where f(a) = a. Returns norms; bounds, Π max f'(a_r) · σ_max^(T−t);
   * sigma, σ_max of W. */
  function jacobianNorms({ whh, radius, drive, kind, steps }) {
    const w = whh.map((row) => row.map((x) => radius * x));
    const sigma = spectralNorm(w);
    let h = whh.map(() => 0);
    const slopes = [];
    for (let t = 0; t < steps; t++) {
      const a = w.map((row, n) => drive[t][n] + dot(row, h)[0]);
      h = kind === "linear" ? a : a.map(Math.tanh);
      // We compute tanh' as 1/cosh², because 1 − h² of a saturated unit keeps few digits.
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

  Object.assign(hw, {
    shorten,
    wordsOf,
    plus,
    timesOf,
    toNumber,
    toNumbers,
    parseNumber,
    parseMatrix,
    text,
    subscript,
    checkAttention,
    attention,
    attentionBackward,
    saturation,
    unrolledGraph,
    nested,
    jacobianNorms,
  });
})();
