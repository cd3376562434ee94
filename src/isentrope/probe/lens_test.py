"""The logit lens: closed forms, and the dependence on length that its documentation warns of."""

import math
from itertools import pairwise

import pytest
import torch

from isentrope.probe.lens import internal_entropy, lens_entropy

G = torch.Generator().manual_seed(0)
E_U = torch.randn(23, 6, generator=G, dtype=torch.float64)
H = torch.randn(5, 6, generator=G, dtype=torch.float64)


def test_entropy_against_the_definition_with_and_without_a_norm():
    norm = torch.nn.functional.layer_norm
    for function in (None, lambda x: norm(x, (6,))):
        z = (H if function is None else function(H)) @ E_U.T
        torch.testing.assert_close(lens_entropy(H, E_U, norm=function), torch.distributions.Categorical(logits=z).entropy())


def test_a_longer_state_looks_surer_and_the_limits_are_ln_v_and_0():
    sizes = [lens_entropy(c * H, E_U) for c in (1e-9, 0.1, 0.5, 1.0, 2.0, 8.0, 1e4)]
    for shorter, longer in pairwise(sizes):
        assert (longer <= shorter + 1e-12).all()
    torch.testing.assert_close(sizes[0], torch.full((5,), math.log(23), dtype=torch.float64))
    torch.testing.assert_close(sizes[-1], torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_changes_of_modules_that_do_nothing_are_those_of_a_zero_vector():
    residual = torch.randn(1, 4, 6, generator=G, dtype=torch.float64).expand(3, 4, 6)
    same = (lambda x: x,) * 2
    found = internal_entropy(residual, torch.zeros(2, 4, 6).double(), torch.zeros(2, 4, 6).double(), same, same, E_U)
    assert (found.layer.change == 0).all()
    torch.testing.assert_close(found.attention.after, torch.full((2, 4), math.log(23), dtype=torch.float64))
    torch.testing.assert_close(found.attention.before, found.layer.before)
    torch.testing.assert_close(found.feed_forward.change, math.log(23) - found.layer.before)


def test_numbers_of_layers_must_fit():
    parts = torch.zeros(2, 4, 6)
    with pytest.raises(ValueError, match=r"must hold 2 each\. Got 2, 2, 1, 2"):
        internal_entropy(torch.zeros(3, 4, 6), parts, parts, (torch.sin,), (torch.sin, torch.sin), E_U.float())
