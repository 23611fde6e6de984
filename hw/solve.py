"""Solves an exercise of the problem set for your own numbers and shows every step.

    python -m hw.solve cnn --input=128x128x3 --layers="conv16k5same pool2 flatten dense100"

Each exercise has its own options: python -m hw.solve EXERCISE --help
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hw import cli, files

_MAX_PARAMS = 10_000_000  # bytes of the file that --params names


def _parser() -> cli.ArgumentParser:
    """Builds the parser, with one subcommand for each exercise."""
    parser = cli.ArgumentParser(prog="hw.solve", description=__doc__)
    exercises = parser.add_subparsers(dest="exercise", required=True, metavar="EXERCISE")

    def add(
        name: str, run: Callable[[argparse.Namespace], _Solved], help: str, bounds: str, example: str
    ) -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}.\n{bounds}\n\n    python -m hw.solve {name} {example}"
        sub = exercises.add_parser(name, help=help, description=description)
        sub.add_json_option()
        sub.set_defaults(run=run)
        return sub

    cnn = add(
        "cnn",
        _cnn,
        "question 1: shapes, parameters and arithmetic of a CNN",
        "It takes at most 1,000 layers, and numbers of at most 6 digits.",
        '--input=128x128x3 --layers="conv16k5same pool2 flatten dense100"',
    )
    cnn.add_argument(
        "--input", required=True, metavar="HxWxC", help="height, width and channels of the image"
    )
    cnn.add_argument(
        "--layers", required=True, metavar="LAYERS", help="the layers in order, as in the example"
    )

    attention = add(
        "attention",
        _attention,
        "questions 6 and 8: attention in numbers, and its gradients",
        "A matrix may have at most 4,096 numbers, and the scores and the output at most 100,000 each.\n"
        "It prints only the first lines of a long solution.",
        '--q="1 0; 0 1" --k="1 0; 0 1" --v="1 2; 3 4"',
    )
    for name, whose in (("q", "queries"), ("k", "keys"), ("v", "values")):
        attention.add_argument(
            f"--{name}", required=True, metavar="MATRIX", help=f'the {whose}, a row each, as in "1 2; 3 4"'
        )
    attention.add_argument("--dout", metavar="MATRIX", help="∂L/∂output; adds the gradients")
    attention.add_argument(
        "--mask", choices=["none", "causal"], default="none", help="the mask of the scores (default: none)"
    )
    attention.add_argument("--noscale", action="store_true", help="leave out the factor 1/√d_k")

    multihead = add(
        "multihead",
        _multihead,
        "question 7: the dimensions of multi-head attention",
        "It takes sizes up to 100,000.",
        "--seq=10 --d_model=512 --heads=8",
    )
    for name, meaning in (
        ("seq", "length of the sequence"),
        ("d_model", "width of the model"),
        ("heads", "number of heads"),
    ):
        multihead.add_argument(f"--{name}", type=int, required=True, metavar="N", help=meaning)
    for name, meaning in (
        ("d_k", "width of a head's queries and keys (default: d_model / heads)"),
        ("d_v", "width of a head's values (default: d_model / heads)"),
        ("seq_kv", "length of the sequence of keys and values (default: seq)"),
    ):
        multihead.add_argument(f"--{name}", type=int, metavar="N", help=meaning)

    rnn = add(
        "rnn",
        _rnn,
        "questions 3 and 4: an RNN unrolled, and its gradients",
        "It takes up to 50 steps without --params, and up to 100 steps and 512 hidden units with --params.",
        "--steps=3",
    )
    rnn.add_argument("--steps", type=int, metavar="T", help="default: 3, or the number of steps in --params")
    rnn.add_argument(
        "--params", type=cli.path, metavar="FILE.json", help="JSON with Wxh, Whh, Why, bh, by, x and dy"
    )
    return parser


# Each function below returns two functions: one makes the answers with their steps, the other makes the
# result for --json. So a command computes only one of the two.
_Solved = tuple[Callable[[], Sequence[Any]], Callable[[], dict[str, Any]]]


def _cnn(options: argparse.Namespace) -> _Solved:
    from hw.answers import cnn
    from hw.ops.conv_arithmetic import LayerError
    from hw.ops.layer_language import parse_input, parse_layers
    from hw.report import terminal

    problem = cnn.Problem(parse_input(options.input), tuple(parse_layers(options.layers)))
    try:
        reports = cnn.reports(problem)
    except LayerError as error:
        cli.say(terminal.table(cnn.layer_table(problem, error.reports)))  # the layers before the wrong one
        raise
    return lambda: [cnn.answer(problem)], lambda: cnn.result(reports)


def _attention(options: argparse.Namespace) -> _Solved:
    from hw.answers import attention, attention_gradient
    from hw.answers.notation import parse_matrix

    matrices = (parse_matrix(getattr(options, name), f"--{name}") for name in "qkv")
    case = attention.Case(*matrices, mask=options.mask, scaled=not options.noscale)
    if options.dout is None:
        return lambda: [attention.answer(case)], lambda: attention.result(case)
    problem = attention_gradient.Problem(case, parse_matrix(options.dout, "--dout"))
    return (
        lambda: [attention.answer(case), attention_gradient.answer(problem)],
        lambda: attention.result(case) | attention_gradient.result(problem),
    )


def _multihead(options: argparse.Namespace) -> _Solved:
    from hw.answers import multi_head

    names = ("seq", "d_model", "heads", "d_k", "d_v", "seq_kv")
    sizes = multi_head.problem(**{name: getattr(options, name) for name in names})
    return lambda: [multi_head.answer(sizes)], lambda: multi_head.result(sizes)


def _rnn(options: argparse.Namespace) -> _Solved:
    from hw.answers import bptt, unrolled_rnn

    if options.params is None:
        steps = 3 if options.steps is None else options.steps
        expressions = [unrolled_rnn.expressions(steps), bptt.expressions(steps)]
        return lambda: expressions, lambda: unrolled_rnn.graph(steps)
    content = files.read_bytes(options.params, _MAX_PARAMS)
    problem = unrolled_rnn.read_problem(content, options.params)
    if options.steps not in (None, len(problem.x)):
        raise cli.UserError(f"--steps={options.steps}, but {options.params} has {len(problem.x)} steps")
    return lambda: [unrolled_rnn.answer(problem), bptt.answer(problem)], lambda: bptt.result(problem)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    inputs = [options.params] if getattr(options, "params", None) else []
    output = files.json_output(options.json, inputs=inputs, force=options.force)
    answers, result = options.run(options)
    if options.json:
        files.emit_json(result(), output)
    else:
        from hw.report import terminal

        print("\n\n".join(map(terminal.answer, answers())))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
