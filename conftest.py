"""Fixtures for every test."""

from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest
import torch


class _TorchRandom:
    """torch's generator, as hypothesis wants it: every example starts from the same state, so that one that failed fails again."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_random = _TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(_torch_random)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time type checks of the test run: a user has none, and our own message must reach him."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
