"""Tool-Light where a tool is called: the game `reckon`, in which an action is a call of the calculator or the answer, and so a step.

Episodes branch inside uncertain actions, make pairs, and stock DPO trains on them. The sheet's question: are branches at uncertain steps worth their tokens,
against random places and against whole new episodes?
"""

import functools
import tempfile
from collections.abc import Sequence
from random import Random

import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from isentrope.control.recipes.tool_light import Brancher, Sampled, preference_pairs
from isentrope.lab.recipes.embedded import task
from isentrope.measure.tokens import TopKEntropy
from isentrope.train.evaluate import evaluate, play_on
from isentrope.train.games import GameSpec
from isentrope.train.head import reference_of, reference_signals
from isentrope.train.models import LoadedModel, load
from isentrope.train.preferences import EpisodeCollator, pairs_dataset
from isentrope.train.turns import Episode, forked, opened

STEPS = 100
QUESTIONS, BATCH, LENGTH = 400, 8, 60  # so that a hundred batches are about the paper's three epochs of the pairs
AT_ONCE = 800  # episodes
OURS = Brancher(prefixes=(1, 2, 3, 4, 5))  # an action of the embedded model has up to nine tokens
ARMS = {
    "neutral": "ten whole episodes a question (vanilla sampling)",
    "tool-light": "a main episode, three continuations inside each of its three most uncertain actions",
    "placebo": "a main episode, three continuations at each of three random places",
    "necessity": "the branches of tool-light; of the wrong episodes those of fewest calls are rejected first",
    "base": "not trained",
}
FIGURES = {
    "pass@1": "held-out tasks, 64 x 8 episodes at temperature 1",
    "pass@8": "the same episodes",
    "entropy": "of those episodes, exact, token mean, nats",
    "turns": "of those episodes, calls and answers, mean",
    "pairs": "made from the questions",
    "tokens": "generated for them, thousands",
    "pairs per 1000 tokens": "the two above",
    "both kinds": "share of the questions with a right and a wrong episode",
}


def rules() -> GameSpec:
    game = task("reckon").game
    assert game is not None
    return game


def _played(loaded: LoadedModel, episodes: Sequence[Episode]) -> int:
    """Plays them to their ends and counts the tokens that this took."""
    before = sum(sum(episode.wrote) for episode in episodes)
    with torch.no_grad():
        for start in range(0, len(episodes), AT_ONCE):
            play_on(loaded.model, loaded.tokenizer, episodes[start : start + AT_ONCE], rules(), length=LENGTH)
    return sum(sum(episode.wrote) for episode in episodes) - before


@torch.no_grad()
def entropies(loaded: LoadedModel, episodes: Sequence[Episode]) -> list[list[float]]:
    """The entropy of the 50 likeliest tokens at every token that the policy wrote, nats."""
    if len(episodes) > AT_ONCE:
        return [one for start in range(0, len(episodes), AT_ONCE) for one in entropies(loaded, episodes[start : start + AT_ONCE])]
    signal, pad, out = TopKEntropy(k=50), loaded.tokenizer.pad_token_id, []
    rows = [episode.prompt_ids + episode.ids for episode in episodes]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    inside = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    values = reference_signals(reference_of(loaded.model, ids, inside.long()), ids[:, 1:], inside[:, 1:], [signal])[signal.key].tolist()
    for episode, value in zip(episodes, values, strict=True):
        first = len(episode.prompt_ids) - 1
        out.append([value[first + place] for place, wrote in enumerate(episode.wrote) if wrote])
    return out


def places(episode: Episode, entropy: Sequence[float], brancher: Brancher = OURS) -> list[int]:
    """How many tokens of the row stay, for each of its branch points; nothing goes on after the last token, so a cut there comes one earlier."""
    own = [place for place, wrote in enumerate(episode.wrote) if wrote]
    turns = [episode.turn[place] for place in own]
    starts = [at for at, turn in enumerate(turns) if at == 0 or turn != turns[at - 1]]
    return [own[min(point.position, len(own) - 1)] for point in brancher.choose(entropy, starts)]


@functools.lru_cache(maxsize=8)
def _pairs(name: str, seed: int) -> tuple[Dataset, dict[str, float]]:
    """Pairs of one way of sampling, and what they cost."""
    loaded, rng = load("embedded-tool"), Random(seed)
    loaded.model.eval()
    torch.manual_seed(seed)
    rows = [dict(row) for row in task("reckon").train.shuffle(seed=seed).select(range(QUESTIONS))]
    prompts = loaded.tokenizer([str(row["prompt"]) for row in rows])["input_ids"]
    main = opened(rules(), rows, prompts)
    tokens, more = _played(loaded, main), []
    for row, ids, episode, entropy in zip(rows, prompts, main, entropies(loaded, main), strict=True):
        cuts = places(episode, entropy)
        if name == "neutral":
            more += opened(rules(), [row] * (OURS.points * OURS.branches), [ids] * (OURS.points * OURS.branches))
            continue
        if name == "placebo":
            cuts = [rng.choice([place for place, wrote in enumerate(episode.wrote) if wrote]) for _ in cuts]
        more += [forked(episode, rules(), cut) for cut in cuts for _ in range(OURS.branches)]
    tokens += _played(loaded, more)
    groups: dict[int, list[Episode]] = {}
    for episode in (*main, *more):
        groups.setdefault(episode.seed, []).append(episode)
    chosen, both = [], 0
    for group in groups.values():
        by_text = {loaded.tokenizer.decode(episode.ids): episode for episode in group}
        chains = [
            Sampled(text, episode.reward >= 1, len(episode.actions), sum(own) / len(own))
            for (text, episode), own in zip(by_text.items(), entropies(loaded, list(by_text.values())), strict=True)
        ]
        both += len({chain.correct for chain in chains}) == 2
        chosen += [(by_text[better], by_text[worse]) for better, worse in preference_pairs(chains, wrong_of="fewest" if name == "necessity" else "most")]
    cost = {"pairs": len(chosen), "tokens": tokens / 1000, "pairs per 1000 tokens": 1000 * len(chosen) / tokens, "both kinds": both / len(groups)}
    return pairs_dataset(chosen, loaded.tokenizer), cost


def answers(loaded: LoadedModel) -> dict[str, float]:
    found = evaluate(loaded.model, loaded.tokenizer, task("reckon"), prompts=64, samples=8, max_completion_length=LENGTH)
    turns = [row["turns"] for row in found.samples]
    return {**{name: found.value(name) for name in ("pass@1", "pass@8", "entropy")}, "turns": sum(turns) / len(turns)}


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one trained model, and of its pairs."""
    loaded = load("embedded-tool")
    if name == "base":
        return answers(loaded)
    pairs, cost = _pairs(name, seed)
    torch.manual_seed(seed)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=5e-5, lr_scheduler_type="constant", beta=0.1, seed=seed,
            data_seed=seed, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), bf16=False, max_length=None,
            logging_steps=50, gradient_checkpointing=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=loaded.model, ref_model=None, args=args, train_dataset=pairs, processing_class=loaded.tokenizer,
            data_collator=EpisodeCollator(pad_token_id=loaded.tokenizer.pad_token_id),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    enable_progress_bars()
    return {**answers(loaded), **cost}
