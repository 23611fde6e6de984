"""Downloads a dataset's official archive, or takes it from a file, verifies it and prepares it for training.

    python -m hw.prepare cifar10

A sound existing dataset is kept; a damaged one is replaced.
"""

import sys
from collections.abc import Sequence

from hw import cli


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.prepare", description=__doc__)
    parser.add_argument("dataset", choices=["cifar10", "tiny_shakespeare"], help="the dataset to prepare")
    parser.add_argument(
        "--data-dir",
        type=cli.path,
        help="the folder of datasets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    parser.add_argument("--archive", type=cli.path, metavar="FILE", help="use FILE instead of downloading")
    parser.add_argument(
        "--sha256", metavar="HEX", help="the SHA-256 of --archive, if FILE is not the official archive"
    )
    options = parser.parse_args(argv)
    if options.sha256 and not options.archive:
        parser.error("--sha256 needs --archive=FILE")

    # The slow imports come after the options, so a wrong option is reported at once.
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
