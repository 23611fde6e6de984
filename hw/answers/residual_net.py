"""Answers question 2: a residual net on CIFAR-10, described by the logs of its runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from hw import models
from hw.answers import notation
from hw.answers.claims import Answer, Claim, Step, Table
from hw.answers.runs import Run, curves, over_seeds, provenance, shapes
from hw.models.resnet import Conv, HWNet
from hw.ops.conv_arithmetic import trace
from hw.ops.layer_language import parse_layers

_FIELDS = {
    "test_accuracy": "test accuracy",
    "test_accuracy_tta": "test accuracy with test-time augmentation",
    "test_loss": "test loss, nats",
}
# Names of layers in a drawing: True for hwnet, False for standard nets.
_WORDS = {
    True: {
        "BatchNormGELU": "normalisation, GELU",
        "ChannelGates": "channels gated by their means",
        "Dense": "maximum of each channel, linear head",
    },
    False: {
        "BatchNorm": "normalisation, ReLU",
        "BasicBlock": "residual block",
        "Dense": "mean of each channel, linear head",
    },
}


def _initialize(run: Run) -> dict[str, Any]:
    """Returns the shapes of the variables of the run's model, built again from its config."""
    config = ConfigDict(run.config)
    classes = run.summary["dataset"]["classes"]
    module = models.build(config.model, num_outputs=len(classes), platform="cpu")
    init = partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of the run's model by its name."""
    return shapes(_initialize(run)["params"])


def _gated(net: Mapping[str, Any]) -> bool:
    """Returns whether hwnet has gates; runs from before the option existed have none."""
    return net.get("channel_gates", False)


def layers(run: Run) -> list[dict[str, Any]]:
    """Returns the model's layers in the order of their calls, for drawing.

    Each layer has `what` and `output`. If a skip connection starts before it, `skip` is the number of layers
    that the connection passes over.
    """
    called: list[dict[str, Any]] = []
    seen: dict[tuple[str, ...], list[int]] = {}  # the input's shape of each module, by its path
    net = run.config["model"].get("hwnet", {}) if run.config["model"]["name"] == "hwnet" else {}
    convolutions = count()

    def record(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        output = call(*arguments, **keywords)
        module = context.module
        # A class of ours that extends a linen class is intercepted twice, but is one layer.
        first = module.path not in seen
        if context.method_name == "__call__" and len(module.path) == 1 and first:
            seen[module.path] = list(arguments[0].shape[1:])
            kind = type(module).__name__
            entry = {"what": _WORDS[bool(net)].get(kind, kind)}
            if isinstance(module, Conv):
                entry["what"] = f"{module.kernel_size}×{module.kernel_size} convolution"
            if isinstance(module, Conv) and module.pool:
                entry["what"] += ", 2×2 max-pool"
            elif net and called and output.ndim == 4 and output.shape[1] < called[-1]["output"][0]:
                entry["what"] = f"2×2 max-pool, {entry['what']}"  # it ends the previous stage
            # A stage's first convolution changes the width; the others have a skip connection.
            if net and isinstance(module, Conv) and next(convolutions) % (1 + net["depth"]):
                branch = 3 if _gated(net) else 2  # convolution, normalisation and perhaps gates
                entry |= {"skip": branch} if net["residual"] else {}
            called.append(entry | {"output": list(output.shape[1:])})
        return output

    with nn.intercept_methods(record):
        _initialize(run)
    stem = f"{net['stem']} 2×2 stem, both signs" if net else None
    # The stem is not a module: its output is the input of the first convolution.
    before = [{"what": stem, "output": next(iter(seen.values()))}] if net else []
    return [{"what": "image", "output": [32, 32, 3]}, *before, *called]


# These routes give the number of parameters. They share no code.


def params_by_log(run: Run) -> int:
    """Returns the number that the run logged."""
    return run.summary["params"]


def params_by_model(run: Run) -> int:
    """Computes the number from the shapes of the model, built again from its config."""
    return sum(math.prod(shape) for shape in _shapes(run).values())


def params_by_arithmetic(run: Run) -> int:
    """Computes the number by `hw.ops.conv_arithmetic` from hwnet's layers, and adds norms, gates and stem."""
    net = run.config["model"]["hwnet"]
    widths, depth = net["widths"], net["depth"]
    conv = "conv{}k3samenobias"
    body = " ".join(" ".join([conv.format(w), "pool2", *[conv.format(w)] * depth]) for w in widths)
    classes = len(run.summary["dataset"]["classes"])
    head = trace((widths[-1],), parse_layers(f"dense{classes}nobias"))
    norms = (1 + depth) * sum(widths) * (2 if net["norm_scale"] else 1)
    gates = (1 + depth) * sum(w * w for w in widths) if _gated(net) else 0
    learned_stem = 2 * 2 * 3 * 12 if net["stem"] == "learned" else 0
    filters = trace((31, 31, 24), parse_layers(body)).total_params
    return filters + head.total_params + norms + gates + learned_stem


# These routes give the accuracy of a run.


def accuracy_by_log(run: Run) -> float:
    """Returns the accuracy in the last evaluation line of the metrics."""
    return next(line["accuracy"] for line in reversed(run.metrics) if line["split"] == "eval")


def accuracy_by_confusion(run: Run) -> float:
    """Computes the share of the confusion matrix on its diagonal."""
    confusion = run.evaluation["confusion"]
    return sum(row[k] for k, row in enumerate(confusion)) / sum(map(sum, confusion))


def accuracy_by_classes(run: Run) -> float:
    """Computes the mean of the classes' accuracies, weighted by their numbers of images."""
    sizes = [sum(row) for row in run.evaluation["confusion"]]
    shares = (share or 0.0 for share in run.evaluation["per_class"])  # null for a class without images
    return sum(n * share for n, share in zip(sizes, shares, strict=True)) / sum(sizes)


def claims(runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Returns claims for the number of parameters and every seed's accuracy."""
    found = []
    if runs[0].config["model"]["name"] == "hwnet":
        routes = {"log": params_by_log, "model": params_by_model, "arithmetic": params_by_arithmetic}
        found.append(
            Claim("2.params", "parameters of the net", {k: partial(v, runs[0]) for k, v in routes.items()})
        )
    routes = {
        "log": accuracy_by_log,
        "confusion matrix": accuracy_by_confusion,
        "classes": accuracy_by_classes,
    }
    for run in runs:
        seed = run.summary["seed"]
        found.append(
            Claim(
                f"2.accuracy.{seed}",
                f"test accuracy, seed {seed}",
                {k: partial(v, run) for k, v in routes.items()},
                tolerance=1e-12,
            )
        )
    return tuple(found)


def _calibration(runs: Sequence[Run]) -> Table:
    """Returns a table of every seed's loss and calibration error, before and after temperature scaling."""
    names = ("nll", "ece", "temperature", "nll_calibrated", "ece_calibrated")
    rows = tuple(
        (f"seed {run.summary['seed']}", *("–" if (v := run.evaluation[n]) is None else v for n in names))
        for run in runs
    )
    header = ("", "loss, nats", "calibration error", "temperature", "scaled loss", "scaled calibration error")
    return Table("Calibration on the test set", header, rows)


def answer(runs: Sequence[Run]) -> Answer:
    """Returns the answer: the net, its runs over all seeds, and the calibration of its predictions.

    Args:
      runs: runs of one recipe, one per seed; at least one.
    """
    built = _shapes(runs[0])
    rows = tuple((name, notation.times(shape), math.prod(shape)) for name, shape in built.items())
    table = over_seeds(runs, _FIELDS)
    classes = runs[0].evaluation["classes"]
    confusion = [[sum(run.evaluation["confusion"][i][j] for run in runs) for j in range(len(classes))]
                 for i in range(len(classes))]  # fmt: skip

    def mistaken_for(k: int, row: Sequence[int]) -> str:
        return classes[max((c for c in range(len(row)) if c != k), key=row.__getitem__)]

    per_class = tuple(
        (name, row[k] / sum(row) if sum(row) else "–", mistaken_for(k, row))
        for k, (name, row) in enumerate(zip(classes, confusion, strict=True))
    )
    mean = table.rows[0][1]
    within = "" if len(runs) == 1 else f" (95 % interval {table.rows[2][1]:.2%} to {table.rows[3][1]:.2%})"
    figures: dict[str, Any] = {
        "layers": layers(runs[0]),
        "loss": curves(runs, "loss"),
        "accuracy": curves(runs, "accuracy"),
        "confusion": {"classes": list(classes), "counts": confusion},
    }
    return Answer(
        number=2,
        title="A residual net on CIFAR-10",
        question="Design a residual net and train it on CIFAR-10, if possible to 90 % test accuracy. Hand in "
        "the code and the training log.",
        answer=f"{mean:.2%} test accuracy, mean of {len(runs)} seed{'s' if len(runs) > 1 else ''}{within}",
        steps=(
            Step(
                "The net",
                (HWNet.__doc__ or "").split("Attributes:")[0].strip()
                if runs[0].config["model"]["name"] == "hwnet"
                else "",
                table=Table("Its parameters", ("name", "shape", "number"), rows),
                code=HWNet if runs[0].config["model"]["name"] == "hwnet" else None,
            ),
            Step(
                "Test accuracy",
                "We train on all training images and evaluate the test set once, after the last step.",
                table=table,
            ),
            Step(
                "Class by class",
                "We add the confusion matrices of all seeds.",
                table=Table("Accuracy", ("class", "accuracy", "most often mistaken for"), per_class),
            ),
            Step(
                "Calibration",
                "Label smoothing makes the net underconfident. One temperature, fitted on held-out training "
                "images, corrects most of that.",
                table=_calibration(runs),
            ),
            Step("The logs", table=provenance(runs)),
        ),
        why="A residual connection passes the gradient unchanged beside every branch, so it also reaches the "
        "first layers of a deep net. Whitening, initialisation with copies of channels and orthogonalised "
        "updates make training fast.",
        claims=claims(runs),
        figures=figures,
    )
