"""Reads the layer language, which describes a CNN in words, such as `conv16k5 pool2 flatten dense10`.

Blanks separate words. A word is a kind of layer, its number, and options in any order.

    conv16k5    convolution with 16 filters of 5 x 5; kN is required, because no size is usual;
                further options: sN pN dN gN same valid nobias
    pool2       max-pooling with window 2, and stride 2 unless sN is given
    avgpool2    average-pooling likewise; options of both: sN pN same valid ceil
    flatten     one vector of all elements; no options
    dense100    100 units that read the whole vector; option: nobias

Windows, strides, padding and dilation are one number for both axes or height x width, as in
conv16k5x3s2x1. `valid`, the default, adds no padding. `same` adds flax's padding, so that the output
has ⌈n/s⌉ pixels. pN adds N pixels on each side.

This file defines how to spell a layer; `hw.ops.conv_arithmetic` checks whether it makes sense.
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
from hw.reading.refusals import Unreadable
from hw.reading.sizes import read_sizes

_KINDS = {  # kind: (how to build it, the field that its number fills, its options)
    "conv": (Conv, "channels", ("kN", "sN", "pN", "dN", "gN", "same", "valid", "nobias")),
    "pool": (partial(Pool, "max"), "kernel", ("sN", "pN", "same", "valid", "ceil")),
    "avgpool": (partial(Pool, "average"), "kernel", ("sN", "pN", "same", "valid", "ceil")),
    "flatten": (Flatten, None, ()),
    "dense": (Dense, "units", ("nobias",)),
}
_OPTIONS = {  # option: (field, value); the value is None if it is the number N
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
_MAX_INPUT = 200  # characters of an image's sizes
_MAX_DIGITS = 6  # No layer has a size of a million: a longer number is a typing mistake.


# Layers that have no word here, with advice to the user.
_OTHER_LAYERS = {
    "activation": "changes no shape and has no parameters: leave it out",
    "norm": "changes no shape: leave it out, and count its parameters separately",
    "transposed": "is a transposed convolution, which this language does not have",
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
    Raises: UserError that names the word, its place (from 1) and the mistake.
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
    """Reads an image's height x width x channels, as in 128x128x3, 128 × 128 × 3 or (128, 128, 3).

    Raises: UserError if the text has another form.
    """
    try:
        sizes = read_sizes(text[:_MAX_INPUT], 3)
    except Unreadable as error:
        raise UserError(f"input {quote(text)} is not height x width x channels, as in 128x128x3") from error
    height, width, channels = _integers("x".join(map(str, sizes)))
    check_positive(height=height, width=width, channels=channels)
    return height, width, channels
