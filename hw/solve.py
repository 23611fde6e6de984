"""Works an exercise of the problem set for any numbers, every step shown."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hw import cli, files

_MAX_PARAMS = 10_000_000  # bytes of a file of parameters


def _parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(prog="hw.solve", description=__doc__)
    exercises = parser.add_subparsers(dest="exercise", required=True, metavar="EXERCISE")

    def add(
        name: str, run: Callable[[argparse.Namespace], _Solved], help: str, bounds: str = ""
    ) -> argparse.ArgumentParser:
        sub = exercises.add_parser(name, help=help, description=f"{help}.{f' {bounds}' if bounds else ''}")
        sub.add_json_option()
        sub.set_defaults(run=run)
        return sub

    cnn = add(
        "cnn",
        _cnn,
        "question 1: shapes, parameters and arithmetic of a CNN",
        "At most 1,000 layers, and 6 digits a number.",
    )
    cnn.add_argument("--input", required=True, metavar="HxWxC", help="for example 128x128x3")
    cnn.add_argument("--layers", required=True, help='for example "conv16k5same pool2 flatten dense100"')

    attention = add(
        "attention",
        _attention,
        "questions 6 and 8: attention in numbers, and its gradients",
        "A matrix has at most 4,096 numbers, the scores and the output at most 100,000 each. "
        "Of a long working the first lines are shown.",
    )
    for name in "qkv":
        attention.add_argument(f"--{name}", required=True, metavar="MATRIX", help='for example "1 2; 3 4"')
    attention.add_argument("--dout", metavar="MATRIX", help="∂L/∂output: adds the gradients")
    attention.add_argument("--mask", choices=["none", "causal"], default="none")
    attention.add_argument("--noscale", action="store_true", help="without 1/√d_k")

    multihead = add(
        "multihead", _multihead, "question 7: the dimensions of multi-head attention", "Sizes up to 100,000."
    )
    for name in ("seq", "d_model", "heads"):
        multihead.add_argument(f"--{name}", type=int, required=True, metavar="N")
    for name in ("d_k", "d_v", "seq_kv"):
        multihead.add_argument(f"--{name}", type=int, metavar="N")

    rnn = add(
        "rnn",
        _rnn,
        "questions 3 and 4: an RNN unrolled, and its gradients",
        "Up to 50 steps without numbers; with them up to 100 steps and 512 hidden units.",
    )
    rnn.add_argument("--steps", type=int, metavar="T", help="default: 3, or as many as the file has")
    rnn.add_argument("--params", type=cli.path, metavar="FILE.json", help="Wxh, Whh, Why, bh, by, x and dy")
    return parser


# Each returns two functions: the answers with their working, and the result for --json. Only what is asked
# for is computed.
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
        cli.say(terminal.table(cnn.layer_table(problem, error.reports)))  # up to the layer that fails
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
