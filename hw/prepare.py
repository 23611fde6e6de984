"""Downloads a dataset, or takes its official archive, verifies it and prepares it for training."""

import sys
from collections.abc import Sequence

from hw import cli


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.prepare", description=__doc__)
    parser.add_argument("dataset", choices=["cifar10", "tiny_shakespeare"])
    parser.add_argument(
        "--data-dir",
        type=cli.path,
        help="where datasets lie (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    parser.add_argument("--archive", type=cli.path, help="take this file instead of downloading")
    parser.add_argument("--sha256", help="what --archive must have, if it is not the official one")
    options = parser.parse_args(argv)
    if options.sha256 and not options.archive:
        parser.error("--sha256 goes with --archive")

    # After the options: a mistake in them is told at once.
    from hw.data import images, prepared, text

    prepare = {"cifar10": images.prepare_cifar10, "tiny_shakespeare": text.prepare_tiny_shakespeare}
    folder = prepare[options.dataset](
        options.data_dir or prepared.default_data_dir(),
        cli.say,
        options.archive,
        options.sha256,
    )
    print(cli.printable(str(folder)))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
