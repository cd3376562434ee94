"""Checkpoints of a run directory: complete or absent.

    DIR/checkpoints/step-SSSSSSSS/MANIFEST.json     {"step", "files": {name: {"sha256", "bytes"}}, "versions"}

A checkpoint is written into a hidden folder, synced and hashed into its manifest, and renamed into place; only then does it count.
Older ones are the fallback. What a killed save left is removed when the run is resumed. Reading goes through PyTorch's weights-only
loader, and only for regular files of the folder that match the manifest.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from platform import python_version
from typing import Any, BinaryIO

import torch

from isentrope.errors import DiskError, UserError
from isentrope.files import sync_folder, write_json_atomic
from isentrope.train.state import StateError, pack_state, rng_state, set_rng_state, unpack_state

MANIFEST = "MANIFEST.json"
_PACKAGES = ("isentrope", "torch", "numpy", "transformers", "trl", "accelerate", "peft")
_STEP = re.compile(r"step-(\d{8,})")
_HIDDEN = re.compile(r"\.(?:tmp|old)-step-\d{8,}-(\d+)")

__all__ = [
    "MANIFEST", "Checkpoint", "CheckpointDiskError", "CheckpointError", "StateError", "damage", "latest", "load_state", "pack_state", "refusal",
    "rng_state", "save", "save_state", "set_rng_state", "unpack_state",
]  # fmt: skip


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or trusted; the message names the file."""


class CheckpointDiskError(DiskError, CheckpointError):
    """A checkpoint that the disk refuses."""


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint, and the newer ones that were passed over with the reason."""

    path: Path
    step: int
    skipped: tuple[tuple[Path, str], ...] = ()
    files: tuple[str, ...] = ()  # names in the manifest, relative to `path`
    versions: Mapping[str, str] = field(default_factory=dict)  # of Python and the packages that wrote it


# --- writing


def save(directory: Path, step: int, write: Callable[[Path], None], *, keep: int | None = 2) -> Path:
    """Calls `write(folder)` and makes the files that it left there the checkpoint of `step`. Returns its folder.

    directory: the run's. keep: how many of the newest checkpoints up to `step` stay (None: all).
    Raises CheckpointDiskError when the disk refuses, and what `write` raised otherwise; the folder of this save is then gone and the
    checkpoints before it stand.
    """
    if step < 0 or (keep is not None and keep < 1):
        raise ValueError(f"checkpoint.save: step must be >= 0 and keep >= 1 (or None for all). Got step {step}, keep {keep}.")
    root = directory / "checkpoints"
    target, fresh = root / f"step-{step:08d}", root / f".tmp-step-{step:08d}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        write(fresh)
        _seal(fresh, step)
        _put_in_place(fresh, target)
    except BaseException as error:
        reason = refusal(error, root)  # asked while the disk is still full
        shutil.rmtree(fresh, ignore_errors=True)
        if reason is not None:
            raise CheckpointDiskError(
                f"checkpoint: {target} cannot be written: {reason}. The checkpoints before it stand; make room and resume the run."
            ) from error
        raise
    if keep is not None:
        for old in [path for path in _steps(root) if _step(path) <= step][:-keep]:
            _remove(old)
    return target


def save_state(path: Path, state: Any) -> None:
    """Writes a state tree to a file that `load_state` reads back exactly. For what `pack_state` takes."""
    torch.save(pack_state(state), path)


def _seal(folder: Path, step: int) -> None:
    """Syncs and hashes every file, then writes the manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()) or name == MANIFEST:
            raise ValueError(f"checkpoint: write() must leave regular files, none called {MANIFEST}. Got {name}.")
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            files[name] = {"sha256": _hash(file), "bytes": path.stat().st_size}
    if not files:
        raise ValueError("checkpoint: write() left no file.")
    write_json_atomic(folder / MANIFEST, {"step": step, "files": files, "versions": _versions()})


def _put_in_place(fresh: Path, target: Path) -> None:
    """Renames `fresh` to `target`. One that stands there steps aside first; killed in between, `_tidy` puts it back."""
    aside = target.with_name(f".old-{target.name}-{os.getpid()}")
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        fresh.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove(path: Path) -> None:
    """Takes a checkpoint out of sight at once, then deletes it: killed in between, no half one is left."""
    hidden = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.rename(hidden)
    except OSError:
        return  # it stays; the next save tries again
    shutil.rmtree(hidden, ignore_errors=True)


def _tidy(root: Path) -> None:
    """Ends what killed saves began: hidden folders go, and one that had stepped aside for a newer one returns.

    Those of other processes that are alive are left alone.
    """
    for path in root.glob(".*-step-*"):
        match = _HIDDEN.fullmatch(path.name)
        if not match or (int(match[1]) != os.getpid() and _is_alive(int(match[1]))):
            continue
        target = root / path.name.removeprefix(".old-").rpartition("-")[0]
        if path.name.startswith(".old-") and not target.exists():
            with suppress(FileNotFoundError):  # another rank did it
                path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def refusal(error: BaseException, root: Path) -> str | None:
    """What the disk of `root` said, if the disk is why this failed. PyTorch and safetensors report a full disk by errors of their own."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    if not isinstance(error, Exception):
        return None
    causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
    full = any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes)
    said = any(words in str(error) for words in ("No space left", "PytorchStreamWriter failed writing"))
    return os.strerror(errno.ENOSPC) if full or said or _is_full(root) else None


def _is_full(root: Path) -> bool:
    return root.is_dir() and shutil.disk_usage(root).free < 4096


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# --- reading


def latest(directory: Path) -> Checkpoint | None:
    """The newest valid checkpoint of a run, every hash checked; None if the run has none at all.

    For the start of a resume: what killed saves left is cleared away. Raises CheckpointError if there are checkpoints and all are
    damaged, for then starting again is the user's choice.
    """
    root = directory / "checkpoints"
    if not root.is_dir():
        return None
    _tidy(root)
    skipped: list[tuple[Path, str]] = []
    for path in reversed(_steps(root)):
        fault = damage(path)
        if fault is None:
            manifest = _manifest(path)
            return Checkpoint(path, _step(path), tuple(skipped), tuple(manifest["files"]), manifest["versions"])
        skipped.append((path, fault))
    if skipped:
        faults = "; ".join(f"{path.name}: {reason}" for path, reason in skipped)
        raise CheckpointError(f"checkpoint: none in {root} is whole ({faults}). Nothing was changed; move them away to start again from step 0.")
    return None


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in words; None if it holds exactly the files of its manifest (hidden ones aside)."""
    try:
        manifest = _manifest(path)
        if manifest["step"] != _step(path):
            return f"its manifest is of step {manifest['step']}"
        for name, entry in manifest["files"].items():
            with _open(path, name) as file:
                _check(file, name, entry)
        for found in sorted(path.rglob("*")):
            name = found.relative_to(path).as_posix()
            if (found.is_symlink() or not found.is_dir()) and name not in manifest["files"] and name != MANIFEST and not found.name.startswith("."):
                return f"{name} is not in its {MANIFEST}"
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


def load_state(path: Path, name: str, device: torch.device | str = "cpu") -> Any:
    """What a file of the checkpoint at `path` holds, by PyTorch's weights-only loader, after its size and hash were checked.

    Unpacks what `save_state` packed; other tensor files come as they are. Raises CheckpointError for a name that the manifest does
    not hold, a link, a file that differs from the manifest, or content that the weights-only loader refuses.
    """
    entry = _manifest(path)["files"].get(name)
    if entry is None:
        raise CheckpointError(f"checkpoint: {path} lists no file {name!r} in its {MANIFEST}; it is not read.")
    try:
        with _open(path, name) as file:
            _check(file, name, entry)
            file.seek(0)
            return unpack_state(torch.load(file, weights_only=True, map_location=device))
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint: {path / name} is not read: {error}.") from error
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"checkpoint: {path / name} cannot be loaded by the weights-only loader: {said}") from error


def _open(path: Path, name: str) -> BinaryIO:
    """A file of the manifest, opened without following links."""
    file = path / name
    if path.is_symlink() or file.resolve() != path.resolve() / name:
        raise CheckpointError(f"{name} is a link")
    if not file.is_file():
        raise CheckpointError(f"{name} is no regular file" if file.exists() else f"{name} is missing")
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _check(file: BinaryIO, name: str, entry: Mapping[str, Any]) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry["bytes"]:
        raise CheckpointError(f"{name} has {size} bytes instead of {entry['bytes']}")
    if _hash(file) != entry["sha256"]:
        raise CheckpointError(f"{name} does not match its hash")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        with _open(path, MANIFEST) as file:
            manifest = json.loads(file.read())
        files = {str(name): {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])} for name, entry in manifest["files"].items()}
        found = {"step": int(manifest["step"]), "files": files, "versions": dict(manifest.get("versions", {}))}
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged") from error
    for name in files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != name or name in (".", MANIFEST) or not _is_name(name):
            raise CheckpointError(f"{MANIFEST} names {name!r}, which is no file of its folder")
    return found


def _is_name(name: str) -> bool:
    """Whether a file system can hold it."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _steps(root: Path) -> list[Path]:
    """Folders that look like checkpoints, oldest first."""
    return sorted((path for path in root.iterdir() if _STEP.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def _hash(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
