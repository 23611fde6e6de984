"""Evaluates a run's final weights, or those of its newest sound checkpoint, or a released model."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hw import cli


def _table(report: dict) -> str:
    """The report for reading."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    lines = [
        f"{report['dataset']['name']} ({report['dataset']['source']}), {report['split']} split, "
        f"{report['num_examples']} pictures",
        f"accuracy                     {report['accuracy']:.2%}",
        f"  with test-time views       {report['accuracy_tta']:.2%}",
        f"nll, nats                    {number(report['nll'])}",
        f"  at temperature {number(report['temperature']):<12}{number(report['nll_calibrated'])}",
        f"ece, 15 bins                 {number(report['ece'])}",
        f"  at temperature {number(report['temperature']):<12}{number(report['ece_calibrated'])}",
        "accuracy of each class, and what it is taken for most often:",
    ]
    for k, name in enumerate(report["classes"]):
        row = report["confusion"][k]
        other = max((c for c in range(len(row)) if c != k), key=row.__getitem__)
        share = report["per_class"][k]
        lines.append(
            f"  {name:<12} {'-' if share is None else format(share, '7.2%')}"
            f"   {report['classes'][other]} ({row[other]})"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.evaluate", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="a workdir of hw.train; gets evaluation.json")
    source.add_argument("--model", choices=["resnet"], help="a released model")
    parser.add_argument("--data-dir", default="", help="where the prepared data lies")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the run's own")
    parser.add_json_option()
    options = parser.parse_args(argv)

    # After the options: a mistake in them is told at once.
    from hw import inference
    from hw.training import checkpoint, log

    folder = options.workdir or checkpoint.released(options.model)
    report = inference.evaluate(folder, data_dir=options.data_dir, batch_size=options.batch_size)
    if options.workdir:
        log.write_report(options.workdir, report)
    if options.json:
        cli.emit_json(report, options.json)
    else:
        print(_table(report))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
