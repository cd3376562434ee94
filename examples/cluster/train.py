"""GRPO with a chain over several processes. The launcher decides how: torchrun, or accelerate with FSDP or DeepSpeed (the YAML files beside this one).

    torchrun --nproc_per_node 2 examples/cluster/train.py --model MODEL --output_dir out --max_steps 2 --use_cpu        # as CI runs it
    accelerate launch --config_file examples/cluster/fsdp2.yaml examples/cluster/train.py --model MODEL --output_dir out --bf16
    accelerate launch --config_file examples/cluster/fsdp2.yaml examples/cluster/train.py --model MODEL --output_dir out --bf16 \
        --use_vllm --vllm_mode colocate --vllm_importance_sampling_correction False

Every other option is one of TRL's GRPOConfig.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from transformers import HfArgumentParser
from trl import GRPOConfig

from isentrope.train.trl import IsentropeTrainer


@dataclass
class Script:
    model: str
    control: list[str] = field(default_factory=lambda: ["clip-cov"])  # names of interventions


def sums(rows: int = 512) -> Dataset:
    """Put your own data here: a column `prompt`, and what the reward reads."""
    return Dataset.from_dict({"prompt": [f"{i % 7}+{i % 5}=" for i in range(rows)], "answer": [str(i % 7 + i % 5) for i in range(rows)]})


def right(completions, answer, **columns) -> list[float]:
    return [float(text.strip().startswith(result)) for text, result in zip(completions, answer, strict=True)]


if __name__ == "__main__":
    script, args = HfArgumentParser((Script, GRPOConfig)).parse_args_into_dataclasses()
    IsentropeTrainer(model=script.model, reward_funcs=right, args=args, train_dataset=sums(), control=script.control).train()
