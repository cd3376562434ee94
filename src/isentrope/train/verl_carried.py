"""What the verl host carries of verl and of our interventions, and what it refuses by name. Importable without verl."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from isentrope.control.objectives import Mode, Objective
from isentrope.control.registry import build
from isentrope.control.requests import Request
from isentrope.control.stages import Chain, Intervention, stages_of
from isentrope.errors import UserError
from isentrope.measure.signals import Signal

TESTED_VERL = ("0.9.1",)

LOSS = "actor_rollout_ref.actor.policy_loss"
ALGORITHM = "algorithm"

LOSS_STAGES = frozenset({"survey", "policy", "clip", "weight", "regularise", "update"})
"""Stages that run inside verl's actor loss."""
ADVANTAGE_STAGES = frozenset({"reward", "advantage", "update"})
"""Stages that run inside verl's advantage estimator, on the whole batch of a training step."""

NOT_CARRIED: Mapping[str, str] = {
    "select": "chooses prompts by what the starting policy makes of them, and verl reads its data set before it has a policy: choose them in data.train_files",
    "extra": "samples more responses inside a step, and verl has no hook between its agent loop and its rewards",
    "sample": "sets a temperature for every token while sampling, which vLLM and SGLang give no hook for",
    "regenerate": "cuts responses and samples the rest again, and verl has no hook between its agent loop and its rewards",
    "fork": "doubles episodes while they are played, and verl's agent loop plays each by itself",
    "filter": "samples dropped groups again; verl has a filter of its own, algorithm.filter_groups",
    "rows": "replaces or drops rows, and verl's advantage estimator gives back advantages only",
    "replay": "puts earlier responses back into a batch, and verl's advantage estimator gives back advantages only",
    "collect": "keeps a memory of the prompts over generations, which verl's estimator could not save with its checkpoint",
}

DERIVED = frozenset({"log_prob", "p", "S", "entropy"})
"""Signals that follow from the two that verl computes: p, and S = p (ln p + H). Others are computed from the logits of verl's engine."""


def check_version() -> None:
    """Refuse an untested verl before anything of it is changed.

    Raises UserError naming the version found and those tested.
    """
    found = version("verl")
    if found not in TESTED_VERL:
        raise UserError(f"verl {found} is not tested with this host; tested: {', '.join(TESTED_VERL)}. pip install 'verl=={TESTED_VERL[-1]}'.")


def check_parameters() -> None:
    """Refuse a verl whose functions have other parameters than this host calls them with.

    Raises UserError naming the function.
    """
    found = version("verl")
    for name, (function, parameters) in _relied_on().items():
        missing = [parameter for parameter in parameters if parameter not in inspect.signature(function).parameters]
        if missing:
            raise UserError(f"verl {found}: {name} has no parameter {', '.join(missing)}, so this host cannot drive it; tested: {', '.join(TESTED_VERL)}.")


def _relied_on() -> dict[str, tuple[Callable, tuple[str, ...]]]:
    from verl.workers.engine.base import BaseEngine
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    return {
        "losses.ppo_loss": (ppo_loss, ("config", "model_output", "data", "dp_group")),
        "BaseEngine.train_batch": (BaseEngine.train_batch, ("data", "loss_function")),
        "BaseEngine.forward_backward_batch": (BaseEngine.forward_backward_batch, ("data", "loss_function", "forward_only")),
        "TrainingWorker.set_loss_fn": (TrainingWorker.set_loss_fn, ("loss_fn",)),
        "TrainingWorker.train_mini_batch": (TrainingWorker.train_mini_batch, ("data",)),
        "TrainingWorker.save_checkpoint": (TrainingWorker.save_checkpoint, ("local_path", "hdfs_path", "global_step", "max_ckpt_to_keep")),
        "TrainingWorker.load_checkpoint": (TrainingWorker.load_checkpoint, ("local_path",)),
    }


def built(chain: Sequence[str | Mapping[str, Any] | Intervention], where: str) -> Chain:
    """A chain from verl's YAML.

    Raises UserError for an unknown name or parameter, naming the key `where` it stands.
    """
    if isinstance(chain, str | Mapping) or not isinstance(chain, Sequence):
        raise UserError(f"{where}.chain must be a list of names and of mappings with a name, as [clip-cov, {{name: siren, beta: 0.1}}]. Got {chain!r}.")
    try:
        return build(chain)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}.chain: {error}") from error


# --- which interventions


def why_not(link: Intervention) -> tuple[str, ...]:
    """Why verl cannot carry this intervention, one reason per stage or signal; empty if it can."""
    stages, known = stages_of(link), LOSS_STAGES | ADVANTAGE_STAGES
    reasons = [f"stage {name}: it {NOT_CARRIED.get(name, 'runs while verl rolls out, where verl has no hook')}" for name in stages if name not in known]
    before, after = set(stages) & {"reward", "advantage"}, set(stages) - ADVANTAGE_STAGES
    if not reasons and before and after:
        reasons.append(f"stages {', '.join(sorted(before))} and {', '.join(sorted(after))}: verl runs them in two processes that share no state")
    for need in link.needs:
        if isinstance(need.signal, Request):
            reasons.append(f"signal {need.key}: it is of the network's inside, of which verl's engine hands on the logits only")
        elif need.policy not in ("current", "old"):
            reasons.append(f"signal {need.key}: verl scores the old and the current policy only")
    return tuple(reasons)


def from_logits(chain: Chain, policy: str) -> tuple[Signal, ...]:
    """The signals of this policy ("current" or "old") that the host computes itself, from the logits."""
    return tuple(need.signal for need in chain.needs if need.policy == policy and need.signal.key not in DERIVED)


def side(link: Intervention) -> str:
    """The key of verl's configuration under which this intervention goes."""
    return ALGORITHM if set(stages_of(link)) & {"reward", "advantage"} else LOSS


def refuse_links(chain: Chain, where: str) -> None:
    """Refuse links that verl cannot carry, or that belong under the other key.

    Raises UserError naming the link, the reasons and the way out.
    """
    for key, link in zip(chain.keys, chain.links, strict=True):
        reasons = why_not(link)
        if reasons:
            raise UserError(f"{where}.chain: {key} cannot run under verl. {'; '.join(reasons)}. The TRL host carries it.")
        if side(link) != where:
            other = f"{ALGORITHM}.chain, with algorithm.adv_estimator=isentrope" if side(link) == ALGORITHM else f"{LOSS}.chain"
            raise UserError(f"{where}.chain: {key} has the stages {', '.join(stages_of(link))}, which verl runs elsewhere. Write it under {other}.")


# --- which options of the actor

OBJECTIVES = ("vanilla", "gspo", "sapo", "gpg", "cispo")
"""verl's policy losses that can stand under a chain."""
_MODES: Mapping[str, Mode] = {
    "token-mean": "token-mean",
    "token-sum": "token-sum",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum-norm": "seq-mean-token-sum-norm",
}


def objective_of(actor: Any) -> Objective:
    """The objective that verl's actor options mean, by the name in `policy_loss.objective`.

    Raises UserError for a policy loss or an aggregation that is not carried.
    """
    name, mode = actor.policy_loss.objective, actor.loss_agg_mode
    if name not in OBJECTIVES:
        raise UserError(f"{LOSS}.objective must be one of {', '.join(OBJECTIVES)}. Got {name!r}. verl's other losses are not carried under a chain.")
    if mode not in _MODES:
        raise UserError(f"actor_rollout_ref.actor.loss_agg_mode must be one of {', '.join(_MODES)}. Got {mode!r}.")
    low = actor.clip_ratio if actor.clip_ratio_low is None else actor.clip_ratio_low
    high = actor.clip_ratio if actor.clip_ratio_high is None else actor.clip_ratio_high
    shared = {"aggregation": _MODES[mode], "empty_rows": "exclude"}
    if name == "gpg":
        return Objective(form="reinforce", epsilon_low=None, epsilon_high=None, **shared)
    if name == "gspo":
        return Objective(level="sequence-token", epsilon_low=low, epsilon_high=high, **shared)
    if name == "cispo":
        return Objective(form="cispo", epsilon_low=low, epsilon_high=high, log_ratio_clamp=20.0, **shared)
    if name == "sapo":
        if mode != "seq-mean-token-mean":
            raise UserError(f"{LOSS}.objective=sapo aggregates by seq-mean-token-mean whatever loss_agg_mode says. Got {mode!r}; write it.")
        tau = {"tau_positive": actor.tau_pos, "tau_negative": actor.tau_neg}
        return Objective(form="sapo", epsilon_low=None, epsilon_high=None, log_ratio_clamp=20.0, **tau, **shared)
    return Objective(epsilon_low=low, epsilon_high=high, dual_clip=actor.clip_ratio_c, log_ratio_clamp=20.0, **shared)


_SAME: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "entropy_coef": ("entropy_coeff", lambda actor: actor.entropy_coeff != 0),
    "use_adaptive_entropy": ("entropy_coeff", lambda actor: actor.entropy_coeff != 0),
    "epsilon": ("clip_ratio", lambda actor: actor.clip_ratio != 0.2),
    "epsilon_high": ("clip_ratio_high", lambda actor: actor.clip_ratio_high not in (0.2, actor.clip_ratio)),
    "delta": ("clip_ratio_c", lambda actor: actor.clip_ratio_c != 3.0),
}
"""What interventions say they replace, in TRL's words -> verl's option and whether it is off its default."""


def refuse_options(actor: Any, chain: Chain) -> None:
    """Refuse actor options that mean the same as a link, and signals that were not switched on.

    Raises UserError naming the option, its value and the way out.
    """
    for key, link in zip(chain.keys, chain.links, strict=True):
        for option, active in (_SAME[name] for name in sorted(link.replaces & _SAME.keys())):
            if active(actor):
                raise UserError(
                    f"actor_rollout_ref.actor.{option}={actor.get(option)!r} and the intervention {key!r} mean the same, and both would act. Keep one: "
                    f"leave {option} at its default, or drop {key!r} from {LOSS}.chain."
                )
    asked = {need.key for need in chain.needs}
    if asked & {"current.entropy", "current.S"} and not (actor.calculate_entropy or actor.entropy_coeff != 0):
        raise UserError(
            f"{', '.join(chain.keys)} needs the entropy of every token, and verl computes it only when told to. "
            "Add actor_rollout_ref.actor.calculate_entropy=True."
        )
    if actor.use_fused_kernels and (extra := [*from_logits(chain, "current"), *from_logits(chain, "old")]):
        raise UserError(
            f"{', '.join(chain.keys)} needs {', '.join(signal.key for signal in extra)}, which is computed from logits, and verl's fused kernels hold none. "
            "Set actor_rollout_ref.model.use_fused_kernels=False."
        )
    if actor.strategy not in ("fsdp", "fsdp2"):
        raise UserError(f"actor_rollout_ref.actor.strategy must be fsdp or fsdp2 with a chain. Got {actor.strategy!r}, which is not tested with this host.")
