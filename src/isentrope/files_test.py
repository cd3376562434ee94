import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from isentrope import files
from isentrope.files import write_bytes_atomic, write_json_atomic, write_text_atomic


def test_makes_folders_and_leaves_nothing_beside_the_file(tmp_path):
    write_bytes_atomic(tmp_path / "a" / "b" / "file", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, failure):
    target = tmp_path / "summary.json"
    write_text_atomic(target, "old")

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(type(failure)):
        write_text_atomic(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """At every call to the system the target holds the old content or the new one."""
    target, seen = tmp_path / "file", set()
    write_text_atomic(target, "old" * 1000)
    for call in ("open", "fsync", "replace", "close"):
        real = getattr(os, call)
        monkeypatch.setattr(files.os, call, lambda *a, real=real, **k: (seen.add(target.read_text()), real(*a, **k))[1])
    write_text_atomic(target, "new" * 1000)
    monkeypatch.undo()
    assert seen == {"old" * 1000, "new" * 1000}


def test_json_of_what_runs_hold(tmp_path):
    @dataclass(frozen=True)
    class Link:
        name: str
        coef: float

    value = {
        "nan": float("nan"), "inf": [float("inf"), -1.5], "np": np.float32(0.5), "array": np.array([1, 2]), "npnan": np.float64("nan"),
        "path": Path("a/b"), "link": Link("kl-cov", 0.25), 3: ("x", None, True), "text": "é\ud800<",
    }  # fmt: skip
    write_json_atomic(tmp_path / "run.json", value)

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse) == {
        "nan": None, "inf": [None, -1.5], "np": 0.5, "array": [1, 2], "npnan": None, "path": "a/b",
        "link": {"name": "kl-cov", "coef": 0.25}, "3": ["x", None, True], "text": "é\ud800<",
    }  # fmt: skip


def test_json_refuses_what_it_cannot_hold_and_keeps_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "run.json", {"a": 1})
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        write_json_atomic(tmp_path / "run.json", {"a": {1}})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}


def test_text_with_a_lone_surrogate_is_written_as_its_escape(tmp_path):
    write_text_atomic(tmp_path / "card.md", "é \ud800")
    assert (tmp_path / "card.md").read_bytes() == "é \\ud800".encode()
