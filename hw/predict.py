"""Classifies images: prints each image's class and probability from a trained or a released network.

    python -m hw.predict cat.jpg

The networks know only the ten classes of CIFAR-10.
"""

import sys
from collections.abc import Sequence

from hw import cli, files


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.predict", description=__doc__)
    parser.add_argument(
        "images", nargs="+", type=cli.path, metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
    )
    parser.add_argument(
        "--workdir", type=cli.path, help="a workdir of hw.train (default: the released resnet)"
    )
    parser.add_json_option()
    options = parser.parse_args(argv)

    output = files.json_output(options.json, inputs=options.images, force=options.force)

    # The slow imports come after the options, so a wrong option is reported at once.
    from hw.inference import images
    from hw.training import saved

    predictions = images.predict(options.images, options.workdir or saved.released("resnet"))
    if options.json:
        files.emit_json(predictions, output)
    else:
        for p in predictions:
            others = ", ".join(f"{label} {share:.1%}" for label, share in p["top5"][1:])
            print(cli.printable(f"{p['file']}: {p['label']} {p['probability']:.1%} ({others})"))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
