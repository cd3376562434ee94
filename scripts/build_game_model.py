"""Build a model for a game of several turns: the embedded model, taught the form of the game by a poor player. Seeded.

    python scripts/build_game_model.py [keys | reckon] [--out DIR] [--steps N] [--seed N]

In `keys` the player forgets where it has looked, tries codes at random, and opens the door with the right one in half of the turns in which it could. In
`reckon` it calls the calculator rightly in most of its turns, and else with any numbers, or answers before it knows. It plays games of the training side of
the task alone. So the model begins with an idea of the rules and most of the skill still to be learned. Loss on its tokens only.
"""

import argparse
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from isentrope.train import models
from isentrope.train.games import Game, Keys, Reckon
from isentrope.train.tasks import build, side_of

OPENS = 0.5
"""Share of its turns, once it knows the code, in which the player opens the door with it."""
TRIES = 0.3
"""Share of its other turns in which it tries a code at random."""
GUESSES = 0.15
"""Share of its turns in which the player of `reckon` answers before it knows: with a number that it has read, or, of two digits, in the head."""
KNOWS = 0.6
"""Share of the guesses at single digits that are right."""
STRAYS = 0.25
"""Share of its turns in which it calls the calculator with any numbers that it has read."""


Transcript = tuple[list[tuple[str, bool]], bool]
"""One episode of the training side as pieces of text, each with whether the player wrote it, and whether it was won."""
Player = Callable[[Random, int], Transcript]
"""(randomness, number of seeds of the task) -> one episode."""


def opened(game: Game, rng: Random, games: int) -> str:
    """Resets the game to a seed of the training side of its task; what it says first."""
    while side_of(f"{(opening := game.reset(seed := rng.randrange(games)))} {seed}") != "train":
        pass
    return opening


def keys(rng: Random, games: int) -> Transcript:
    """The player of `keys`: forgets where it has looked, and tries codes."""
    game, code = Keys(), ""
    opening = opened(game, rng, games)
    pieces = [(opening, False)]
    while True:
        if code and rng.random() < OPENS:
            action = code
        else:
            action = f"{rng.randrange(100):02d}" if rng.random() < TRIES else rng.choice(opening[:-1])
        reply = game.step(action)
        pieces.append((action, True))
        if reply.done:
            return pieces, reply.reward > 0
        if reply.text.strip().isdigit():
            code = reply.text.strip()
        pieces.append((reply.text, False))


def reckon(rng: Random, games: int) -> Transcript:
    """The player of `reckon`: guesses before it knows, and calls with numbers that are not asked for."""
    game = Reckon()
    opening = opened(game, rng, games)
    numbers, signs, pieces = re.findall("[0-9]+", opening), re.findall("[+*]", opening), [(opening, False)]
    while True:
        chance = rng.random()
        if chance < GUESSES or not signs:
            right = len(opening) == len("1+1:") and rng.random() < KNOWS
            action = f"={game.value if right else rng.choice(numbers) if signs else numbers[0]}"
        elif chance < GUESSES + STRAYS:
            action = f"{rng.choice(numbers)}{rng.choice('+*')}{rng.choice(numbers)}"
        else:
            action = f"{numbers[0]}{signs[0]}{numbers[1]}"
        reply = game.step(action)
        pieces.append((action, True))
        if reply.done:
            return pieces, reply.reward > 0
        pieces.append((reply.text, False))
        if signs and action == f"{numbers[0]}{signs[0]}{numbers[1]}":
            numbers, signs = [reply.text.strip(), *numbers[2:]], signs[1:]


GAMES: dict[str, tuple[Player, Path, int]] = {"keys": (keys, models.EMBEDDED_GAME, 300), "reckon": (reckon, models.EMBEDDED_TOOL, 150)}
"""Name -> who plays, where the model goes, and how many steps it is taught."""


def batch(player: Player, tokenizer, size: int, games: int, rng: Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Token ids [size, T] padded on the right, labels with -100 where the player did not write, and the share of games won."""
    rows, won = [], 0
    for _ in range(size):
        pieces, found = player(rng, games)
        won += found
        row: list[tuple[int, int]] = []
        for text, own in pieces:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if own else [])
            row += [(token, token if own else -100) for token in ids]
        rows.append(row)
    width = max(map(len, rows))
    padded = torch.tensor([row + [(tokenizer.pad_token_id, -100)] * (width - len(row)) for row in rows])
    return padded[..., 0], padded[..., 1], won / size


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("game", choices=sorted(GAMES), nargs="?", default="keys")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--steps", type=int)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--peak", type=float, default=3e-3)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    player, place, steps = GAMES[given.game]
    out, steps = given.out or place, given.steps or steps
    rng, loaded = Random(given.seed), models.load("embedded")
    model, tokenizer, games = loaded.model.train(), loaded.tokenizer, int(build(given.game).source["size"])
    torch.manual_seed(given.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=given.peak, betas=(0.9, 0.98), weight_decay=0.01)
    begun = time.perf_counter()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = given.peak * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        tokens, labels, won = batch(player, tokenizer, given.batch, games, rng)
        loss = model(tokens, attention_mask=tokens != tokenizer.pad_token_id, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  won in text {won:.2f}  {time.perf_counter() - begun:6.1f} s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # unchanged
        shutil.copy(models.EMBEDDED / name, out / name)
    print(f"saved to {out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
