r"""Respells a text in plain signs: LaTeX, code, HTML and foreign characters become those of our grammar.

`plain(r"\frac{4}{\sqrt{2}}")` is "((4)/(sqrt(2)))", and `plain("np.array([1, 2], dtype=int32)")` is
"([1, 2])". No number is read here.
"""

import html
import re
import unicodedata

_MOST_PASSES = 24  # nested braces of LaTeX

_SIGNS = dict.fromkeys("·×⋅∙∗•✕✖⨯", "*")
_SIGNS |= dict.fromkeys("−–‐‑—﹣", "-")
_SIGNS |= dict.fromkeys("⁄÷∕", "/")
_SIGNS |= dict.fromkeys("≈≅≃∼≐", "≈")
_SIGNS |= dict.fromkeys("хχ", "x") | {"Х": "X", "ℝ": "R", "…": "...", "√ ": "√"}
_SIGNS |= dict.fromkeys("│┃∣", "|") | dict.fromkeys("⎡⎢⎣⎛⎜⎝⎤⎥⎦⎞⎟⎠", "")
_SIGNS |= dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", "")  # characters without a width
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
# Thousands are often separated by a narrow blank. A blank of this kind never separates two numbers.
_NARROW = re.compile("(?<=[0-9])[\u202f\u2009\u2007](?=[0-9]{3}(?![0-9]))")


def _character(symbol: str) -> str:
    """Returns the plain spelling of one character that is not ASCII."""
    if symbol in _SIGNS:
        return _SIGNS[symbol]
    code = ord(symbol)
    if 0xFF01 <= code < 0xFF5F:  # East Asian keyboards write the full-width forms of ASCII
        return chr(code - 0xFEE0)
    if 0x1D400 <= code < 0x1D800:  # letters and digits of formulas in a PDF
        return unicodedata.normalize("NFKC", symbol)
    if (digit := unicodedata.digit(symbol, None)) is not None and unicodedata.category(symbol) == "Nd":
        return str(digit)
    if unicodedata.decomposition(symbol).startswith("<fraction>"):  # ½
        return "(" + unicodedata.normalize("NFKC", symbol).replace("\u2044", "/") + ")"
    return " " if unicodedata.category(symbol) == "Zs" else symbol


def _characters(text: str) -> str:
    """Replaces the many characters for a sign with one for each sign."""
    text = _NARROW.sub("", text)
    text = re.sub(r"(\d)([¼-¾⅐-⅞])", r"(\1 + \2)", text)  # 1½ is a sum
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: f"^({m[0].translate(_RAISED)})", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋]+", lambda m: f"_{m[0].translate(_LOWERED)}", text)
    return "".join(symbol if symbol.isascii() else _character(symbol) for symbol in text)


# --- LaTeX ---

# Within double quotes, TOML reads the first two characters of these commands as one control character.
_MANGLED = (
    (re.compile(r"\t(?=imes|ext|frac|op\b|anh|ilde)"), r"\\t"),
    (re.compile(r"\x0c(?=rac)"), r"\\f"),
    (re.compile(r"\x08(?=egin|oldsymbol|ig|ar\b|f\b|m\b)"), r"\\b"),
    (re.compile(r"\r(?=ight|m\b)"), r"\\r"),
)
_ENVIRONMENT = r"(?:[a-zA-Z]*matrix|array|aligned|align|cases|tabular|gathered)\*?"
# Each pattern with its replacement, in order.
_COMMANDS = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"\\\\(?:\[[\w. ]*\])?|\\cr\b|\\tabularnewline\b", ";"),
        (r"\\hline\b", " "),
        (rf"\\begin\{{{_ENVIRONMENT}\}}(?:\{{[clr|@ ]*\}})?", "["),
        (rf"\\end\{{{_ENVIRONMENT}\}}", "]"),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"\{,\}", ","),
        (r"\\[,;:!> ]|\\q?quad\b|\\(?:display|text)style\b|\\(?:big|Big|bigg|Bigg)[lrm]?\b", " "),
        (r"\\(?:left|right|middle)\b\.?", ""),
        (r"\$|\\[()\[\]]", ""),
        (r"\\\{", "("),
        (r"\\\}", ")"),
        (r"\\%", "%"),
        (r"\\#", "#"),
        (r"\\_", "_"),
        (r"\\(?:times|cdot|ast|bullet)\b", "*"),
        (r"\\div\b", "/"),
        (r"\\(?:approx|simeq|sim|cong)\b", "≈"),
        (r"\\(?:l?dots|cdots)\b", "..."),
        (r"\\pm\b", "±"),
        (r"\\partial\b", "∂"),
        (r"\\in\b", "∈"),
        (r"\\(?:to|rightarrow|mapsto)\b", "→"),
        (r"\\(exp|tanh)(?![A-Za-z])|\\(sqrt)(?=\s*\()", r"\1\2"),
        (r"\^\s*(?:\\top\b|\\intercal\b|\{\s*(?:\\top|\\intercal|T|\\mathrm\{T\}|\\mathsf\{T\})\s*\})", "ᵀ"),
    )
)
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|tt)?|mathrm|mathbf|mathbb|mathit|mathsf|mathcal|mathtt|operatorname\*?|boldsymbol|bm|vec"
    r"|hat|tilde|bar|boxed|mbox|underline|overline)\s*\{([^{}]*)\}"
)
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|(\d))"
_FRACTION = re.compile(rf"\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}")
_ROOT = re.compile(r"\\?sqrt\s*(?:\[(\d)\])?\s*(?:\{([^{}]*)\})|\\sqrt\s*(\d)")
_POWER = re.compile(r"\^\s*\{([^{}]*)\}")
_INDEX = re.compile(r"_\s*\{([^{}]*)\}")


def _fraction(found: re.Match[str]) -> str:
    top, digit, bottom, other = found.groups()
    return f"(({digit if top is None else top})/({other if bottom is None else bottom}))"


def _root(found: re.Match[str]) -> str:
    degree, inside, digit = found.groups()
    inside = digit if inside is None else inside
    return f"({inside})^(1/{degree})" if degree else f"sqrt({inside})"


def _latex(text: str) -> str:
    """Replaces LaTeX: fractions, roots, powers, matrices and the names of signs."""
    for mangled, whole in _MANGLED:
        text = mangled.sub(whole, text)
    for command, ours in _COMMANDS:
        text = command.sub(ours, text)
    text = text.replace("&", ",")
    # The innermost braces come first; the braces of a matrix of Mathematica remain.
    for _ in range(_MOST_PASSES):
        before = text
        text = _WRAPPER.sub(r"\1", text)
        text = _FRACTION.sub(_fraction, text)
        text = _ROOT.sub(_root, text)
        text = _POWER.sub(r"^(\1)", text)
        text = _INDEX.sub(lambda m: "_" + re.sub(r"\W", "", m[1]), text)
        if text == before:
            break
    return text.replace("{", "[").replace("}", "]")


# --- Code ---

_TENSOR = re.compile(r"<tf\.Tensor[^>]*?numpy=(.*)>\s*$", re.DOTALL)
_CODE = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"\b(?:np|numpy|jnp|jax|torch|tf|sp|sympy|mpmath|mp|math)\.(?:numpy\.)?(?=[A-Za-z])", ""),
        (
            r",\s*(?:dtype|device|grad_fn|requires_grad|weak_type|sharding|shape|copy|order|committed)\s*=\s*"
            r"(?:<[^<>]*>|\([^()]*\)|'[^']*'|\"[^\"]*\"|[\w.:]+)",
            "",
        ),
        (
            r"\b(?:as_?array|[aA]rray|DeviceArray|[tT]ensor|as_tensor|constant|(?:Immutable)?Matrix|matrix|mat"
            r"|Size|TensorShape|ShapeDtypeStruct|list|tuple)\s*(?=[(\[])|\bc(?=\()",
            "",
        ),
        (r"\b(?:u?int|b?float|double|longdouble|half)\d{0,3}_?\(([^()]*)\)", r"\1"),
        (r"\b(?:mpf|Decimal)\(\s*['\"]([^'\"]*)['\"]\s*\)", r"\1"),
        (r"\b(?:Fraction|Rational)\(\s*(-?\d+)\s*,\s*(\d+)\s*\)", r"(\1/\2)"),
        (r"\b(?:b?f|s|i|u|float|int|uint|bfloat)\d+(?=\[)", ""),
        (r"(?<=[\d)\]])[ \t]*#[^\n]*", ""),  # a remark of Python
    )
)


def _code(text: str) -> str:
    """Removes the names of arrays, dtypes and devices that Python prints around numbers."""
    if found := _TENSOR.search(text):
        text = found[1]
    for pattern, ours in _CODE:
        text = pattern.sub(ours, text)
    return text


# --- All ---


def plain(text: str) -> str:
    """Returns a text in the plain signs of our grammar; a text that is plain already stays as it is."""
    if ("&" in text and ";" in text) or "<" in text:
        text = re.sub(r"<br\s*/?>", "\n", html.unescape(text))
        text = re.sub(r"<sup>([^<>]*)</sup>", r"^(\1)", text)
    text = text.replace("`", "")
    if not text.isascii():
        text = _characters(text)
    if "**" in text:
        # Markdown's bold type first, then the powers of Python.
        text = re.sub(r"(?<![\w)*])\*\*([^*\n]+)\*\*(?![\w(*])", r"\1", text).replace("**", "^")
    if "~" in text:
        text = text.replace("~", " " if "\\" in text else "≈")
    if any(sign in text for sign in "\\{$&\t\f\b\r"):
        text = _latex(text)
    if re.search(r"[A-Za-z]\w*[(\[]|#|<tf", text):
        text = _code(text)
    return text
