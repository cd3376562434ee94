"""A TRL script with a LoRA adapter that gains a chain of interventions and a tape by one line.

    python examples/attach_peft.py                    # a tiny random model and a toy reward, seconds
    isentrope report runs/attach-peft                 # the page of what was measured

Put your own model, data and reward in; the line that matters is `isentrope.attach`.
"""

import argparse
import tempfile
from pathlib import Path

from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import isentrope
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="a folder or a hub name (default: a tiny random model)")
parser.add_argument("--out", type=Path, default=Path("runs/attach-peft"))
parser.add_argument("--steps", type=int, default=10)
options = parser.parse_args()

model = options.model or save_tiny_model(Path(tempfile.mkdtemp()))
trainer = GRPOTrainer(
    model=model,
    reward_funcs=share_of_vowels,
    args=GRPOConfig(
        output_dir=str(options.out / "trl"), max_steps=options.steps, per_device_train_batch_size=8, num_generations=4, steps_per_generation=2,
        max_completion_length=16, learning_rate=1e-3, logging_steps=5, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
    ),
    train_dataset=toy_prompts(),
    processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)  # fmt: skip
isentrope.attach(trainer, ["clip-cov", {"name": "siren", "beta": 0.01}], tape=options.out / "tape")
trainer.train()
print(f"Measured: isentrope report {options.out / 'tape'}")
