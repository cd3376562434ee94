"""Checkpoints of a run directory: complete or absent.

A checkpoint is written into a temporary folder, hashed into MANIFEST.json, synced, and renamed to `checkpoints/step-SSSSSSSS`; only then
does it count. Older ones are the fallback. Reading goes through the weights-only loader, and only for files that stand in the manifest.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isentrope.errors import UserError
from isentrope.tape import sync_folder, write_json_atomic

MANIFEST = "MANIFEST.json"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or trusted; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint, and the newer ones that were passed over with the reason."""

    path: Path
    step: int
    skipped: tuple[tuple[Path, str], ...] = ()


def save(directory: Path, step: int, write: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Calls `write(folder)` and makes what it wrote the checkpoint of `step`; the newest `keep` stay.

    Raises CheckpointError when the disk refuses; the older checkpoints stand.
    """
    root = directory / "checkpoints"
    target, fresh = root / f"step-{step:08d}", root / f".tmp-step-{step:08d}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        write(fresh)
        files = {}
        for path in sorted(fresh.rglob("*")):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
                files[path.relative_to(fresh).as_posix()] = {"sha256": _hash(path), "bytes": path.stat().st_size}
        write_json_atomic(fresh / MANIFEST, {"step": step, "files": files})
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
        sync_folder(root)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CheckpointError(f"checkpoint: {target} cannot be written ({error}). The checkpoints before it stand.") from error
    for old in _steps(root)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(directory: Path) -> Checkpoint | None:
    """The newest valid checkpoint; temporary folders of killed saves are removed."""
    root = directory / "checkpoints"
    if not root.is_dir():
        return None
    for stale in root.glob(".tmp-step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    skipped: list[tuple[Path, str]] = []
    for path in reversed(_steps(root)):
        fault = damage(path)
        if fault is None:
            return Checkpoint(path, int(path.name.split("-")[1]), tuple(skipped))
        skipped.append((path, fault))
    if skipped:
        faults = "; ".join(f"{path.name}: {reason}" for path, reason in skipped)
        raise CheckpointError(f"checkpoint: none in {root} is whole ({faults}). Nothing was changed.")
    return None


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None if every file of its manifest is there with its hash."""
    try:
        manifest = _manifest(path)
    except CheckpointError as error:
        return str(error)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.is_symlink():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"] or _hash(file) != entry["sha256"]:
            return f"{name} does not match its hash"
    return None


def load_state(path: Path, name: str, device: torch.device | str = "cpu") -> Any:
    """A tensor file of the checkpoint by PyTorch's weights-only loader, after its hash was checked.

    Raises CheckpointError for a name that the manifest does not hold.
    """
    entry = _manifest(path)["files"].get(name)
    if entry is None:
        raise CheckpointError(f"checkpoint: {path} lists no file {name!r} in its {MANIFEST}; it is not read.")
    file = path / name
    if file.is_symlink() or not file.is_file() or _hash(file) != entry["sha256"]:
        raise CheckpointError(f"checkpoint: {file} does not match its hash in {MANIFEST}; it is not read.")
    return torch.load(file, weights_only=True, map_location=device)


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's generators as plain data and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores what `rng_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _steps(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.is_dir() and path.name.split("-")[1].isdigit())


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is missing or damaged") from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise CheckpointError(f"{MANIFEST} names a file outside its folder")
    return manifest


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
