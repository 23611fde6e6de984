"""Tests that no checkpoint is lost and no damage is loaded, for every file and every kind of damage."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw.cli import UserError
from hw.training import checkpoint
from hw.training.parallel import Parallel
from hw.training.step import TrainState


def _state(step: int) -> TrainState:
    r = np.random.default_rng(step)
    return TrainState(
        step=jnp.int32(step),
        params={"a": {"kernel": jnp.array(r.normal(size=(7, 5)), jnp.float32)}},
        model_state={"batch_stats": {"mean": jnp.array(r.normal(size=5), jnp.bfloat16)}},
        opt_state=(jnp.array(r.normal(size=(7, 5)), jnp.float32), jnp.int32(3)),
    )


def _like(parallel=None):
    sharding = (parallel or Parallel(devices=jax.devices()[:1])).replicated
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _state(0))


@pytest.fixture
def saved(tmp_path):
    """Saves checkpoints of steps 3 and 5."""
    directory = tmp_path / "checkpoints"
    for step in (3, 5):
        checkpoint.save(directory, _state(step), {"seconds": {"total": 1.5}}, keep=2)
    return directory


def _restore(directory):
    said = []
    restored = checkpoint.restore_newest(directory, _like(), said.append)
    return restored, said


def test_round_trip(saved):
    (state, progress), said = _restore(saved)
    chex.assert_trees_all_equal(state, _state(5))
    assert progress == {"seconds": {"total": 1.5}} and not said
    assert checkpoint.fingerprint(state) == checkpoint.fingerprint(_state(5))
    assert checkpoint.fingerprint(state) != checkpoint.fingerprint(_state(3))


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = Path("runs/checkpoints")
    checkpoint.save(directory, _state(2), {"dataset": {}}, keep=1)
    assert int(_restore(directory)[0][0].step) == 2


def test_keeps_the_newest(saved):
    checkpoint.save(saved, _state(8), {}, keep=2)
    assert checkpoint.steps(saved) == [5, 8]


def test_nothing_saved(tmp_path):
    assert _restore(tmp_path / "checkpoints") == (None, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty", "grow"])
def test_damage_to_any_file_falls_back_aloud(saved, tmp_path, damage):
    names = sorted(p.relative_to(saved / "5") for p in (saved / "5").rglob("*") if p.is_file())
    assert len(names) > 5 and any(n.name == "manifest.json" for n in names)
    done = 0
    for number, name in enumerate(names):
        directory = tmp_path / str(number)
        _copy(saved, directory)
        file = directory / "5" / name
        content = file.read_bytes()
        if damage == "delete":
            file.unlink()
        elif damage == "grow":
            file.write_bytes(content + b"\0")
        elif not content:
            continue  # An empty file has no bit to flip and no byte to cut.
        elif damage == "flip":
            at = (number * 7919) % len(content)
            file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        else:
            file.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"")
        (state, _), said = _restore(directory)
        chex.assert_trees_all_equal(state, _state(3))
        assert len(said) == 1 and "DAMAGED" in said[0] and "5" in said[0], name
        assert (directory / "damaged-5").is_dir()
        done += 1
    assert done >= 5


def _copy(source, target):
    import shutil

    shutil.copytree(source, target)


def test_every_bit_of_a_manifest_counts(saved):
    manifest = saved / "5" / "manifest.json"
    content = manifest.read_bytes()
    for at in range(0, len(content), 11):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.verify(saved / "5")
    manifest.write_bytes(content)
    checkpoint.verify(saved / "5")


def test_a_checkpoint_under_another_step_is_damaged(saved):
    (saved / "5").rename(saved / "7")
    (state, _), said = _restore(saved)
    assert int(state.step) == 3 and len(said) == 1


def test_none_sound_is_never_a_silent_restart(saved):
    for step in ("3", "5"):
        (saved / step / "manifest.json").unlink()
    for _ in range(2):  # The second time, both checkpoints have been renamed already.
        with pytest.raises(UserError, match="damaged-3"):
            _restore(saved)


def test_leftovers_are_removed_and_never_taken_for_checkpoints(saved):
    (saved / ".saving-9").mkdir()
    (saved / ".deleting-1").mkdir()
    (saved / ".saving-9" / "x").write_text("half")
    assert checkpoint.steps(saved) == [3, 5]
    checkpoint.clean(saved)
    assert sorted(p.name for p in saved.iterdir()) == ["3", "5"]


def test_a_failed_save_leaves_the_older_ones(saved, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(saved, _state(9), {}, keep=2)
    assert sorted(p.name for p in saved.iterdir()) == ["3", "5"]
    checkpoint.verify(saved / "5")


def test_restores_on_another_number_of_devices(tmp_path):
    # From 1 device to 8, 4 and 1: the arrays stay equal, on the requested devices.
    expected, state = _state(2), _state(2)
    for number, count in enumerate((8, 4, 1)):
        directory = tmp_path / str(number)
        checkpoint.save(directory, state, {}, keep=1)
        parallel = Parallel(devices=jax.devices()[:count])
        state, _ = checkpoint.restore_newest(directory, _like(parallel), print)
        chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(expected))
        assert all(len(x.devices()) == count for x in jax.tree.leaves(state))
