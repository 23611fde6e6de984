"""Writes new text with a trained or a released language model, character by character.

    python -m hw.sample --prompt="ROMEO:" --length=300

The same options with the same --seed give the same text.
"""

import argparse
import sys
from collections.abc import Sequence

from hw import cli, files
from hw.cli import UserError

RULE = "-" * 10  # between samples
MAX_PROMPT = 64 * 2**20  # bytes of a prompt's file
MAX_LENGTH = 10_000_000  # characters of a sample, which already take hours
MAX_SAMPLES = 1_000_000
HOTTEST = 1e6  # the draw is already uniform here, and far above it the noise would overflow


def _check(options: argparse.Namespace) -> None:
    """Refuses option values that are out of range, before the model is loaded."""
    if not 0 <= options.temperature <= HOTTEST:
        raise UserError(f"--temperature={options.temperature}: must lie in [0, {HOTTEST:g}] (0: greedy)")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p={options.top_p}: must lie in (0, 1] (1: off)")
    for name, least in (("length", 0), ("top_k", 0), ("num_samples", 1), ("seed", 0)):
        if (value := getattr(options, name)) < least:
            raise UserError(f"--{name.replace('_', '-')}={value}: must be at least {least}")
    for name, most in (("length", MAX_LENGTH), ("num_samples", MAX_SAMPLES)):
        if (value := getattr(options, name)) > most:
            raise UserError(f"--{name.replace('_', '-')}={value}: must be at most {most:,}")
    if options.seed >= 2**32:
        raise UserError(f"--seed={options.seed}: must be less than 2^32")
    if options.stop == "":
        raise UserError("--stop is empty: every sample would end at once; leave it out")
    if options.stream and options.num_samples > 1:
        raise UserError("--stream prints a single sample as it grows: leave out --num-samples")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.sample", description=__doc__)
    parser.add_model_options(["gru", "attention"], default="gru")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--prompt", metavar="TEXT", help="the start of the text (default: a newline)")
    start.add_argument(
        "--prompt-file", type=cli.path, metavar="FILE", help="read the prompt from a UTF-8 file"
    )
    parser.add_argument("--length", type=int, default=500, help="characters after the prompt (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 always takes the likeliest character (default: 0.8)"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="draw from the K likeliest characters (default: 0, from all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest characters whose probabilities sum to P (default: 1, from all)",
    )
    parser.add_argument("--num-samples", type=int, default=1, help="the number of samples (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random draws (default: 0)")
    parser.add_argument("--stop", metavar="TEXT", help="end a sample before this text")
    parser.add_argument("--stream", action="store_true", help="print a single sample as it grows")
    parser.add_argument("--no-echo", action="store_true", help="do not print the prompt")
    parser.add_argument(
        "--unknown",
        choices=["error", "skip"],
        default="error",
        help="for characters that the model does not know: stop with an error (default), or skip them",
    )
    options = parser.parse_args(argv)
    _check(options)

    # The slow imports come after the options, so a wrong option is reported at once.
    from hw.inference import mixing, text

    prompt = files.read_text(options.prompt_file, MAX_PROMPT) if options.prompt_file else options.prompt
    samples = text.sample(
        mixing.folders(options.models or ["gru"]),
        weights=options.weights,
        prompt=prompt,
        length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_samples=options.num_samples,
        seed=options.seed,
        stop=options.stop or "",
        echo=not options.no_echo,
        skip_unknown=options.unknown == "skip",
    )
    for number, pieces in enumerate(samples):
        if number:
            print(RULE)
        for piece in pieces if options.stream else ["".join(pieces)]:
            print(cli.printable(piece, keep="\n\t"), end="", flush=options.stream)
        print()
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
