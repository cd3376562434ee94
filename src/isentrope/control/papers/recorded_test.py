"""Reads recorded outputs of official implementations for the tests of this folder, and checks that there are some to read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[4]
FOLDERS = (ROOT / "tests" / "vectors", ROOT.parent / "shared" / "vectors")


@dataclass(frozen=True)
class Recorded:
    """One case: what went in and out (by the names of the file), the parameters, and the tolerance |a - b| <= tol (1 + |a|)."""

    given: dict[str, Tensor]
    found: dict[str, Tensor]
    params: dict[str, Any]
    tolerance: float

    def close(self, ours: Tensor | float, name: str, where: Tensor | None = None) -> None:
        """Asserts that `ours` is the recorded output `name` (at the positions `where`)."""
        theirs, ours = self.found[name].double(), torch.as_tensor(ours).detach().double()
        if where is not None:
            theirs, ours = theirs[where], ours[where]
        assert ours.shape == theirs.shape
        worst = float(((ours - theirs).abs() / (1 + theirs.abs())).max()) if theirs.numel() else 0.0
        assert worst <= self.tolerance, f"{name}: {worst:.3g} apart, {self.tolerance:.3g} is allowed"


def recorded(case: str) -> Recorded:
    """The case `slug__name`; a test that asks for one fails when it is not there."""
    for folder in FOLDERS:
        path = folder / f"{case}.npz"
        if path.is_file():
            with numpy.load(path, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
                arrays = {name: torch.from_numpy(numpy.asarray(file[name])) for name in file.files if name != "meta"}
            given = {name[3:]: value for name, value in arrays.items() if name.startswith("in_")}
            if "mask" in given:
                given["mask"] = given["mask"].bool()
            found = {name[4:]: value for name, value in arrays.items() if name.startswith("out_")}
            return Recorded(given, found, meta["params"], float(meta["tolerance"]))
    raise FileNotFoundError(f"{case}.npz is in none of {', '.join(map(str, FOLDERS))}.")


def test_a_case_is_read():
    case = recorded("clip-cov__verl-clip-cov-one")
    assert case.given["mask"].dtype == torch.bool and case.given["old_logp"].shape == (8, 20)
    assert case.params["clip_cov_ratio"] == 2e-4 and case.tolerance == 1e-6
    case.close(case.found["loss"], "loss")


def test_a_wrong_number_is_noticed():
    case = recorded("clip-cov__verl-clip-cov-one")
    with pytest.raises(AssertionError, match="loss: .* apart"):
        case.close(case.found["loss"] + 1e-5, "loss")


def test_an_unknown_case_says_where_it_looked():
    with pytest.raises(FileNotFoundError, match="vectors"):
        recorded("clip-cov__no-such-case")
