"""Checkpoints are complete or absent: whatever the disk refuses, whenever the process is killed, whatever somebody did to the files."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from isentrope.train import checkpoint
from isentrope.train.checkpoint import MANIFEST, CheckpointDiskError, CheckpointError, damage, latest, load_state, save, save_state

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def writer(word: str) -> Callable[[Path], None]:
    """Leaves two files, one of them in a folder."""

    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(word)
        (folder / "sub" / "b.txt").write_text(word * 100)

    return write


def words(directory: Path) -> tuple[int, str] | None:
    """Step and content of the newest checkpoint, whole; None where there is none."""
    found = latest(directory)
    if found is None:
        return None
    assert damage(found.path) is None
    assert set(found.files) == {"a.txt", "sub/b.txt"}
    word = (found.path / "a.txt").read_text()
    assert (found.path / "sub" / "b.txt").read_text() == word * 100
    return found.step, word


def left(directory: Path) -> list[str]:
    """What lies in the folder of checkpoints, hidden things included."""
    return sorted(os.listdir(directory / "checkpoints"))


# --- the ordinary way


def test_what_is_saved_is_found_and_read(tmp_path):
    state = {"weights": torch.arange(4.0), "rng": (1, b"\x00"), 3: [None]}

    def write(folder: Path) -> None:
        writer("x")(folder)
        save_state(folder / "state.pt", state)

    path = save(tmp_path, 7, write)
    found = latest(tmp_path)
    assert found is not None
    assert (found.path, found.step, found.skipped) == (path, 7, ())
    assert set(found.files) == {"a.txt", "sub/b.txt", "state.pt"}
    assert found.versions["torch"] == torch.__version__
    read = load_state(path, "state.pt")
    assert torch.equal(read.pop("weights"), state["weights"])
    assert read == {"rng": (1, b"\x00"), 3: [None]}
    assert left(tmp_path) == ["step-00000007"]


def test_no_checkpoint_is_none(tmp_path):
    assert latest(tmp_path) is None
    (tmp_path / "checkpoints" / ".tmp-step-00000003-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert latest(tmp_path) is None


@pytest.mark.parametrize(("keep", "expected"), [(1, [9]), (2, [6, 9]), (None, [0, 3, 6, 9])])
def test_keep_is_of_the_newest(tmp_path, keep, expected):
    for step in (0, 3, 6, 9):
        save(tmp_path, step, writer(str(step)), keep=keep)
    assert left(tmp_path) == [f"step-{step:08d}" for step in expected]


def test_newer_ones_are_not_counted_nor_touched(tmp_path):
    """A run that fell back to an older checkpoint does not throw the newer ones away; it writes them anew when it gets there."""
    for step in (3, 6, 9):
        save(tmp_path, step, writer("old"), keep=None)
    save(tmp_path, 4, writer("new"), keep=2)
    assert left(tmp_path) == [f"step-{step:08d}" for step in (3, 4, 6, 9)]
    save(tmp_path, 6, writer("new"), keep=2)
    assert left(tmp_path) == [f"step-{step:08d}" for step in (4, 6, 9)]
    assert (tmp_path / "checkpoints" / "step-00000006" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("arguments", [{"step": -1}, {"step": 1, "keep": 0}])
def test_impossible_arguments(tmp_path, arguments):
    with pytest.raises(ValueError, match="step must be >= 0 and keep >= 1"):
        save(tmp_path, write=writer("x"), **arguments)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: None, "left no file"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "none called MANIFEST.json"),
        (lambda folder: (folder / "link").symlink_to("/etc/hostname"), "regular files.*link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "regular files.*pipe"),
    ],
)
def test_what_write_must_not_leave(tmp_path, write, words):
    save(tmp_path, 1, writer("old"))
    with pytest.raises(ValueError, match=words):
        save(tmp_path, 2, write)
    assert left(tmp_path) == ["step-00000001"]


# --- a write that fails, a disk that refuses


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_what_write_raises_comes_through_and_nothing_is_left(tmp_path, error):
    save(tmp_path, 1, writer("old"))

    def write(folder: Path) -> None:
        writer("new")(folder)
        raise error

    with pytest.raises(type(error)) as found:
        save(tmp_path, 2, write)
    assert found.value is error
    assert left(tmp_path) == ["step-00000001"]
    assert words(tmp_path) == (1, "old")


def test_a_full_disk_midway_names_the_checkpoint_and_leaves_the_old_one(tmp_path, monkeypatch):
    save(tmp_path, 1, writer("old"))
    calls, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise FULL
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointDiskError, match=r"step-00000002 cannot be written: No space left on device.*before it stand; make room and resume"):
        save(tmp_path, 2, writer("new"))
    assert left(tmp_path) == ["step-00000001"]
    assert words(tmp_path) == (1, "old")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode:
        pytest.skip(f"no file system may be mounted here: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


WRITERS = {
    "plain": lambda folder: (folder / "big").write_bytes(bytes(1 << 20)),
    "torch": lambda folder: save_state(folder / "big.pt", {"x": torch.zeros(1 << 18)}),
    "safetensors": lambda folder: save_file({"x": torch.zeros(1 << 18)}, folder / "big.safetensors"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_is_really_full(small_disk, kind):
    save(small_disk, 1, writer("old"))
    with pytest.raises(CheckpointDiskError, match=r"step-00000002 cannot be written: No space left on device"):
        save(small_disk, 2, WRITERS[kind])
    assert left(small_disk) == ["step-00000001"]
    assert words(small_disk) == (1, "old")
    save(small_disk, 2, writer("new"))  # there is room again
    assert words(small_disk) == (2, "new")


# --- killed, or refused once, at every single call to the system


CALLS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir")


def stop_at(number: int, directory: Path, stop: Callable[[], None]) -> list[str]:
    """Calls `stop` before the file-system call of that number inside `directory`; returns the list of calls as it grows. For a process of its own."""
    seen: list[str] = []

    def before(name: str) -> None:
        seen.append(name)
        if len(seen) == number + 1:
            stop()

    def hook(event: str, arguments: tuple) -> None:
        if event in CALLS and isinstance(arguments[0], str | bytes | os.PathLike) and str(directory) in os.fsdecode(arguments[0]):
            before(event)

    real = os.fsync

    def fsync(descriptor: int) -> None:
        before("fsync")
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)
    return seen


def in_a_fork(action: Callable[[], int]) -> int:
    """The exit code of `action` in a process of its own."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = action()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


BEFORE = {
    "the first": (None, 1),
    "a newer one, the old one goes": (1, 2),
    "the same step again": (2, 2),
}
KILLED, SAVED, REFUSED = 9, 0, 4


@pytest.mark.parametrize("case", BEFORE)
def test_killed_before_any_call_there_is_the_old_one_or_the_new_one(tmp_path, case):
    before, step = BEFORE[case]
    outcomes = []
    for number in range(200):
        directory = tmp_path / str(number)
        directory.mkdir()
        if before is not None:
            save(directory, before, writer("old"))

        def die(directory=directory, number=number) -> int:
            stop_at(number, directory, lambda: os._exit(KILLED))
            save(directory, step, writer("new"), keep=1)
            return SAVED

        code = in_a_fork(die)
        found = words(directory)
        assert code in (KILLED, SAVED)
        assert found in {(step, "new"), None if before is None else (before, "old")}
        if (directory / "checkpoints").is_dir():
            assert all(name.startswith("step-") for name in left(directory))  # what was killed is cleared
            assert all(damage(directory / "checkpoints" / name) is None for name in left(directory))  # no half one is in sight
        if code == KILLED and found == (step, "new"):
            assert number > 10
        outcomes.append(found)
        save(directory, step, writer("again"), keep=1)  # and the run goes on
        assert words(directory) == (step, "again")
        if code == SAVED:
            break
    else:
        pytest.fail("save never came to its end")
    assert found == (step, "new")
    assert len(set(outcomes)) == 2  # both happened: the switch is one call
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == (step, "new"))
    assert len(outcomes) > 20


@pytest.mark.parametrize("case", BEFORE)
def test_refused_at_any_call_the_error_is_ours_and_a_whole_one_stands(tmp_path, case):
    before, step = BEFORE[case]
    refused = 0
    for number in range(200):
        directory = tmp_path / str(number)
        directory.mkdir()
        if before is not None:
            save(directory, before, writer("old"))

        def refuse(directory=directory, number=number) -> int:
            def stop() -> None:
                raise FULL

            seen = stop_at(number, directory, stop)
            try:
                save(directory, step, writer("new"), keep=1)
            except CheckpointError as error:
                if before is not None and not list((directory / "checkpoints").glob("step-*")):
                    return 72  # one that stepped aside did not come back
                return REFUSED if "No space left" in str(error) and f"step-{step:08d}" in str(error) else 71
            return SAVED if len(seen) > number else 1

        code = in_a_fork(refuse)
        assert code in (SAVED, REFUSED, 1), f"call {number} ended with {code}"
        found = words(directory)
        assert found in {(step, "new"), None if before is None else (before, "old")}
        if code != REFUSED:
            assert found == (step, "new")
        refused += code == REFUSED
        if code == 1:
            break
    else:
        pytest.fail("save never came to its end")
    assert refused > 10


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Every file, its manifest and its folders are synced before the rename, and the folder of checkpoints after it."""
    order, real_sync, real_rename = [], os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    def rename(source, target, **options) -> None:
        order.append("rename")
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path, 1, writer("x"))
    at = order.index("rename")
    assert {"a.txt", "b.txt", "sub"} <= set(order[:at])
    assert any(MANIFEST in name for name in order[:at])
    assert any(name.startswith(".tmp-step-00000001") for name in order[:at])
    assert order[at + 1 :] == ["checkpoints"]


def test_hidden_folders_of_other_living_processes_stay(tmp_path):
    save(tmp_path, 1, writer("old"))
    root = tmp_path / "checkpoints"
    gone = in_a_fork(lambda: 0)
    assert gone == 0
    for process in (1, os.getpid()):
        (root / f".tmp-step-00000002-{process}").mkdir()
    (root / ".tmp-step-00000002-999999999").mkdir()
    (root / ".mine").mkdir()
    assert words(tmp_path) == (1, "old")
    assert left(tmp_path) == [".mine", ".tmp-step-00000002-1", "step-00000001"]


# --- damaged, and hostile


def manifest(path: Path) -> dict:
    return json.loads((path / MANIFEST).read_text())


def rewrite(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A damage that edits the manifest as data."""

    def spoil(path: Path) -> None:
        content = manifest(path)
        result = change(content)
        (path / MANIFEST).write_text(json.dumps(content if result is None else result))

    return spoil


def named(name: str) -> Callable[[Path], None]:
    """A damage that adds a name to the manifest, with the entry of a real file."""

    def change(content: dict) -> None:
        content["files"][name] = content["files"]["a.txt"]

    return rewrite(change)


def flip(path: Path) -> None:
    content = bytearray((path / "sub" / "b.txt").read_bytes())
    content[17] ^= 1
    (path / "sub" / "b.txt").write_bytes(content)


def link_file(path: Path) -> None:
    shutil.copy(path / "a.txt", path.parents[1] / "copy")
    (path / "a.txt").unlink()
    (path / "a.txt").symlink_to(path.parents[1] / "copy")


def link_folder(path: Path) -> None:
    (path / "sub").rename(path.parents[1] / "sub")
    (path / "sub").symlink_to(path.parents[1] / "sub")


def link_whole(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def link_manifest(path: Path) -> None:
    (path / MANIFEST).rename(path.parents[1] / "m")
    (path / MANIFEST).symlink_to(path.parents[1] / "m")


def pipe(path: Path) -> None:
    (path / "a.txt").unlink()
    os.mkfifo(path / "a.txt")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path / "sub" / "b.txt", 5), "sub/b.txt has 5 bytes instead of 300"),
    "emptied": (lambda path: os.truncate(path / "a.txt", 0), "a.txt has 0 bytes instead of 3"),
    "grown": (lambda path: (path / "a.txt").write_text("newer"), "a.txt has 5 bytes instead of 3"),
    "one bit": (flip, "sub/b.txt does not match its hash"),
    "missing": (lambda path: (path / "a.txt").unlink(), "a.txt is missing"),
    "a folder for a file": (lambda path: ((path / "a.txt").unlink(), (path / "a.txt").mkdir()), "a.txt is no regular file"),
    "a pipe for a file": (pipe, "a.txt is no regular file"),
    "extra": (lambda path: (path / "sub" / "extra.pt").write_text("x"), "sub/extra.pt is not in its MANIFEST.json"),
    "extra link": (lambda path: (path / "adapter").symlink_to("/tmp"), "adapter is not in its MANIFEST.json"),
    "extra link to nothing": (lambda path: (path / "dangling").symlink_to("/nowhere"), "dangling is not in its MANIFEST.json"),
    "linked file": (link_file, "a.txt is a link"),
    "linked folder": (link_folder, "sub/b.txt is a link"),
    "linked checkpoint": (link_whole, "is a link"),
    "linked manifest": (link_manifest, "MANIFEST.json is a link"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "MANIFEST.json is missing"),
    "half a manifest": (lambda path: os.truncate(path / MANIFEST, 40), "MANIFEST.json is damaged"),
    "no text": (lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"), "MANIFEST.json is damaged"),
    "too deep": (lambda path: (path / MANIFEST).write_text("[" * 200_000), "MANIFEST.json is damaged"),
    "a list": (rewrite(lambda content: [content]), "MANIFEST.json is damaged"),
    "no files": (rewrite(lambda content: content.pop("files") and None), "MANIFEST.json is damaged"),
    "files as a list": (rewrite(lambda content: content.update(files=["a.txt"])), "MANIFEST.json is damaged"),
    "no hash": (rewrite(lambda content: content["files"]["a.txt"].pop("sha256") and None), "MANIFEST.json is damaged"),
    "no size": (rewrite(lambda content: content["files"]["a.txt"].pop("bytes") and None), "MANIFEST.json is damaged"),
    "infinite size": (rewrite(lambda content: content["files"]["a.txt"].update(bytes=float("inf"))), "MANIFEST.json is damaged"),
    "no step": (rewrite(lambda content: content.pop("step") and None), "MANIFEST.json is damaged"),
    "infinite step": (rewrite(lambda content: content.update(step=float("inf"))), "MANIFEST.json is damaged"),
    "versions as a number": (rewrite(lambda content: content.update(versions=3)), "MANIFEST.json is damaged"),
    "of another step": (rewrite(lambda content: content.update(step=1)), "its manifest is of step 1"),
    "climbing out": (named("../step-00000001/a.txt"), "names '../step-00000001/a.txt', which is no file of its folder"),
    "climbing inside": (named("sub/../a.txt"), "no file of its folder"),
    "absolute": (named("/etc/passwd"), "names '/etc/passwd', which is no file of its folder"),
    "NUL": (named("a\0b"), "no file of its folder"),
    "empty name": (named(""), "no file of its folder"),
    "dot": (named("."), "no file of its folder"),
    "unclean": (named("sub//b.txt"), "no file of its folder"),
    "itself": (named(MANIFEST), "no file of its folder"),
    "no file name": (named("\ud800"), "no file of its folder"),
    "too long a name": (named("x" * 300), "File name too long"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_passed_over_with_its_reason(tmp_path, name):
    spoil, reason = DAMAGES[name]
    save(tmp_path, 1, writer("old"))
    path = save(tmp_path, 2, writer("new"))
    assert damage(path) is None
    spoil(path)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [skipped for skipped, _ in found.skipped] == [path]
    assert reason in found.skipped[0][1]
    assert path.exists()  # left for its owner to look at


def test_all_damaged_is_an_error_and_nothing_is_changed(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step, writer("x")) / "a.txt").unlink()
    with pytest.raises(CheckpointError) as error:
        latest(tmp_path)
    for part in ("step-00000002: a.txt is missing", "step-00000001: a.txt is missing", "Nothing was changed", "start again from step 0"):
        assert part in str(error.value)
    assert left(tmp_path) == ["step-00000001", "step-00000002"]


def test_hidden_files_and_empty_folders_are_no_damage(tmp_path):
    path = save(tmp_path, 1, writer("x"))
    (path / ".nfs0001").write_text("left by a network file system")
    (path / "empty").mkdir()
    assert damage(path) is None


# --- only tensors and plain values are read


class Payload:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_a_payload_is_refused_and_not_executed(tmp_path):
    mark = tmp_path / "executed"
    path = save(tmp_path, 1, lambda folder: torch.save({"state": Payload(mark)}, folder / "state.pt"))
    assert damage(path) is None  # the manifest is right: it is the content that is hostile
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be loaded by the weights-only loader"):
        load_state(path, "state.pt")
    assert not mark.exists()
    torch.load(path / "state.pt", weights_only=False)
    assert mark.exists()  # the payload works, so its absence above says something


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "other.pt").write_bytes(b"x"), r"lists no file 'other\.pt'"),
        (lambda path: os.truncate(path / "state.pt", 9), "state.pt has 9 bytes instead of"),
        (lambda path: ((path / "state.pt").rename(path.parent / "s"), (path / "state.pt").symlink_to(path.parent / "s")), "is a link"),
        (lambda path: (path / "state.pt").unlink(), "is missing"),
    ],
)
def test_only_files_of_the_manifest_are_loaded(tmp_path, spoil, words):
    path = save(tmp_path, 1, lambda folder: save_state(folder / "state.pt", {"x": 1}))
    assert load_state(path, "state.pt") == {"x": 1}
    spoil(path)
    with pytest.raises(CheckpointError, match=words):
        load_state(path, "other.pt" if "other" in words else "state.pt")


def test_a_file_that_is_no_tensor_file(tmp_path):
    path = save(tmp_path, 1, writer("x"))
    with pytest.raises(CheckpointError, match=r"a\.txt cannot be loaded"):
        load_state(path, "a.txt")


def test_tensor_files_of_others_come_as_they_are(tmp_path):
    path = save(tmp_path, 1, lambda folder: torch.save({"kind": torch.ones(2)}, folder / "optimizer.pt"))
    assert torch.equal(checkpoint.load_state(path, "optimizer.pt")["kind"], torch.ones(2))
