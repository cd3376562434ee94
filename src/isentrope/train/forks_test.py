"""Episodes that go on from others: a fork against the episode it comes from, and the stage inside TRL."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from isentrope.control.papers.aepo_agentic import AepoBranch
from isentrope.control.placebo import placebo
from isentrope.control.stages import Intervention, chain
from isentrope.control.step import ORIGINS, Need
from isentrope.errors import UserError
from isentrope.measure.tokens import Entropy
from isentrope.train.games import GameSpec, Keys, Reply
from isentrope.train.models import EMBEDDED
from isentrope.train.turns import Drawn, Episode, Voice, forked, play
from isentrope.train.turns_host_test import RULES, Looks, model_path, trained  # noqa: F401  the fixture

FIVE = GameSpec("keys", Keys, turns=5, turn_tokens=6)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(EMBEDDED))


def played(tokenizer, actions, seed=3, episodes=None, rules=FIVE, budget=48):
    """Episodes of `keys`, each with its actions out of a list; a token's column is its place among all that were drawn."""
    game = Keys()
    episodes = [Episode(game, tokenizer(game.reset(seed))["input_ids"], seed)] if episodes is None else episodes
    scripts = {id(episode): iter(script) for episode, script in zip(episodes, actions, strict=True)}
    place = itertools.count()

    def generate(asked, tokens):
        ids = []
        for episode in (episode for episode in episodes if not episode.ending):
            text = next(scripts[id(episode)])
            ids.append((tokenizer(text.rstrip("$"))["input_ids"] + [tokenizer.eos_token_id] * text.endswith("$"))[:tokens])
        return Drawn(ids, {"draft": [[float(next(place)) for _ in some] for some in ids]})

    play(episodes, generate, Voice(tokenizer, [tokenizer.eos_token_id], chat=False), rules, budget)
    return episodes


def test_a_fork_that_does_the_same_is_the_same_episode(tokenizer):
    """At every token that the policy wrote: the same game, row and reward, whatever of an action stood already."""
    (whole,) = played(tokenizer, [["c$", "run$", "d$", "41$"]])
    assert (whole.ending, whole.reward, whole.replies) == ("end", 1.0, ["none\n", "what\n", "41\n", "open\n"])
    for at in [place for place, wrote in enumerate(whole.wrote) if wrote]:
        copy = forked(whole, FIVE, at)
        turn = whole.turn[at]
        rest = [token for token, of, wrote in zip(whole.ids, whole.turn, whole.wrote, strict=True) if of == turn and wrote][whole.turn[:at].count(turn) :]
        script = [tokenizer.decode(rest).replace(tokenizer.eos_token, "$"), *(f"{action}$" for action in whole.actions[turn + 1 :])]
        played(tokenizer, [script], episodes=[copy])
        assert (copy.ids, copy.wrote, copy.turn) == (whole.ids, whole.wrote, whole.turn)
        assert (copy.actions, copy.replies, copy.reward, copy.ending) == (whole.actions, whole.replies, 1.0, "end")
        assert copy.kept == at
        assert copy.columns["draft"][:at] == whole.columns["draft"][:at]


def test_a_fork_has_a_game_of_its_own(tokenizer):
    (first,) = played(tokenizer, [["c$", "d$", "40$", "41$"]])
    copy = forked(first, FIVE, first.turn.index(2))
    played(tokenizer, [["11$", "12$", "13$"]], episodes=[copy])
    assert (first.reward, copy.reward, copy.ending) == (1.0, 0.0, "end")
    assert copy.actions == ["c", "d", "11", "12", "13"]
    assert first.actions == ["c", "d", "40", "41"]


def test_an_action_that_is_gone_on_with_keeps_its_limit(tokenizer):
    (first,) = played(tokenizer, [["123456$", *["c$"] * 4]])
    copy = forked(first, FIVE, 4)
    played(tokenizer, [["999999$", *["c$"] * 4]], episodes=[copy])
    assert copy.actions[0] == "123499"  # six tokens, of which four stood


def test_nothing_goes_on_from_a_reply_or_an_end(tokenizer):
    (whole,) = played(tokenizer, [["c$", "d$", "41$"]])
    reply = whole.wrote.index(False)
    for at in (reply, len(whole.ids), None):
        with pytest.raises(ValueError, match="goes on at a token that the policy wrote, or where it stands"):
            forked(whole, FIVE, at)


class Moody:
    """Not told by its seed: it answers with how many games there were."""

    made = 0

    def reset(self, seed: int) -> str:
        Moody.made += 1
        return "go:"

    def step(self, action: str) -> Reply:
        return Reply(f"{Moody.made}\n")


def test_a_game_that_answers_otherwise_is_refused_and_one_that_raises_ends_the_copy(tokenizer):
    rules = GameSpec("moody", Moody, turns=2, turn_tokens=6)
    game = Moody()
    (whole,) = played(tokenizer, [["c$", "d$"]], episodes=[Episode(game, tokenizer(game.reset(0))["input_ids"])], rules=rules)
    with pytest.raises(UserError, match=r"'moody' is not told by its seed: to 'c' it said '1\\n' and then '2\\n'"):
        forked(whole, rules, whole.turn.index(1))

    class Broken(Moody):
        def step(self, action: str) -> Reply:
            raise ValueError("once more")

    copy = forked(whole, GameSpec("broken", Broken, turns=2, turn_tokens=6), whole.turn.index(1))
    assert (copy.ending, copy.fault) == ("fault", "step raised ValueError: once more")


# --- inside TRL


@dataclass(frozen=True)
class Doubles(Intervention):
    """One episode of each group begins at the prompt, and each that can go on is doubled while one is lacking."""

    name = "doubles"
    shared: str = "all"

    @property
    def needs(self):
        return (Need(Entropy(), policy="draft"),)

    def pilot(self):
        return False

    def roots(self, samples, pilot, state):
        return 1

    def forks(self, standing, free, made, state, rng):
        return [int(place < free) for place in range(len(standing))]


@dataclass(frozen=True)
class Reads(Intervention):
    """Asks for a signal, so that the loss takes our head as it does beside a link that forks, and does nothing."""

    name = "reads"

    @property
    def needs(self):
        return (Need(Entropy()),)

    def advantage(self, rollouts, state):
        return rollouts.advantage


def batch(model_path, tmp_path, link, **changes):  # noqa: F811
    looks = Looks()
    trainer, _, _ = trained(IsentropeTrainerOf(), model_path, tmp_path, control=[link, looks], game=RULES, changes={"max_steps": 1, **changes})
    return trainer, looks.seen[0]


def IsentropeTrainerOf():
    from isentrope.train.trl import IsentropeTrainer

    return IsentropeTrainer


@pytest.mark.parametrize("shared", ["all", "once"])
def test_a_group_of_one_root_and_its_copies(model_path, tmp_path, shared):  # noqa: F811
    trainer, rollouts = batch(model_path, tmp_path, Doubles(shared))
    episodes, size = trainer.player.episodes, trainer.num_generations
    assert len(episodes) == len(rollouts) == 16
    for start in range(0, 16, size):
        group = episodes[start : start + size]
        assert len({tuple(episode.prompt_ids) for episode in group}) == 1
        assert group[0].kept == 0
        for copy in group:
            if copy.kept:
                assert any(other is not copy and other.ids[: copy.kept] == copy.ids[: copy.kept] for other in group)
                assert not copy.wrote[copy.kept - 1] or copy.ending == "fault"  # after a reply
    copies = torch.tensor([episode.kept > 0 for episode in episodes])
    assert 4 <= int(copies.sum()) < 16
    assert torch.equal(rollouts.origin == ORIGINS.index("branch"), copies)
    for row, episode in enumerate(episodes):
        length = len(episode.ids)
        assert rollouts.completion_ids[row, :length].tolist() == episode.ids
        skip = episode.kept if shared == "once" else 0
        assert rollouts.trained_mask[row, :length].tolist() == [False] * skip + episode.wrote[skip:]
    figures = trainer.forking.figures
    assert figures["share"] == float(copies.float().mean())
    assert figures["roots"] == 1.0
    assert figures["pilot_tokens"] == 0.0
    assert figures["sampled_tokens"] + figures["kept_tokens"] == sum(sum(episode.wrote) for episode in episodes)


def test_what_a_link_reads_is_the_policys_entropy_at_the_drawn_tokens(model_path, tmp_path):  # noqa: F811
    """Scored turn by turn while the episodes grew, against one pass over the finished rows before the update."""
    from isentrope.train.rollout import padded, policy_signals

    found = {}

    class Keeps(IsentropeTrainerOf()):
        def _build_rollouts(self, output):
            if not found:
                rows = [episode.ids for episode in self.player.episodes]
                ids, mask = padded(self, rows, left=False)
                text = {key: output[key] for key in ("prompt_ids", "prompt_mask")} | {"completion_ids": ids, "completion_mask": mask.long()}
                found["whole"] = policy_signals(self, text, mask, [Entropy()])["entropy"]
                found["episodes"] = self.player.episodes
            return super()._build_rollouts(output)

    trained(Keeps, model_path, tmp_path, control=[Doubles()], game=RULES, changes={"max_steps": 1})
    for row, episode in enumerate(found["episodes"]):
        wrote = torch.tensor(episode.wrote)
        got = torch.tensor(episode.columns["entropy"])
        torch.testing.assert_close(got[wrote], found["whole"][row, : len(wrote)][wrote].float(), rtol=0, atol=2e-5)
        assert not got[~wrote].any()


def test_a_resumed_run_forks_what_the_other_would_have(model_path, tmp_path):  # noqa: F811
    whole = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    control = ["aepo-branch", "aepo-agentic"]
    cls = IsentropeTrainerOf()
    trainer, _, straight = trained(cls, model_path, tmp_path, changes=whole, game=RULES, control=control)
    assert trainer.forking.figures["share"] > 0
    for cut in (1, 2):  # inside a generation, and between two
        resumed = trained(cls, model_path, tmp_path, changes=whole, game=RULES, control=control, resume=str(tmp_path / f"checkpoint-{cut}"))
        assert all(torch.equal(one, other) for one, other in zip(straight, resumed[2], strict=True))


def test_the_neutral_setting_plays_the_games_of_an_empty_chain(model_path, tmp_path):  # noqa: F811
    cls = IsentropeTrainerOf()
    _, losses, plain = trained(cls, model_path, tmp_path, game=RULES, control=[Reads()])
    _, ours, weights = trained(cls, model_path, tmp_path, game=RULES, control=[AepoBranch().neutral()])
    assert ours == losses
    assert all(torch.equal(one, other) for one, other in zip(plain, weights, strict=True))


def test_groups_that_are_filled_up_are_made_up_as_the_batch(model_path, tmp_path):  # noqa: F811
    trainer, rollouts = batch(model_path, tmp_path, Doubles(), num_generations=2)
    assert len(rollouts) == 16
    ids, rows, told = trainer.player.extra(trainer, [dict(trainer.train_dataset[5])] * 4, 4, 1 << 40)
    assert len(rows) == 4
    width = max(map(len, ids))
    assert told(torch.ones(4, width, dtype=torch.bool))["mask"].any(-1).all()


def test_the_placebo_doubles_as_often(model_path, tmp_path):  # noqa: F811
    real, _ = batch(model_path, tmp_path, AepoBranch(dynamic=False, variant="paper"))
    sham, _ = batch(model_path, tmp_path, placebo(AepoBranch(dynamic=False, variant="paper")))
    assert sham.forking.figures["roots"] == real.forking.figures["roots"] == 2.0
    assert sham.forking.figures["share"] > 0


def test_without_a_game_it_is_refused_by_name(model_path, tmp_path):  # noqa: F811
    from trl import GRPOConfig

    args = GRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, num_generations=4, per_device_train_batch_size=4)
    rows = Dataset.from_dict({"prompt": ["a"] * 8})
    with pytest.raises(UserError, match="aepo-branch forks episodes of a game of several turns, and this run has none"):
        IsentropeTrainerOf()(model=model_path, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args, train_dataset=rows,
                             control=["aepo-branch"])  # fmt: skip


def test_one_link_says_how_a_group_begins():
    with pytest.raises(ValueError, match=r"only one link may say how the responses of a group begin\. Got aepo-branch, doubles"):
        chain(AepoBranch(), Doubles())
