"""Recomputes every result of the worked answers by every route; 1 if any two disagree."""

import sys
from collections.abc import Sequence

from hw import cli, files


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.verify", description=__doc__)
    parser.add_json_option()
    options = parser.parse_args(argv)

    output = files.json_output(options.json, force=options.force)
    # After the options: a mistake in them is told at once.
    import jax

    from hw import answers
    from hw.answers.claims import check
    from hw.report import terminal

    jax.devices()  # a platform that is missing is a mistake of its own and disproves no claim
    verdicts = [check(claim) for claim in answers.all_claims()]
    failed = [verdict for verdict in verdicts if not verdict.holds]
    if options.json:
        files.emit_json([verdict.as_dict() for verdict in verdicts], output)
    else:
        print(terminal.verdicts(verdicts))
    sys.stdout.flush()  # where it fails, that is the one line
    for verdict in failed:
        for route, reason in verdict.failures.items():
            cli.say(f"{verdict.claim.id}, {route}: {reason}")
    cli.say(f"{len(verdicts) - len(failed)} of {len(verdicts)} claims hold")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
