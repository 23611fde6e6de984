"""Question 2: a residual net on CIFAR-10, told from the logs of its runs."""

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
    "test_accuracy_tta": "test accuracy with test-time views",
    "test_loss": "test loss, nats",
}
# What a layer is called in a drawing: in hwnet, and in the field's own nets.
_WORDS = {
    True: {
        "BatchNorm": "normalisation, GELU",
        "ChannelGates": "channels gated by their means",
        "Dense": "largest of each channel, linear head",
    },
    False: {
        "BatchNorm": "normalisation, ReLU",
        "BasicBlock": "residual block",
        "Dense": "mean of each channel, linear head",
    },
}


def _initialize(run: Run) -> dict[str, Any]:
    """The variables of the run's model, built anew from its config; shapes alone."""
    config = ConfigDict(run.config)
    classes = run.summary["dataset"]["classes"]
    module = models.build(config.model, num_outputs=len(classes), platform="cpu")
    init = partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Every parameter of the run's model: name -> shape."""
    return shapes(_initialize(run)["params"])


def _gated(net: Mapping[str, Any]) -> bool:
    """Whether hwnet has gates; runs from before there were any do not say."""
    return net.get("channel_gates", False)


def layers(run: Run) -> list[dict[str, Any]]:
    """The model's layers as they are called, for drawing: `what`, `output`, and `skip`, how many layers a
    skip connection that starts before this one passes over.
    """
    called: list[dict[str, Any]] = []
    seen: dict[tuple[str, ...], list[int]] = {}  # what each is given, by its path
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
        # A class of ours that extends one of linen's is called through both, and is one layer.
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
                entry["what"] = f"2×2 max-pool, {entry['what']}"  # at the end of the stage before
            # A stage's first convolution changes the width; its others have a skip connection.
            if net and isinstance(module, Conv) and next(convolutions) % (1 + net["depth"]):
                branch = 3 if _gated(net) else 2  # with its normalisation and its gates
                entry |= {"skip": branch} if net["residual"] else {}
            called.append(entry | {"output": list(output.shape[1:])})
        return output

    with nn.intercept_methods(record):
        _initialize(run)
    stem = f"{net['stem']} 2×2 stem, both signs" if net else None
    # The stem is no module of its own: its output is what the first convolution sees.
    before = [{"what": stem, "output": next(iter(seen.values()))}] if net else []
    return [{"what": "image", "output": [32, 32, 3]}, *before, *called]


# The routes to the number of parameters. They share nothing.


def params_by_log(run: Run) -> int:
    """As the run counted them."""
    return run.summary["params"]


def params_by_model(run: Run) -> int:
    """By the shapes of the model, built anew from its config."""
    return sum(math.prod(shape) for shape in _shapes(run).values())


def params_by_arithmetic(run: Run) -> int:
    """By the integers of `hw.ops.conv_arithmetic`, from hwnet's layers in words; norms and gates beside."""
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


# The routes to the accuracy of a run.


def accuracy_by_log(run: Run) -> float:
    """As the run's last line of metrics says."""
    return next(line["accuracy"] for line in reversed(run.metrics) if line["split"] == "eval")


def accuracy_by_confusion(run: Run) -> float:
    """The share of the confusion matrix that lies on its diagonal."""
    confusion = run.evaluation["confusion"]
    return sum(row[k] for k, row in enumerate(confusion)) / sum(map(sum, confusion))


def accuracy_by_classes(run: Run) -> float:
    """Every class's accuracy, weighed by how many images it has."""
    sizes = [sum(row) for row in run.evaluation["confusion"]]
    shares = (share or 0.0 for share in run.evaluation["per_class"])  # null for a class without images
    return sum(n * share for n, share in zip(sizes, shares, strict=True)) / sum(sizes)


def claims(runs: Sequence[Run]) -> tuple[Claim, ...]:
    """The parameters, and every seed's accuracy."""
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
    """Likelihood and calibration of every seed, before and after temperature scaling."""
    names = ("nll", "ece", "temperature", "nll_calibrated", "ece_calibrated")
    rows = tuple(
        (f"seed {run.summary['seed']}", *("–" if (v := run.evaluation[n]) is None else v for n in names))
        for run in runs
    )
    header = ("", "loss, nats", "calibration error", "temperature", "loss at it", "calibration error at it")
    return Table("Calibration on the test set", header, rows)


def answer(runs: Sequence[Run]) -> Answer:
    """The net, its runs over all seeds, and how far its predictions can be believed.

    Args:
      runs: of one recipe, a seed each; at least one.
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
        question="Build a residual net of your own and train it on CIFAR-10, if you can to 90 % test "
        "accuracy; hand in code and training log.",
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
                "Trained on all training images; the test set is looked at once, after the last step.",
                table=table,
            ),
            Step(
                "Class by class",
                "The confusion matrices of all seeds added.",
                table=Table("Accuracy", ("class", "accuracy", "most often taken for"), per_class),
            ),
            Step(
                "How far to believe a probability",
                "Label smoothing makes the net say less than it knows; one temperature, fitted on held-out "
                "training images, mends most of that.",
                table=_calibration(runs),
            ),
            Step("The logs", table=provenance(runs)),
        ),
        why="A residual connection hands the gradient on unchanged beside every branch, so that depth costs "
        "no reach; whitening, copies as a start and orthogonalised updates let every step count.",
        claims=claims(runs),
        figures=figures,
    )
