"""The contract of an intervention, one property per function. No check knows an intervention by name.

A check takes the intervention and a seed, and raises `ContractError` when the property does not hold. `Check` adds who and which, and the
strict reading of `expected_failures`. Tolerances are relative to the norm of the gradient and stated beside their use.
"""

import os
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from unittest import SkipTest

import numpy
import torch
from torch import Tensor

from isentrope.control.objectives import Objective
from isentrope.control.placebo import placebo
from isentrope.control.stages import STAGES, Chain, Intervention, Policy, Weight, chain, gradient, policy_loss, stages_of, survey
from isentrope.control.step import Need, RowRng, State, Step
from isentrope.testing.budget import Decision, decisions
from isentrope.testing.world import RNG, Outcome, World, fitting, lived, play, roll, world

AGGREGATIONS = ("grpo", "dapo", "dr_grpo")
SUMMATION = 1e-9  # float64 sums in another order
SINGLE = 1e-4  # float32 against float64
HALF = 0.05  # bfloat16 log-probs and signals against the same numbers in float64


class ContractError(AssertionError):
    """An intervention does not keep the contract; names the intervention, the check, and what was found."""


@dataclass(frozen=True)
class Check:
    """One property. `stages`: it concerns interventions with any of these (empty: all). `slow`: minutes, not milliseconds."""

    name: str
    function: Callable[[Intervention, int], None]
    contract: int
    stages: tuple[str, ...] = ()
    slow: bool = False

    def concerns(self, intervention: Intervention) -> bool:
        return not self.stages or bool(set(self.stages) & set(stages_of(intervention)))

    def __call__(self, intervention: Intervention, *, seed: int = 0) -> None:
        """Run it. An expected failure must fail; its reason stands in `intervention.expected_failures`.

        Raises ContractError; SkipTest where there is nothing to compare with.
        """
        who = f"{intervention.name}, {self.name} (contract {self.contract})"
        reason = intervention.expected_failures.get(self.name)
        try:
            if self.concerns(intervention):
                self.function(intervention, seed)
        except SkipTest:
            raise
        except Exception as error:
            if reason is None:
                raise ContractError(f"{who}: {error if isinstance(error, ContractError) else repr(error)} Instance: {intervention!r}.") from error
            return
        if reason is not None:
            raise ContractError(f"{who}: was expected to fail ({reason}), and passed. Take it out of expected_failures. Instance: {intervention!r}.")


def require(condition: object, message: str) -> None:
    if not bool(condition):
        raise ContractError(message)


# --- what the checks share


def scenes(link: Intervention, seed: int, count: int = 2) -> Iterator[tuple[World, State]]:
    """Worlds, each with the state before the first update and the state of a controller that has lived a while."""
    for offset in range(count):
        for state in (link.init(), lived(link, seed=seed)):
            yield world(seed + offset, samples=fitting(link)), state


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of `theirs` (or 1 if that is 0); NaN counts as infinitely far."""
    size = float(theirs.double().norm()) or 1.0
    found = float((ours.double() - theirs.double()).norm()) / size
    return found if found == found else float("inf")


def same(ours: Outcome, theirs: Outcome, what: str, tolerance: float = SUMMATION) -> None:
    """Same rows, same touched tokens, same loss and gradient within `tolerance`."""
    ours, theirs = ours.by_row(), theirs.by_row()
    require(torch.equal(ours.rollouts.row_id, theirs.rollouts.row_id), f"{what}: other rows are trained.")
    changed = int((ours.touched != theirs.touched).sum())
    require(changed == 0, f"{what}: {changed} tokens are touched in one and not in the other.")
    require(distance(ours.loss, theirs.loss) <= tolerance, f"{what}: the loss is {ours.loss:.9g}, was {theirs.loss:.9g}.")
    far = distance(ours.gradient, theirs.gradient)
    require(far <= tolerance, f"{what}: the gradient moves by {far:.3g} of its norm; {tolerance:.1g} is allowed.")


def same_state(ours: State, theirs: State, what: str, tolerance: float = 0.0) -> None:
    require(set(ours) == set(theirs), f"{what}: the state has other keys.")
    for key, value in ours.items():
        other = theirs[key]
        if isinstance(value, Tensor | float) and isinstance(other, Tensor | float):
            near = distance(torch.as_tensor(value), torch.as_tensor(other)) <= tolerance
        else:
            near = value == other
        require(near, f"{what}: state[{key!r}] is {value}, was {other}.")


# --- declarations


def declares_itself(link: Intervention, seed: int) -> None:
    """A frozen dataclass with a name and a source, stages that are methods, typed needs, and settings of its own class."""
    kind = type(link)
    require(is_dataclass(link) and kind.__dataclass_params__.frozen, "must be a frozen dataclass.")
    require(bool(link.name) and bool(link.source), "needs a name and a source (paper, equation, code).")
    require(bool(stages_of(link)), "has no stage: give it one of the methods of isentrope.control.stages.")
    parameters = {item.name for item in fields(link)}
    for stage in stages_of(link):
        for method in _methods(STAGES[stage]):
            require(method not in parameters, f"its parameter {method!r} is taken for the stage {stage!r}; rename it.")
    require(all(isinstance(need, Need) for need in link.needs), f"needs must hold Need(signal, policy). Got {link.needs}.")
    for setting in (link.neutral(), link.embedded()):
        require(type(setting) is kind, f"neutral() and embedded() must return a {kind.__name__}. Got {setting!r}.")
    known = {check.name for check in CHECKS}
    require(set(link.expected_failures) <= known, f"expected_failures names no check: {sorted(set(link.expected_failures) - known)}.")


def _methods(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]


# --- 1: neutral


def neutral_equals_recipe(link: Intervention, seed: int) -> None:
    """The neutral setting equals the objective of the recipe: loss and gradient, bit for bit, whole and in slices."""
    neutral = link.neutral()
    for scene, state in scenes(neutral, seed):
        for slices in (1, 4):
            ours = play(neutral, scene, state=state, objective=link.recipe(), slices=slices)
            base = play(None, scene, objective=link.recipe(), slices=slices)
            require(torch.equal(ours.loss, base.loss), f"neutral loss {ours.loss:.17g}, the objective's {base.loss:.17g} ({slices} slices).")
            far = distance(ours.gradient, base.gradient)
            require(torch.equal(ours.gradient, base.gradient), f"neutral gradient differs by {far:.3g} of its norm ({slices} slices).")


def neutral_leaves_rollouts_alone(link: Intervention, seed: int) -> None:
    """The neutral setting changes no reward, advantage, row, mask or temperature, and asks for no extra samples."""
    neutral = link.neutral()
    for scene, state in scenes(neutral, seed):
        before = scene.scored(neutral.needs).rollouts
        after, rolled = roll(neutral, scene, state, RNG)
        require(rolled.request is None, f"neutral asks for extra samples: {rolled.request}.")
        require(rolled.branches is None or not rolled.branches.cut.any(), "neutral cuts responses.")
        require(rolled.forks is None or not rolled.forks.rows.any(), "neutral forks episodes.")
        for name in ("row_id", "reward", "trained_mask", "completion_ids"):
            require(torch.equal(after.rollouts.__dict__[name], before.__dict__[name]), f"neutral changes {name}.")
        mask = before.trained_mask
        heated = after.rollouts.sampling_temperature[mask] != before.sampling_temperature[mask]
        require(not heated.any(), "neutral changes the sampling temperatures.")
        require(torch.equal(after.rollouts.token_advantage(), before.token_advantage()), "neutral changes the advantages.")


# --- 2: padding


def padding_never_matters(link: Intervention, seed: int) -> None:
    """NaN, infinities and huge numbers under the mask, and wider padding, change no loss, gradient or state."""
    for scene, state in scenes(link, seed, count=1):
        for padded in (scene, per_token(scene), with_empty_row(scene)):
            clean = play(link, padded, state=state)
            for value in (float("nan"), float("inf"), float("-inf"), 1e30):
                dirty = play(link, replace(padded, padding=value), state=state)
                same(dirty, clean, f"{value} under the mask", 0.0)
                same_state(dirty.state, clean.state, f"{value} under the mask")
            wide = play(link, padded.wider(3), state=state)
            width = clean.touched.shape[1]
            require(bool((wide.gradient[:, width:] == 0).all()), "padding receives a gradient.")
            narrow = replace(wide, gradient=wide.gradient[:, :width], touched=wide.touched[:, :width])
            same(narrow, clean, "wider padding")
            same_state(wide.state, clean.state, "wider padding", SUMMATION)


def per_token(scene: World) -> World:
    """With an advantage for every token, as an earlier link may leave it."""
    rollouts = scene.rollouts
    spread = 1 + 0.1 * torch.cos(torch.arange(rollouts.trained_mask.shape[1], dtype=rollouts.advantage.dtype))
    return replace(scene, rollouts=replace(rollouts, advantage=rollouts.advantage * spread))


def with_empty_row(scene: World) -> World:
    """With a response none of whose tokens is in the loss."""
    trained = scene.rollouts.trained_mask.clone()
    trained[2 % len(trained)] = False
    return replace(scene, rollouts=replace(scene.rollouts, trained_mask=trained))


# --- 3: order, slices, ranks


def permuting_permutes(link: Intervention, seed: int) -> None:
    """Responses in another order give the same rows, touched tokens, loss, gradient and state."""
    for scene, state in scenes(link, seed):
        plain = play(link, scene, state=state)
        for turn in range(2):
            order = torch.randperm(len(scene.rollouts), generator=torch.Generator().manual_seed(seed + turn))
            permuted = play(link, scene.take(order), state=state)
            same(permuted, plain, "responses in another order")
            same_state(permuted.state, plain.state, "responses in another order", SUMMATION)


def split_into_micro_batches(link: Intervention, seed: int) -> None:
    """An update cut into slices has the loss, gradient and touched tokens of the whole, under every aggregation."""
    for scene, state in scenes(link, seed, count=1):
        for name in AGGREGATIONS:
            whole = play(link, scene, state=state, objective=Objective.named(name))
            for slices in (2, 8, 16):
                cut = play(link, scene, state=state, objective=Objective.named(name), slices=slices)
                same(cut, whole, f"{name} in {slices} slices")
                same_state(cut.state, whole.state, f"{name} in {slices} slices", SUMMATION)


def split_over_ranks(link: Intervention, seed: int) -> None:
    """An update spread over processes whose gradients are averaged has the gradient of one process, under every aggregation."""
    for scene, state in scenes(link, seed, count=1):
        for name in AGGREGATIONS:
            whole = play(link, scene, state=state, objective=Objective.named(name))
            for ranks, slices in ((2, 1), (2, 4), (4, 2)):
                spread = play(link, scene, state=state, objective=Objective.named(name), ranks=ranks, slices=slices)
                same(spread, whole, f"{name} on {ranks} ranks with {slices} slices each")


# --- 4: degenerate batches


def degenerate_batches_stay_finite(link: Intervention, seed: int) -> None:
    """Equal rewards, one response, empty masks, truncation, certainty and extreme ratios: loss, gradient and state are finite."""
    for state in (link.init(), lived(link, seed=seed)):
        for name, scene in degenerate(seed, fitting(link)).items():
            found = play(link, scene, state=state)
            require(torch.isfinite(found.loss), f"{name}: the loss is {found.loss}.")
            require(torch.isfinite(found.gradient).all(), f"{name}: the gradient is not finite.")
            for key, value in found.state.items():
                whole = torch.as_tensor(value).isfinite().all() if isinstance(value, Tensor | float) else True
                require(whole, f"{name}: state[{key!r}] is {value}.")


def degenerate(seed: int, samples: int = 4) -> Mapping[str, World]:
    """Batches at the edge, by name."""
    scene = world(seed, samples=samples)
    rollouts = scene.rollouts
    none = torch.zeros_like(rollouts.trained_mask)
    equal = torch.ones_like(rollouts.reward)

    def having(**changed: Tensor) -> World:
        return replace(scene, rollouts=replace(rollouts, **changed))

    one_token = none.clone()
    one_token[3, 0] = True
    certain = torch.zeros_like(scene.old).scatter(-1, rollouts.completion_ids[..., None], 2000.0)
    surprise = torch.zeros_like(scene.old).scatter(-1, rollouts.completion_ids[..., None], 30.0)
    return {
        "all rewards equal": having(reward=equal, correct=equal, advantage=torch.zeros_like(rollouts.advantage)),
        "no verifier spoke": having(correct=torch.full_like(rollouts.correct, float("nan"))),
        "one response": world(seed, groups=1, samples=1),
        "one token per response": world(seed, samples=samples, width=1),
        "a response out of the loss": with_empty_row(scene),
        "nothing in the loss": having(trained_mask=none),
        "no text at all": having(trained_mask=none, completion_mask=none),
        "one token in the loss": having(trained_mask=one_token),
        "all truncated": having(truncated=torch.ones_like(rollouts.truncated), reward=0 * equal, correct=0 * equal),
        "zero entropies": replace(scene, logits=certain, old=certain, ref=certain),
        "uniform policies": replace(scene, logits=0 * certain, old=0 * certain, ref=0 * certain),
        "on policy": replace(scene, old=scene.logits, ref=scene.logits),
        "log-ratios of +30": replace(scene, logits=scene.old + surprise, old=scene.old - surprise / 30),
        "log-ratios of -30": replace(scene, logits=scene.old - surprise, ref=scene.old + surprise),
    }


# --- 5: gradients and precision


def gradients_flow_only_where_declared(link: Intervention, seed: int) -> None:
    """Log-probs (or those of the policy that a link puts in their place) receive a gradient; a signal only if asked for with grad=True; rollouts
    none beyond the objective's own; weights none."""
    declared = {need.key for need in link.needs if gradient(need.signal)}
    reached = False
    for scene, state in scenes(link, seed):
        step = leaves(roll(link, scene, state, RNG)[0].step(link.needs))
        control, objective = chain(link), link.recipe()
        stats = survey(step, objective, control, (state,), RNG)
        ours = _reached(step, policy_loss(step, objective, control, stats, (state,), RNG).loss)
        base = _reached(step, policy_loss(step, objective).loss)
        leaked = ours - base - declared - {"log_probs"}
        require(not leaked, f"gradient reaches {', '.join(sorted(leaked))}; declare it with grad=True, or detach it.")
        reached = reached or "log_probs" in ours or (isinstance(link, Policy) and bool(ours & declared))
        if isinstance(link, Weight) and not declared:
            ready = replace(step, ratio=objective.ratio(step.log_probs, step.old_log_probs, step.mask), bounds=objective.bounds())
            value = link.weight(ready, stats.links[0], state).value
            require(value is None or not value.requires_grad, "the token weight carries a gradient that no need declares; detach it.")
    require(reached, "no gradient reaches the log-probs in any world.")


def leaves(step: Step) -> Step:
    """The same numbers, each floating tensor a leaf of its own that asks for a gradient."""
    rollouts = step.rollouts
    known = {name: _leaf(value) for name, value in rollouts.__dict__.items() if isinstance(value, Tensor) and value.is_floating_point()}
    old = {key: _leaf(value) for key, value in rollouts.signals.items()}
    signals = {key: _leaf(value) for key, value in step.signals.items()}
    return replace(step, rollouts=replace(rollouts, **known, signals=old), log_probs=_leaf(step.log_probs), signals=signals)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(True)


def _leaves_of(step: Step) -> dict[str, Tensor]:
    found = {f"rollouts.{name}": value for name, value in step.rollouts.__dict__.items() if isinstance(value, Tensor)}
    found = found | dict(step.rollouts.signals) | dict(step.signals) | {"log_probs": step.log_probs}
    return {name: value for name, value in found.items() if value.requires_grad}


def _reached(step: Step, loss: Tensor) -> set[str]:
    """Names of the step's leaves that receive a gradient other than 0."""
    found = _leaves_of(step)
    if not loss.requires_grad:
        return set()
    slopes = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
    return {name for name, slope in zip(found, slopes, strict=True) if slope is not None and bool((slope != 0).any())}


def precision_agrees(link: Intervention, seed: int) -> None:
    """In float32 the loss and gradient of float64 within 1e-4; with bfloat16 log-probs and signals within 5e-2 of the same numbers in
    float64 (or twice the objective's own error, if that is more)."""
    for scene, state in scenes(link, seed):
        rolled = roll(link, scene, state, RNG)[0].step(link.needs)
        for dtype, tolerance in ((torch.float32, SINGLE), (torch.bfloat16, HALF)):
            rounded = cast(rolled, dtype)
            exact, low = (_slope(chain(link), link.recipe(), cast(rounded, kind), state) for kind in (torch.float64, dtype))
            base, base_low = (_slope(Chain(), link.recipe(), cast(rounded, kind), state) for kind in (torch.float64, dtype))
            allowed = max(tolerance, 2 * distance(base_low, base))
            far = distance(low, exact)
            require(far <= allowed, f"{dtype}: the gradient is {far:.3g} of its norm away from float64; {allowed:.3g} is allowed.")


def cast(step: Step, dtype: torch.dtype) -> Step:
    """With log-probs and signals of all policies in `dtype`, and the rollouts' other numbers in float32 or wider."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rollouts, narrow = step.rollouts, ("old_log_probs", "ref_log_probs", "sampling_log_probs")
    known = {
        name: value.to(dtype if name in narrow else wide)
        for name, value in rollouts.__dict__.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    old = {key: value.to(dtype) for key, value in rollouts.signals.items()}
    signals = {key: value.to(dtype) for key, value in step.signals.items()}
    return replace(step, rollouts=replace(rollouts, **known, signals=old), log_probs=step.log_probs.to(dtype), signals=signals)


def _slope(control: Chain, objective: Objective, step: Step, state: State) -> Tensor:
    """Gradient of the loss with respect to the step's log-probs and signals, one after the other."""
    probe = replace(step, log_probs=_leaf(step.log_probs), signals={key: _leaf(value) for key, value in step.signals.items()})
    loss = policy_loss(probe, objective, control, None, (state,) * len(control.links), RNG).loss
    found = [probe.log_probs, *probe.signals.values()]
    slopes = torch.autograd.grad(loss, found, allow_unused=True) if loss.requires_grad else [None] * len(found)
    return torch.cat([torch.zeros_like(leaf).flatten() if slope is None else slope.flatten() for leaf, slope in zip(found, slopes, strict=True)])


# --- 6: state and randomness


def state_round_trips(link: Intervention, seed: int) -> None:
    """A state is a flat mapping of tensors, numbers, text and None that a weights-only loader gives back, and goes on from there."""
    for live in (link.init, lambda: lived(link, seed=seed)):
        state, kinds = live(), (Tensor, float, int, bool, str, type(None))
        for key, value in state.items():
            require(isinstance(key, str) and isinstance(value, kinds), f"state[{key!r}] is a {type(value).__name__}; flat values only.")
        file = BytesIO()
        torch.save(dict(state), file)
        file.seek(0)
        try:
            loaded = torch.load(file, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ContractError(f"a weights-only loader refuses the state: {error}") from error
        same_state(loaded, state, "after torch.save and torch.load")
        scene = world(seed + 5, samples=fitting(link))
        before, after = play(link, scene, state=state), play(link, scene, state=loaded)
        same(after, before, "from a reloaded state", 0.0)
        same_state(after.state, before.state, "from a reloaded state")


def same_seed_same_result(link: Intervention, seed: int) -> None:
    """All randomness comes from the keys: the same keys give the same whatever the global generators hold, and leave those untouched;
    keys that were not read cannot matter; keys that were read do."""
    differs = consulted = False
    for scene, state in scenes(link, seed):
        _seed_globals(seed + 1)
        first, spy = play(link, scene, state=state), SpyRng(RNG.seed, RNG.step)
        _seed_globals(seed + 2)
        before = torch.random.get_rng_state(), numpy.random.get_state()[1].tolist()
        again = play(link, scene, state=state, rng=spy)
        unmoved = torch.equal(before[0], torch.random.get_rng_state()) and before[1] == numpy.random.get_state()[1].tolist()
        same(again, first, "the same keys a second time", 0.0)
        same_state(again.state, first.state, "the same keys a second time")
        require(unmoved, "draws from a global generator; use the keys of `rng`.")
        for offset in range(1, 4):
            other = play(link, scene, state=state, rng=replace(RNG, step=RNG.step + offset))
            if not spy.calls:
                same(other, first, "keys that were never read", 0.0)
            differs = differs or not torch.equal(other.gradient, first.gradient)
        consulted = consulted or bool(spy.calls)
    require(not consulted or differs, "reads its keys, but other keys never choose otherwise.")


def _seed_globals(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)


@dataclass(frozen=True)
class SpyRng(RowRng):
    """A RowRng that remembers being read; its children share the memory."""

    calls: list[int] = field(default_factory=list, compare=False)

    def uniform(self, row_id, width):
        self.calls.append(width)
        return super().uniform(row_id, width)


# --- 7: recorded outputs


def recorded_outputs(link: Intervention, seed: int) -> None:
    """What the authors' code returned is reproduced, case by case, within the recorded tolerance."""
    folder = vectors()
    if folder is None or link.slug is None or not link.recorded or not any(folder.glob(f"{link.slug}__*.npz")):
        raise SkipTest(f"no recorded outputs of {link.slug!r} in {folder}; set {VECTORS} to a folder of slug__case.npz files.")
    failed = [f"{one.case}: {one.reason} (error {one.error}, tolerance {one.tolerance})" for one in _verified(folder, link.slug) if not one.passed]
    require(not failed, "recorded outputs are not reproduced. " + "; ".join(failed))


VECTORS = "ISENTROPE_VECTORS"
"""Environment variable: the folder of recorded outputs. Without it, `tests/vectors` of the checkout."""


def vectors() -> Path | None:
    """The folder of recorded outputs, if there is one."""
    folder = Path(os.environ.get(VECTORS) or Path(__file__).parents[3] / "tests" / "vectors")
    return folder if folder.is_dir() else None


@cache
def _verified(folder: Path, slug: str) -> tuple:
    from isentrope.verify import verify

    return tuple(verify(folder, [slug]))


# --- 8: placebo


def placebo_keeps_the_budget(link: Intervention, seed: int) -> None:
    """The placebo decides as much as the intervention, stage by stage, but not the same; again the same; another with another seed."""
    shams = placebo(link, seed=seed), placebo(link, seed=seed + 1)
    require(set(stages_of(link)) <= set(stages_of(shams[0])), "its placebo lacks a stage.")
    chose, moved = set(), set()
    for scene, state in scenes(link, seed, count=6):
        real, sham, again, other = (decisions(one, scene, state, link) for one in (link, shams[0], shams[0], shams[1]))
        for stage, decision in real.items():
            choice = sham[stage].choice
            _same_budget(stage, sham[stage], decision)
            require(torch.equal(choice, again[stage].choice), f"placebo of {stage}: the same keys choose otherwise.")
            chose |= {stage} if decision.chooses else set()
            moved |= set() if torch.equal(choice, decision.choice) else {(stage, "the intervention itself")}
            moved |= set() if torch.equal(choice, other[stage].choice) else {(stage, "the placebo of another seed")}
    require(chose, "no stage chose anything in any world, so no placebo could differ.")
    for stage in sorted(chose):
        for what in ("the intervention itself", "the placebo of another seed"):
            require((stage, what) in moved, f"placebo of {stage}: it always decides as {what}.")


def _same_budget(stage: str, sham: Decision, real: Decision) -> None:
    require(sham.budget.shape == real.budget.shape, f"placebo of {stage}: another number of decisions.")
    far = distance(sham.budget, real.budget)
    require(far <= SUMMATION, f"placebo of {stage}: the budget moves by {far:.3g}.")


# --- 9: it acts


def acts_somewhere(link: Intervention, seed: int) -> None:
    """With its own setting it changes an update: in some world the gradient, the rows or the temperatures differ from the objective's."""
    for scene, state in scenes(link, seed, count=4):
        ours, base = play(link, scene, state=state), play(None, scene, objective=link.recipe())
        heated = ours.rolled.temperature is not None and bool((ours.rolled.temperature != 1).any())
        if heated or ours.rolled.request is not None or distance(ours.gradient, base.gradient) > 1e-3:
            return
    raise ContractError("in no world does it change anything; zero touch is not shown, never done.")


def bites(link: Intervention, seed: int) -> None:
    """On the embedded model it touches neither nothing nor everything; see `isentrope.testing.check_bites`."""
    from isentrope.testing.bites import check_bites

    check_bites(link, seed=seed)


def _check(function: Callable[[Intervention, int], None], contract: int, *stages: str, slow: bool = False) -> Check:
    return Check(function.__name__, function, contract, stages, slow)


CHECKS: tuple[Check, ...] = (
    _check(declares_itself, 0),
    _check(neutral_equals_recipe, 1),
    _check(neutral_leaves_rollouts_alone, 1),
    _check(padding_never_matters, 2),
    _check(permuting_permutes, 3),
    _check(split_into_micro_batches, 3),
    _check(split_over_ranks, 3),
    _check(degenerate_batches_stay_finite, 4),
    _check(gradients_flow_only_where_declared, 5),
    _check(precision_agrees, 5),
    _check(state_round_trips, 6),
    _check(same_seed_same_result, 6),
    _check(recorded_outputs, 7),
    _check(placebo_keeps_the_budget, 8),
    _check(acts_somewhere, 9),
    _check(bites, 9, slow=True),
)
