"""The layer language: a CNN in words, such as `conv16k5 pool2 flatten dense10`.

Words are separated by blanks: each is a kind, its number, and options in any order.

    conv16k5    convolution with 16 filters of 5 x 5; kN must be there, for no size goes without
                saying; further options sN pN dN gN same valid nobias
    pool2       max-pooling with window 2, and stride 2 unless sN says otherwise;
    avgpool2    average-pooling likewise; options of both sN pN same valid ceil
    flatten     every element in one vector; no options
    dense100    100 units that see the whole vector; option nobias

Windows, strides, padding and dilation are one number for both axes or height x width, as in
conv16k5x3s2x1. `valid` is no padding, the default; `same` is flax's, with output ⌈n/s⌉; pN is N on
each side.

How a layer is spelt stands here; which layers make sense, `hw.ops.conv_arithmetic` knows.
"""

import re
from functools import partial
from typing import Any

from hw.cli import UserError
from hw.ops.conv_arithmetic import (
    Conv,
    Dense,
    Flatten,
    Layer,
    Pair,
    Pool,
    Shape,
    check_positive,
    place,
    quote,
)

_KINDS = {  # kind: (how to build it, the field that its number fills, its options)
    "conv": (Conv, "channels", ("kN", "sN", "pN", "dN", "gN", "same", "valid", "nobias")),
    "pool": (partial(Pool, "max"), "kernel", ("sN", "pN", "same", "valid", "ceil")),
    "avgpool": (partial(Pool, "average"), "kernel", ("sN", "pN", "same", "valid", "ceil")),
    "flatten": (Flatten, None, ()),
    "dense": (Dense, "units", ("nobias",)),
}
_OPTIONS = {  # option: (field, value), the value None if it is the number N
    "kN": ("kernel", None),
    "sN": ("stride", None),
    "pN": ("padding", None),
    "dN": ("dilation", None),
    "gN": ("groups", None),
    "same": ("padding", "same"),
    "valid": ("padding", "valid"),
    "ceil": ("ceil", True),
    "nobias": ("bias", False),
}
_NUMBER = re.compile(r"[0-9]+(?:x[0-9]+)?")
_OPTION = re.compile(rf"same|valid|ceil|nobias|[kspdg]{_NUMBER.pattern}")
_SINGLE = ("channels", "units", "groups")
_MAX_LAYERS = 1000
_MAX_DIGITS = 6  # No layer has a million of anything; a slip of the finger is found here.


# Layers that people write and that have no word here, with what to do instead.
_OTHER_LAYERS = {
    "activation": "changes no shape and has no parameters: leave it out",
    "norm": "changes no shape: leave it out, and count its parameters apart",
    "transposed": "is a transposed convolution, which is not worked here",
    "whole": "is a pooling over the whole image: write its size, as in avgpool7 on 7x7",
}
_OTHER = re.compile(
    r"(?P<activation>relu|leakyrelu|gelu|elu|silu|swish|tanh|sigmoid|softmax|dropout)"
    r"|(?P<norm>bn$|batchnorm|layernorm|groupnorm|norm)"
    r"|(?P<transposed>conv_?t(?:rans\w*)?(?=[\d_]|$)|deconv|transposed?conv|upsample)"
    r"|(?P<whole>(?:avg|max)?globalpool|global_?(?:avg|max|average)|gap$|adaptive)",
    re.IGNORECASE,
)


def _integers(text: str) -> Shape:
    digits = text.split("x")
    if max(map(len, digits)) > _MAX_DIGITS:
        raise UserError(f"{quote(text)} is too large; a number has at most {_MAX_DIGITS} digits")
    return tuple(map(int, digits))


def _value(field: str, text: str) -> int | Pair:
    numbers = _integers(text)
    if field not in _SINGLE:
        return numbers[0], numbers[-1]  # one number stands for both axes
    if len(numbers) == 2:
        raise UserError(f"{field} is one number, not {quote(text)}")
    return numbers[0]


def _parse_layer(word: str) -> Layer:
    kind = next(filter(word.startswith, _KINDS), None)
    other = named.lastgroup if (named := _OTHER.match(word)) else None
    if kind is None or other:
        advice = f"; it {_OTHER_LAYERS[other]}" if other else ""
        raise UserError(f"cannot read {quote(word)}; layers are {', '.join(_KINDS)}{advice}")
    build, number_field, options = _KINDS[kind]
    rest = word.removeprefix(kind)
    fields: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    if number_field:
        number = _NUMBER.match(rest)
        if not number:
            raise UserError(f'"{kind}" needs a number right after it, as in "{kind}2"')
        fields[number_field] = _value(number_field, number[0])
        rest = rest[number.end() :]
    while rest:
        match = _OPTION.match(rest)
        part = match[0] if match else rest
        option = _NUMBER.sub("N", part)
        if not match or option not in options:
            known = f"options are {', '.join(options)}" if options else f"{kind} has no options"
            raise UserError(f"cannot read {quote(part)}; {known}")
        field, value = _OPTIONS[option]
        if field in spelt:
            raise UserError(f"{field} is given twice, as {quote(spelt[field])} and {quote(part)}")
        spelt[field] = part
        fields[field] = _value(field, part[1:]) if value is None else value
        rest = rest[len(part) :]
    if kind == "conv" and "kernel" not in fields:
        raise UserError(f'a convolution needs the size of its kernel, as in "{word}k3"')
    return build(**fields)


def parse_layers(spec: str) -> list[tuple[str, Layer]]:
    """Reads a network in the layer language (see the top of this file).

    Returns: pairs of a word and its layer.
    Raises: UserError naming the word, its place (from 1) and what is wrong with it.
    """
    layers = []
    words = spec.split()
    if len(words) > _MAX_LAYERS:
        raise UserError(f"{len(words):,} layers are too many: at most {_MAX_LAYERS:,}")
    for index, word in enumerate(words):
        try:
            layers.append((word, _parse_layer(word)))
        except UserError as error:
            raise UserError(f"{place(index, word)}: {error}") from error
    if not layers:
        raise UserError('no layers; write them as in "conv16k5same pool2 flatten dense100"')
    return layers


def parse_input(text: str) -> tuple[int, int, int]:
    """Reads an image's height x width x channels, as in 128x128x3 or 128 × 128 × 3.

    Raises: UserError if it is anything else.
    """
    # × is how sizes are printed.
    sizes = "x".join(part.strip(" ") for part in re.split("[x×X]", text))
    if not re.fullmatch(r"[0-9]+x[0-9]+x[0-9]+", sizes):
        raise UserError(f"input {quote(text)} is not height x width x channels, as in 128x128x3")
    height, width, channels = _integers(sizes)
    check_positive(height=height, width=width, channels=channels)
    return height, width, channels
