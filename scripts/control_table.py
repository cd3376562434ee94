"""What every registered intervention does to an update: writes docs/control-table.md.

    python scripts/control_table.py                     # all of them, about a minute each on two cores
    python scripts/control_table.py --names clip-cov steer --steps 5

Each runs alone for `--steps` updates of the preset `control-check` (`aepo-branch`: `game`) on the embedded model, in its embedded setting. Touched: the
mean share of trained tokens (clip, weight, regularise), tokens with another advantage, tokens sampled at another temperature, rows replaced or dropped,
prompts dropped; the largest of them. Gradient: the median distance of the weights' gradient from the objective's own on the same batch, over the latter's
norm. Entropy: the update's predicted first-order change of entropy, -sum (w r A)(S - N) over the divisor, with the intervention over without it; terms
that act through the entropy itself (a bonus, a band) are not in that prediction, which is said in the table.
"""

import argparse
import time
import warnings
from pathlib import Path
from statistics import mean, median

from isentrope.control.registry import registry
from isentrope.control.stages import Chain, Regularise, predicted_push
from isentrope.measure.tokens import Discriminant, ExpectedDiscriminant
from isentrope.testing.bites import HIGH, LOW, MOVED, BiteRecorder, bite

DOCS = Path(__file__).parents[1] / "docs" / "control-table.md"
HEAD = "| intervention | touched | updates that bite | gradient moved | predicted entropy change | seconds |\n|---|---|---|---|---|---|\n"


class Recorder(BiteRecorder):
    """Also the predicted entropy change of every update, without and with the link."""

    signals = (Discriminant(), ExpectedDiscriminant())

    def __init__(self, key: str):
        super().__init__(key)
        self.without: list[float] = []
        self.with_: list[float] = []
        self._sums = [0.0, 0.0]

    def slice(self, trainer, step, stats, result) -> None:
        super().slice(trainer, step, stats, result)
        rng, alone = trainer.rng(trainer.state.global_step), self.alone(step)
        self._sums[0] += float(predicted_push(alone, trainer.objective, Chain(), None, (), rng).sum())
        self._sums[1] += float(predicted_push(step, trainer.objective, trainer.chain, stats, trainer.chain_state, rng).sum())

    def update(self, trainer) -> None:
        super().update(trainer)
        self.without.append(self._sums[0])
        self.with_.append(self._sums[1])
        self._sums = [0.0, 0.0]


def row(name: str, steps: int) -> str:
    link = registry()[name]().embedded()
    recorder, began = Recorder(name), time.monotonic()
    bites = bite(link, steps=steps, recorder=recorder)
    kinds = {kind: mean(one.shares[kind] for one in bites) for kind in bites[0].shares}
    kind = max(kinds, key=kinds.__getitem__)
    most = 1.0 if link.dense else HIGH
    good = sum(any(LOW <= share <= most for share in one.shares.values()) and one.distance > MOVED for one in bites)
    before, after = sum(recorder.without), sum(recorder.with_)
    effect = f"{after / before:+.2f} of {before / len(bites):.1e} nats per unit of learning rate" if before else "-"
    note = " (its own term not counted)" if isinstance(link, Regularise) else ""
    return (
        f"| `{name}`{' (dense)' if link.dense else ''} | {kinds[kind]:.1%} of {kind} | {good} of {len(bites)} | {median(one.distance for one in bites):.3f} "
        f"| {effect}{note} | {time.monotonic() - began:.0f} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", default=sorted(registry()))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    intro = __doc__.split("\n\n", 2)[2].strip()  # type: ignore[union-attr]
    text = f"# What each intervention does\n\n`python scripts/control_table.py --steps {options.steps}`. {intro}\n\n{HEAD}"
    for name in options.names:
        text += row(name, options.steps)
        options.out.write_text(text, encoding="utf-8")
        print(text.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
