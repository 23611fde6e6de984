"""Measures the speed of sampling text, and compares it with PyTorch.

    python -m experiments.benchmarks.sampling [--rounds=5] [--dtype=float32] [--out=DIR]

The model is the default GRU language model at temperature 0.8, with its initial weights: training does not
change the speed. The benchmark compares

  `hw.generation` with one stream and with 64 streams;
  one jitted step of the same model, which samples and is called from Python for each character;
  PyTorch with the same weights, one stream, step by step, eager and compiled.

The jitted step's results stay on the device until the end. All programs run interleaved, and the median over
the rounds counts. Before the timing, all greedy texts must agree. On a GPU this needs --dtype=float32 and
products in full precision, so these are timed there. PyTorch is not part of this package; without it, its
rows are left out:

    pip install torch==2.13.0
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.typing import ArrayLike

import configs.gru
from experiments.benchmarks.timing import interleaved, torch_version
from experiments.study import RESULTS
from hw import cli, files, generation, hardware, models

Array = jax.Array
SYMBOLS, LENGTH, STREAMS, TEMPERATURE = 65, 1024, 64, 0.8
# `(length, temperature) -> ids`; a temperature of 0 is greedy.
Run = Callable[[int, float], np.ndarray]
PROMPT = np.arange(10, dtype=np.int32)


def step_by_step(module: nn.Module, variables: VariableDict) -> Run:
    """Returns a sampler that calls one jitted step from Python for each character."""

    def advance(
        carry: Any, ids: Array, rng: Array, position: Array, temperature: Array, greedy: bool
    ) -> tuple[Any, Array]:
        logits, carry = module.apply(variables, ids[:, None], carry, train=False)
        if greedy:
            return carry, logits[:, 0].argmax(-1)
        rng = jax.random.fold_in(rng, position)
        return carry, jax.random.categorical(rng, logits[:, 0] / temperature)

    program = jax.jit(advance, static_argnums=5)

    def run(length: int, temperature: float) -> np.ndarray:
        rng, carry = jax.random.key(0), module.initial_carry(1)
        found: list[int] = []
        ids = jnp.asarray(PROMPT[:1])
        for position in range(len(PROMPT) + length - 1):
            if position < len(PROMPT):
                ids = jnp.asarray(PROMPT[position : position + 1])
            carry, ids = program(carry, ids, rng, position, temperature or 1.0, not temperature)
            if position >= len(PROMPT) - 1:
                found.append(ids)
        return np.asarray(jnp.concatenate(found))

    return run


def torch_runs(module: nn.Module, variables: VariableDict) -> dict[str, Run]:
    """Returns the samplers in PyTorch, built on its own GRU layers."""
    import torch

    params = variables["params"]
    device = torch.device("cuda" if jax.devices()[0].platform == "gpu" else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # cuDNN's layers use TF32 by default; PyTorch's products do not

    def tensor(x: ArrayLike) -> torch.Tensor:
        return torch.from_numpy(np.array(x)).to(device)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding.from_pretrained(tensor(params["embed"]["embedding"]))
            self.layers = torch.nn.ModuleList()
            for layer in range(module.depth):
                p = params[f"gru_{layer}"]
                gru = torch.nn.GRU(p["w"].shape[0], module.width, batch_first=True, device=device)
                with torch.no_grad():
                    gru.weight_ih_l0.copy_(tensor(p["w"].T))
                    gru.weight_hh_l0.copy_(tensor(p["u"].T))
                    gru.bias_ih_l0.copy_(tensor(p["b"]))
                    gru.bias_hh_l0.zero_()
                    gru.bias_hh_l0[2 * module.width :] = tensor(p["c"])
                self.layers.append(gru)
            self.scale = torch.nn.Parameter(tensor(params["RMSNorm_0"]["scale"]))
            self.kernel = torch.nn.Parameter(tensor(params["head"]["kernel"]))
            self.bias = torch.nn.Parameter(tensor(params["head"]["bias"]))

        def forward(
            self, ids: torch.Tensor, hidden: list[torch.Tensor]
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            x = self.embed(ids)
            after = []
            for layer, h in zip(self.layers, hidden, strict=True):
                out, h = layer(x, h)
                x = x + out
                after.append(h)
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
            return x @ self.kernel + self.bias, after

    def run_of(net: torch.nn.Module) -> Run:
        @torch.inference_mode()
        def run(length: int, temperature: float) -> np.ndarray:
            torch.manual_seed(0)
            hidden = [torch.zeros(1, 1, module.width, device=device) for _ in range(module.depth)]
            ids = tensor(PROMPT.astype(np.int64))[None]
            found: list[int] = []
            for _ in range(length):
                logits, hidden = net(ids, hidden)
                if temperature:
                    shares = torch.softmax(logits[0, -1] / temperature, -1)
                    ids = torch.multinomial(shares, 1)[None]
                else:
                    ids = logits[0, -1].argmax()[None, None]
                found.append(ids)
            return torch.cat(found, dim=1)[0].cpu().numpy()

        return run

    runs = {"torch, eager": run_of(Net())}
    compiled = run_of(torch.compile(Net()))
    try:
        compiled(4, TEMPERATURE)
        runs["torch, compiled"] = compiled
    except Exception as error:  # without a C++ compiler it fails in many ways
        cli.say(f"torch.compile is left out: {str(error).strip().splitlines()[0][:200]}")
    return runs


def measure(module: nn.Module, rounds: int, length: int = LENGTH, streams: int = STREAMS) -> dict[str, Any]:
    """Measures all samplers, in seconds and characters/s.

    Raises:
      AssertionError: two greedy texts differ.
    """
    variables = jax.jit(lambda rng: module.init(rng, jnp.zeros((1, 1), jnp.int32), None, train=False))(
        jax.random.key(0)
    )

    def ours(count: int) -> Run:
        def run(length: int, temperature: float) -> np.ndarray:
            options = {"length": length, "temperature": temperature, "streams": range(count)}
            return generation.sample(module, variables, PROMPT, **options)[0]

        return run

    names = {"hw.generation, one stream": ours(1), "jitted step from Python": step_by_step(module, variables)}
    names |= torch_runs(module, variables) if torch_version() else {}
    greedy = {name: run(40, 0.0) for name, run in names.items()}
    for name, ids in greedy.items():
        np.testing.assert_array_equal(ids, greedy["hw.generation, one stream"], err_msg=name)
    several = f"hw.generation, {streams} streams"
    names[several] = ours(streams)
    programs = {name: lambda run=run: run(length, TEMPERATURE) for name, run in names.items()}
    seconds = interleaved(programs, rounds)
    return {
        name: {
            "seconds": values,
            "characters_per_second": (streams if name == several else 1) * length / statistics.median(values),
        }
        for name, values in seconds.items()
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.sampling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurement (default: 5)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the model"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "sampling", help="folder of the results")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        raise cli.UserError("--rounds must be at least 1")
    if not torch_version():
        cli.say("PyTorch is not installed, so its rows are left out (pip install torch==2.13.0)")
    device = jax.devices()[0]
    config = configs.gru.get_config()
    config.model.dtype = options.dtype
    jax.config.update("jax_default_matmul_precision", "highest")  # a CPU has no other precision
    module = models.build(config.model, num_outputs=SYMBOLS, platform=device.platform)
    report = {
        "length": LENGTH,
        "model": config.model.to_dict(),
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "processor": hardware.processor().as_dict(),
        },
        "versions": {"jax": jax.__version__} | torch_version(),
        "runs": measure(module, options.rounds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(options.out / "sampling.json", cli.to_json(report, indent=2) + "\n")
    print(f"{'':<28}{'characters/s':>14}")
    for name, of in report["runs"].items():
        print(f"{name:<28}{of['characters_per_second']:>14,.0f}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
