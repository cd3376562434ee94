"""What of the collection is a recipe: a loss of its own on another trainer, or a second stream beside a policy-gradient step.

A recipe has a pure module under `isentrope.control.recipes`, a host, and a small measured experiment, `isentrope recipe NAME`: the recipe, its
neutral setting and its placebo, over seeds. One of a user's own data goes through the host, in a script (docs/offline.md): such users own a
TRL script already, and a second description of data sets and trainers in YAML would say less than TRL's own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """name: of the command. slug: the paper's sheet. host: what trains with it. source: paper and code."""

    name: str
    slug: str
    summary: str
    host: str
    source: str

    @property
    def module(self) -> str:
        """Where the formulas stand."""
        return f"isentrope.control.recipes.{self.name.replace('-', '_')}"

    @property
    def experiment(self) -> str:
        """Where the measured experiment stands."""
        return f"isentrope.lab.recipes.{self.name.replace('-', '_')}"

    @property
    def command(self) -> str:
        return f"isentrope recipe {self.name}"

    def data(self) -> dict[str, str]:
        """For `isentrope papers --json`."""
        told = {key: getattr(self, key) for key in ("name", "slug", "summary", "module", "host", "experiment", "command", "source")}
        return {**told, "status": "done"}


_SFT = "isentrope.train.offline.OfflineTrainer, on TRL's SFTTrainer"
_MIXED = "isentrope.train.mixed.MixedTrainer, on isentrope's GRPO host"

RECIPES = (
    Recipe(
        "entropy-sft", "light-if", "Supervised fine-tuning on the tokens whose loss most exceeds their entropy.", _SFT,
        "Light-IF, arXiv 2508.03178; Qihoo360/Light-IF 01e9003, custom_entropy_trainer.py (Apache-2.0)",
    ),
    Recipe(
        "reasonmaxxer", "reasonmaxxer", "A signed cross-entropy on the uncertain positions of the base's own answers, a KL to the base elsewhere.", _SFT,
        "Rethinking RL for LLM Reasoning, arXiv 2605.06241; scripts in ansz42/ReasonMaxxer (MIT)",
    ),
    Recipe(
        "tool-light", "tool-light", "Chains that branch where a step begins in doubt, made into preference pairs for DPO.", "TRL's stock DPOTrainer",
        "Tool-Light, arXiv 2509.23285; asilverlight/Tool-Light, entropy_guided_sample.py (MIT)",
    ),
    Recipe(
        "red", "red", "Distilled text beside GRPO, weighted by how its entropy changes against that of the model's own answers.", _MIXED,
        "Recall-Extend Dynamics, arXiv 2508.16677; weight after Phonsiriwillbejommarn/Recall-Extend-Dynamics-CoDA (MIT), shift (inferred)",
    ),
    Recipe(
        "forgetting-reasoning", "forgetting-reasoning", "RECAP: weights over whole objectives, with general text replayed beside GRPO.", _MIXED,
        "Beyond Reasoning Gains, arXiv 2510.21978, Eq. 1; VietHoang1512/recap, README",
    ),
    Recipe(
        "pld", "pld", "Distillation by the likelihood of the teacher's ranking, each choice weighted by the teacher's confidence.", "any loop: a pure loss",
        "PLD: A Choice-Theoretic List-Wise Knowledge Distillation, arXiv 2506.12542, appendix C",
    ),
    Recipe(
        "awm", "awm", "A flow model's own matching loss weighted by the advantage, in place of a step likelihood.", "any loop: a pure loss",
        "Advantage Weighted Matching, arXiv 2509.25050; scxue/advantage_weighted_matching be51372, train_sd3_awm.py (Apache-2.0)",
    ),
)  # fmt: skip


def by_name() -> dict[str, Recipe]:
    """Name -> recipe, as listed."""
    return {recipe.name: recipe for recipe in RECIPES}


def by_slug(slug: str) -> list[Recipe]:
    """The recipes of one paper."""
    return [recipe for recipe in RECIPES if recipe.slug == slug]
