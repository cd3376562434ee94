"""What a run would do and cost, without doing it: `isentrope train --dry-run`."""

import time
from pathlib import Path
from typing import Any

import torch
import yaml

from isentrope.config import Config
from isentrope.train import models, tasks
from isentrope.train.carried import built
from isentrope.train.run import check_prompts, longest_prompt, trainer_arguments

PROBE_ROWS, PROBE_TOKENS = 128, 6  # at most so many rows: a larger batch costs in proportion


def describe(config: Config) -> str:
    """The resolved configuration, expected memory and time, and the first prompt with its tokens.

    Raises UserError as the run itself would: unknown interventions, a prompt longer than the context, an empty dataset.
    """
    chain = built(config.control)
    loaded = models.load(config.model.name, dtype=config.model.dtype)
    task = tasks.build(config.task, chat=loaded.chat)
    args = trainer_arguments(config, Path(config.out))
    check_prompts(task, args)
    prompt = longest_prompt(task, loaded)
    models.check_context(prompt, args.max_completion_length, loaded.context)
    text = tasks.prompt_texts(task, loaded.tokenizer)[0]
    ids = loaded.tokenizer(text)["input_ids"]
    lines = [
        "# resolved configuration", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip(), "",
        "# expected cost", *(f"{name:22} {value}" for name, value in _cost(loaded, args, prompt, config).items()), "",
        f"chain                  {', '.join(chain.keys) or 'none: the plain objective'}",
        f"signals                {', '.join(sorted({need.key for need in chain.needs})) or 'none beyond log-probs and entropy'}", "",
        "# first prompt", repr(text), " ".join(f"{loaded.tokenizer.decode([token])!r}:{token}" for token in ids),
    ]  # fmt: skip
    return "\n".join(lines)


def seconds(config: Config) -> float:
    """At most so many seconds of one run, by a probe on this machine with the threads that torch has now: every response at full length."""
    loaded = models.load(config.model.name, dtype=config.model.dtype)
    task = tasks.build(config.task, chat=loaded.chat)
    args = trainer_arguments(config, Path(config.out))
    prompt = longest_prompt(task, loaded)
    per_step, evaluations, evaluation = _times(loaded, args, prompt, config)
    return args.max_steps * per_step + evaluations * evaluation


def _times(loaded: models.LoadedModel, args: Any, prompt: int, config: Config) -> tuple[float, int, float]:
    """(seconds of an update, number of evaluations, seconds of one), at full length."""
    rows, length = args.per_device_train_batch_size, prompt + args.max_completion_length
    samples = args.per_device_train_batch_size * args.steps_per_generation
    generate, train = _probe(loaded, prompt, min(PROBE_ROWS, samples))
    updates = max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)
    per_step = samples * args.max_completion_length * generate / updates + rows * args.gradient_accumulation_steps * length * train
    every = config.evaluate.every
    evaluations = 0 if every is None else args.max_steps // every + 1 + bool(args.max_steps % every)
    return per_step, evaluations, config.evaluate.prompts * config.evaluate.samples * args.max_completion_length * generate


def _cost(loaded: models.LoadedModel, args: Any, prompt: int, config: Config) -> dict[str, str]:
    """Memory counted from shapes; time from one small generation and one forward with backward on this machine, scaled up."""
    model = loaded.model
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = weights if config.model.peft is None else weights // 50
    shape = model.config.get_text_config()
    rows, length = args.per_device_train_batch_size, prompt + args.max_completion_length
    activations = rows * length * shape.hidden_size * shape.num_hidden_layers * 34  # bytes of a layer's activations, after Korthikanti et al.
    cache = args.per_device_train_batch_size * args.steps_per_generation * length * shape.hidden_size * shape.num_hidden_layers * 8
    copies = weights + 3 * trained + (weights if args.beta else 0)
    samples = args.per_device_train_batch_size * args.steps_per_generation
    per_step, evaluations, evaluation = _times(loaded, args, prompt, config)
    total = args.max_steps * per_step + evaluations * evaluation
    return {
        "parameters": f"{model.num_parameters():,} ({str(model.dtype).removeprefix('torch.')})",
        "memory": f"about {(copies + activations + cache) / 2**20:,.0f} MiB: weights, gradients and optimiser {copies / 2**20:,.0f}, activations "
        f"{activations / 2**20:,.0f}, generation cache {cache / 2**20:,.0f}",
        "time per update": f"about {per_step:.2f} s at full length "
        f"(a probe of {min(PROBE_ROWS, samples)} x {PROBE_TOKENS} tokens, {torch.get_num_threads()} threads)",
        "time in all": f"at most about {total / 60:.1f} min: {args.max_steps} updates and {evaluations} evaluations",
        "longest prompt": f"{prompt} tokens of a context of {loaded.context}",
    }


def _probe(loaded: models.LoadedModel, prompt: int, rows: int) -> tuple[float, float]:
    """(seconds per generated token, seconds per trained token) at this batch size, each after a warm-up of one row."""
    ids = torch.ones((rows, max(1, prompt)), dtype=torch.long)
    loaded.model.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=2, do_sample=False)
    with torch.no_grad():
        began = time.perf_counter()
        loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=PROBE_TOKENS, min_new_tokens=PROBE_TOKENS, do_sample=False,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )  # fmt: skip
        generate = (time.perf_counter() - began) / (rows * PROBE_TOKENS)
    ids = torch.ones((rows, prompt + PROBE_TOKENS), dtype=torch.long)
    began = time.perf_counter()
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    loaded.model.zero_grad(set_to_none=True)
    return generate, (time.perf_counter() - began) / ids.numel()
