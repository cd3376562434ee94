"""Supervised fine-tuning whose entropies are measured as it goes: of tokens, attention heads and the residual stream.

python examples/watch_sft.py                      # a tiny random model, seconds
"""

import argparse
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from isentrope import EntropyCallback
from isentrope.train.tiny import save_tiny_model

HELD_OUT = "the quick brown fox 12+30=42 jumps over 7 lazy dogs " * 4

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="a folder or a hub name (default: a tiny random model)")
parser.add_argument("--out", type=Path, default=Path("runs/watch-sft"))
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

model = options.model or save_tiny_model(Path(tempfile.mkdtemp()))
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=str(options.out), max_steps=options.steps, per_device_train_batch_size=8, max_length=64, learning_rate=1e-2, logging_steps=10,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False,
    ),
    train_dataset=Dataset.from_dict({"text": [f"{number}+{number}={2 * number} and so on" for number in range(64)]}),
    processing_class=AutoTokenizer.from_pretrained(model),
)  # fmt: skip
trainer.add_callback(EntropyCallback(HELD_OUT, every=10, log=trainer.log))
trainer.train()

for row in trainer.state.log_history:
    if "isentrope/entropy" in row:
        print(
            f"step {row['step']:3d}: token entropy {row['isentrope/entropy']:.3f} nats, heads {row['isentrope/heads/entropy']:.3f} nats, "
            f"effective rank {row['isentrope/layers/effective_rank']:.1f}; cost {row['isentrope/cost']:.0%} of the time"
        )
