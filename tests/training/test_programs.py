"""Tests that the programs of a run are compiled in order, in threads, and never more than asked for."""

import threading

import jax
import jax.numpy as jnp
import pytest

from hw.training.programs import Programs


def _lowered(n):
    return jax.jit(lambda x: x + n).lower(jnp.zeros(3))


def test_every_key_gives_its_own_program():
    with Programs({n: lambda n=n: _lowered(n) for n in (1, 2, 3)}, threads=2) as programs:
        for n in (3, 1, 2):
            assert programs[n](jnp.zeros(3)).tolist() == [n] * 3


def test_programs_are_traced_one_after_another_in_their_order():
    order, at_once, inside = [], [], threading.Lock()

    def lower(n):
        at_once.append(inside.acquire(blocking=False))
        order.append(n)
        lowered = _lowered(n)
        inside.release()
        return lowered

    with Programs({n: lambda n=n: lower(n) for n in range(6)}, threads=1) as programs:
        assert programs[5](jnp.zeros(3)).tolist() == [5] * 3
    assert order == list(range(6)) and all(at_once)


def test_the_first_program_can_be_used_while_the_second_is_compiled():
    go = threading.Event()

    def second():
        assert go.wait(60)
        return _lowered(2)

    with Programs({1: lambda: _lowered(1), 2: second}, threads=2) as programs:
        assert programs[1](jnp.zeros(3)).tolist() == [1] * 3
        go.set()
        assert programs[2](jnp.zeros(3)).tolist() == [2] * 3


def test_an_error_reaches_the_one_who_asks():
    def wrong():
        raise ValueError("this one")

    with Programs({1: lambda: _lowered(1), 2: wrong}, threads=2) as programs:
        assert programs[1](jnp.zeros(3)).tolist() == [1] * 3
        with pytest.raises(ValueError, match="this one"):
            programs[2]


def test_on_leaving_what_has_not_begun_is_dropped():
    begun, started, go = [], threading.Event(), threading.Event()

    def lower(n):
        begun.append(n)
        started.set()
        assert go.wait(60)
        return _lowered(n)

    with Programs({n: lambda n=n: lower(n) for n in range(5)}, threads=1) as programs:
        assert started.wait(60)
    go.set()
    programs[0]  # it had begun
    assert begun == [0]
