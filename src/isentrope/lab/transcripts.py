"""Several agents of one language model answer questions together, and what they wrote with the entropies of every token.

    single        one agent, asked again every round with its own last words
    debate        three agents; from the second round on each reads what the other two said last
    sequential    planner, solver, critic, judge, each reading what was said before it in the round and what the judge said last
    centralized   three experts and an orchestrator who reads them; the experts read its last words

The roles are the sheet's (`multi-agent-entropy`, A), their instructions ours. Two entropies of each token, both nats: `full`, of the model's distribution
over its whole vocabulary at temperature 1; `sampled`, of the distribution that the token was drawn from, after temperature and top-p, where what was
filtered counts as 0. What comes after the end of a response is no token of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from isentrope.measure.agents import Call
from isentrope.train.models import LoadedModel

Topology = Literal["single", "debate", "sequential", "centralized"]
Kind = Literal["full", "sampled"]


@dataclass(frozen=True)
class Role:
    """An agent: what it is told to do, and whose words it reads ("others" and "self": of the round before; "before": of this round so far; a name)."""

    name: str
    task: str
    reads: tuple[str, ...] = ()


_SOLVE = "Give the answer as one number."
ROLES: dict[str, tuple[Role, ...]] = {
    "single": (Role("solver", _SOLVE, ("self",)),),
    "debate": tuple(Role(f"debater {letter}", _SOLVE, ("others",)) for letter in "ABC"),
    "sequential": (
        Role("planner", "Say in one sentence how to solve the problem.", ("judge",)),
        Role("solver", _SOLVE, ("before",)),
        Role("critic", "Say in one sentence whether the solution is right.", ("before",)),
        Role("judge", "Give the final answer. End with the number.", ("before",)),
    ),
    "centralized": (
        *(Role(f"expert {letter}", _SOLVE, ("orchestrator",)) for letter in "ABC"),
        Role("orchestrator", "Give the final answer of the experts. End with the number.", ("before",)),
    ),
}


@dataclass(frozen=True)
class Said:
    """What an agent wrote: the tokens up to the end of the response, and the entropies of each, nats."""

    agent: str
    round: int
    text: str
    ids: Int[Tensor, " token"]
    full: Float[Tensor, " token"]
    sampled: Float[Tensor, " token"]
    pieces: tuple[str, ...]  # the text of every token

    def call(self, kind: Kind) -> Call:
        return Call(self.agent, self.round, self.full if kind == "full" else self.sampled)

    def answer(self) -> str | None:
        """The last number of the text; None where there is none."""
        found = _last_number(self.text)
        return None if found is None else found.group().replace(",", "")

    def span(self, kind: Kind) -> Float[Tensor, " token"]:
        """Entropies of the tokens that the answer is written with; none where there is no answer."""
        values = self.full if kind == "full" else self.sampled
        text = "".join(self.pieces)
        found = _last_number(text)
        if found is None:
            return values[:0]
        chosen, at = [], 0
        for index, piece in enumerate(self.pieces):
            if at < found.end() and at + len(piece) > found.start() and piece.strip():
                chosen.append(index)
            at += len(piece)
        return values[chosen]


def converse(
    loaded: LoadedModel, questions: Sequence[str], topology: Topology, *, rounds: int = 2, temperature: float = 0.6, top_p: float = 0.95,
    max_tokens: int = 48, batch_size: int = 32, seed: int = 0,
) -> list[list[Said]]:  # fmt: skip
    """One conversation about each question, its calls in the order in which they were made.

    Raises ValueError for an unknown topology, no round, or a temperature or top_p outside (0, ...] and (0, 1].
    """
    if topology not in ROLES:
        raise ValueError(f"converse: topology must be one of {', '.join(ROLES)}. Got {topology!r}.")
    if rounds < 1 or not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"converse: rounds >= 1, temperature > 0 and 0 < top_p <= 1. Got {rounds}, {temperature} and {top_p}.")
    talks: list[list[Said]] = [[] for _ in questions]
    for number in range(1, rounds + 1):
        for role in ROLES[topology]:
            prompts = [asked(loaded, question, role, number, talk) for question, talk in zip(questions, talks, strict=True)]
            for talk, said in zip(talks, _written(loaded, prompts, role.name, number, temperature, top_p, max_tokens, batch_size, seed), strict=True):
                talk.append(said)
            seed += 1
    return talks


def asked(loaded: LoadedModel, question: str, role: Role, number: int, talk: Sequence[Said]) -> str:
    """What an agent reads in round `number`."""
    heard = [said for said in talk if any(_reads(role, said, whose, number) for whose in role.reads)]
    notes = "".join(f"\n{said.agent}: {' '.join(said.text.split())}" for said in heard)
    text = f"{question}\n{role.task}" if not notes else f"{question}\nWhat was said:{notes}\n{role.task}"
    if not loaded.chat:
        return f"{text}\n"
    return str(loaded.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True))


def _reads(role: Role, said: Said, whose: str, number: int) -> bool:
    last = said.round == number - 1
    return {
        "self": last and said.agent == role.name, "others": last and said.agent != role.name, "before": said.round == number,
    }.get(whose, last and said.agent == whose)  # fmt: skip


class _Heard(LogitsProcessor):
    """Temperature and top-p as the library applies them, and the entropies before and after; generation itself changes nothing more."""

    def __init__(self, temperature: float, top_p: float):
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), *([TopPLogitsWarper(top_p)] if top_p < 1 else [])])
        self.full: list[Tensor] = []
        self.sampled: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        warped = self.warpers(input_ids, scores.float())
        self.full.append(torch.distributions.Categorical(logits=scores.float()).entropy())
        self.sampled.append(torch.special.entr(warped.softmax(-1)).sum(-1))
        return warped


@torch.no_grad()
def _written(
    loaded: LoadedModel, prompts: Sequence[str], agent: str, number: int, temperature: float, top_p: float, max_tokens: int, batch_size: int, seed: int
) -> list[Said]:
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    ends = {int(token) for token in torch.tensor(model.generation_config.eos_token_id).flatten()} | {tokenizer.eos_token_id, tokenizer.pad_token_id}
    found: list[Said] = []
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(list(prompts[start : start + batch_size]), return_tensors="pt", padding=True, add_special_tokens=not loaded.chat).to(model.device)
        heard, width = _Heard(temperature, top_p), batch["input_ids"].shape[1]
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(1_000_003 * seed + start)
            out = model.generate(
                **batch, max_new_tokens=max_tokens, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, logits_processor=LogitsProcessorList([heard]),
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        full, sampled = torch.stack(heard.full, dim=1), torch.stack(heard.sampled, dim=1)
        for row, ids in enumerate(out[:, width:].tolist()):
            length = next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))
            kept = torch.tensor(ids[:length])
            text = tokenizer.decode(kept, skip_special_tokens=True)
            pieces = tuple("" if token in ends else tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids[:length])
            found.append(Said(agent, number, text, kept, full[row, :length].cpu(), sampled[row, :length].cpu(), pieces))
    return found


def _last_number(text: str) -> re.Match[str] | None:
    return next(reversed(list(re.finditer(r"-?\d[\d,]*(?:\.\d+)?", text))), None)
