"""Spectra: parts against the whole, closed forms, and the recorded outputs of the paper's code."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from isentrope.probe.geometry import StreamingCovariance, decay_exponent, effective_rank, spectral_entropy

VECTORS = Path(__file__).parents[3] / "tests" / "vectors"


def gathered(x, *cuts):
    found = StreamingCovariance(x.shape[1])
    for part in torch.tensor_split(x, cuts):
        found.update(part)
    return found.eigenvalues()


def test_parts_are_the_whole_whatever_the_offset():
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 8) + 1e6
    wanted = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)
    for cuts in ((), (1,), (3, 3, 50), tuple(range(1, 200))):
        torch.testing.assert_close(gathered(x, *cuts), wanted, rtol=1e-6, atol=1e-8)


def test_equal_eigenvalues_and_their_number():
    values = torch.tensor([3.0] * 5 + [0.0] * 4)
    assert effective_rank(values) == pytest.approx(5)
    assert spectral_entropy(values) == pytest.approx(math.log(5))
    assert effective_rank(values * 1e-7) == pytest.approx(5)
    assert math.isnan(spectral_entropy(torch.zeros(4)))


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.2])
def test_a_power_law_gives_its_exponent(alpha):
    values = 5 * torch.arange(1, 301, dtype=torch.float64) ** -alpha
    assert decay_exponent(values) == pytest.approx(alpha, abs=1e-12)
    assert decay_exponent(values[:40]) == pytest.approx(alpha, abs=1e-12)


def test_too_few_eigenvalues_are_no_fit():
    assert decay_exponent(torch.ones(12)) is None
    assert decay_exponent(torch.cat([torch.ones(11), torch.zeros(80)])) is None


def test_states_that_are_too_few_or_not_finite():
    with pytest.raises(ValueError, match=r"at least two states\. Got 1"):
        gathered(torch.ones(1, 3))
    assert gathered(torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [3.0, 3.0]])).isnan().all()


def test_the_papers_code():
    file = np.load(VECTORS / "representation-geometry__rankme-alpha.npz")
    values = gathered(torch.from_numpy(file["in_X"]).double(), 50)
    assert json.loads(str(file["meta"]))["tolerance"] <= 1e-5
    assert effective_rank(values) == pytest.approx(float(file["out_rankme"]), rel=1e-4)  # its 1e-7 on every share
    assert decay_exponent(values) == pytest.approx(float(file["out_alpha"]), rel=1e-5)
