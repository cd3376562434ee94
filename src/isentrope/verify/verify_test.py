"""The recorded outputs are reproduced, a wrong number is found, and nothing that a file holds can crash the run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from isentrope.errors import UserError
from isentrope.verify import CaseResult, Compared, check, compare, row, summary, table, verify
from isentrope.verify.cases import adapter_of, answers, largest_error, read_case, split_name

VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors"
SLUGS = ("grpo-family", "clip-cov", "forking-tokens", "siren", "hapo", "aepo-arbitrary")
FILES = sorted(path for path in VECTORS.glob("*.npz") if split_name(path)[0] in SLUGS)
META = {"params": {"coef": 0.01}, "tolerance": 1e-9}


def write(folder, name="grpo-family__verl-kl-in-reward", meta=META, **arrays):
    """A case file; by default reward 1 minus 0.01 x 2."""
    ones = numpy.ones((2, 3))
    content = {"in_reward": ones, "in_logp": 2 * ones, "in_ref_logp": 0 * ones, "out_reward": 0.98 * ones} | arrays
    if meta is not None:
        content["meta"] = numpy.array(meta if isinstance(meta, str) else json.dumps(meta))
    path = folder / f"{name}.npz"
    numpy.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


# --- the recorded outputs


def test_there_are_cases_of_every_slug():
    assert {split_name(path)[0] for path in FILES} == set(SLUGS)
    assert len(FILES) == 61


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_outputs_are_reproduced_and_a_wrong_number_is_not(path):
    case = read_case(path)
    produced = adapter_of(case.slug, case.name)(case)
    result = compare(case, produced)
    assert result.passed, result
    assert result.error <= result.tolerance
    for key, recorded in case.outputs.items():
        value = produced[key]
        where = value.where if isinstance(value, Compared) else None
        wrong = recorded.astype(numpy.float64).copy()
        at = tuple(numpy.argwhere(numpy.ones(wrong.shape) if where is None else where.numpy())[-1])
        wrong[at] += 10 * case.tolerance * (1 + abs(wrong[at])) + (case.tolerance == 0)
        found = compare(replace(case, outputs=case.outputs | {key: wrong}), produced)
        assert not found.passed, f"{key} was changed at {at} and passed"
        assert f"out_{key} differs" == found.reason
        missing = compare(case, {name: tensor for name, tensor in produced.items() if name != key})
        assert missing.reason == f"out_{key} is not produced"


def test_a_changed_parameter_fails():
    """The hyper-parameters come from the file: another one gives other numbers."""
    for name, change in {
        "grpo-family__verl-ppo-dualclip": {"dual_clip_c": 2.0}, "grpo-family__trl-losses": {"beta": 0.05}, "clip-cov__verl-kl-cov": {"ppo_kl_coef": 0.5},
        "hapo__loss-as-released-adaptive": {"clip_alpha": 0.5}, "siren__anchored-loss": {"anchor": 0.5}, "aepo-arbitrary__loss": {"eps_high": 0.2},
    }.items():  # fmt: skip
        case = read_case(VECTORS / f"{name}.npz")
        changed = replace(case, params=case.params | change)
        assert not compare(case, adapter_of(case.slug, case.name)(changed)).passed, name


def test_other_shapes_are_taken_from_the_file(tmp_path):
    large = numpy.ones((5, 11))
    path = write(tmp_path, in_reward=large, in_logp=3 * large, in_ref_logp=large, out_reward=0.98 * large)
    assert check(path) == CaseResult("grpo-family", "verl-kl-in-reward", pytest.approx(0, abs=1e-15), 1e-9)


# --- comparison


@pytest.mark.parametrize(("recorded", "produced", "error"), [
    ([1.0], [1.0], 0), ([1.0], [1.5], 0.25), ([numpy.nan], [numpy.nan], 0), ([numpy.inf], [numpy.inf], 0), ([numpy.inf], [-numpy.inf], numpy.inf),
    ([numpy.nan], [0.0], numpy.inf), ([0.0], [numpy.nan], numpy.inf), ([], [], 0), ([3.0, -4.0], [3.0, -4.5], 0.1),
])  # fmt: skip
def test_the_rule_of_comparison(recorded, produced, error):
    assert largest_error(numpy.array(recorded), torch.tensor(produced, dtype=torch.float64)) == pytest.approx(error)


def test_only_the_named_positions_are_compared():
    recorded, produced = numpy.array([1.0, 2.0]), torch.tensor([1.0, 9.0])
    assert largest_error(recorded, Compared(produced, torch.tensor([True, False]))) == 0
    assert largest_error(recorded, Compared(produced, torch.tensor([False, True]))) > 1


def test_a_shape_that_differs_fails_by_name(tmp_path):
    assert check(write(tmp_path, out_reward=numpy.ones((3, 2)))).reason == "out_reward has shape [2, 3], recorded [3, 2]"


def test_an_output_that_nobody_produces_fails(tmp_path):
    assert check(write(tmp_path, out_other=numpy.ones(1))).reason == "out_other is not produced"


def test_several_wrong_outputs_are_counted():
    case = read_case(VECTORS / "grpo-family__verl-agg.npz")
    produced = {key: torch.as_tensor(value) + 1 for key, value in case.outputs.items()}
    assert re.fullmatch(rf"out_\w+ and {len(case.outputs) - 1} more differ", compare(case, produced).reason)


# --- damaged files


def truncated(folder):
    path = write(folder)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def flipped(folder):
    path = write(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = bytes(40)
    path.write_bytes(bytes(content))
    return path


def text(folder):
    path = write(folder)
    path.write_text("not an archive")
    return path


def npy(folder):
    path = write(folder)
    with path.open("wb") as file:
        numpy.save(file, numpy.ones(3))
    return path


def empty(folder):
    path = write(folder)
    path.write_bytes(b"")
    return path


def pickled(folder):
    return write(folder, in_reward=numpy.array([{"a": 1}], dtype=object))


def folder_of_that_name(folder):
    path = folder / "grpo-family__verl-agg.npz"
    path.mkdir()
    return path


@pytest.mark.parametrize("damage", [truncated, flipped, text, npy, empty, pickled, folder_of_that_name])
def test_a_damaged_file_is_a_failed_row(tmp_path, damage):
    result = check(damage(tmp_path))
    assert not result.passed
    assert result.error is None
    assert re.search(r"damaged|npz|directory|number", result.reason)
    assert "\n" not in row(result)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("meta", "words"), [
    (None, "no meta string"), ("{", "meta is not JSON"), ("[]", "not a JSON object"), ({"params": {}}, "names no tolerance"),
    ({"tolerance": "small"}, "names no tolerance"), ({"tolerance": -1}, "names no tolerance"), ({"tolerance": 1e-9, "params": []}, "params of meta"),
    ({"tolerance": 1e-9, "params": {}}, "meta has no parameter 'coef'"), ({"tolerance": 1e-9, "params": {"coef": "x"}}, "TypeError"),
])  # fmt: skip
def test_a_meta_that_says_too_little_is_a_failed_row(tmp_path, meta, words):
    assert words in check(write(tmp_path, meta=meta)).reason


@pytest.mark.usefixtures("unchecked")
def test_missing_and_unfit_inputs_are_failed_rows(tmp_path):
    assert "the file has no in_logp; it has logp2, ref_logp, reward" in check(write(tmp_path, in_logp=None, in_logp2=numpy.ones(1))).reason
    assert "the file has no in_logp; it has ref_logp, reward" in check(write(tmp_path, in_logp=numpy.array(["x"]))).reason  # words are no numbers
    assert "in_logp holds |S1, not numbers" in check(write(tmp_path, in_logp=numpy.array([b"x"]))).reason
    assert "RuntimeError" in check(write(tmp_path, in_logp=numpy.ones((7, 7)))).reason
    assert "records no out_* array" in check(write(tmp_path, out_reward=None)).reason
    assert check(write(tmp_path, name="no-case")).reason == "the name must be slug__case.npz"


# --- the run


def test_what_has_no_adapter_is_not_implemented(tmp_path):
    write(tmp_path, name="nobody__knows")
    write(tmp_path, name="grpo-family__verl-unknown")
    assert [result.reason for result in verify(tmp_path)] == ["not implemented"] * 2


def test_the_rows_and_the_last_line(tmp_path):
    write(tmp_path)
    write(tmp_path, name="grpo-family__verl-kl-in-reward-2", out_reward=numpy.ones((2, 3)))
    (tmp_path / "grpo-family__z.npz").write_text("")
    lines = []
    results = verify(tmp_path, show=lines.append)
    assert [line.split() for line in lines[:2]] == [
        ["grpo-family", "verl-kl-in-reward", "0", "1e-09", "PASS"], ["grpo-family", "verl-kl-in-reward-2", "0.01", "1e-09", "FAIL(out_reward", "differs)"],
    ]  # fmt: skip
    assert lines[2].startswith("grpo-family  z")
    assert "FAIL(damaged" in lines[2]
    assert lines[3] == "1 passed, 2 failed" == summary(results)
    assert table(results).splitlines() == lines


def test_only_the_slugs_that_were_asked_for(tmp_path):
    write(tmp_path)
    write(tmp_path, name="hapo__x")
    assert [result.slug for result in verify(tmp_path, ["hapo"])] == ["hapo"]
    with pytest.raises(UserError, match=r"no case of siren .*Slugs there: grpo-family, hapo"):
        verify(tmp_path, ["hapo", "siren"])


def test_a_folder_without_cases_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="holds no recorded case"):
        verify(tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        verify(tmp_path / "none")


def test_a_pattern_is_registered_once():
    with pytest.raises(ValueError, match="has an adapter already"):
        answers("grpo-family", "verl-agg*")(lambda case: {})
