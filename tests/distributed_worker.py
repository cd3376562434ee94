"""One update of the host on a fixed batch, as one or several processes; writes gradients, chosen tokens and the rows it saw.

    torchrun --standalone --nproc_per_node=2 tests/distributed_worker.py MODEL OUT CONTROL_JSON ROWS_PER_SLICE SLICES

Completions are a function of the prompt and the position of the row in the whole batch, so every way of splitting sees the same batch.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from isentrope.tape import TapeWriter
from isentrope.train.recorder import TapeRecorder
from isentrope.train.tiny import share_of_vowels
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.turns_host_test import ROWS, RULES

LENGTH = 10


class Fixed(IsentropeTrainer):
    """Completions from a hash instead of a sampler; remembers what the chain touched."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.regeneration is not None:
            self.regeneration._sampled = hashed

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if self.regeneration is not None:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        if self.player is not None:
            return hashed(prompt_ids, 1, 4), None
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        completions = []
        for offset in range(len(prompt_ids)):
            row = rank * len(prompt_ids) + offset if len(prompt_ids) * world == self.args.generation_batch_size else offset
            generator = torch.Generator().manual_seed(1000 * row + sum(prompt_ids[offset]))
            length = int(torch.randint(3, LENGTH + 1, (1,), generator=generator))
            ids = torch.randint(2, 30, (length,), generator=generator).tolist()
            completions.append([*ids[:-1], 1] if row % 3 else ids)
        return completions, None


def hashed(prompt_ids: list[list[int]], samples: int, longest: int = LENGTH) -> list[list[int]]:
    """Completions that depend on what is read and on the place in the group, so on no process."""
    found = []
    for row, ids in enumerate(prompt_ids):
        generator = torch.Generator().manual_seed(sum((at + 1) * token for at, token in enumerate(ids)) * 100 + row % samples)
        length = int(torch.randint(3, longest + 1, (1,), generator=generator))
        found.append([*torch.randint(2, 30, (length,), generator=generator).tolist()[:-1], 1])
    return found


class Note:
    """A recorder that keeps the touched tokens of every row, and passes everything on to a tape's recorder if there is one."""

    def __init__(self, tape: TapeRecorder | None = None):
        self.touched: dict[str, list] = {}
        self.tape = tape
        self.signals = () if tape is None else tape.signals
        self.steps: list[dict[str, float]] = []

    def begin(self) -> None:
        if self.tape is not None:
            self.tape.begin()

    def generation(self, trainer, prompts, rollouts) -> None:
        if self.tape is not None:
            self.tape.generation(trainer, prompts, rollouts)
        self.rows = sorted(rollouts.row_id.tolist())
        self.kept = dict(zip(rollouts.row_id.tolist(), (rollouts.completion_mask & ~rollouts.trained_mask).sum(-1).tolist(), strict=True))
        sampling = trainer.regeneration or trainer.forking
        self.figures = {} if sampling is None else dict(sampling.figures)
        if trainer.forking is not None:
            self.kept = dict(zip(rollouts.row_id.tolist(), (episode.kept for episode in trainer.player.episodes), strict=True))

    def slice(self, trainer, step, stats, result) -> None:
        for key, mask in result.observed.touched.items():
            for row, position in mask.nonzero().tolist():
                self.touched.setdefault(key, []).append([int(step.rollouts.row_id[row]), position])
        if self.tape is not None:
            self.tape.slice(trainer, step, stats, result)

    def update(self, trainer) -> None:
        if self.tape is not None:
            self.tape.update(trainer)
            self.steps.append(dict(self.tape.last))

    def measured(self) -> dict:
        return {}

    def state(self) -> dict:
        return {}

    def load_state(self, state) -> None: ...


class Keep(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append([parameter.grad.clone() for parameter in model.parameters()])


def main() -> None:
    warnings.simplefilter("ignore")
    model, out, control, rows, slices = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    options = json.loads(sys.argv[6]) if len(sys.argv) > 6 else {}
    taped, game = options.pop("tape", False), RULES if options.pop("game", False) else None
    args = GRPOConfig(
        output_dir=str(out), per_device_train_batch_size=rows, gradient_accumulation_steps=slices, num_generations=4,
        max_completion_length=LENGTH if game is None else 30, max_steps=options.pop("max_steps", 1), learning_rate=1e-3, logging_steps=1,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False,
        seed=3, disable_tqdm=True, max_grad_norm=0.0, shuffle_dataset=False, **options,
    )  # fmt: skip
    prompts = ROWS if game is not None else Dataset.from_dict({"prompt": [f"{index}+{index + 1}=" for index in range(64)]})
    tape = TapeRecorder(TapeWriter(out / "tape"), tokens_every=1) if taped else None
    keep, note = Keep(), Note(tape)
    trainer = Fixed(
        model=model, reward_funcs=share_of_vowels, args=args, train_dataset=prompts, callbacks=[keep], control=control, recorder=note, game=game
    )  # fmt: skip
    assert isinstance(trainer, GRPOTrainer)
    trainer.train()
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    torch.save(
        {
            "gradients": keep.gradients, "touched": {key: sorted(value) for key, value in note.touched.items()}, "rows": note.rows, "steps": note.steps,
            "kept": note.kept, "figures": note.figures,
        },
        out / f"world{world}-rank{rank}.pt",
    )  # fmt: skip


if __name__ == "__main__":
    main()
