"""Names what is in an image: class and probability, by a trained or a released network."""

import sys
from collections.abc import Sequence

from hw import cli, files


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.predict", description=__doc__)
    parser.add_argument(
        "images", nargs="+", type=cli.path, metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
    )
    parser.add_argument("--workdir", type=cli.path, help="a run of yours (default: the released resnet)")
    parser.add_json_option()
    options = parser.parse_args(argv)

    output = files.json_output(options.json, inputs=options.images, force=options.force)

    # After the options: a mistake in them is told at once.
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
