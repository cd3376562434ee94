"""Records tests/conformance: two batches of the embedded model's own responses, and loss and gradient of the pure function under every chain
that both hosts carry. The tests of each host compare themselves with it, in their own environments.

    python scripts/record_conformance.py
"""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import isentrope
from isentrope.control.objectives import Objective
from isentrope.control.registry import build, registry
from isentrope.control.stages import Intervention, advance, policy_loss, survey
from isentrope.control.step import Normaliser, Progress, Rollouts, RowRng, Step
from isentrope.measure.tokens import Entropy, LogProb, Signal, token_signals_from_logits
from isentrope.train.verl_carried import LOSS, from_logits, side, why_not

HERE = Path(__file__).parents[1] / "tests" / "conformance"
sys.path.insert(0, str(HERE))
from recorded import ROWS, SEED, TEMPERATURE, UPDATES, fingerprint  # noqa: E402

PROMPT, LONGEST, GROUP = 5, 12, 4
OBJECTIVE = Objective(dual_clip=3.0, log_ratio_clamp=20.0, empty_rows="exclude")
"""verl's `vanilla` with its defaults, token-mean."""


def main() -> None:
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(Path(isentrope.__file__).parent / "assets" / "base-model", attn_implementation="eager").eval()
    chains = listed()
    old = {signal.key: signal for chain in chains.values() for signal in from_logits(build(chain), "old")}
    recorded = [batch(model, update, tuple(old.values())) for update in range(UPDATES)]
    save_file({f"{update}/{key}": value.contiguous() for update, found in enumerate(recorded) for key, value in found.items()}, HERE / "batch.safetensors")
    expected = {}
    for name, chain in chains.items():
        for update, found in enumerate(pure(model, recorded, chain)):
            expected |= {f"{name}#{update}/{key}": value for key, value in found.items()}
    save_file(expected, HERE / "expected.safetensors")
    (HERE / "cases.json").write_text(json.dumps(chains, indent=1) + "\n")
    print(f"{len(chains)} chains, {sum(path.stat().st_size for path in HERE.glob('*.safetensors')) / 1e3:.0f} kB")


def listed() -> dict[str, list[dict]]:
    """Every intervention whose stages verl runs in its loss, as constructed and in its embedded setting, by name; and the empty chain."""
    chains: dict[str, list[dict]] = {"nothing": []}
    for name, kind in registry().items():
        if not why_not(kind()) and side(kind()) == LOSS:
            chains[name] = [spec(kind())]
            if kind().embedded() != kind():
                chains[f"{name} (embedded)"] = [spec(kind().embedded())]
    return chains


def spec(link: Intervention) -> dict[str, Any]:
    """The intervention as YAML would hold it."""
    return {"name": link.name} | {item.name: link.__dict__[item.name] for item in fields(link)}  # type: ignore[arg-type]


def batch(model: torch.nn.Module, update: int, old_signals: tuple[Signal, ...]) -> dict[str, Tensor]:
    """Eight responses to two prompts, sampled by the model; in one row of each prompt a tool has answered in the middle."""
    draw = torch.Generator().manual_seed(100 + update)
    prompts = torch.randint(3, 200, (ROWS // GROUP, PROMPT), generator=draw).repeat_interleave(GROUP, 0)
    ids = prompts
    with torch.no_grad():
        for _ in range(LONGEST):
            p = torch.softmax(model(ids).logits[:, -1] / TEMPERATURE, -1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=draw)], 1)
    lengths = torch.randint(4, LONGEST + 1, (ROWS, 1), generator=draw)
    lengths[0] = LONGEST
    exists = torch.arange(LONGEST) < lengths
    trained = exists.clone()
    trained[1, 2], trained[GROUP + 1, 1:3] = False, False
    responses = torch.where(exists, ids[:, PROMPT:], 0)
    with torch.no_grad():
        now = signals(model, prompts, responses, old_signals)

    def noise(size: float) -> Tensor:
        return size * torch.randn(exists.shape, generator=draw)

    reward = (torch.rand(ROWS, generator=draw) < 0.5).float()
    reward[0], reward[1], reward[GROUP], reward[GROUP + 1] = 1.0, 0.0, 1.0, 0.0
    centred = reward.view(-1, GROUP) - reward.view(-1, GROUP).mean(-1, keepdim=True)
    old = now["log_prob"] + noise(0.25)
    values = {
        "old_log_probs": old,
        "ref_log_probs": old + noise(0.3),
        "sampling_log_probs": old + noise(0.02),
        "old_entropy": (now["entropy"] + noise(0.2)).clamp(min=0.0),
    }
    return {
        "prompts": prompts, "responses": responses, "completion_mask": exists, "trained_mask": trained, "turn": turns(trained),
        "reward": reward, "group": torch.arange(ROWS) // GROUP, "advantage": (centred / (centred.std(-1, keepdim=True) + 1e-6)).reshape(-1),
        **{key: torch.where(exists, value, 0.0) for key, value in values.items()},
        **{f"old.{signal.key}": now[signal.key] for signal in old_signals},
    }  # fmt: skip


def turns(trained: Tensor) -> Tensor:
    """Counted one position at a time; the hosts count otherwise."""
    out = torch.zeros(trained.shape, dtype=torch.long)
    for row, column in ((row, column) for row in range(len(out)) for column in range(out.shape[1])):
        begins = bool(trained[row, column]) and (column == 0 or not bool(trained[row, column - 1]))
        before = -1 if column == 0 else int(out[row, column - 1])
        out[row, column] = before + 1 if begins and column else max(before, 0)
    return out


def signals(model: torch.nn.Module, prompts: Tensor, responses: Tensor, more: tuple = ()) -> dict[str, Tensor]:
    logits = model(torch.cat([prompts, responses], 1)).logits[:, PROMPT - 1 : -1]
    return token_signals_from_logits(logits / TEMPERATURE, responses, (LogProb(grad=True), *more, Entropy()))


def pure(model: torch.nn.Module, recorded: list[dict[str, Tensor]], chain: list[dict]) -> list[dict[str, Tensor]]:
    """Loss and gradient of every update: survey and `policy_loss` on the whole batch, no host; the weights stand still."""
    control = build(chain)
    state, found = control.init(), []
    wanted = tuple(need.signal for need in control.needs if need.policy == "current")
    for update, given in enumerate(recorded):
        model.zero_grad()
        now = signals(model, given["prompts"], given["responses"], wanted)
        log_probs = now.pop("log_prob")
        current = {f"current.{key}": value for key, value in now.items()}
        step = Step(rollouts_of(given), log_probs, current, Progress(update, UPDATES), Normaliser())
        rng = RowRng(SEED, update)
        stats = survey(step, OBJECTIVE, control, state, rng)
        result = policy_loss(step, OBJECTIVE, control, stats, state, rng)
        result.loss.backward()
        gradient = {name: parameter.grad for name, parameter in model.named_parameters()}
        touched = torch.stack([*result.observed.touched.values()]).any(0).sum() if control.links else torch.tensor(0)
        found.append({"loss": result.loss.detach(), "touched": touched, **fingerprint(gradient)})
        state = advance(control, state, stats, step.progress)
    return found


def rollouts_of(given: dict[str, Tensor]) -> Rollouts:
    old = {key: value for key, value in given.items() if key.startswith("old.")}
    old |= {"old.entropy": given["old_entropy"], "old.log_prob": given["old_log_probs"], "old.p": given["old_log_probs"].exp()}
    old["old.S"] = old["old.p"] * (given["old_log_probs"] + given["old_entropy"])
    return Rollouts.of(
        given["trained_mask"], completion_mask=given["completion_mask"], completion_ids=given["responses"], group=given["group"], reward=given["reward"],
        correct=given["reward"], turn=given["turn"], advantage=given["advantage"][:, None], old_log_probs=given["old_log_probs"],
        ref_log_probs=given["ref_log_probs"], sampling_log_probs=given["sampling_log_probs"], signals=old,
        sampling_temperature=torch.full(given["trained_mask"].shape, TEMPERATURE),
    )  # fmt: skip


if __name__ == "__main__":
    main()
