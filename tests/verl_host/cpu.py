"""The processor as a platform of verl, which lets verl's real FSDP engine run without a GPU.

verl chooses its engine by device. The platform below is registered through verl's own registry under the name `cpu`; the environment variable
VERL_ENGINE_DEVICE asks for the engine that verl registers for CUDA. Import this module before `verl`.
"""

import contextlib
import os
from types import ModuleType
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
os.environ.setdefault("VERL_USE_EXTERNAL_PLUGINS", "none")
os.environ.setdefault("VERL_DISABLE_FLASH_ATTN_CE", "1")

from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """The processor; every property of an accelerator that it lacks is a no-op."""

    device_name = "cpu"
    vendor_name = "generic"

    @property
    def device_module(self) -> ModuleType:
        return _Module  # type: ignore[return-value]

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check=False) -> bool:
        return True

    def current_device(self):
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index=None) -> None: ...
    def manual_seed(self, seed: int) -> None: ...
    def manual_seed_all(self, seed: int) -> None: ...
    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...

    def get_device_capability(self, device_id: int = 0):
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str):
        return contextlib.nullcontext()

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {"num_cpus": num_gpus}

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}

    def get_collective_module(self) -> Any:
        return None

    def cudart(self) -> Any:
        return None


class _Module(ModuleType):
    """What verl asks of `torch.cuda`."""

    is_available = staticmethod(lambda: True)
    max_memory_allocated = staticmethod(lambda *_: 0)
    max_memory_reserved = staticmethod(lambda *_: 0)
    memory_allocated = staticmethod(lambda *_: 0)
    memory_reserved = staticmethod(lambda *_: 0)
    mem_get_info = staticmethod(lambda *_: (0, 0))
    empty_cache = staticmethod(lambda: None)
    synchronize = staticmethod(lambda *_: None)
    current_device = staticmethod(lambda: "cpu")
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda *_: "CPU")
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_: torch.set_rng_state(state))
