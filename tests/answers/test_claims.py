"""Every result by every route; routes that share nothing; and that a broken function is found out."""

import ast
import dataclasses
import inspect
import json
import math
import sys
import textwrap
from functools import partial

import mpmath
import numpy as np
import pytest

from hw import answers, verify
from hw.answers import attention, attention_gradient, bptt, claims, cnn, cnn_routes, multi_head, unrolled_rnn
from hw.ops import attention as attention_ops
from hw.ops import conv_arithmetic
from hw.ops import rnn as rnn_ops

CLAIMS = answers.all_claims()


@pytest.fixture(scope="module")
def values():
    """What every route of every claim gives, computed once."""
    return {c.id: {name: route() for name, route in c.routes.items()} for c in CLAIMS}


def test_every_claim_holds(values):
    for claim in CLAIMS:
        known = {name: partial(lambda v: v, values[claim.id][name]) for name in claim.routes}
        verdict = claims.check(dataclasses.replace(claim, routes=known))
        assert verdict.holds, (claim.id, verdict.dissenters, verdict.failures)
        assert verdict.error <= claim.tolerance


def test_ids_are_unique_and_every_question_of_numbers_has_some():
    ids = [c.id for c in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {int(c.id.split(".")[0]) for c in CLAIMS} == answers.worked().keys() >= {1, 3, 4, 6, 7, 8}


# --- routes share no function of ours ---


def _ours(value) -> bool:
    """Whether a name stands for code of this project that computes: data's types are none."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return False
    if not value.__module__.startswith("hw."):
        return False
    is_data = dataclasses.is_dataclass(value) and not hasattr(value, "apply")  # linen modules are dataclasses
    return not (inspect.isclass(value) and (is_data or issubclass(value, tuple | Exception)))


def _mentioned(function) -> set:
    """Functions and classes of ours that a function, or a class's body, mentions."""
    module = sys.modules[function.__module__]
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    local = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    local |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    found = set()
    for node in nodes:
        value = None
        if isinstance(node, ast.Name) and node.id not in local:
            value = vars(module).get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = vars(module).get(node.value.id)
            if inspect.ismodule(owner) and owner.__name__.startswith("hw."):
                value = getattr(owner, node.attr, None)
        value = getattr(value, "__wrapped__", value)  # jax.custom_vjp
        value = getattr(value, "fun", value)
        if _ours(value):
            found.add(value)
    return found - {function}


def reached(function) -> set:
    """Everything of ours that a route may run."""
    seen, waiting = set(), [function]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += _mentioned(current)
    return seen


def _computes(route):
    """The function that computes what a route of a claim gives."""
    return route.args[0].__wrapped__.func if isinstance(route, partial) else route


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_routes_share_no_function(claim):
    routes = {name: reached(_computes(route)) for name, route in claim.routes.items()}
    assert all(_ours(_computes(route)) for route in claim.routes.values())
    for a in routes:
        for b in routes:
            assert a == b or not routes[a] & routes[b], (a, b, routes[a] & routes[b])


def test_the_search_finds_what_is_shared():
    # It must see through modules, classes and calls of calls, or it would prove nothing.
    assert attention_ops.softmax_backward in reached(attention_gradient.by_formula)
    assert conv_arithmetic.trace in reached(cnn_routes.by_formula)
    assert {cnn_routes._Flax, cnn_routes._products} <= reached(cnn_routes.by_flax)
    assert cnn_routes._Flax in reached(cnn_routes.fields_by_flax)
    assert cnn_routes._seen in reached(cnn_routes.fields_by_windows)
    assert unrolled_rnn.arrays in reached(bptt.by_formula)
    assert rnn_ops.step_jacobians in reached(unrolled_rnn.by_ops)
    assert {_computes(r) for c in multi_head.claims() for r in c.routes.values()} == {
        *multi_head.ROUTES.values(),
        *multi_head.OUTPUT_ROUTES.values(),
    }


# --- a broken function is found out ---


def _off(value):
    """A value with its last number changed by a tenth, or by one where it is an integer."""
    flat = np.array(value, dtype=object)
    changed = flat.ravel().copy()
    last = changed[-1]
    changed[-1] = last + 1 if isinstance(last, int | np.integer) or last == 0 else last * 1.1
    return changed.reshape(flat.shape).tolist()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_a_broken_route_is_the_one_that_disagrees(claim, values):
    for broken in claim.routes:
        known = {
            name: partial(lambda v: v, _off(v) if name == broken else v)
            for name, v in values[claim.id].items()
        }
        verdict = claims.check(dataclasses.replace(claim, routes=known))
        assert verdict.dissenters == (broken,)


# Functions below the routes: (module, name, the one route of a claim that stands on it).
BELOW = [
    (attention_ops, "masked_softmax", attention, "6.weights", "jax"),
    (attention_ops, "scores", attention, "6.scores", "jax"),
    (attention_ops, "softmax_backward", attention_gradient, "8.dz", "formula"),
    (attention_ops, "attention_backward", attention_gradient, "8.dq", "formula"),
    (attention_ops, "multi_head_params", multi_head, "7.params", "ledger"),
    (rnn_ops, "forward", unrolled_rnn, "3.hidden", "jacobian product"),
    (rnn_ops, "step_jacobians", unrolled_rnn, "3.depends", "jacobian product"),
    (rnn_ops, "jacobian", bptt, "4.chain", "by hand"),
    (rnn_ops, "bptt", bptt, "4.dWhh", "by hand"),
    (conv_arithmetic, "output_size", cnn, "1.shapes", "closed form"),
    (conv_arithmetic, "conv_params", cnn, "1.params", "closed form"),
    (conv_arithmetic, "conv_macs", cnn, "1.macs", "closed form"),
    (cnn_routes, "_products", cnn, "1.macs", "flax"),
    (cnn_routes, "_touched", cnn, "1.fields", "flax"),
    (cnn_routes, "_seen", cnn, "1.fields", "windows counted"),
]


def _wrong(function):
    """The function with every number that it returns a little larger."""

    def larger(value):
        if isinstance(value, bool) or not isinstance(value, int | float | np.ndarray | tuple | list | dict):
            return value * 1.01 if hasattr(value, "dtype") else value
        if isinstance(value, dict):
            return {k: larger(v) for k, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(larger, value))
        if isinstance(value, tuple | list):
            return type(value)(map(larger, value))
        return value + 1 if isinstance(value, int) else value * 1.01

    return lambda *args, **kwargs: larger(function(*args, **kwargs))


@pytest.mark.parametrize(("home", "name", "module", "claim_id", "route"), BELOW, ids=lambda x: str(x)[:40])
def test_breaking_a_function_below_makes_its_route_disagree(home, name, module, claim_id, route, monkeypatch):
    monkeypatch.setattr(home, name, _wrong(getattr(home, name)))
    (claim,) = (c for c in module.claims() if c.id == claim_id)
    assert claims.check(claim).dissenters == (route,)


def test_verify_says_all_is_well_and_says_when_not(capsys, monkeypatch, values):
    monkeypatch.setattr(answers, "all_claims", lambda: list(attention.claims()))
    assert verify.main([]) == 0
    assert capsys.readouterr().out.count("holds") == 4
    monkeypatch.setitem(attention.ROUTES, "mpmath", lambda case: 1 / 0)
    assert verify.main(["--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [v["dissenters"] for v in report] == [["mpmath"]] * 4
    assert "6.weights, mpmath: ZeroDivisionError" in err and "0 of 4 claims hold" in err


# --- the comparison itself ---


def test_row_error_by_hand():
    # Row 1: 0.5/4; row 2: 1e-9/1e-8 = 0.1; a row of zeros is judged by the difference itself.
    a, b = [[2.5, 4.0], [1.1e-8, 0.0]], [[2.0, 4.0], [1.0e-8, 1e-9]]
    assert claims.row_error(a, b) == pytest.approx(0.125)
    assert claims.row_error([[1.1e-8]], [[1e-8]]) == pytest.approx(0.1)
    assert claims.row_error([[1e-3, 0.0]], [[0.0, 0.0]]) == 1e-3
    assert claims.row_error([1.0], [[1.0], [2.0]]) == math.inf
    assert claims.row_error([math.nan], [1.0]) == math.inf


def test_many_digits_stay_many():
    with mpmath.workdps(50):
        one = mpmath.mpf(1)
        assert 0 < claims.row_error([one + mpmath.mpf(10) ** -40], [one]) < 1e-39


def test_a_claim_needs_three_routes():
    with pytest.raises(ValueError, match="three"):
        claims.Claim("x", "two routes", {"a": lambda: 1, "b": lambda: 1})


def test_a_route_runs_once_for_all_its_claims_and_anew_for_new_ones():
    runs = []

    def route(case):
        runs.append(case)
        return {"sum": sum(case), "most": max(case)}

    def broken(case):
        runs.append(case)
        return {"sum": 1 / 0}

    titles = {"sum": "the sum", "most": "the largest"}

    def made(case):
        return claims.claims_of(0, titles, {"a": route, "b": route, "c": route, "d": broken}, case)

    verdicts = [claims.check(claim) for claim in made([1, 2])]
    assert [v.agreed for v in verdicts] == [3, 2]
    assert [v.dissenters for v in verdicts] == [("d",)] * 2
    assert len(runs) == 3 + 2  # what raises has no results to keep
    assert claims.check(made([5, 6])[0]).agreed == 11
    assert len(runs) == 5 + 4


def test_where_no_two_agree_all_disagree():
    routes = {name: partial(lambda v: v, v) for name, v in (("a", 1), ("b", 2), ("c", 3))}
    assert claims.check(claims.Claim("x", "three numbers", routes)).dissenters == ("a", "b", "c")
