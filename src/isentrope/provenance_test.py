import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isentrope import provenance
from isentrope.provenance import Measured, Provenance, ProvenanceError, average, combine, compatible, differing

EXACT = Provenance("exact", aggregation="token-mean")
OTHER = {
    "estimator": "monte-carlo",
    "temperature": 0.7,
    "truncation": "top_p=0.8",
    "policy": "old",
    "mask": "completion",
    "aggregation": "sequence-mean",
    "unit": "bits",
    "dtype": "bfloat16",
}
words = st.text("abcdefgh-", min_size=1)
provenances = st.builds(
    Provenance,
    estimator=st.sampled_from(["exact", "monte-carlo", "top-k", "plug-in"]),
    temperature=st.one_of(st.floats(0.01, 10), st.just("per-token")),
    truncation=st.one_of(st.none(), words),
    policy=st.sampled_from(["sampling", "old", "current"]),
    mask=words,
    aggregation=words,
    unit=st.sampled_from(["nats", "bits"]),
    dtype=words,
)


@given(provenances)
def test_json_round_trip(any_provenance):
    assert Provenance.from_dict(json.loads(json.dumps(any_provenance.to_dict()))) == any_provenance


@given(provenances, provenances)
def test_compatible_is_equality_of_every_field_that_names_the_quantity(a, b):
    assert compatible(a, b) == compatible(b, a) == (a == b)
    assert compatible(a, a)
    assert combine(a, a) == a


@pytest.mark.parametrize("name", OTHER)
def test_combine_names_the_field_that_differs_and_both_values(name):
    other = replace(EXACT, **{name: OTHER[name]})
    with pytest.raises(ProvenanceError) as error:
        combine(EXACT, other)
    message = str(error.value)
    assert f"{name} {EXACT.__dict__[name]!r} against {OTHER[name]!r}" in message
    assert f"replace(provenance, {name}=" in message
    assert differing(EXACT, other) == (name,)
    assert str(OTHER[name]) in other.describe()


def test_every_field_is_either_identity_or_the_tail_bound():
    assert {item.name for item in fields(Provenance)} == set(OTHER) | {"tail_bound"}


def test_combine_names_all_fields_that_differ():
    with pytest.raises(ProvenanceError, match="policy 'current' against 'old'; unit 'nats' against 'bits'"):
        combine(EXACT, replace(EXACT, policy="old", unit="bits"))


def test_describe_is_one_line():
    top = Provenance("top-k", temperature=0.8, truncation="top_k=20", tail_bound=0.01)
    assert top.describe() == ("top-k (tail at most 0.01 nats), temperature 0.8 with top_k=20, current policy, trained tokens, per token, nats, float32")
    assert "temperature per-token," in replace(EXACT, temperature="per-token").describe()


def test_tail_bounds_widen_when_averaged_add_when_added_and_unstated_stays_unstated():
    a, b = (Measured(1.0, Provenance("top-k", tail_bound=bound)) for bound in (0.25, 0.5))
    unstated = Measured(1.0, Provenance("top-k"))
    assert combine(a.provenance, b.provenance).tail_bound == 0.5
    assert average([a, b]).provenance.tail_bound == 0.5
    assert (a + b).provenance.tail_bound == 0.75
    assert (a + unstated).provenance.tail_bound is None
    assert average([a, unstated]).provenance.tail_bound is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"estimator": "guess"}, "estimator must be one of exact, monte-carlo, top-k, plug-in. Got 'guess'"),
        ({"policy": "new"}, "policy must be one of sampling, old, current. Got 'new'"),
        ({"unit": "percent"}, "unit must be one of nats, bits. Got 'percent'"),
        ({"temperature": 0.0}, "temperature must be a number above 0, or 'per-token'. Got 0.0"),
        ({"temperature": float("nan")}, "Got nan"),
        ({"temperature": True}, "Got True"),
        ({"temperature": "hot"}, "Got 'hot'"),
        ({"mask": ""}, "mask must be a word. Got ''"),
        ({"dtype": "torch.float32"}, "Got 'torch.float32'; write 'float32'"),
        ({"tail_bound": 0.1}, "tail_bound belongs to estimator 'top-k'"),
    ],
)
def test_impossible_provenance_is_refused(change, words):
    with pytest.raises(ProvenanceError) as error:
        Provenance.from_dict({**EXACT.to_dict(), **change})
    assert words in str(error.value)


def test_from_dict_names_the_nearest_key_and_the_missing_one():
    with pytest.raises(ProvenanceError, match=r"unknown key 'temprature'.*Did you mean 'temperature'"):
        Provenance.from_dict({"estimator": "exact", "temprature": 1.0})
    with pytest.raises(ProvenanceError, match=r"'estimator' is missing\. Got policy"):
        Provenance.from_dict({"policy": "old"})


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        EXACT.policy = "old"


def test_measured_adds_and_averages_one_quantity_only():
    a, b = Measured(np.array([1.0, 2.0]), EXACT), Measured(np.array([3.0, 6.0]), EXACT)
    assert (a + b).values.tolist() == [4.0, 8.0] == sum([a, b]).values.tolist()
    assert average([a, b]).values.tolist() == [2.0, 4.0]
    assert average([a, b], weights=[3, 1]).values.tolist() == [1.5, 3.0]
    old = Measured(np.array([1.0, 2.0]), replace(EXACT, policy="old"))
    for mix in (lambda: a + old, lambda: sum([a, old]), lambda: average([a, old])):
        with pytest.raises(ProvenanceError, match="policy 'current' against 'old'"):
            mix()


def test_measured_refuses_bare_numbers_lists_and_broadcasting():
    one = Measured(1.0, EXACT)
    for mix in (lambda: one + 1.0, lambda: 1 + one, lambda: 0.0 + one):
        with pytest.raises(TypeError, match="a bare number has no provenance"):
            mix()
    with pytest.raises(TypeError, match="Got a list"):
        Measured([1.0], EXACT)
    with pytest.raises(ValueError, match=r"Got \(\) and \(2,\)"):
        one + Measured(np.ones(2), EXACT)


def test_a_weight_of_zero_leaves_a_nan_out():
    items = [Measured(1.0, EXACT), Measured(float("nan"), EXACT)]
    assert average(items, weights=[2, 0]).values == 1.0
    for weights in ([0, 0], [1], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match="average: needs values"):
            average(items, weights=weights)
    with pytest.raises(ValueError, match="Got 0 values"):
        average([])


def test_needs_the_standard_library_only():
    subprocess.run([sys.executable, "-I", "-S", provenance.__file__], check=True)  # -S: no site-packages to be found


def test_the_test_above_can_fail(tmp_path):
    (tmp_path / "heavy.py").write_text("import numpy")
    assert subprocess.run([sys.executable, "-I", "-S", tmp_path / "heavy.py"], check=False, capture_output=True).returncode == 1
