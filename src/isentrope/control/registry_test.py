"""Interventions and placebos from plain data, as a configuration file holds them."""

import pytest
import torch
import yaml

from isentrope.control.placebo import Placebo, placebo
from isentrope.control.registry import build, registry
from isentrope.control.stages import Update, stages_of
from isentrope.control.step import Progress


def test_a_placebo_from_data_is_the_placebo_of_the_instance():
    control = build([{"name": "placebo", "of": {"name": "clip-cov", "ratio": 0.01}, "seed": 3}, {"name": "placebo", "of": "steer"}])
    known = registry()
    assert control.links == (placebo(known["clip-cov"](ratio=0.01), seed=3), placebo(known["steer"]()))
    assert control.keys == ("clip-cov-placebo", "steer-placebo")


def test_equal_placebos_have_equal_hashes_and_a_series_tells_two_apart():
    spec = {"name": "placebo", "of": {"name": "entropy-band", "low": 0.2}, "series": {"coef": [0.0, 0.5]}}
    one, same, other = (build([{**spec, **more}]).links[0] for more in ({}, {}, {"series": {"coef": [0.0, 0.6]}}))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert hash(build([spec])) == hash(build([spec]))


def test_a_series_survives_yaml_and_is_what_the_link_sees():
    """The state after k updates is the k-th of the record; beyond its end the last one stays."""
    spec = {"name": "placebo", "of": {"name": "entropy-bonus", "controller": "pi"}, "series": {"coef": [0.0, 0.25, 0.1], "integral": [0.0, None, 2.0]}}
    link = build(yaml.safe_load(yaml.safe_dump([spec]))).links[0]
    assert isinstance(link, Placebo)
    assert isinstance(link, Update)
    assert link.init() == {"coef": 0.0, "integral": 0.0}
    seen = [link.update({}, None, Progress(step, 10)) for step in (1, 2, 3, 9)]
    assert seen == [{"coef": 0.25, "integral": None}, {"coef": 0.1, "integral": 2.0}, {"coef": 0.1, "integral": 2.0}, {"coef": 0.1, "integral": 2.0}]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "placebo"}, r"placebo needs `of`.*\{name: placebo, of: clip-cov"),
        ({"name": "placebo", "off": "steer"}, r"placebo has no parameter 'off'\. Did you mean 'of'\?"),
        ({"name": "placebo", "of": "cilp-cov"}, r"unknown intervention 'cilp-cov'\. Did you mean 'clip-cov'\?"),
        ({"name": "placebo", "of": {"name": "placebo", "of": "steer"}}, r"steer-placebo is a placebo already"),
        ({"name": "placebo", "of": "steer", "seed": "a"}, r"seed must be a whole number\. Got 'a'\."),
        ({"name": "placebo", "of": "steer", "series": {"a": [1.0], "b": []}}, r"equally long lists, one value per update\. Got \{'a': \[1\.0\], 'b': \[\]\}\."),
        ({"name": "placebo", "of": "steer", "series": [1.0]}, r"series must be a mapping"),
    ],
)
def test_what_is_wrong_with_a_placebo_is_said(spec, said):
    with pytest.raises(ValueError, match=said):
        build([spec])


def test_every_registered_intervention_with_a_budget_has_a_placebo_from_data():
    for name, kind in registry().items():
        if "policy" in stages_of(kind()):  # which log-probs form the ratio: nothing to permute
            with pytest.raises(ValueError, match="has no budget to permute"):
                build([{"name": "placebo", "of": name}])
            continue
        link = build([{"name": "placebo", "of": name}]).links[0]
        assert link == placebo(kind())
        assert hash(link) == hash(placebo(kind()))
        assert link.name == f"{name}-placebo"
    assert torch.get_default_dtype() == torch.float32  # building draws and changes nothing
