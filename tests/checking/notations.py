"""Writes right answers as people write them: a table of notations for each kind of field.

A notation takes an answer (a whole number, a list of numbers, or a list of rows) and returns what stands in
the form: text, or a TOML value. None says that the notation cannot write this answer. Nothing here is shared
with the reader.
"""

import math
from fractions import Fraction


def fixed(x, digits=6):
    """Returns a number with `digits` significant digits and without an exponent."""
    if x == int(x):
        return str(int(x))
    decimals = digits - 1 - math.floor(math.log10(abs(x)))
    return f"{x:.{max(decimals, 0)}f}"


def scientific(x, digits=6):
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return mantissa, int(exponent)


RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def surd(x, *, latex=False):
    square = Fraction(x * x).limit_denominator(200)
    if not x or abs(square - Fraction(x * x)) > 1e-12 * x * x:
        return fixed(x)
    sign = "-" if x < 0 else ""
    if latex:
        return rf"{sign}\frac{{\sqrt{{{square.numerator}}}}}{{\sqrt{{{square.denominator}}}}}"
    return f"{sign}sqrt({square.numerator})/sqrt({square.denominator})"


def ratio(x):
    short = Fraction(x).limit_denominator(12)
    return str(short) if abs(short - Fraction(x)) < 1e-12 else fixed(x)


# One real number.
NUMBERS = {
    "decimals": fixed,
    "e": lambda x: "e".join(map(str, scientific(x))),
    "E+00": lambda x: f"{x:.5E}",
    "a blank before e": lambda x: " e".join(map(str, scientific(x))),
    "unicode minus": lambda x: fixed(x).replace("-", "−"),
    "minus and a blank": lambda x: fixed(x).replace("-", "- "),
    "a sign before each": lambda x: ("+" if x >= 0 else "") + fixed(x),
    "no zero before the point": lambda x: fixed(x).replace("0.", ".", 1) if abs(x) < 1 and x else fixed(x),
    "raised": lambda x: f"{scientific(x)[0]}·10{str(scientific(x)[1]).translate(RAISED)}",
    "times ten": lambda x: "{} × 10^{}".format(*scientific(x)),
    "x ten": lambda x: "{} x 10^({})".format(*scientific(x)),
    "latex power": lambda x: r"{} \times 10^{{{}}}".format(*scientific(x)),
    "percent": lambda x: f"{fixed(100 * x)} %",
    "roughly": lambda x: f"≈ {fixed(x)}",
    "tilde": lambda x: f"~{fixed(x)}",
    "ratio": ratio,
    "surd": surd,
    "latex surd": lambda x: surd(x, latex=True),
    "working": lambda x: f"{fixed(2 * x, 8)}/2 = {fixed(x)}",
    "python power": lambda x: "{}*10**{}".format(*scientific(x)),
    "mathematica": lambda x: "{}*^{}".format(*scientific(x)),
    "full width": lambda x: fixed(x).translate(FULL_WIDTH),
    "numpy scalar": lambda x: f"np.float64({x!r})",
    "float32": lambda x: f"np.float32({fixed(x, 8)})",
    "parentheses": lambda x: f"({fixed(x)})",
    "going on": lambda x: fixed(x) + ("..." if "." in fixed(x) else ""),
    "bold digits": lambda x: "".join(chr(0x1D7CE + int(c)) if c.isdigit() else c for c in fixed(x)),
}  # fmt: skip
# Numbers that stand between blanks must not have blanks themselves.
TIGHT = [
    *("decimals", "e", "E+00", "unicode minus", "a sign before each", "no zero before the point", "raised"),
    *("times ten", "latex power", "percent", "ratio", "surd", "latex surd", "python power"),
    *("mathematica", "full width", "numpy scalar", "parentheses", "a blank before e", "bold digits"),
]  # fmt: skip


def nested(rows, opening, closing, inner=", ", outer=", "):
    return opening + outer.join(opening + inner.join(row) + closing for row in rows) + closing


def latex_matrix(rows, name="pmatrix"):
    return rf"\begin{{{name}}} " + r" \\ ".join(" & ".join(row) for row in rows) + rf" \end{{{name}}}"


def aligned(rows):
    """Returns a matrix as numpy prints it."""
    widest = max(len(x) for row in rows for x in row)
    lines = [" ".join(x.rjust(widest) for x in row) for row in rows]
    return "[[" + "]\n [".join(lines) + "]]"


def markdown(rows, *, header=False):
    names = [f"key {j}" for j in range(1, len(rows[0]) + 1)]
    lines = [["", *names], *([f"query {i}", *row] for i, row in enumerate(rows, 1))] if header else rows
    drawn = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([drawn[0], "|" + "---|" * len(lines[0]), *drawn[1:]])


def our_table(rows):
    """Returns a table as hw.solve prints it."""
    lines = [["", *(f"key {j}" for j in range(1, len(rows[0]) + 1))]]
    lines += [[f"query {i}", *row] for i, row in enumerate(rows, 1)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = ["  ".join(x.rjust(w) for x, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([drawn[0], "  ".join("-" * w for w in widths), *drawn[1:]])


# A matrix whose numbers are texts: (layout, whether blanks separate its numbers).
MATRICES = {
    "semicolons": (lambda m: "; ".join(" ".join(row) for row in m), True),
    "commas": (lambda m: "; ".join(", ".join(row) for row in m), False),
    "lines": (lambda m: "\n".join(" ".join(row) for row in m), True),
    "commas and lines": (lambda m: ",\n".join(", ".join(row) for row in m), False),
    "tabs": (lambda m: "\n".join("\t".join(row) for row in m), True),
    "matlab": (lambda m: f"[{'; '.join(' '.join(row) for row in m)}]", True),
    "matlab tight": (lambda m: f"[{';'.join(','.join(row) for row in m)}]", False),
    "list of lists": (lambda m: nested(m, "[", "]"), False),
    "tight list of lists": (lambda m: nested(m, "[", "]", ",", ","), False),
    "tuples": (lambda m: nested(m, "(", ")"), False),
    "braces": (lambda m: nested(m, "{", "}"), False),
    "a batch of one": (lambda m: f"[{nested(m, '[', ']')}]", False),
    "numpy prints": (aligned, True),
    "np.array": (lambda m: f"np.array({nested(m, '[', ']')})", False),
    "array dtype": (
        lambda m: f"array({nested(m, '[', ']', outer=f',{chr(10)}       ')}, dtype=float32)",
        False,
    ),
    "Array dtype": (lambda m: f"Array({nested(m, '[', ']')}, dtype=float32)", False),
    "tensor": (lambda m: f"tensor({nested(m, '[', ']')}, grad_fn=<DivBackward0>)", False),
    "tensor device": (
        lambda m: f"tensor({nested(m, '[', ']')}, device='cuda:0', dtype=torch.float64)",
        False,
    ),
    "tf.Tensor": (lambda m: f"tf.Tensor(\n{aligned(m)}, shape=({len(m)}, {len(m[0])}), dtype=float32)", True),
    "sympy": (lambda m: f"Matrix({nested(m, '[', ']')})", False),
    "pmatrix": (latex_matrix, False),
    "$bmatrix$": (lambda m: f"$$A = {latex_matrix(m, 'bmatrix')}$$", False),
    "array environment": (
        lambda m: (
            r"\left[\begin{array}{cc} " + r" \\ ".join(" & ".join(r) for r in m) + r"\end{array}\right]"
        ),
        False,
    ),
    "markdown": (markdown, False),
    "markdown with names": (lambda m: markdown(m, header=True), False),
    "our own table": (our_table, True),
    "named": (lambda m: f"S = {nested(m, '[', ']')}", False),
    "named with a colon": (lambda m: f"Answer: {nested(m, '[', ']')}", False),
    "latex name": (lambda m: rf"\mathbf{{A}} = {latex_matrix(m)}", False),
    "named rows": (lambda m: "\n".join(f"row {i}: {', '.join(row)}" for i, row in enumerate(m, 1)), False),
    "nbsp": (lambda m: ";\u00a0".join("\u00a0".join(row) for row in m), True),
    "tuples in a row": (lambda m: ", ".join(f"({', '.join(row)})" for row in m), False),
    "TOML lists": (lambda m: m, False),
    "TOML rows": (lambda m: [" ".join(row) for row in m], True),
}

# A vector whose numbers are texts.
VECTORS = {
    "blanks": (" ".join, True),
    "commas": (", ".join, False),
    "semicolons": ("; ".join, False),
    "column": ("\n".join, False),
    "list": (lambda v: f"[{', '.join(v)}]", False),
    "tight list": (lambda v: f"[{','.join(v)}]", False),
    "tuple": (lambda v: f"({', '.join(v)})", False),
    "braces": (lambda v: f"{{{', '.join(v)}}}", False),
    "column of lists": (lambda v: "[" + ", ".join(f"[{x}]" for x in v) + "]", False),
    "row in two brackets": (lambda v: f"[[{', '.join(v)}]]", False),
    "transposed": (lambda v: f"[{', '.join(v)}]ᵀ", False),
    "latex transposed": (lambda v: f"$[{', '.join(v)}]^{{\\top}}$", False),
    "prime": (lambda v: f"[{' '.join(v)}]'", True),
    "numpy prints": (lambda v: f"[ {'  '.join(v)}]", True),
    "array": (lambda v: f"array([{', '.join(v)}])", False),
    "np.array": (lambda v: f"np.array([{', '.join(v)}])", False),
    "jax": (lambda v: f"Array([{', '.join(v)}], dtype=float32, weak_type=True)", False),
    "tensor": (lambda v: f"tensor([{', '.join(v)}], dtype=torch.float64)", False),
    "pmatrix": (lambda v: r"\begin{pmatrix} " + r" \\ ".join(v) + r" \end{pmatrix}", False),
    "row matrix": (lambda v: r"\begin{bmatrix} " + " & ".join(v) + r" \end{bmatrix}", False),
    "named": (lambda v: f"h_1 = ({', '.join(v)})", False),
    "unicode name": (lambda v: f"h₁ = [{', '.join(v)}]", False),
    "a derivative": (lambda v: f"∂L/∂h_1 = [{', '.join(v)}]", False),
    "latex derivative": (
        lambda v: r"\frac{\partial L}{\partial h_1} = \begin{pmatrix}" + r" \\ ".join(v) + r"\end{pmatrix}",
        False,
    ),
    "named numbers": (lambda v: ", ".join(f"h{i} = {x}" for i, x in enumerate(v, 1)), False),
    "a colon": (lambda v: f"h: {' '.join(v)}", True),
    "and": (" and ".join, False),
    "markdown": (lambda v: markdown([v]), False),
    "semicolon at the end": (lambda v: f"{' '.join(v)};", True),
    "R": (lambda v: f"c({', '.join(v)})", False),
    "a remark": (lambda v: f"[{', '.join(v)}] (rounded)", False),
    "TOML list": (lambda v: v, False),
}

# Sizes: of images and of matrices. `s` are whole numbers.
SIZES = {
    "x": lambda s: " x ".join(map(str, s)),
    "tight x": lambda s: "x".join(map(str, s)),
    "X": lambda s: " X ".join(map(str, s)),
    "×": lambda s: " × ".join(map(str, s)),
    "tight ×": lambda s: "×".join(map(str, s)),
    "Cyrillic": lambda s: " х ".join(map(str, s)),
    "*": lambda s: "*".join(map(str, s)),
    "·": lambda s: "·".join(map(str, s)),
    "dot operator": lambda s: " ⋅ ".join(map(str, s)),
    "cross": lambda s: " ✕ ".join(map(str, s)),
    "commas": lambda s: ", ".join(map(str, s)),
    "tight commas": lambda s: ",".join(map(str, s)),
    "blanks": lambda s: " ".join(map(str, s)),
    "semicolons": lambda s: "; ".join(map(str, s)),
    "by": lambda s: " by ".join(map(str, s)),
    "-by-": lambda s: "-by-".join(map(str, s)),
    "list": lambda s: f"[{', '.join(map(str, s))}]",
    "tuple": lambda s: f"({', '.join(map(str, s))})",
    "braces": lambda s: f"{{{', '.join(map(str, s))}}}",
    "parentheses x": lambda s: f"({' x '.join(map(str, s))})",
    "keras": lambda s: f"(None, {', '.join(map(str, s))})",
    "batch of one": lambda s: f"(1, {', '.join(map(str, s))})",
    "unknown batch": lambda s: f"[?, {', '.join(map(str, s))}]",
    "batch -1": lambda s: f"(-1, {', '.join(map(str, s))})",
    "named batch": lambda s: "N x " + " x ".join(map(str, s)),
    "torch.Size": lambda s: f"torch.Size([{', '.join(map(str, s))}])",
    "TensorShape": lambda s: f"TensorShape([None, {', '.join(map(str, s))}])",
    "jax": lambda s: f"float32[{','.join(map(str, s))}]",
    "struct": lambda s: f"ShapeDtypeStruct(shape=({', '.join(map(str, s))}), dtype=float32)",
    "shape =": lambda s: f"shape = ({', '.join(map(str, s))})",
    "shape:": lambda s: f"shape: {' x '.join(map(str, s))}",
    "a name": lambda s: f"W = {' x '.join(map(str, s))}",
    "latex": lambda s: r" \times ".join(map(str, s)),
    "latex in $": lambda s: "$" + r" \times ".join(map(str, s)) + "$",
    "latex cdot": lambda s: r" \cdot ".join(map(str, s)),
    "space of reals": lambda s: r"\mathbb{R}^{" + r" \times ".join(map(str, s)) + "}",
    "in the reals": lambda s: f"W ∈ ℝ^({'×'.join(map(str, s))})",
    "product added": lambda s: f"{' x '.join(map(str, s))} = {math.prod(s)}",
    "full width": lambda s: "×".join(map(str, s)).translate(FULL_WIDTH),
    "nbsp": lambda s: "\u00a0×\u00a0".join(map(str, s)),
    "np.int64": lambda s: f"({', '.join(f'np.int64({x})' for x in s)})",
    "bold": lambda s: f"**{' x '.join(map(str, s))}**",
    "code": lambda s: f"`{tuple(s)}`",
    "a final period": lambda s: f"{' x '.join(map(str, s))}.",
    "TOML list": list,
    "TOML texts": lambda s: list(map(str, s)),
}
IMAGES = SIZES | {
    "H W C": lambda s: "H={}, W={}, C={}".format(*s),
    "C first, named": lambda s: "C={2}, H={0}, W={1}".format(*s),
    "words": lambda s: "height {}, width {}, channels {}".format(*s),
    "words without commas": lambda s: "height {} width {} channels {}".format(*s),
    "words with colons": lambda s: "Height: {}; Width: {}; Channels: {}".format(*s),
    "words behind": lambda s: "{} (height) x {} (width) x {} (channels)".format(*s),
    "channels behind": lambda s: "{} x {} x {} channels".format(*s),
    "channels before": lambda s: "{2} channels x {0} x {1}".format(*s),
    "HWC": lambda s: "({}, {}, {}) (HWC)".format(*s),
    "NCHW": lambda s: "(None, {2}, {0}, {1}) NCHW".format(*s),
    "channels first": lambda s: "{2} x {0} x {1} (channels first)".format(*s),
    "formula": lambda s: "({0}+0)/1 = {0}, ({1}+0)/1 = {1}, {2}".format(*s),
    "lines": lambda s: "h = {}\nw = {}\nc = {}".format(*s).replace("\n", "; "),
    "TOML table": lambda s: {"H": s[0], "W": s[1], "C": s[2]},
}
MATRIX_SIZES = SIZES | {
    "rows and columns": lambda s: "{} rows, {} columns".format(*s),
    "rows x columns": lambda s: "{} rows x {} columns".format(*s),
    "rows =": lambda s: "rows = {}, columns = {}".format(*s),
    "columns first": lambda s: "columns: {1}, rows: {0}".format(*s),
    "letters": lambda s: "n × d = {} × {}".format(*s),
    "a matrix": lambda s: "a {} x {} matrix".format(*s),
    "rows and": lambda s: "{} rows and {} columns".format(*s),
}

COUNTS = {
    "digits": str,
    "TOML number": lambda n: n,
    "TOML list": lambda n: [n],
    "comma": lambda n: f"{n:,}",
    "blank": lambda n: f"{n:,}".replace(",", " "),
    "nbsp": lambda n: f"{n:,}".replace(",", "\u00a0"),
    "narrow blank": lambda n: f"{n:,}".replace(",", "\u202f"),
    "thin blank": lambda n: f"{n:,}".replace(",", "\u2009"),
    "latex blank": lambda n: f"{n:,}".replace(",", r"\,"),
    "latex comma": lambda n: f"{n:,}".replace(",", "{,}"),
    "Swiss": lambda n: f"{n:,}".replace(",", "’"),
    "apostrophe": lambda n: f"{n:,}".replace(",", "'"),
    "underscore": lambda n: f"{n:_}",
    "full width": lambda n: str(n).translate(FULL_WIDTH),
    "a point at the end": lambda n: f"{n}.",
    "float": lambda n: f"{n}.0",
    "parameters": lambda n: f"{n} parameters",
    "elements": lambda n: f"{n:,} elements",
    "params.": lambda n: f"{n} params.",
    "trainable": lambda n: f"{n} trainable parameters",
    "name": lambda n: f"params = {n}",
    "banana": lambda n: f"banana = {n}",
    "answer": lambda n: f"Answer: {n}",
    "the answer is": lambda n: f"The answer is {n}",
    "total": lambda n: f"Total: {n:,}",
    "only =": lambda n: f"= {n}",
    "roughly": lambda n: f"≈ {n}",
    "sum": lambda n: f"{n - 16} + 16",
    "working": lambda n: f"{n - 7} + 7 = {n}",
    "working behind": lambda n: f"{n} ({n - 16} + 16)",
    "working behind =": lambda n: f"{n - 16}+16 (= {n})",
    "remark": lambda n: f"{n} (with biases)",
    "product": lambda n: f"{n // 2} x 2" + (" + 1" if n % 2 else ""),
    "product in parentheses": lambda n: f"2·({n // 2}) + {n % 2} = {n}",
    "chain": lambda n: f"2·{n // 2} + {n % 2} = {n - n % 2} + {n % 2} = {n}",
    "reversed": lambda n: f"{n} = {n - 16} + 16",
    "fraction": lambda n: f"{2 * n}/2",
    "latex fraction": lambda n: rf"\frac{{{3 * n}}}{{3}}",
    "latex": lambda n: rf"${n // 2} \times 2 + {n % 2} = {n}$",
    "boxed": lambda n: rf"\boxed{{{n}}}",
    "text": lambda n: rf"{n} \text{{ parameters}}",
    "np.int64": lambda n: f"np.int64({n})",
    "array": lambda n: f"array({n})",
    "tensor": lambda n: f"tensor({n})",
    "int": lambda n: f"int({n})",
    "bold": lambda n: f"**{n}**",
    "code": lambda n: f"`{n}`",
    "parentheses": lambda n: f"({n})",
    "brackets": lambda n: f"[{n}]",
    "semicolon": lambda n: f"{n};",
    "blanks around": lambda n: f"  {n} \n",
    "all digits with an exponent": lambda n: (
        f"{n / 10 ** (len(str(n)) - 1):.{len(str(n)) - 1}f}e{len(str(n)) - 1}"
    ),
}


def real(kind, notation, number, answer):
    """Returns a matrix or a vector in a layout and a notation of its numbers."""
    layout, blanks = (MATRICES if kind == "matrix" else VECTORS)[notation]
    write = NUMBERS[number if not blanks or number in TIGHT else "decimals"]
    if kind == "matrix":
        return layout([[write(x) for x in row] for row in answer])
    return layout(list(map(write, answer)))
