"""What the tests of this folder share: recorded outputs of official implementations, and one update played in slices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from isentrope.control.stages import Intervention, LossResult, chain, policy_loss, survey
from isentrope.control.step import Rollouts, RowRng, State, Step, join_steps, micro_batches
from isentrope.testing.world import world

ROOT = Path(__file__).resolve().parents[4]
FOLDERS = (ROOT / "tests" / "vectors", ROOT.parent / "shared" / "vectors")


@dataclass(frozen=True)
class Recorded:
    """One case: what went in and out (by the names of the file), the parameters, and the tolerance |a - b| <= tol (1 + |a|)."""

    given: dict[str, Tensor]
    found: dict[str, Tensor]
    params: dict[str, Any]
    tolerance: float

    def close(self, ours: Tensor | float, name: str, where: Tensor | None = None) -> None:
        """Asserts that `ours` is the recorded output `name` (at the positions `where`)."""
        theirs, ours = self.found[name].double(), torch.as_tensor(ours).detach().double()
        if where is not None:
            theirs, ours = theirs[where], ours[where]
        assert ours.shape == theirs.shape
        worst = float(((ours - theirs).abs() / (1 + theirs.abs())).max()) if theirs.numel() else 0.0
        assert worst <= self.tolerance, f"{name}: {worst:.3g} apart, {self.tolerance:.3g} is allowed"


def recorded(case: str) -> Recorded:
    """The case `slug__name`; a test that asks for one fails when it is not there."""
    for folder in FOLDERS:
        path = folder / f"{case}.npz"
        if path.is_file():
            with numpy.load(path, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
                arrays = {name: torch.from_numpy(numpy.asarray(file[name])) for name in file.files if name != "meta"}
            given = {name[3:]: value for name, value in arrays.items() if name.startswith("in_")}
            if "mask" in given:
                given["mask"] = given["mask"].bool()
            found = {name[4:]: value for name, value in arrays.items() if name.startswith("out_")}
            return Recorded(given, found, meta["params"], float(meta["tolerance"]))
    raise FileNotFoundError(f"{case}.npz is in none of {', '.join(map(str, FOLDERS))}.")


def recorded_step(case: Recorded) -> tuple[Tensor, Step]:
    """The case's update as one slice, and the log-probs to differentiate in. Its entropies, if any, are the current policy's."""
    given = case.given
    leaf = given["logp"].clone().requires_grad_(True)
    signals = {"current.entropy": given["entropy"]} if "entropy" in given else {}
    return leaf, Step(Rollouts.of(given["mask"], old_log_probs=given["old_logp"], advantage=given["adv"]), leaf, signals)


def reproduce(link: Intervention, case: Recorded) -> LossResult:
    """Asserts that the link, on its recipe, has the recorded loss and gradient."""
    leaf, step = recorded_step(case)
    result = policy_loss(step, link.recipe(), chain(link))
    case.close(result.loss, "loss")
    case.close(torch.autograd.grad(result.loss, leaf)[0], "grad_logp")
    return result


def some_step(link: Intervention, seed: int = 0, *, differentiable: bool = False) -> Step:
    """An update of the contract's small world with the signals that the link needs; 16 responses, float64."""
    scene = world(seed).scored(link.needs)
    return scene.step(link.needs, scene.logits.clone().requires_grad_(True) if differentiable else None)


def shuffled(step: Step, seed: int) -> Step:
    """The same update with its responses in another order."""
    order = torch.randperm(len(step.rollouts), generator=torch.Generator().manual_seed(seed))
    signals = {key: value[order] for key, value in step.signals.items()}
    return replace(step, rollouts=step.rollouts.take(order), log_probs=step.log_probs[order], signals=signals)


def in_slices(
    link: Intervention, step: Step, size: int, *, state: State | None = None, rng: RowRng = RowRng()
) -> tuple[Tensor, Sequence[LossResult]]:
    """The update in slices of `size` rows after a survey of all of them: (touched tokens in the order of the row ids, results)."""
    state, parts, objective, control = link.init() if state is None else state, list(micro_batches(step, size)), link.recipe(), chain(link)
    stats = survey(join_steps(parts), objective, control, (state,), rng)
    results = [policy_loss(part, objective, control, stats, (state,), rng) for part in parts]
    touched = torch.cat([result.observed.touched[link.name] for result in results])
    return touched[torch.argsort(step.rollouts.row_id)], results


def test_a_case_is_read():
    case = recorded("clip-cov__verl-clip-cov-one")
    assert case.given["mask"].dtype == torch.bool
    assert case.given["old_logp"].shape == (8, 20)
    assert case.params["clip_cov_ratio"] == 2e-4
    assert case.tolerance == 1e-6
    case.close(case.found["loss"], "loss")


def test_a_wrong_number_is_noticed():
    case = recorded("clip-cov__verl-clip-cov-one")
    with pytest.raises(AssertionError, match=r"loss: .* apart"):
        case.close(case.found["loss"] + 1e-5, "loss")


def test_an_unknown_case_says_where_it_looked():
    with pytest.raises(FileNotFoundError, match="vectors"):
        recorded("clip-cov__no-such-case")
