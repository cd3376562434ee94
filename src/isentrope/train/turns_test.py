"""Episodes as rows of tokens: recorded transcripts with the real tokenizer, and the host against stock TRL."""

import time
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from isentrope.errors import UserError
from isentrope.train.games import GameSpec, Keys, Reply
from isentrope.train.models import EMBEDDED
from isentrope.train.turns import Drawn, Episode, Voice, opened, outcome, per_token, play, read_turns, turns_of_mask

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(EMBEDDED))


@dataclass
class Script:
    """A game that answers what it was told to, whatever is done; an exception among the replies is raised."""

    replies: list
    heard: list[str] = field(default_factory=list)

    def reset(self, seed: int) -> str:
        return "go:"

    def step(self, action: str):
        self.heard.append(action)
        reply = self.replies[len(self.heard) - 1]
        if isinstance(reply, BaseException):
            raise reply
        return reply


def recorded(tokenizer, scripts, actions, *, turns=8, turn_tokens=6, budget=48, chat=False, timeout=None, name="entropy"):
    """Episodes played with actions out of a list: [episode][turn] text, where `$` is the end of a sequence. Each token carries 10 turn + position."""
    if chat:
        tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
        tokenizer.chat_template = CHATML
    episodes = [Episode(Script(list(replies)), tokenizer("go:")["input_ids"]) for replies in scripts]
    contexts: list[list[list[int]]] = []

    def generate(asked, tokens):
        turn, contexts_now = len(contexts), list(asked)
        contexts.append(contexts_now)
        playing = [row for row, episode in enumerate(episodes) if not episode.ending]
        ids = []
        for row in playing:
            text = actions[row][turn]
            whole = tokenizer(text.rstrip("$"))["input_ids"] + ([tokenizer.eos_token_id] if text.endswith("$") else [])
            ids.append(whole[:tokens])
        return Drawn(ids, {name: [[10.0 * turn + place for place in range(len(some))] for some in ids]})

    play(episodes, generate, Voice(tokenizer, [tokenizer.eos_token_id], chat=chat), GameSpec("script", Keys, turns, turn_tokens, timeout), budget)
    return episodes, contexts


def shown(tokenizer, episode) -> list[tuple[str, bool, int]]:
    return [(tokenizer.decode([token]), wrote, turn) for token, wrote, turn in zip(episode.ids, episode.wrote, episode.turn, strict=True)]


def test_a_recorded_game(tokenizer):
    (episode,), contexts = recorded(tokenizer, [[Reply("more\n"), Reply("less\n", reward=0.25), Reply("found\n", True, 1.0)]], [["17$", "25$", "20$"]])
    end = tokenizer.eos_token
    assert shown(tokenizer, episode) == [
        ("1", True, 0), ("7", True, 0), (end, True, 0), ("m", False, 0), ("ore", False, 0), ("\n", False, 0),
        ("2", True, 1), ("5", True, 1), (end, True, 1), ("le", False, 1), ("s", False, 1), ("s", False, 1), ("\n", False, 1),
        ("2", True, 2), ("0", True, 2), (end, True, 2),
    ]  # fmt: skip
    assert (episode.ending, episode.reward, episode.fault) == ("end", 1.25, "")
    assert episode.actions == ["17", "25", "20"]
    assert episode.replies == ["more\n", "less\n", "found\n"]
    assert episode.columns["entropy"] == [0, 1, 2, 0, 0, 0, 10, 11, 12, 0, 0, 0, 0, 20, 21, 22]
    # what the policy reads is what stands in the row, token for token
    assert contexts == [[episode.prompt_ids + episode.ids[:cut]] for cut in (0, 6, 13)]


def test_ragged_games_keep_their_rows_apart(tokenizer):
    scripts = [[Reply("", True, 1.0)], [Reply("more\n"), Reply("", True)], [Reply("less\n"), Reply("less\n"), Reply("", True, 1.0)]]
    episodes, contexts = recorded(tokenizer, scripts, [["1$"], ["22$", "2$"], ["3$", "33$", "333$"]])
    assert [len(now) for now in contexts] == [3, 2, 1]
    assert [episode.actions for episode in episodes] == [["1"], ["22", "2"], ["3", "33", "333"]]
    assert [max(episode.turn) for episode in episodes] == [0, 1, 2]
    like = torch.zeros(3, max(len(episode.ids) for episode in episodes), dtype=torch.bool)
    wrote = per_token([episode.wrote for episode in episodes], like)
    assert wrote.sum(-1).tolist() == [2, 5, 9]
    text = torch.tensor([[place < len(episode.ids) for place in range(like.shape[1])] for episode in episodes])
    assert torch.equal(turns_of_mask(wrote) * text, per_token([episode.turn for episode in episodes], like.long()))


def test_an_action_cut_by_its_own_limit_is_closed_by_the_environment(tokenizer):
    (episode,), _ = recorded(tokenizer, [[Reply("more\n"), Reply("", True)]], [["123456789$", "5$"]], turn_tokens=4)
    assert episode.actions == ["1234", "5"]
    closed = shown(tokenizer, episode)[4]
    assert closed == (tokenizer.eos_token, False, 0)  # written for it, hence not trained
    assert [wrote for _, wrote, _ in shown(tokenizer, episode)] == [True] * 4 + [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("budget", "ending", "actions", "row"),
    [
        (2, "budget", ["17"], "17"),  # in the middle of the first action, which the game never sees
        (3, "budget", ["17"], "17$"),  # the action is whole and played, and no reply fits
        (5, "budget", ["17"], "17$more"),  # a reply that leaves no room is cut
        (6, "budget", ["17"], "17$more\n"),
        (7, "budget", ["17", "2"], "17$more\n2"),  # the second action is cut
        (9, "end", ["17", "25"], "17$more\n25$"),
    ],
)
def test_the_budget_is_kept_to_the_token(tokenizer, budget, ending, actions, row):
    (episode,), _ = recorded(tokenizer, [[Reply("more\n"), Reply("found\n", True, 1.0)]], [["17$", "25$"]], budget=budget)
    assert len(episode.ids) <= budget
    assert (episode.ending, episode.actions, tokenizer.decode(episode.ids).replace(tokenizer.eos_token, "$")) == (ending, actions, row)
    assert len(episode.game.heard) == len([text for text in row.split("more\n") if "$" in text])
    assert episode.reward == (1.0 if ending == "end" else 0.0)


def test_a_whole_action_at_the_budget_is_played_and_may_win(tokenizer):
    (episode,), _ = recorded(tokenizer, [[Reply("found\n", True, 1.0)]], [["17$"]], budget=3)
    assert (episode.ending, episode.reward) == ("end", 1.0)


def test_turns_run_out_without_a_last_reply(tokenizer):
    (episode,), _ = recorded(tokenizer, [[Reply("more\n")] * 3], [["1$", "2$", "3$"]], turns=3)
    assert episode.ending == "turns"
    assert episode.replies == ["more\n"] * 3
    assert tokenizer.decode(episode.ids[-2:]) == "3" + tokenizer.eos_token


def test_an_empty_action_is_a_turn_of_one_trained_token(tokenizer):
    (episode,), _ = recorded(tokenizer, [[Reply("a number\n"), Reply("", True)]], [["$", "$"]])
    assert episode.game.heard == ["", ""]
    assert [turn for _, wrote, turn in shown(tokenizer, episode) if wrote] == [0, 1]


def test_an_empty_reply_still_parts_two_turns(tokenizer):
    """There the runs of a mask would be one; the turns come from the play."""
    (episode,), _ = recorded(tokenizer, [[Reply(""), Reply("", True)]], [["1$", "2$"]])
    assert episode.turn == [0, 0, 1, 1]
    assert all(episode.wrote)


FAULTS = [
    (ValueError("broken"), "step raised ValueError: broken"),
    (SystemExit(3), "step raised SystemExit: 3"),
    ("a text", "step returned str, not a Reply with a text"),
    (Reply(None), "step returned Reply, not a Reply with a text"),
    (Reply("x", reward=float("nan")), "step returned the reward nan, not a finite number"),
    (Reply("x", reward="1"), "step returned the reward '1', not a finite number"),
]


@pytest.mark.parametrize(("reply", "fault"), FAULTS)
def test_a_game_at_fault_ends_its_own_episode_alone(tokenizer, reply, fault):
    episodes, _ = recorded(tokenizer, [[Reply("more\n"), reply], [Reply("more\n"), Reply("", True, 1.0)]], [["1$", "2$"], ["3$", "4$"]])
    assert [(episode.ending, episode.fault) for episode in episodes] == [("fault", fault), ("end", "")]
    with pytest.raises(RuntimeError, match=fault.partition(":")[0]):
        outcome(["", ""], game_reward=[0.0, 1.0], game_fault=[episode.fault for episode in episodes])
    assert outcome([""], game_reward=[1.0], game_fault=[""]) == [1.0]


def test_a_game_that_hangs_is_stopped(tokenizer):
    class Slow(Script):
        def step(self, action):
            time.sleep(30)

    began = time.monotonic()
    episode = Episode(Slow([]), [5])
    ids = [tokenizer.eos_token_id]
    play([episode], lambda asked, tokens: Drawn([ids]), Voice(tokenizer, ids, chat=False), GameSpec("slow", Keys, 2, 4, timeout=0.1), 9)
    assert time.monotonic() - began < 5
    assert (episode.ending, episode.fault) == ("fault", "step did not end within task.timeout, 0.1 s")


def test_text_of_the_environment_cannot_be_a_special_token(tokenizer):
    for chat in (False, True):
        (episode,), _ = recorded(tokenizer, [[Reply("<|eos|><|pad|>"), Reply("", True)]], [["1$", "2$"]], chat=chat)
        inside = [token for token, wrote in zip(episode.ids, episode.wrote, strict=True) if not wrote]
        assert tokenizer.pad_token_id not in inside
        assert inside.count(tokenizer.eos_token_id) == (1 if chat else 0)  # the template's own, after the user's message


def test_a_chat_model_reads_the_reply_as_its_template_writes_it(tokenizer):
    (episode,), contexts = recorded(tokenizer, [[Reply("more"), Reply("", True)]], [["17$", "25$"]], chat=True)
    talk = [{"role": "user", "content": "go:"}, {"role": "assistant", "content": "17"}, {"role": "user", "content": "more"}]
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    tokenizer.chat_template = CHATML
    whole = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert whole.endswith(tokenizer.decode(contexts[1][0][len(episode.prompt_ids) :]))


def test_a_template_that_rewrites_the_talk_is_refused(tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    tokenizer.chat_template = "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="chat template rewrites a talk"):
        Voice(tokenizer, [1], chat=True)


def test_a_game_that_its_seed_does_not_tell_is_refused():
    rows = [{"prompt": "another:", "seed": 3}]
    with pytest.raises(UserError, match=r"game 'keys' is not told by its seed: reset\(3\) says 'abcd:', and said 'another:'"):
        opened(GameSpec("keys", Keys), rows, [[1, 2]])


@given(st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_turns_read_off_a_mask_are_its_runs(rows, padding):
    """Runs of the policy's and the environment's tokens in turn, as TRL's own tool loop leaves them."""
    wrote = [[part == 0 for own, other in row for part in [0] * own + [1] * other] for row in rows]
    turn = [[number for number, (own, other) in enumerate(row) for _ in range(own + other)] for row in rows]
    like = torch.zeros(len(rows), max(map(len, wrote)) + padding, dtype=torch.bool)
    text = torch.tensor([[place < len(row) for place in range(like.shape[1])] for row in wrote])
    found = read_turns({"completion_mask": text.long(), "tool_mask": (per_token(wrote, like) | ~text).long()}, None)
    assert torch.equal(found["mask"], per_token(wrote, like))
    assert torch.equal(found["completion_mask"], text)
    assert torch.equal(found["turn"], per_token(turn, like.long()))


def test_a_rank_that_is_done_samples_along_and_keeps_what_it_has(tokenizer):
    """The generation of a sharded model needs all ranks; what the done one draws goes nowhere."""
    end, asked = tokenizer.eos_token_id, []

    def generate(contexts, tokens):
        asked.append((len(contexts), tokens))
        return Drawn([[5, end]] * len(contexts))

    episode = Episode(Script([Reply("", True, 1.0)]), [7])
    elsewhere = iter([True, True, True, False])
    play([episode], generate, Voice(tokenizer, [end], chat=False), GameSpec("script", Keys, 8, 6), 2, anywhere=lambda here: next(elsewhere))
    assert asked == [(1, 2), (1, 1), (1, 1)]
    assert (episode.ids, episode.turn, episode.reward, episode.ending) == ([5, end], [0, 0], 1.0, "end")
