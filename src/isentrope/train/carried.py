"""What this host carries of TRL and what it refuses by name, before anything is built."""

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from isentrope.control.objectives import Objective
from isentrope.control.registry import build
from isentrope.control.stages import Chain, Extra, Filter, Intervention, Regenerate, Sample, Select
from isentrope.errors import UserError

TESTED_TRL = ("1.16",)

PRIVATE: Mapping[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("inputs",),
    "_generate": ("prompts",),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_prepare_inputs": ("generation_batch",),
    "_compute_loss": ("model", "inputs"),
    "_tokenize_prompts": ("prompts",),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
}


def check_host() -> None:
    """Refuse an untested TRL, changed private methods, or Unsloth's replacement of them.

    Raises UserError naming what was found and what was tested.
    """
    if "unsloth" in sys.modules or GRPOTrainer.__module__.startswith("unsloth"):
        raise UserError(
            "Unsloth is loaded: it replaces TRL's GRPO internals (entropies are None, epsilon_high and truncation are overridden), so no number "
            "here could be trusted. Start Python without importing unsloth."
        )
    found = version("trl")
    if not any(found == tested or found.startswith(tested + ".") for tested in TESTED_TRL):
        raise UserError(f"TRL {found} is not tested with this host; tested: {', '.join(TESTED_TRL)}. pip install 'trl==1.16.0'.")
    for method, parameters in PRIVATE.items():
        have = inspect.signature(getattr(GRPOTrainer, method)).parameters if hasattr(GRPOTrainer, method) else {}
        missing = [name for name in parameters if name not in have]
        if missing:
            raise UserError(
                f"TRL {found}: GRPOTrainer.{method} has no parameter {', '.join(missing)}, so this host cannot drive it; tested: {', '.join(TESTED_TRL)}."
            )


REFUSED: tuple[tuple[str, Callable[[GRPOConfig], bool], str], ...] = (
    ("loss_type", lambda a: a.loss_type not in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"), "carried: grpo, bnpo, dr_grpo, dapo, cispo, sapo"),
    ("top_entropy_quantile", lambda a: a.top_entropy_quantile < 1.0, "use control=['forking-tokens']"),
    ("entropy_coef", lambda a: a.entropy_coef != 0.0 or a.use_adaptive_entropy, "an entropy bonus is an intervention; use one of the chain"),
    ("off_policy_mask_threshold", lambda a: a.off_policy_mask_threshold is not None, "not carried"),
    ("use_liger_kernel", lambda a: bool(getattr(a, "use_liger_kernel", False)), "it replaces model.forward"),
    ("vllm_importance_sampling_correction", lambda a: a.use_vllm and a.vllm_importance_sampling_correction, "set it to False with vLLM"),
    ("router_aux_loss_coef", lambda a: bool((a.model_init_kwargs or {}).get("output_router_logits")), "the MoE auxiliary loss is not carried"),
)  # fmt: skip


def refuse_options(args: GRPOConfig, chain: Chain) -> None:
    """Refuse trainer options that this host does not carry, or that mean the same as a link of the chain.

    Raises UserError naming the option, its value and the way out.
    """
    refuse_same_meaning({name: args.__dict__[name] for name in GRPOConfig.__dataclass_fields__ if name in args.__dict__}, chain)
    for option, active, way_out in REFUSED:
        if active(args):
            raise UserError(f"trl.{option}={getattr(args, option, None)!r} is not carried by isentrope's host ({way_out}).")
    backend = "vLLM" if args.use_vllm else "continuous batching" if args.use_transformers_continuous_batching else ""
    for stage, what in ((Sample, "sets a temperature per token while sampling"), (Regenerate, "samples the responses of a group in two calls")):
        sampling = [chain.keys[index] for index, _ in chain.having(stage)]
        if sampling and backend:
            raise UserError(f"{', '.join(sampling)} {what}, which {backend} gives no hook for. Use plain generation.")
    beside = [key for key, link in zip(chain.keys, chain.links, strict=True) if samples_beside(link)] if args.use_vllm else []
    if beside:
        raise UserError(f"{', '.join(beside)} samples beside the batch through transformers' generate, which a run with vLLM has not. Use plain generation.")
    for index, link in chain.having(Regenerate):
        assert isinstance(link, Regenerate)
        refuse_cutting(args, chain, chain.keys[index], link)


def samples_beside(link: Intervention) -> bool:
    """Whether it has responses sampled that are not TRL's own batch: extra ones, groups filled up, prompts tried before training."""
    return isinstance(link, Extra) or (isinstance(link, Filter) and link.rounds > 0) or (isinstance(link, Select) and link.probe() is not None)


def refuse_cutting(args: GRPOConfig, chain: Chain, key: str, link: Regenerate) -> None:
    """Refuse groups that a link which re-generates cannot make up, or would not cut.

    Raises UserError naming the link, the numbers and the way out.
    """
    samples = args.num_generations
    if reason := link.misfit(samples):
        raise UserError(f"{key}: {reason}")
    beside = [chain.keys[index] for index, _ in chain.having(Sample)]
    if beside:
        raise UserError(f"{key} and {', '.join(beside)} both change how responses are sampled, and are not carried together. Drop one of them.")
    refuse_split_groups(args, key)


def refuse_split_groups(args: GRPOConfig, key: str) -> None:
    """Raises UserError naming the link and the numbers, unless every group lies on one process."""
    rows, samples = args.per_device_train_batch_size * args.steps_per_generation, args.num_generations
    if rows % samples:
        raise UserError(
            f"{key}: a group must lie on one process, and num_generations={samples} does not divide the {rows} rows of each "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} x steps_per_generation={args.steps_per_generation}). Change one of the three."
        )


def refuse_same_meaning(options: Mapping[str, Any], chain: Chain) -> None:
    """Refuse a trainer option off its default that means the same as a link of the chain.

    Raises UserError naming both and the way out.
    """
    defaults = {name: field.default for name, field in GRPOConfig.__dataclass_fields__.items()}
    for key, link in zip(chain.keys, chain.links, strict=True):
        for option in sorted(link.replaces & options.keys()):
            if options[option] != defaults[option]:
                raise UserError(
                    f"trl.{option}={options[option]!r} and the intervention {key!r} mean the same, and both would act. Keep one: drop trl.{option} "
                    f"(its default is {defaults[option]!r}), or drop {key!r} from control."
                )


def warn_of_idle(args: GRPOConfig, chain: Chain, objective: Objective) -> None:
    """Tell once of every link that can do nothing in this run, with the reason."""
    on_policy = args.steps_per_generation * args.num_iterations <= args.gradient_accumulation_steps
    for key, link in zip(chain.keys, chain.links, strict=True):
        reason = link.idle_under(objective, on_policy=on_policy)
        if reason:
            warnings.warn(f"{key} does nothing in this run: {reason}", stacklevel=3)


def objective_of(args: GRPOConfig) -> Objective:
    """The objective that these TRL options mean."""
    return Objective.trl(
        args.loss_type, epsilon=args.epsilon, epsilon_high=args.epsilon_high, delta=args.delta, beta=args.beta,
        importance_sampling_level=args.importance_sampling_level, use_bias_correction_kl=args.use_bias_correction_kl,
        sapo_temperature_pos=args.sapo_temperature_pos, sapo_temperature_neg=args.sapo_temperature_neg,
    )  # fmt: skip


def built(control: Sequence[str | Mapping[str, Any] | Intervention]) -> Chain:
    """A chain from names, mappings and instances.

    Raises UserError for an unknown name or parameter.
    """
    try:
        return build(control)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
