"""Several turns in the TRL host: episodes of a text game by TRL's own generation, and what every token of them is.

TRL 1.16 offers two ways. `environment_factory` (and `tools`) makes the methods of an object callable as tools: its prompts are messages, and the chat
template must render tool calls and parse them back, which excludes a base model without a template and every game whose moves are plain text. `rollout_func`
leaves the episode to us and asks for three lists, plus `env_mask`, 1 where the policy wrote. We take the second: a text goes in, a text comes out, with any
model. The generation in it is the trainer's (`_generate_single_turn`, with the weights of now; tried with transformers' generate, vLLM's engine takes the
same way and was not tried for want of a GPU); rewards, masks and the loss stay TRL's. Somebody's own `environment_factory`, `tools` or `rollout_func` is
handed to TRL as it is, and its turns are read off TRL's mask (`turns_of_mask`; `loops_test.py`).

    prompt            a b c d :                                   read by the policy before the first turn
    completion        c EOS no n e \n d EOS 7 1 \n 7 1 EOS ...    one row of tokens, never decoded and encoded again
    wrote (env_mask)  x x   .  . . .  x x   . . .  x x x          what the policy sampled; only this is trained
    turn              0 0   0  0 0 0  1 1   1 1 1  2 2 2          an environment token has the turn of the action that it answers

An action ends with the end-of-sequence token. One that is cut by `turn_tokens` gets that token written for it, as the environment's. An episode ends when
its game says so ("end"), after `turns` actions ("turns"), when no token is left for another action ("budget", which TRL calls truncated), or when the game
raises ("fault": no reward, advantage 0). The reply to the last action is not part of the row, because nothing conditions on it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from isentrope.control.stages import Chain, Extra, Filter, Sample
from isentrope.control.step import ORIGINS
from isentrope.errors import UserError
from isentrope.measure.tokens import Signal
from isentrope.train.games import Game, GameSpec, Reply
from isentrope.train.rewards import OutOfTime, time_limit
from isentrope.train.rollout import generating, padded, policy_signals

if TYPE_CHECKING:
    from isentrope.train.forks import Forking
    from isentrope.train.trl import IsentropeTrainer

Ending = Literal["", "end", "turns", "budget", "fault"]
_PLACE = "\ufdd0reply\ufdd0"  # noncharacters, which no template contains


@dataclass(frozen=True)
class Drawn:
    """One action of every asked episode: its token ids, and whatever else is known of each of them, by name."""

    ids: list[list[int]]
    columns: Mapping[str, list[list[float]]] = field(default_factory=dict)


Generate = Callable[[list[list[int]], int], Drawn]
"""(what the policy reads, tokens at most) -> what it writes, up to and with its end-of-sequence token."""


@dataclass
class Episode:
    """One game in play: the row of tokens as it grows, and what was said."""

    game: Game
    prompt_ids: list[int]
    seed: int = 0
    ids: list[int] = field(default_factory=list)
    wrote: list[bool] = field(default_factory=list)  # by the policy
    turn: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)  # 0 for the environment's tokens
    actions: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    reward: float = 0.0
    ending: Ending = ""
    fault: str = ""
    kept: int = 0  # first tokens that it took over from another episode
    untrained: int = 0  # of these, how many are out of its loss
    run: int = 0  # at how many replies in a row, up to the last but one, this line of play was forked

    @property
    def trained(self) -> list[bool]:
        """What the policy wrote, but for what is trained in another row."""
        return [wrote and place >= self.untrained for place, wrote in enumerate(self.wrote)]

    def said(self, turn: int, name: str) -> list[float]:
        """A column at the policy's tokens of one turn."""
        found = zip(self.columns[name], self.wrote, self.turn, strict=True)
        return [value for value, wrote, of in found if wrote and of == turn]

    def append(self, ids: Sequence[int], turn: int, columns: Mapping[str, Sequence[float]] | None) -> None:
        """Tokens of this turn: the policy's with their `columns`, the environment's with None."""
        self.ids += ids
        self.wrote += [columns is not None] * len(ids)
        self.turn += [turn] * len(ids)
        for name in self.columns.keys() | (columns or {}).keys():
            values = self.columns.setdefault(name, [0.0] * (len(self.ids) - len(ids)))
            values += [0.0] * len(ids) if columns is None else columns[name]


class Voice:
    """How the environment's text becomes tokens: as it stands, or as the user's message in the model's chat template. Text that looks like a special
    token is plain text in either."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], *, chat: bool):
        self.tokenizer, self.ends = tokenizer, frozenset(ends)
        self.before, self.after = self._frame() if chat else ([], [])

    def action(self, ids: Sequence[int]) -> str:
        """The text of an action."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def ended(self, ids: Sequence[int]) -> bool:
        return len(ids) > 0 and ids[-1] in self.ends

    def reply(self, text: str, action: Sequence[int]) -> list[int]:
        """The tokens between an action and the next: the end of the action where it has none, and the reply."""
        end = [] if self.ended(action) else [self.tokenizer.eos_token_id]
        return [*end, *self.before, *self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], *self.after]

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the chat template writes around a message of the user that follows one of the assistant, whose end token is not part of it."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        said = self.tokenizer.apply_chat_template(talk, tokenize=False)
        full = self.tokenizer.apply_chat_template([*talk, {"role": "user", "content": _PLACE}], add_generation_prompt=True, tokenize=False)
        if not full.startswith(said) or full.count(_PLACE) != 1:
            raise UserError("the model's chat template rewrites a talk when a message is added, so an episode cannot go on from its tokens. Take another.")
        end = said.rfind(self.tokenizer.eos_token)
        before, after = full[len(said) if end < 0 else end + len(self.tokenizer.eos_token) :].split(_PLACE)
        return tuple(self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))


def play(
    episodes: Sequence[Episode],
    generate: Generate,
    voice: Voice,
    rules: GameSpec,
    budget: int,
    *,
    anywhere: Callable[[bool], bool] = lambda here: here,
    grown: Callable[[], Sequence[Episode]] = lambda: (),
) -> None:
    """Plays all episodes to their ends, turn by turn and together; `budget`: tokens of a row, the environment's included.

    anywhere: whether any rank still plays, from whether this one does. One that is done samples along into the void, because the generation of a sharded
    model needs all ranks.
    grown: after every turn, more episodes that are to be played.
    """
    episodes = list(episodes)
    while anywhere(any(not episode.ending for episode in episodes)):
        active = [episode for episode in episodes if not episode.ending]
        asked = active or episodes[:1]
        room = max(budget - len(episode.ids) for episode in asked)
        drawn = generate([episode.prompt_ids + episode.ids for episode in asked], max(1, min(rules.turn_tokens, room)))
        for row, episode in enumerate(active):
            left = max(0, min(budget - len(episode.ids), rules.turn_tokens - len(_begun(episode))))
            columns = {name: values[row][:left] for name, values in drawn.columns.items()}
            _take_turn(episode, drawn.ids[row][:left], columns, voice, rules, budget)
        episodes += grown()


def _begun(episode: Episode) -> list[int]:
    """What stands already of the action that comes: an episode may go on from the middle of one."""
    return [token for token, turn in zip(episode.ids, episode.turn, strict=True) if turn == len(episode.actions)]


def _take_turn(episode: Episode, drawn: list[int], columns: Mapping[str, list[float]], voice: Voice, rules: GameSpec, budget: int) -> None:
    """The action goes into the row and to the game; its reply follows where another action can."""
    turn, ids = len(episode.actions), [*_begun(episode), *drawn]
    episode.append(drawn, turn, columns)
    episode.actions.append(voice.action(ids))
    episode.replies.append("")
    if len(episode.ids) >= budget and not voice.ended(ids):
        episode.ending = "budget"  # in the middle of an action, which the game never sees
        return
    reply = _asked(episode.game, episode.actions[-1], rules.timeout)
    if isinstance(reply, str):
        episode.ending, episode.fault = "fault", reply
        return
    episode.replies[-1] = reply.text
    episode.reward += reply.reward
    if reply.done:
        episode.ending = "end"
    elif turn + 1 == rules.turns:
        episode.ending = "turns"
    else:
        episode.append(voice.reply(reply.text, ids)[: budget - len(episode.ids)], turn, None)
        episode.ending = "budget" if len(episode.ids) >= budget else ""


def _asked(game: Game, action: str, seconds: float | None) -> Reply | str:
    """The game's reply, or why there is none."""
    try:
        with time_limit(seconds):
            reply = game.step(action)
    except OutOfTime:
        return f"step did not end within task.timeout, {seconds:g} s"
    except (Exception, SystemExit) as error:  # whatever a game raises is data here
        return f"step raised {type(error).__name__}: {error}"
    if not isinstance(reply, Reply) or not isinstance(reply.text, str):
        return f"step returned {type(reply).__name__}, not a Reply with a text"
    if isinstance(reply.reward, bool) or not isinstance(reply.reward, int | float) or not math.isfinite(reply.reward):
        return f"step returned the reward {reply.reward!r}, not a finite number"
    return reply


def forked(episode: Episode, rules: GameSpec, at: int | None = None) -> Episode:
    """Another episode that goes on from the first `at` tokens of this one (None: from where it stands). Its game is played again from the seed.

    `at` lies at the policy's own tokens. Raises ValueError where nothing can go on from there, and UserError where the game does not answer as it did.
    """
    at = len(episode.ids) if at is None else at
    if (at < len(episode.ids) and not episode.wrote[at]) or (at >= len(episode.ids) and episode.ending):
        raise ValueError(f"forked: an episode goes on at a token that the policy wrote, or where it stands. Got {at} of {len(episode.ids)}.")
    turns = len(episode.actions) if at >= len(episode.ids) else episode.turn[at]
    game, gained, fault = rules.game(), 0.0, ""
    game.reset(episode.seed)
    for action, said in zip(episode.actions[:turns], episode.replies[:turns], strict=True):
        reply = _asked(game, action, rules.timeout)
        if isinstance(reply, str):
            fault = reply
            break
        if reply.text != said:
            raise UserError(
                f"game {rules.name!r} is not told by its seed: to {action[:40]!r} it said {said[:80]!r} and then {reply.text[:80]!r}, so nothing can go on "
                "from there. Draw everything hidden from random.Random(seed), and let equal actions have equal replies."
            )
        gained += reply.reward
    return Episode(
        game, episode.prompt_ids, episode.seed, episode.ids[:at], episode.wrote[:at], episode.turn[:at],
        {name: values[:at] for name, values in episode.columns.items()}, episode.actions[:turns], episode.replies[:turns], gained,
        "fault" if fault else "", fault, kept=at, run=episode.run,
    )  # fmt: skip


def outcome(completions: Sequence[Any], game_reward: Sequence[float], game_fault: Sequence[str], **columns: Any) -> list[float]:
    """The reward function of a game: what its episodes gained. Raises RuntimeError with the fault of an episode that has one."""
    if faults := [fault for fault in game_fault if fault]:
        raise RuntimeError(faults[0])
    return list(game_reward)


def opened(rules: GameSpec, rows: Sequence[Mapping[str, Any]], prompt_ids: Sequence[list[int]]) -> list[Episode]:
    """A fresh game for every row, reset to its seed.

    Raises UserError where a game does not begin as it did when the prompt was made.
    """
    episodes = []
    for row, ids in zip(rows, prompt_ids, strict=True):
        game = rules.game()
        said = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        if (opening := game.reset(int(row["seed"]))) != said:
            raise UserError(
                f"game {rules.name!r} is not told by its seed: reset({row['seed']}) says {opening[:80]!r}, and said {str(said)[:80]!r} when the task was "
                "built. Draw everything hidden from random.Random(seed)."
            )
        episodes.append(Episode(game, list(ids), int(row["seed"])))
    return episodes


# --- what every token is


def turns_of_mask(wrote: Bool[Tensor, "response token"]) -> Int[Tensor, "response token"]:
    """The turn of every token, from where the policy wrote: a turn is an unbroken run of its tokens with what follows before the next.

    >>> turns_of_mask(torch.tensor([[True, True, False, True, False, False]]))
    tensor([[0, 0, 0, 1, 1, 1]])
    """
    before = torch.nn.functional.pad(wrote, (1, 0))[:, :-1]
    return ((wrote & ~before).long().cumsum(-1) - 1).clamp(min=0)


def per_token(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Lists as one tensor of `like`'s shape, padded on the right with 0 (False)."""
    out = torch.zeros_like(like)
    for row, values in enumerate(rows):
        out[row, : len(values)] = torch.tensor(values, dtype=like.dtype, device=like.device)
    return out


def read_turns(output: Mapping[str, Tensor], player: "Player | None") -> dict[str, Any]:
    """What `Rollouts` says of the turns of TRL's batch, which our player or somebody's own loop made; a batch without an environment has no turns."""
    text = output["completion_mask"].bool()
    if player is not None:
        kept = torch.tensor([episode.kept > 0 for episode in player.episodes], device=text.device)
        return told(text, player.episodes) | {"origin": torch.where(kept, ORIGINS.index("branch"), ORIGINS.index("policy"))}
    if "tool_mask" not in output:
        return {"mask": text}
    wrote = text & output["tool_mask"].bool()
    return {"mask": wrote, "completion_mask": text, "turn": turns_of_mask(wrote) * text}


def refuse_loops(chain: Chain, loops: Mapping[str, Any]) -> None:
    """Refuse links that sample by themselves beside a loop of turns that is not ours.

    Raises UserError naming the link, the option and the way out.
    """
    given = [name for name, value in loops.items() if value]
    links = [chain.keys[index] for stage in (Sample, Extra, Filter) for index, _ in chain.having(stage)]
    if given and links:
        raise UserError(
            f"{', '.join(links)} samples by itself, which {given[0]} gives no hook for: its turns are TRL's or your own. Give the environment as a game "
            "(isentrope.train.games), or drop the link."
        )


class Player:
    """Plays a game with a trainer: TRL's `rollout_func`. The episodes of the last generation stay in `episodes`, row by row."""

    def __init__(self, rules: GameSpec):
        self.rules = rules
        self.episodes: list[Episode] = []

    def __call__(self, prompts: Sequence[Any], trainer: "IsentropeTrainer") -> dict[str, Any]:
        """What TRL wants of a rollout, for the rows that the trainer is generating (`trainer.rows`: prompts alone do not tell seeds)."""
        forking = trainer.forking if trainer.model.training else None
        if forking is None:
            self.episodes = self.played(trainer, trainer.rows)
        else:
            self.episodes = self.grown(trainer, trainer.rows, forking, trainer.num_generations, trainer.first_row(len(trainer.rows)))
            forking.count(self.episodes)
        told = [episode.columns.get("log_prob") for episode in self.episodes]
        return {
            "prompt_ids": [episode.prompt_ids for episode in self.episodes],
            "completion_ids": [episode.ids for episode in self.episodes],
            "logprobs": None if any(values is None for values in told) else told,
            "env_mask": [[int(trained) for trained in episode.trained] for episode in self.episodes],
            **outcomes(self.episodes),
        }

    def played(self, trainer: "IsentropeTrainer", rows: Sequence[Mapping[str, Any]], *, plain: bool = False) -> list[Episode]:
        """One episode of every row by the current policy; `plain`: without the temperatures of the chain."""
        prompt_ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
        episodes = opened(self.rules, rows, prompt_ids)
        self._play(trainer, rows, episodes, _generation(trainer, plain))
        return episodes

    def grown(
        self, trainer: "IsentropeTrainer", rows: Sequence[Mapping[str, Any]], forking: "Forking", samples: int, first_row: int, *, plain: bool = False
    ) -> list[Episode]:
        """Groups of `samples` episodes, of which some go on from others; row ids begin at `first_row`."""
        prompt_ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
        generate = _generation(trainer, plain, forking.signal)
        starts = range(0, len(rows), samples)
        heads, ids = [rows[start] for start in starts], [prompt_ids[start] for start in starts]
        pilots: Sequence[Episode | None] = [None] * len(heads)
        if forking.link.pilot():
            pilots = opened(self.rules, heads, ids)
            self._play(trainer, rows, pilots, generate)
        groups = forking.groups(pilots, samples, first_row, lambda group, count: opened(self.rules, [heads[group]] * count, [ids[group]] * count))
        self._play(trainer, rows, [episode for group in groups for episode in group.episodes], generate, partial(forking.grow, groups, self.rules))
        return [episode for group in groups for episode in group.episodes]

    def _play(
        self, trainer: "IsentropeTrainer", rows: Sequence[Mapping[str, Any]], episodes: Sequence[Episode], generate: Generate,
        grown: Callable[[], Sequence[Episode]] = lambda: (),
    ) -> None:  # fmt: skip
        voice = Voice(trainer._tokenizer, trainer.eos_token_ids, chat=not isinstance(rows[0]["prompt"], str))
        play(episodes, generate, voice, self.rules, trainer.max_completion_length, anywhere=_anywhere(trainer), grown=grown)

    def extra(
        self, trainer: "IsentropeTrainer", rows: Sequence[Mapping[str, Any]], samples: int | None = None, first_row: int = 0
    ) -> tuple[list[list[int]], list[dict[str, Any]], Callable]:
        """Episodes beside the batch: their token ids, the rows with what they gained, and what tells `Rollouts` of them from the mask of their text.

        samples: rows are whole groups of so many, made up as the batch's own are.
        """
        if trainer.forking is None or samples is None:
            episodes = self.played(trainer, rows, plain=True)
        else:
            episodes = self.grown(trainer, rows, trainer.forking, samples, first_row, plain=True)
        gained = outcomes(episodes)
        paid = [{**row, **{name: values[at] for name, values in gained.items()}} for at, row in enumerate(rows)]
        return [episode.ids for episode in episodes], paid, lambda text: told(text, episodes)


def told(text: Bool[Tensor, "response token"], episodes: Sequence[Episode]) -> dict[str, Any]:
    """Fields of `Rollouts` that these episodes tell: `mask` of the trained tokens, `completion_mask`, `turn`, `truncated`."""
    wrote = per_token([episode.trained for episode in episodes], text)
    cut = torch.tensor([episode.ending == "budget" for episode in episodes], device=text.device)
    return {"mask": wrote & text, "completion_mask": text, "turn": per_token([e.turn for e in episodes], text.long()) * text, "truncated": cut}


def _generation(trainer: "IsentropeTrainer", plain: bool, signal: Signal | None = None) -> Generate:
    """TRL's generation; `plain`: past the chain; with a column of `signal`, by a pass that scores what was drawn."""
    single = partial(GRPOTrainer._generate_single_turn, trainer) if plain else trainer._generate_single_turn

    def generate(contexts: list[list[int]], tokens: int) -> Drawn:
        with _at_most(trainer, tokens):
            ids, log_probs = single(contexts, None, {}, 1)  # one each, for every row has a history of its own
        columns = {} if log_probs is None else {"log_prob": log_probs}
        hot = None if plain else trainer.taken_temperatures()
        if hot is not None:
            columns["temperature"] = [values[: len(some)] for values, some in zip(hot.tolist(), ids, strict=True)]
        if signal is not None:
            columns[signal.key] = scored(trainer, contexts, ids, signal)
        return Drawn(ids, columns)

    return generate


def scored(trainer: "IsentropeTrainer", contexts: Sequence[list[int]], drawn: Sequence[list[int]], signal: Signal) -> list[list[float]]:
    """The signal at every drawn token, by one pass of the policy without gradient."""
    prompt_ids, prompt_mask = padded(trainer, contexts, left=True)
    ids, mask = padded(trainer, drawn, left=False)
    text = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask.long(), "completion_ids": ids, "completion_mask": mask.long()}
    values = policy_signals(trainer, text, mask, [signal])[signal.key].tolist()
    return [row[: len(some)] for row, some in zip(values, drawn, strict=True)]


def outcomes(episodes: Sequence[Episode]) -> dict[str, list]:
    """The columns that `outcome` reads."""
    return {"game_reward": [episode.reward for episode in episodes], "game_fault": [episode.fault for episode in episodes]}


@contextmanager
def _at_most(trainer: "IsentropeTrainer", tokens: int) -> Iterator[None]:
    """TRL's generation with fewer tokens, restored on exit."""
    if not trainer.use_vllm:
        with generating(trainer, max_new_tokens=tokens):
            yield
        return
    engine, before = trainer.vllm_generation, trainer.vllm_generation.max_completion_length
    engine.max_completion_length = tokens
    try:
        yield
    finally:
        engine.max_completion_length = before


def _anywhere(trainer: "IsentropeTrainer") -> Callable[[bool], bool]:
    if trainer.accelerator.num_processes == 1:
        return lambda here: here
    return lambda here: bool(trainer.accelerator.gather(torch.tensor([int(here)], device=trainer.accelerator.device)).any())
