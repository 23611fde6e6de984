"""Evaluates a run's final weights, the weights of its newest sound checkpoint, or a released model.

    python -m hw.evaluate --model=resnet                    a released model
    python -m hw.evaluate --workdir=runs/resnet-s0          your own run of hw.train
    python -m hw.evaluate --model=gru --model=attention     a mixture: the average of their probabilities

For a single run of your own it also writes evaluation.json to the workdir.
"""

import sys
from collections.abc import Sequence
from typing import Any

from hw import cli, files
from hw.cli import UserError

# The protocols in the order of the table, and what the table calls them.
PROTOCOLS = {
    "cold256": "windows of 256",
    "stateful": "state carried",
    "stateful_counts": "  and counts",
    "dynamic": "dynamic",
    "dynamic_counts": "  and counts",
}


def _text_table(report: dict[str, Any]) -> str:
    """Formats the report of a language model as a table."""
    lines = [
        f"{report['dataset']['name']} ({report['dataset']['source']}), {report['split']} split, "
        f"{report['num_examples']:,} characters, in {report['dtype']}",
        *(
            f"{'mixture of' if not number else '       and'} {model['name']}: weight {model['weight']:.4f}, "
            f"{model['params']:,} parameters"
            for number, model in enumerate(report.get("models", ()))
        ),
        "                 nats per character    bits    perplexity",
    ]
    for protocol, what in PROTOCOLS.items():
        if f"nats_{protocol}" in report:
            lines.append(
                f"{what:<17}{report[f'nats_{protocol}']:<22.4f}{report[f'bits_{protocol}']:<8.4f}"
                f"{report[f'perplexity_{protocol}']:.3f}"
            )
    if (fit := report.get("fit")) is not None:
        text = "characters that no run trained on" if fit["held_out"] else "characters of the training text"
        lines.append(
            f"weights fitted on {fit['characters']:,} {text}: {fit['nats_cold256']:.4f} nats per character "
            f"there, at most {fit['gap']:.1e} above the best weights"
        )
    for of in report.get("copied", ()):
        lines.append(
            f"sample at temperature {of['temperature']}: its longest copy of the training text has "
            f"{of['longest']} characters, and {of['share']:.1%} of its 20-grams occur there"
        )
    return "\n".join(lines)


def _recall_table(report: dict[str, Any]) -> str:
    """Formats the report of a model of the memory task as a table."""
    return (
        f"{report['dataset']['name']} ({report['dataset']['source']}), {report['split']} split, "
        f"{report['num_examples']} sequences, in {report['dtype']}\n"
        f"accuracy                     {report['accuracy']:.2%}\n"
        f"nll, nats                    {report['nll']:.4f}"
    )


def _image_table(report: dict[str, Any]) -> str:
    """Formats the report of a classifier as a table."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    lines = [
        f"{report['dataset']['name']} ({report['dataset']['source']}), {report['split']} split, "
        f"{report['num_examples']} images, in {report['dtype']}",
        f"accuracy                     {report['accuracy']:.2%}",
        f"  test-time augmentation     {report['accuracy_tta']:.2%}",
        f"nll, nats                    {number(report['nll'])}",
        f"  at temperature {number(report['temperature']):<12}{number(report['nll_calibrated'])}",
        f"ece, 15 bins                 {number(report['ece'])}",
        f"  at temperature {number(report['temperature']):<12}{number(report['ece_calibrated'])}",
        "accuracy of each class, and the class that the model confuses it with most often:",
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
    parser.add_model_options(["resnet", "gru", "attention"])
    parser.add_argument(
        "--fit-weights",
        action="store_true",
        help="fit the weights of a mixture on the end of the training text (see docs/results.md)",
    )
    parser.add_argument("--data-dir", default="", help="the folder of prepared datasets")
    parser.add_argument(
        "--data-path", type=cli.path, metavar="FILE", help="the text of a run with --config.data.path"
    )
    parser.add_argument(
        "--batch-size", type=int, default=0, help="examples per batch (default: the run's batch size)"
    )
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="for text: also score a model that learns from each part of the text after it is scored",
    )
    parser.add_argument(
        "--counts", action="store_true", help="for text: also mix in counts of the text so far"
    )
    parser.add_json_option()
    options = parser.parse_args(argv)
    if not options.models:
        raise UserError("name a run with --workdir=DIR, or a released model with --model=NAME")
    several = len(options.models) > 1
    if options.fit_weights and (options.weights or not several):
        raise UserError(
            "--fit-weights finds the weights of several models: leave out --weights, or name more"
        )

    output = files.json_output(options.json, force=options.force)

    # The slow imports come after the options, so a wrong option is reported at once.
    from hw.inference import evaluation, mixing
    from hw.training import log

    folders = mixing.folders(options.models)
    data = {
        "data_dir": options.data_dir,
        "data_path": options.data_path,
        "batch_size": options.batch_size,
        "dynamic": options.dynamic,
        "counts": options.counts,
    }
    if several:
        report = evaluation.evaluate_mixture(
            folders, weights=options.weights, fit=options.fit_weights, **data
        )
    else:
        mixing.check_weights(options.weights, 1)
        report = evaluation.evaluate(folders[0], **data)
    (workdir, *_) = options.models
    if not several and not isinstance(workdir, str):
        try:
            log.write_report(workdir, report)
        except OSError as error:  # the user may read another user's run but not write there
            cli.say(f"note: evaluation.json in {workdir} was not written ({error.strerror or error})")
    if options.json:
        files.emit_json(report, output)
    else:
        if "confusion" in report:
            table = _image_table(report)
        else:
            table = _text_table(report) if "nats_cold256" in report else _recall_table(report)
        print(cli.printable(table, keep="\n"))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
