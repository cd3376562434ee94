"""Build the model for games of several turns: the embedded model, taught the form of the game `keys` by a poor player. Seeded.

    python scripts/build_game_model.py [--out DIR] [--steps N] [--seed N]

The player forgets where it has looked, tries codes at random, and opens the door with the right one in half of the turns in which it could; it plays games
of the training side of the task alone. So the model begins with an idea of the rules and most of the skill still to be learned. Loss on its tokens only.
"""

import argparse
import math
import shutil
import time
from pathlib import Path
from random import Random

import torch

from isentrope.train import models
from isentrope.train.games import Keys
from isentrope.train.tasks import build, side_of

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "src/isentrope/assets/game-model"
OPENS = 0.5
"""Share of its turns, once it knows the code, in which the player opens the door with it."""
TRIES = 0.3
"""Share of its other turns in which it tries a code at random."""


def transcript(rng: Random, games: int) -> tuple[list[tuple[str, bool]], bool]:
    """One episode of the training side as pieces of text, each with whether the player wrote it, and whether it was won."""
    game, code = Keys(), ""
    while side_of(f"{(opening := game.reset(seed := rng.randrange(games)))} {seed}") != "train":
        pass
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


def batch(tokenizer, size: int, games: int, rng: Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Token ids [size, T] padded on the right, labels with -100 where the player did not write, and the share of games won."""
    rows, won = [], 0
    for _ in range(size):
        pieces, found = transcript(rng, games)
        won += found
        row: list[tuple[int, int]] = []
        for text, player in pieces:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if player else [])
            row += [(token, token if player else -100) for token in ids]
        rows.append(row)
    width = max(map(len, rows))
    padded = torch.tensor([row + [(tokenizer.pad_token_id, -100)] * (width - len(row)) for row in rows])
    return padded[..., 0], padded[..., 1], won / size


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=OUT)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--peak", type=float, default=3e-3)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    rng, loaded = Random(given.seed), models.load("embedded")
    model, tokenizer, games = loaded.model.train(), loaded.tokenizer, int(build("keys").source["size"])
    torch.manual_seed(given.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=given.peak, betas=(0.9, 0.98), weight_decay=0.01)
    begun = time.perf_counter()
    for step in range(given.steps):
        for group in optimiser.param_groups:
            group["lr"] = given.peak * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / given.steps)))
        tokens, labels, won = batch(tokenizer, given.batch, games, rng)
        loss = model(tokens, attention_mask=tokens != tokenizer.pad_token_id, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == given.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  won in text {won:.2f}  {time.perf_counter() - begun:6.1f} s", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(given.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # unchanged
        shutil.copy(models.EMBEDDED / name, given.out / name)
    print(f"saved to {given.out}: {sum(f.stat().st_size for f in given.out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
