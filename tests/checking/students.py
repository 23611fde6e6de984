"""Simulates students: one who is right, and one for each misconception. They share no code with the checker.

A student sees a sheet's numbers, as `hw.check --variant=SEED --json` prints them, and answers with a number
or lists of numbers. The answer is None if the mistake is impossible with these sizes.
"""

import math


def mul(a, b):
    """Multiplies rows of a with columns of b; None if the sizes do not fit."""
    if len(a[0]) != len(b):
        return None
    out = []
    for i in range(len(a)):
        out.append([])
        for j in range(len(b[0])):
            total = 0.0
            for k in range(len(b)):
                total += a[i][k] * b[k][j]
            out[i].append(total)
    return out


def flip(a):
    return [[a[i][j] for i in range(len(a))] for j in range(len(a[0]))]


def each(f, *matrices):
    return [[f(*entries) for entries in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def times(a, number):
    return None if a is None else each(lambda x: x * number, a)


def softmax(row):
    powers = [math.e**x for x in row]
    return [p / sum(powers) for p in powers]


def apply(matrix, vector):
    return [row[0] for row in mul(matrix, [[x] for x in vector])]


def cell(n, x, h):
    return [math.tanh(v) for v in before_tanh(n, x, h)]


def before_tanh(n, x, h):
    from_x, from_h = apply(n["W_xh"], x), apply(n["W_hh"], h)
    return [from_x[i] + from_h[i] + n["b_h"][i] for i in range(len(h))]


class _Answers(dict):
    """Answers, of which some are given beforehand and cannot be changed."""

    def __init__(self, given, keep):
        super().__init__(given)
        self._given, self._keep = given, keep

    def __setitem__(self, field, answer):
        super().__setitem__(field, self._given.get(field, kept(answer, self._keep)))


def kept(answer, keep):
    """Returns an answer whose numbers are rounded by `keep`; whole numbers stay."""
    if isinstance(answer, list):
        return [kept(part, keep) for part in answer]
    return keep(answer) if isinstance(answer, float) and keep else answer


def right(numbers, given=None, keep=None):
    """Returns all answers of a student who makes no mistake.

    The student starts from the `given` answers, and rounds every result with `keep` before the next step.
    """
    r = _Answers(given or {}, keep)
    one = numbers["1"]
    h, w, c = one["input"]
    f, k, pool = one["conv1"]["filters"], one["conv1"]["kernel"][0], one["pool1"]["window"][0]
    r["1.conv1"] = [h, w, f]
    r["1.pool1"] = [h // pool, w // pool, f]
    k2, f2 = one["conv2"]["kernel"][0], one["conv2"]["filters"]
    rows = len([top for top in range(h // pool) if top + k2 <= h // pool])
    columns = len([left for left in range(w // pool) if left + k2 <= w // pool])
    r["1.conv2"] = [rows, columns, f2]
    pool2 = one["pool2"]["window"][0]
    r["1.pool2"] = [rows // pool2, columns // pool2, f2]
    r["1.flatten"] = r["1.pool2"][0] * r["1.pool2"][1] * f2
    r["1.conv1_params"] = sum(k * k * c + 1 for _ in range(f))

    n = numbers["3"]
    r["3.h1"] = cell(n, n["x"][0], [0.0, 0.0])
    r["3.h2"] = cell(n, n["x"][1], r["3.h1"])
    r["3.h3"] = cell(n, n["x"][2], r["3.h2"])
    r["4.dh2"] = go_back(n["W_hh"], r["3.h3"], numbers["4"]["dL/dh3"])
    r["4.dh1"] = go_back(n["W_hh"], r["3.h2"], r["4.dh2"])

    q, key, v = (numbers["6"][name] for name in "QKV")
    root = math.sqrt(len(q[0]))
    r["6.scores"] = mul(q, flip(key))
    r["6.scaled"] = times(r["6.scores"], 1 / root)
    r["6.weights"] = [softmax(row) for row in r["6.scaled"]]
    r["6.output"] = mul(r["6.weights"], v)
    r["6.shape"] = [len(r["6.output"]), len(r["6.output"][0])]

    s = numbers["7"]
    for name in "QKV":
        r[f"7.W_{name}"] = [s["d_model"], s["d_model"] // s["h"]]
    r["7.W_O"] = [s["h"] * s["d_v"], s["d_model"]]
    r["7.head"] = [s["n"], s["d_v"]]
    r["7.scores"] = [s["n"], s["n"]]
    r["7.params"] = 4 * s["d_model"] * s["d_model"]

    do = numbers["8"]["dO"]
    a = r["6.weights"]
    r["8.dV"] = mul(flip(a), do)
    r["8.dA"] = mul(do, flip(v))
    r["8.dZ"] = [jacobian_times(a[i], r["8.dA"][i]) for i in range(len(a))]
    r["8.dQ"] = times(mul(r["8.dZ"], key), 1 / root)
    r["8.dK"] = times(mul(flip(r["8.dZ"]), q), 1 / root)
    return r


def go_back(w, h, d):
    """Takes d back through tanh at h and W_hh: entry j sums w[i][j] over every i."""
    return [sum(w[i][j] * (1 - h[i] * h[i]) * d[i] for i in range(len(d))) for j in range(len(d))]


def jacobian_times(a, da):
    """Applies the sheet's ∂a_i/∂z_j = a_i (δ_ij − a_j) to da, term by term."""
    return [
        sum(da[i] * a[i] * ((1.0 if i == j else 0.0) - a[j]) for i in range(len(a))) for j in range(len(a))
    ]


# {(misconception, field): student}. A student takes the sheet's numbers and the right answers before it.
MISTAKES = {}


def mistake(misconception, *fields):
    def keep(student):
        for field in fields:
            MISTAKES[misconception, field] = student if len(fields) == 1 else _for(student, field)
        return student

    return keep


def _for(student, field):
    return lambda n, r: student(n, r, field)


# Question 1.

BEFORE = {"1.pool1": "1.conv1", "1.conv2": "1.pool1", "1.pool2": "1.conv2"}


@mistake("same_as_valid", "1.conv1")
def _(n, r):
    (h, w, _), k = n["1"]["input"], n["1"]["conv1"]["kernel"][0]
    return [h - k + 1, w - k + 1, n["1"]["conv1"]["filters"]]


@mistake("same_grows", "1.conv1")
def _(n, r):
    (h, w, _), pad = n["1"]["input"], n["1"]["conv1"]["kernel"][0] // 2
    return [h + 2 * pad, w + 2 * pad, n["1"]["conv1"]["filters"]]


@mistake("channels_kept", "1.conv1", "1.conv2")
def _(n, r, field):
    return [*r[field][:2], n["1"]["input"][2] if field == "1.conv1" else r["1.pool1"][2]]


@mistake("channels_multiplied", "1.conv1", "1.conv2")
def _(n, r, field):
    c = n["1"]["input"][2] if field == "1.conv1" else r["1.pool1"][2]
    return [*r[field][:2], c * r[field][2]]


@mistake("valid_as_same", "1.conv2")
def _(n, r):
    return [*r["1.pool1"][:2], n["1"]["conv2"]["filters"]]


@mistake("off_by_one", "1.conv2")
def _(n, r):
    k = n["1"]["conv2"]["kernel"][0]
    return [r["1.pool1"][0] - k, r["1.pool1"][1] - k, n["1"]["conv2"]["filters"]]


@mistake("one_side", "1.conv2")
def _(n, r):
    border = (n["1"]["conv2"]["kernel"][0] - 1) // 2
    return [r["1.pool1"][0] - border, r["1.pool1"][1] - border, n["1"]["conv2"]["filters"]]


@mistake("pool_stride_one", "1.pool1", "1.pool2")
def _(n, r, field):
    h, w, c = r[BEFORE[field]]
    return [h - 1, w - 1, c]


@mistake("pools_channels", "1.pool1", "1.pool2")
def _(n, r, field):
    return [size // 2 for size in r[BEFORE[field]]]


@mistake("pool_rounds_up", "1.pool1", "1.pool2")
def _(n, r, field):
    h, w, c = r[BEFORE[field]]
    return [math.ceil(h / 2), math.ceil(w / 2), c] if h % 2 or w % 2 else None


@mistake("pool_one_axis", "1.pool1", "1.pool2")
def _(n, r, field):
    h, w, c = r[BEFORE[field]]
    return [h // 2, w, c]


@mistake("pool_forgotten", "1.pool1", "1.pool2")
def _(n, r, field):
    return list(r[BEFORE[field]])


@mistake("channels_first", "1.conv1", "1.conv2")
def _(n, r, field):
    h, w, c = r[field]
    return [c, h, w]


@mistake("reversed", "1.conv1", "1.conv2")
def _(n, r, field):
    h, w, c = r[field]
    return [w, h, c] if h != w else None


@mistake("channels_forgotten", "1.flatten")
def _(n, r):
    return r["1.pool2"][0] * r["1.pool2"][1]


@mistake("sizes_added", "1.flatten")
def _(n, r):
    return sum(r["1.pool2"])


@mistake("pool_forgotten", "1.flatten")
def _(n, r):
    h, w, c = r["1.conv2"]
    return h * w * c


def _filter(n):
    return n["1"]["conv1"]["kernel"][0], n["1"]["input"][2], n["1"]["conv1"]["filters"]


@mistake("bias_forgotten", "1.conv1_params")
def _(n, r):
    k, c, f = _filter(n)
    return f * c * k**2


@mistake("input_channels_forgotten", "1.conv1_params")
def _(n, r):
    k, _, f = _filter(n)
    return f * (k**2 + 1)


@mistake("one_bias", "1.conv1_params")
def _(n, r):
    k, c, f = _filter(n)
    return f * c * k**2 + 1


@mistake("bias_per_slice", "1.conv1_params")
def _(n, r):
    k, c, f = _filter(n)
    return f * c * k**2 + f * c


@mistake("one_filter", "1.conv1_params")
def _(n, r):
    k, c, _ = _filter(n)
    return c * k**2 + 1


@mistake("kernel_not_squared", "1.conv1_params")
def _(n, r):
    k, c, f = _filter(n)
    return f * (c * k + 1)


@mistake("weights_not_shared", "1.conv1_params")
def _(n, r):
    k, c, f = _filter(n)
    h, w, _ = n["1"]["input"]
    return h * w * f * (c * k * k + 1)


# Questions 3 and 4.

STATES = ("3.h1", "3.h2", "3.h3")


def _inputs(n, r, field):
    t = STATES.index(field)
    return n["3"]["x"][t], r[STATES[t - 1]] if t else [0.0, 0.0]


@mistake("rnn_bias_forgotten", *STATES)
def _(n, r, field):
    return cell({**n["3"], "b_h": [0.0, 0.0]}, *_inputs(n, r, field))


@mistake("tanh_forgotten", *STATES)
def _(n, r, field):
    return before_tanh(n["3"], *_inputs(n, r, field))


@mistake("sigmoid_for_tanh", *STATES)
def _(n, r, field):
    return [1 / (1 + math.exp(-z)) for z in before_tanh(n["3"], *_inputs(n, r, field))]


@mistake("input_forgotten", *STATES)
def _(n, r, field):
    return cell(n["3"], [0.0], _inputs(n, r, field)[1])


@mistake("recurrence_forgotten", *STATES[1:])
def _(n, r, field):
    return cell(n["3"], _inputs(n, r, field)[0], [0.0, 0.0])


@mistake("w_transposed_forward", *STATES[1:])
def _(n, r, field):
    return cell({**n["3"], "W_hh": flip(n["3"]["W_hh"])}, *_inputs(n, r, field))


@mistake("step_skipped", "3.h3")
def _(n, r):
    return cell(n["3"], n["3"]["x"][2], r["3.h1"])


BACK = ("4.dh2", "4.dh1")


def _arrives(n, r, field):
    """Returns W_hh, the state that the gradient passes, the state before it, and the arriving gradient."""
    w = n["3"]["W_hh"]
    if field == "4.dh2":
        return w, r["3.h3"], r["3.h2"], n["4"]["dL/dh3"]
    return w, r["3.h2"], r["3.h1"], r["4.dh2"]


@mistake("w_not_transposed", *BACK)
def _(n, r, field):
    w, h, _, d = _arrives(n, r, field)
    return apply(w, [(1 - h[i] ** 2) * d[i] for i in range(2)])


@mistake("tanh_slope_forgotten", *BACK)
def _(n, r, field):
    w, _, _, d = _arrives(n, r, field)
    return apply(flip(w), d)


@mistake("slope_of_wrong_step", *BACK)
def _(n, r, field):
    w, _, h, d = _arrives(n, r, field)
    return go_back(w, h, d)


@mistake("slope_not_squared", *BACK)
def _(n, r, field):
    w, h, _, d = _arrives(n, r, field)
    return apply(flip(w), [(1 - h[i]) * d[i] for i in range(2)])


@mistake("slope_is_square", *BACK)
def _(n, r, field):
    w, h, _, d = _arrives(n, r, field)
    return apply(flip(w), [h[i] * h[i] * d[i] for i in range(2)])


@mistake("slope_after_w", *BACK)
def _(n, r, field):
    w, h, _, d = _arrives(n, r, field)
    gathered = apply(flip(w), d)
    return [(1 - h[i] ** 2) * gathered[i] for i in range(2)]


@mistake("w_forgotten", *BACK)
def _(n, r, field):
    _, h, _, d = _arrives(n, r, field)
    return [(1 - h[i] ** 2) * d[i] for i in range(2)]


@mistake("chain_cut", "4.dh1")
def _(n, r):
    return go_back(n["3"]["W_hh"], r["3.h2"], n["4"]["dL/dh3"])


# Question 6.


def _qkv(n):
    return n["6"]["Q"], n["6"]["K"], n["6"]["V"]


def _d_k(n):
    return len(n["6"]["Q"][0])


@mistake("q_times_k", "6.scores")
def _(n, r):
    q, k, _ = _qkv(n)
    return mul(q, k)


@mistake("transposed", "6.scores")
def _(n, r):
    q, k, _ = _qkv(n)
    return mul(k, flip(q))


@mistake("negated", "6.scores")
def _(n, r):
    return times(r["6.scores"], -1)


@mistake("scaled_already", "6.scores")
def _(n, r):
    return times(r["6.scores"], 1 / math.sqrt(_d_k(n)))


@mistake("unscaled", "6.scaled")
def _(n, r):
    return r["6.scores"]


@mistake("divided_by_d_k", "6.scaled")
def _(n, r):
    return times(r["6.scores"], 1 / _d_k(n))


@mistake("multiplied_by_root", "6.scaled")
def _(n, r):
    return times(r["6.scores"], math.sqrt(_d_k(n)))


@mistake("root_of_queries", "6.scaled")
def _(n, r):
    rows = len(n["6"]["Q"])
    return times(r["6.scores"], 1 / math.sqrt(rows)) if rows != _d_k(n) else None


@mistake("softmax_over_columns", "6.weights")
def _(n, r):
    return flip([softmax(row) for row in flip(r["6.scaled"])])


@mistake("unscaled", "6.weights")
def _(n, r):
    return [softmax(row) for row in r["6.scores"]]


@mistake("divided_by_d_k", "6.weights")
def _(n, r):
    return [softmax([x / _d_k(n) for x in row]) for row in r["6.scores"]]


@mistake("softmax_over_all", "6.weights")
def _(n, r):
    total = sum(math.exp(x) for row in r["6.scaled"] for x in row)
    return [[math.exp(x) / total for x in row] for row in r["6.scaled"]]


@mistake("no_exponential", "6.weights")
def _(n, r):
    if any(sum(row) == 0 for row in r["6.scores"]):
        return None
    return [[x / sum(row) for x in row] for row in r["6.scaled"]]


@mistake("not_normalised", "6.weights")
def _(n, r):
    return [[math.exp(x) for x in row] for row in r["6.scaled"]]


@mistake("powers_of_two", "6.weights")
def _(n, r):
    return [[2**x / sum(2**y for y in row) for x in row] for row in r["6.scaled"]]


@mistake("weights_transposed", "6.output")
def _(n, r):
    return mul(flip(r["6.weights"]), _qkv(n)[2])


@mistake("v_transposed", "6.output")
def _(n, r):
    return mul(r["6.weights"], flip(_qkv(n)[2]))


@mistake("softmax_left_out", "6.output")
def _(n, r):
    return mul(r["6.scaled"], _qkv(n)[2])


@mistake("largest_only", "6.output")
def _(n, r):
    return [list(_qkv(n)[2][row.index(max(row))]) for row in r["6.weights"]]


@mistake("equal_weights", "6.output")
def _(n, r):
    columns = flip(_qkv(n)[2])
    return [[sum(column) / len(column) for column in columns] for _ in r["6.weights"]]


@mistake("transposed", "6.output")
def _(n, r):
    return flip(r["6.output"])


@mistake("shape_of_weights", "6.shape")
def _(n, r):
    wrong = [len(n["6"]["Q"]), len(n["6"]["K"])]
    return wrong if wrong != r["6.shape"] else None


@mistake("shape_of_v", "6.shape")
def _(n, r):
    wrong = [len(n["6"]["V"]), len(n["6"]["V"][0])]
    return wrong if wrong != r["6.shape"] else None


@mistake("transposed", "6.shape")
def _(n, r):
    rows, columns = r["6.shape"]
    # If the transposed shape is also V's shape, nobody can tell the two mistakes apart.
    v = [len(n["6"]["V"]), len(n["6"]["V"][0])]
    return [columns, rows] if rows != columns and [columns, rows] != v else None


# Question 7.

PROJECTIONS = ("7.W_Q", "7.W_K", "7.W_V")


@mistake("head_as_d_model", *PROJECTIONS)
def _(n, r, field):
    return [n["7"]["d_model"], n["7"]["d_model"]]


@mistake("projection_transposed", *PROJECTIONS)
def _(n, r, field):
    return [n["7"]["d_k"], n["7"]["d_model"]]


@mistake("rows_from_sequence", *PROJECTIONS)
def _(n, r, field):
    return [n["7"]["n"], n["7"]["d_k"]]


@mistake("head_by_head", *PROJECTIONS)
def _(n, r, field):
    return [n["7"]["d_k"], n["7"]["d_k"]]


@mistake("one_heads_output", "7.W_O")
def _(n, r):
    return [n["7"]["d_v"], n["7"]["d_model"]]


@mistake("rows_from_sequence", "7.W_O")
def _(n, r):
    return [n["7"]["n"], n["7"]["d_model"]]


@mistake("head_by_head", "7.W_O")
def _(n, r):
    return [n["7"]["d_v"], n["7"]["d_v"]]


@mistake("full_width", "7.head")
def _(n, r):
    return [n["7"]["n"], n["7"]["d_model"]]


@mistake("head_as_scores", "7.head")
def _(n, r):
    return [n["7"]["n"], n["7"]["n"]]


@mistake("features_by_features", "7.scores")
def _(n, r):
    return [n["7"]["d_k"], n["7"]["d_k"]]


@mistake("scores_as_head", "7.scores")
def _(n, r):
    return [n["7"]["n"], n["7"]["d_k"]]


def _one_matrix(n):
    return n["7"]["d_model"] * n["7"]["d_k"]


@mistake("one_heads_params", "7.params")
def _(n, r):
    return _one_matrix(n) + _one_matrix(n) + _one_matrix(n) + n["7"]["d_model"] ** 2


@mistake("output_projection_forgotten", "7.params")
def _(n, r):
    return sum(3 * _one_matrix(n) for _ in range(n["7"]["h"]))


@mistake("full_heads", "7.params")
def _(n, r):
    return sum(3 * n["7"]["d_model"] ** 2 for _ in range(n["7"]["h"])) + n["7"]["d_model"] ** 2


@mistake("biases_counted", "7.params")
def _(n, r):
    return 4 * (n["7"]["d_model"] + 1) * n["7"]["d_model"]


@mistake("one_for_three", "7.params")
def _(n, r):
    return 2 * n["7"]["d_model"] ** 2


# Question 8.


@mistake("weights_not_transposed", "8.dV")
def _(n, r):
    return mul(r["6.weights"], n["8"]["dO"])


@mistake("scores_for_weights", "8.dV")
def _(n, r):
    return mul(flip(r["6.scaled"]), n["8"]["dO"])


@mistake("transposed", "8.dV")
def _(n, r):
    return mul(flip(n["8"]["dO"]), r["6.weights"])


@mistake("v_not_transposed", "8.dA")
def _(n, r):
    return mul(n["8"]["dO"], _qkv(n)[2])


@mistake("weights_too_soon", "8.dA")
def _(n, r):
    return each(lambda a, da: a * da, r["6.weights"], r["8.dA"])


@mistake("row_sum_forgotten", "8.dZ")
def _(n, r):
    return each(lambda a, da: a * da, r["6.weights"], r["8.dA"])


@mistake("diagonal_only", "8.dZ")
def _(n, r):
    return each(lambda a, da: (a - a * a) * da, r["6.weights"], r["8.dA"])


@mistake("column_sum", "8.dZ")
def _(n, r):
    a, da = r["6.weights"], r["8.dA"]
    sums = [sum(a[i][j] * da[i][j] for i in range(len(a))) for j in range(len(a[0]))]
    return [[a[i][j] * (da[i][j] - sums[j]) for j in range(len(sums))] for i in range(len(a))]


@mistake("weights_factor_forgotten", "8.dZ")
def _(n, r):
    rows = zip(r["6.weights"], r["8.dA"], strict=True)
    return [[x - sum(p * y for p, y in zip(a, da, strict=True)) for x in da] for a, da in rows]


@mistake("plain_row_sum", "8.dZ")
def _(n, r):
    rows = zip(r["6.weights"], r["8.dA"], strict=True)
    return [[p * (x - sum(da)) for p, x in zip(a, da, strict=True)] for a, da in rows]


@mistake("negated", "8.dZ")
def _(n, r):
    return times(r["8.dZ"], -1)


@mistake("unscaled", "8.dQ", "8.dK")
def _(n, r, field):
    return times(r[field], math.sqrt(_d_k(n)))


@mistake("divided_by_d_k", "8.dQ", "8.dK")
def _(n, r, field):
    return times(r[field], 1 / math.sqrt(_d_k(n)))


@mistake("k_transposed", "8.dQ")
def _(n, r):
    return times(mul(r["8.dZ"], flip(_qkv(n)[1])), _d_k(n) ** -0.5)


@mistake("softmax_ignored", "8.dQ")
def _(n, r):
    return times(mul(r["8.dA"], _qkv(n)[1]), _d_k(n) ** -0.5)


@mistake("softmax_ignored", "8.dK")
def _(n, r):
    return times(mul(flip(r["8.dA"]), _qkv(n)[0]), _d_k(n) ** -0.5)


@mistake("q_for_k", "8.dQ")
def _(n, r):
    return times(mul(r["8.dZ"], _qkv(n)[0]), _d_k(n) ** -0.5)


@mistake("q_for_k", "8.dK")
def _(n, r):
    return times(mul(flip(r["8.dZ"]), _qkv(n)[1]), _d_k(n) ** -0.5)


@mistake("dz_not_transposed", "8.dK")
def _(n, r):
    return times(mul(r["8.dZ"], _qkv(n)[0]), _d_k(n) ** -0.5)
