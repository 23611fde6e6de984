"""Recomputes every result in the answers by every independent route and compares the routes.

    python -m hw.verify

The exit code is 1 if two routes disagree.
"""

import sys
from collections.abc import Sequence

from hw import cli, files


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.verify", description=__doc__)
    parser.add_json_option()
    options = parser.parse_args(argv)

    output = files.json_output(options.json, force=options.force)
    # The slow imports come after the options, so a wrong option is reported at once.
    import jax

    from hw import answers
    from hw.answers.claims import check
    from hw.report import terminal

    jax.devices()  # a missing platform must be reported as such, not as a failed claim
    verdicts = [check(claim) for claim in answers.all_claims()]
    failed = [verdict for verdict in verdicts if not verdict.holds]
    if options.json:
        files.emit_json([verdict.as_dict() for verdict in verdicts], output)
    else:
        print(terminal.verdicts(verdicts))
    sys.stdout.flush()  # if this fails, its error is the only line on standard error
    for verdict in failed:
        for route, reason in verdict.failures.items():
            cli.say(f"{verdict.claim.id}, {route}: {reason}")
    cli.say(f"{len(verdicts) - len(failed)} of {len(verdicts)} claims hold")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
