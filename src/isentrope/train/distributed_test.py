"""The same batch in one process, in slices, and over two processes: the same tokens chosen and the same gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isentrope.train.tiny import save_tiny_model

WORKER = Path(__file__).parents[3] / "tests" / "distributed_worker.py"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def launch(model: str, out: Path, control: list, *, processes: int, rows: int, slices: int, options: dict | None = None) -> list[dict]:
    out.mkdir(parents=True, exist_ok=True)
    arguments = [str(WORKER), model, str(out), json.dumps(control), str(rows), str(slices), json.dumps(options or {})]
    if processes == 1:
        command = [sys.executable, *arguments]
    else:
        # `accelerate launch --cpu --num_processes 2` (accelerate 1.15) starts ONE process without MPI; torchrun starts both
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"world{processes}-rank{rank}.pt", weights_only=True) for rank in range(processes)]


CHAINS = {
    "empty": [],
    "clip-cov": [{"name": "clip-cov", "ratio": 0.1, "low": -0.5, "high": 0.5}],
    "kl-cov": [{"name": "kl-cov"}],
    "forking-tokens": ["forking-tokens"],
    "siren": ["siren"],
    "hapo": ["hapo"],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_slices_and_processes_give_the_gradient_of_one_batch(chain, model_path, tmp_path):
    control, twice = CHAINS[chain], {"max_steps": 2, "num_iterations": 2}  # the second update has ratios off 1 and controllers in motion
    (whole,) = launch(model_path, tmp_path / "whole", control, processes=1, rows=16, slices=1, options=twice)
    (sliced,) = launch(model_path, tmp_path / "sliced", control, processes=1, rows=2, slices=8, options=twice)
    pair = launch(model_path, tmp_path / "pair", control, processes=2, rows=2, slices=4, options=twice)
    for other in (sliced, *pair):
        for update in (0, 1):
            for ours, theirs in zip(other["gradients"][update], whole["gradients"][update], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
    assert max(float(gradient.abs().max()) for gradient in whole["gradients"][0]) > 1e-3
    assert sliced["touched"] == whole["touched"]
    both = {key: sorted(token for rank in pair for token in rank["touched"].get(key, [])) for key in whole["touched"]}
    assert both == whole["touched"]
    assert bool(whole["touched"]) == (chain not in ("empty",))
    assert sorted(pair[0]["rows"] + pair[1]["rows"]) == whole["rows"]


def test_the_rows_of_the_tape_are_of_the_whole_update_whoever_holds_its_parts(model_path, tmp_path):
    control, options = [{"name": "clip-cov", "ratio": 0.2, "low": -1.0, "high": 1.0}], {"max_steps": 2, "num_iterations": 2, "tape": True}
    (whole,) = launch(model_path, tmp_path / "whole", control, processes=1, rows=16, slices=1, options=options)
    (sliced,) = launch(model_path, tmp_path / "sliced", control, processes=1, rows=2, slices=8, options=options)
    pair = launch(model_path, tmp_path / "pair", control, processes=2, rows=2, slices=4, options=options)
    own = [key for key in whole["steps"][0] if not key.startswith(("seconds", "tokens_per_second", "trl/"))]
    assert {"loss", "reward/std", "entropy/q95", "S/mean", "N/mean", "ratio/max", "touch/clip-cov", "removed/clip-cov"} <= set(own)
    for other in (sliced, *pair):
        for update in (0, 1):
            expected, found = ({key: one["steps"][update][key] for key in own} for one in (whole, other))
            assert found == pytest.approx(expected, rel=2e-4, abs=1e-6, nan_ok=True)
    assert whole["steps"][1]["removed/clip-cov"] != 0


@pytest.mark.parametrize("kind", ["entropy", "random"])
def test_processes_cut_the_same_responses_at_the_same_tokens(kind, model_path, tmp_path):
    control = [{"name": "cure", "n1": 2, "n2": 1, "top_k": 3, "characters": 1, "kind": kind}]
    (whole,) = launch(model_path, tmp_path / "whole", control, processes=1, rows=16, slices=1)
    (sliced,) = launch(model_path, tmp_path / "sliced", control, processes=1, rows=2, slices=8)
    pair = launch(model_path, tmp_path / "pair", control, processes=2, rows=2, slices=4)
    assert len(set(whole["kept"].values())) > 3  # some are cut, at several places
    assert whole["kept"] == sliced["kept"] == pair[0]["kept"] | pair[1]["kept"]
    for other in (sliced, *pair):
        assert other["figures"] == pytest.approx(whole["figures"], rel=1e-5)
        for ours, theirs in zip(other["gradients"][0], whole["gradients"][0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
    assert max(float(gradient.abs().max()) for gradient in whole["gradients"][0]) > 1e-3


def test_processes_fork_the_same_episodes(model_path, tmp_path):
    """Which lines are doubled follows from row ids; a process whose groups are full plays along into the void."""
    control, options = [{"name": "aepo-branch", "dynamic": False, "share": 0.25}], {"game": True}
    (whole,) = launch(model_path, tmp_path / "whole", control, processes=1, rows=16, slices=1, options=options)
    (sliced,) = launch(model_path, tmp_path / "sliced", control, processes=1, rows=2, slices=8, options=options)
    pair = launch(model_path, tmp_path / "pair", control, processes=2, rows=2, slices=4, options=options)
    assert 3 < sum(kept > 0 for kept in whole["kept"].values()) < 16
    assert whole["kept"] == sliced["kept"] == pair[0]["kept"] | pair[1]["kept"]
    for other in (sliced, *pair):
        assert other["figures"] == pytest.approx(whole["figures"], rel=1e-5)
        for ours, theirs in zip(other["gradients"][0], whole["gradients"][0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
