"""Whether the one rule, minus the push times S - N summed over the tokens of a step, tells what an update does to entropy, whatever the objective."""

from dataclasses import replace

import numpy as np
import torch

from isentrope.control.objectives import Objective
from isentrope.control.stages import Chain, predicted_push
from isentrope.control.step import RowRng, Step
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.claims._walk import Moment, walk
from isentrope.lab.claims._worlds import forks
from isentrope.lab.pictures import curves
from isentrope.lab.tabular import Settings, row_logits
from isentrope.measure.tokens import Discriminant, ExpectedDiscriminant, LogProb, token_signals_from_logits

NAMES = ("grpo", "dapo", "gspo", "cispo", "sapo")
RATES = (0.5, 2.0, 8.0)
SETTINGS = Settings(updates=60, samples=8, inner=2)


def measure(bench: Bench) -> Findings:
    found: dict[tuple[str, float], list[tuple[float, float]]] = {(name, rate): [] for name in NAMES for rate in RATES if rate == 2.0 or name == "dapo"}
    for seed in range(bench.seeds):
        bench.tell(f"forks, seed {seed + 1} of {bench.seeds}")
        for name, rate in found:
            found[name, rate].append(agreement(seed, Objective.named(name), rate))
    worst = np.array([[pair[0] for pair in found[name, 2.0]] for name in NAMES]).min(0)
    furthest = np.abs(np.array([[pair[1] for pair in found[name, 2.0]] for name in NAMES]) - 1).max(0)
    sweep = {"slope": (np.log2(RATES), [np.array([found["dapo", rate][seed][1] for rate in RATES]) for seed in range(bench.seeds)])}
    return Findings(
        (
            over("correlation", "correlation of predicted and measured change over the updates, the worst of the objectives", worst),
            over("slope", "distance from 1 of the slope of measured on predicted, the furthest of the objectives", furthest),
            *(over(name, f"slope under {name}", [pair[1] for pair in found[name, 2.0]]) for name in NAMES),
            over("large", "slope under dapo at four times the step", [pair[1] for pair in found["dapo", 8.0]]),
            over("small", "slope under dapo at a quarter of the step", [pair[1] for pair in found["dapo", 0.5]]),
        ),
        (Picture("Slope by step size", curves(sweep, x="log2 of the learning rate", y="measured over predicted", rule=1.0), "Mean and 95 % interval."),),
        ("Summed entropy change of the states of the batch. No part of the table is shared, so that a state hears of no other.",),
    )


def agreement(seed: int, objective: Objective, rate: float) -> tuple[float, float]:
    """Correlation, and slope of measured on predicted, over the updates of a training."""
    predicted, measured = [], []
    for moment in walk(forks(seed), seed=seed, settings=replace(SETTINGS, rate=rate), objective=objective):
        said = states(moment, pushes(moment, objective, rate))
        change = states(moment, entropies(moment), total=False)
        predicted.append(float(said.sum()))
        measured.append(float(change.sum()))
    x, y = np.array(predicted), np.array(measured)
    return float(np.corrcoef(x, y)[0, 1]), float(np.polyfit(x, y, 1)[0])


def pushes(moment: Moment, objective: Objective, rate: float) -> torch.Tensor:
    """Of every token, nats: learning rate times dLoss/dlog p times (S - N)."""
    ids = moment.rollouts.completion_ids
    found = token_signals_from_logits(row_logits(moment.before, moment.prompt, ids), ids, [LogProb(), Discriminant(), ExpectedDiscriminant()])
    step = Step(moment.rollouts, found["log_prob"], {f"current.{name}": found[name] for name in ("S", "N")})
    return rate * predicted_push(step, objective, Chain(), None, (), RowRng())


def entropies(moment: Moment) -> torch.Tensor:
    """Change of the entropy of every token's state, nats."""
    ids = moment.rollouts.completion_ids
    logits = [row_logits(world, moment.prompt, ids).log_softmax(-1) for world in (moment.before, moment.after)]
    before, after = (-(log_p.exp() * log_p).sum(-1) for log_p in logits)
    return after - before


def states(moment: Moment, value: torch.Tensor, *, total: bool = True) -> torch.Tensor:
    """A value per token, by state: added up, or (where it belongs to the state) taken once."""
    ids, mask = moment.rollouts.completion_ids, moment.rollouts.trained_mask
    previous = torch.cat([torch.zeros(len(ids), 1, dtype=torch.long), ids[:, :-1]], dim=1)
    vocab, length = moment.before.vocab, moment.before.length
    state = (moment.prompt[:, None] * length + torch.arange(length)) * vocab + previous
    out = torch.zeros(moment.before.prompts * length * vocab, dtype=value.dtype)
    return out.index_add(0, state[mask], value[mask]) if total else out.index_put((state[mask],), value[mask])


CLAIM = Claim(
    slug="grpo-family",
    title="GRPO and its relatives: what entropy interventions modify",
    sentence="To first order an update changes the entropy of its states by the sum over its tokens of -eta w r A (S - N), whatever the objective.",
    figure="an identity of first order; no figures",
    source="sheet grpo-family, section 10; theorem 3.3 of 2602.03392",
    ours="Every update of trainings under GRPO, DAPO, GSPO, CISPO and SAPO, two steps on each generation: summed entropy change of the states of "
    "the batch, predicted and measured, at a learning rate that learns the task.",
    scale="tabular policy, 8 prompts, 6 tokens out of 4, 60 generations of 64 responses, 2 steps each",
    minutes=2.0,
    measure=measure,
    seeds=12,
    expects=(
        Expect("correlation", "prediction and measurement correlate at least 0.95 under each objective", low=0.95),
        Expect("slope", "the slope is within 0.2 of 1 under each", high=0.2),
    ),
    untested="shared parameters and adaptive optimisers, where a token also moves states of others; the ledger of a run's report says what is left there",
)
