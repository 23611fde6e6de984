"""Tests that the order depends on (seed, step) alone, and that an epoch shows each example exactly once."""

import numpy as np
import pytest

from hw.data import batches


@pytest.mark.parametrize(("num_examples", "batch"), [(20, 5), (23, 5), (7, 10), (50, 50)])
def test_each_example_once_an_epoch(num_examples, batch):
    steps = -(-3 * num_examples // batch)
    indices = [batches.examples(3, s * batch, batch, num_examples) for s in range(steps)]
    index = np.concatenate([p["index"] for p in indices])
    epoch = np.concatenate([p["epoch"] for p in indices])
    for e in range(3):
        assert sorted(index[epoch == e]) == list(range(num_examples))
    assert np.all(np.diff(epoch) >= 0)


def test_a_step_does_not_depend_on_how_it_is_reached():
    whole = batches.examples(1, 0, 60, 23)
    part = batches.examples(1, 35, 10, 23)
    np.testing.assert_array_equal(part["index"], whole["index"][35:45])


def test_seeds_and_epochs_differ():
    orders = [tuple(batches.epoch_order(s, e, 100)) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9
