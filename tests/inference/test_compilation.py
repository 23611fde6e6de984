"""Compiles the real programs ahead of time, for the devices here and for a TPU elsewhere."""

import importlib
import json
import math

import jax
import numpy as np
import pytest

from hw import cli, data
from hw import compile as command
from hw.cli import UserError
from hw.inference import compilation
from hw.training.parallel import Parallel
from tests import processes

SMALL = ("--config.model.gru_lm.embedding=8", "--config.model.gru_lm.width=8", "--config.train.length=16")


def _config(name, variant=None, **changes):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    config.update_from_flattened_dict(changes)
    return config


def _small(**changes):
    small = {"model.gru_lm.embedding": 8, "model.gru_lm.width": 8, "train.length": 16, "eval.window": 32}
    return _config("gru", "quick", **small, **changes)


def _by_program(reports):
    return {found.program: found for found in reports}


def test_eight_devices_share_the_work_and_exchange_gradients():
    found = _by_program(compilation.report("local", _small()))
    assert set(found) == {"train", "evaluate", "sample"}
    train = found["train"]
    assert train.devices == len(jax.devices()) == 8 and train.batch == 64 and train.steps == 1
    assert train.collectives.get("all-reduce", 0) >= 1, "no gradient is exchanged"
    # Every device holds the whole carry between steps, so one all-gather is allowed.
    assert train.collectives.get("all-gather", 0) <= 1, "the recurrence is computed whole on every device"
    (lowered,) = (
        lowered
        for name, _, lowered in compilation.programs(_small(), Parallel(devices=jax.devices()[:1]))
        if name == "train"
    )
    alone = lowered.compile()
    assert "all-reduce" not in alone.as_text()
    assert train.flops < 0.5 * alone.cost_analysis()["flops"]
    assert train.fits and 0 < train.memory < train.memory_limit


@pytest.mark.parametrize("name", ["gru", "recall", "resnet"])
def test_every_seed_has_the_same_programs(name):
    """If the seed were a constant of the program, each seed of a study would compile again."""
    change = {"resnet": {"model.hwnet.widths": (8, 8, 8)}, "gru": {"model.gru_lm.width": 8}}.get(name, {})
    first, second = (
        {
            program: lowered.as_text()
            for program, _, lowered in compilation.programs(
                _config(name, seed=seed, **change), Parallel(devices=jax.devices()[:1])
            )
            if program.startswith("train")
        }
        for seed in (0, 7)
    )
    assert first and first == second


def test_exchanges_are_counted_in_whatever_form():
    program = """
  %a = f32[8]{0} all-reduce(%x), to_apply=%sum
  %b = (f32[8]{0}, f32[2]{0}, f32[3]{0}, f32[4]{0}, f32[5]{0}, /*index=5*/f32[6]{0}) all-reduce(%x, %y)
  %c = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[64]{0} all-gather-done(%c)
  %e = f32[64]{0} add(%d, %all-reduce.7)
"""
    assert compilation.collectives(program) == {"all-reduce": 2, "all-gather": 1}


def test_images_have_a_program_for_every_stage_and_one_to_evaluate():
    config = _config(
        "resnet", **{"model.hwnet.widths": (8, 8, 8), "train.batch_size": 40, "eval.batch_size": 40}
    )
    found = [name for name, _, _ in compilation.programs(config, Parallel(devices=jax.devices()[:1]))]
    # By hand: there are 5 · 50,000 / 40 = 6,250 steps, and the first 40 % have small images.
    assert found == ["train from step 0", "train from step 3250", "evaluate"]


@pytest.mark.parametrize(("name", "holdout"), [("resnet", 0), ("resnet", 5000), ("gru", 0), ("gru", 100_000)])
def test_the_blank_dataset_has_the_sizes_of_the_real_one(name, holdout):
    config = _config(name, **{"data.source": "tfds", "data.holdout": holdout})
    try:
        real = data.load(config.data)
    except UserError as missing:
        pytest.skip(f"no real data: {missing}")
    blank = data.blank(config.data)
    for ours, theirs in zip(_arrays(blank), _arrays(real), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert not np.any(ours)
    assert (blank.classes, blank.eval_name) == (real.classes, real.eval_name)


def _arrays(dataset):
    if isinstance(dataset, data.images.Dataset):
        return [dataset.train.image, dataset.train.label, dataset.eval.image, dataset.eval.label]
    return [dataset.train, dataset.eval]


def test_the_command_prints_a_table_and_strict_json(capsys, tmp_path):
    arguments = ["--config=configs/gru.py:quick", *SMALL]
    assert command.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["topology", "program", "devices"] and len(table) == 5
    assert command.main([*arguments, f"--json={tmp_path / 'a.json'}"]) == 0
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["program"] for row in rows] == ["train", "evaluate", "sample"]
    assert all(row["fits"] and row["devices"] == 8 for row in rows)


def test_what_does_not_fit_is_said(capsys, monkeypatch):
    monkeypatch.setattr(Parallel, "memory_limit", property(lambda self: 1000.0))
    assert command.main(["--config=configs/gru.py:quick", *SMALL]) == 1
    out, err = capsys.readouterr()
    assert "TOO MUCH" in out and "local: train does not fit" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--config=configs/gru.py:quick", "--config.train.batch_size=63"],
            "positive multiple of the 8 devices",
        ),
        (["--config=configs/gru.py:quick", "--topology=v5e"], "such as v5e:1x1"),
        (
            ["--config=configs/gru.py:quick", "--topology=v5e:2x2", "--config.parallel=pmap"],
            "needs real devices",
        ),
        (["--config=configs/gru.py:quick", "--config.parallel=pmap"], "needs real devices"),
        (["--config=configs/gru.py:nope"], "unknown variant"),
        (["--config=configs/gru.py", "--config.nope=1"], "no such field"),
        (["--config=configs/gru.py", "--nope"], "stray argument '--nope'"),
        ([], "--config"),
    ],
)
def test_mistakes_cost_one_line(arguments, expected, capsys):
    with pytest.raises(UserError, match=expected):
        command.main(arguments)
    assert capsys.readouterr().err == ""


def test_commands_are_quiet_where_libtpu_finds_no_tpu():
    # This test must come first: libtpu is silent while another process, such as this one, has it loaded.
    pytest.importorskip("libtpu", reason="libtpu is missing: pip install libtpu")
    if cli._may_have_tpu():
        pytest.skip("this machine may have a TPU")
    alone = "import jax; jax.devices()"
    ours = "from hw import cli; cli.run(lambda argv: __import__('jax').devices() and 0, [])"
    said = [
        processes.run(processes.python("-c", code), env={"JAX_PLATFORMS": None}, timeout=60)
        for code in (alone, ours)
    ]
    assert "TPU" in said[0].stderr, "JAX is quiet by itself: cli._settle_jax is no longer needed"
    assert said[1].returncode == 0 and said[1].stderr == ""


def test_a_missing_libtpu_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("Unable to initialize backend 'tpu': libtpu.so not found")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match="pip install libtpu"):
        compilation.devices("v5e:2x2")


def test_a_topology_that_does_not_exist_is_said():
    pytest.importorskip("libtpu", reason="libtpu is missing: pip install libtpu")
    with pytest.raises(UserError, match="v5e:3x3"):
        compilation.devices("v5e:3x3")


def test_what_does_not_fit_at_the_quick_level_is_compiled_at_the_full_one(monkeypatch):
    """The CPU stands for a TPU that is not there."""
    monkeypatch.setattr(compilation, "devices", lambda topology: jax.devices()[:1])
    levels, whole = [], jax.stages.Lowered.compile

    def compile_(lowered, compiler_options=None):
        levels.append((compiler_options or {}).get("optimization_level", "default"))
        return whole(lowered)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    for topology, memory, expected in (
        ("v5e:1x1", math.inf, ["O1"] * 3),
        ("v5e:1x1", 0, ["O1", "default"] * 3),
        ("local", 0, ["default"] * 3),
    ):
        monkeypatch.setattr(Parallel, "memory_limit", memory)
        levels.clear()
        fits = {found.fits for found in compilation.report(topology, _small())}
        assert levels == expected and fits == {memory > 0}


@pytest.mark.parametrize(("topology", "count"), [("v5e:1x1", 1), ("v5e:2x4", 8)])
def test_a_tpu_that_is_not_there(topology, count):
    pytest.importorskip("libtpu", reason="libtpu is missing: pip install libtpu")
    found = _by_program(compilation.report(topology, _small()))
    train = found["train"]
    assert (train.devices, train.kind, train.steps) == (count, "TPU v5 lite", 50)
    assert train.memory_limit == 16 * 2**30 and 0 < train.memory < train.memory_limit
    assert train.seconds > 0 and bool(train.collectives) == (count > 1)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:4x4", "v5e:16x16"])
@pytest.mark.parametrize("name", ["resnet", "gru", "attention"])
def test_every_recipe_fits_every_size_of_tpu(topology, name):
    pytest.importorskip("libtpu", reason="libtpu is missing: pip install libtpu")
    config = _config(name, **{"train.batch_size": 1024, "eval.batch_size": 1024})
    for found in compilation.report(topology, config):
        assert found.fits, found
