"""What changed between the first and the last evaluation, against counts made by hand."""

import dataclasses
import itertools
import json
import math

import numpy as np
import polars as pl
import pytest

from isentrope.train.evaluate import evaluate
from isentrope.train.models import load
from isentrope.train.shift import ENTROPIES, PLACES, TENTHS, chance_flips, ends, majorities, majority, profile, prompt_rows, support_figures, tenths
from isentrope.train.tasks import build


def response(group: int, length: int, correct: bool, answer: str | None, entropies: list[float]) -> dict:
    sums = [0.0] * TENTHS
    for at, value in enumerate(entropies):
        sums[at * TENTHS // length] += value
    return {"group": group, "prompt": f"p{group}", "length": length, "correct": correct, "answer": answer, "entropy": sum(entropies) / length, "tenths": sums}


def rows(step: int, correct: list[int], entropy: float = 1.0, samples: int = 4, **columns) -> list[dict]:
    return [
        {"step": step, "group": at, "samples": samples, "correct": right, "tokens": 10 * (at + 1), "entropy": entropy, **columns}
        for at, right in enumerate(correct)
    ]


def frame(*parts: list[dict]) -> pl.DataFrame:
    return pl.DataFrame([row for part in parts for row in part])


@pytest.mark.parametrize("length", [1, 3, 10, 11, 48])
def test_tenths_hold_every_token_once_in_order(length):
    counted = tenths(length)
    assert counted.sum() == length
    assert len(counted) == TENTHS
    assert length < TENTHS or counted.max() - counted.min() <= 1


def test_a_prompt_row_is_the_token_mean_of_its_parts():
    drawn = [response(0, 2, True, "7", [1.0, 3.0]), response(0, 1, False, None, [5.0]), response(0, 1, False, None, [7.0])]
    (row,) = prompt_rows(drawn, 3)
    assert (row["samples"], row["correct"], row["tokens"]) == (3, 1, 4)
    assert (row["entropy"], row["entropy/right"], row["entropy/wrong"]) == (4.0, 2.0, 6.0)
    assert (row["tokens/tenth-01"], row["entropy/tenth-01"]) == (3, 13 / 3)
    assert (row["tokens/tenth-06"], row["entropy/tenth-06"]) == (1, 3.0)
    assert row["entropy/tenth-02"] is None
    assert json.loads(row["answers"]) == [[None, 2], ["7", 1]]


def test_rows_of_a_real_evaluation_agree_with_its_figures():
    embedded = load("embedded")
    found = evaluate(embedded.model, embedded.tokenizer, build({"name": "sums", "size": 600}), prompts=3, samples=4, seed=3, batch_size=5)
    made = found.by_prompt()
    assert [row["group"] for row in made] == [0, 1, 2]
    assert set(ENTROPIES) <= set(made[0])
    tokens = sum(row["tokens"] for row in made)
    assert sum(row["correct"] for row in made) / 12 == pytest.approx(found.value("pass@1"))
    for parts in ([""], ["/right", "/wrong"], [f"/{place}" for place in PLACES]):
        assert sum(row[f"tokens{part}"] for row in made for part in parts) == tokens
        total = sum(row[f"tokens{part}"] * (row[f"entropy{part}"] or 0) for row in made for part in parts)
        assert total / tokens == pytest.approx(found.value("entropy"))


def test_support_of_a_run_by_hand():
    found = support_figures(frame(rows(0, [4, 1, 2, 0, 0]), rows(10, [0, 0, 0, 0, 0]), rows(20, [4, 3, 0, 1, 0])))
    counts = {name: found[f"support.{name}"] for name in ("preserved", "expanded", "shrunk", "out", "prompts", "samples")}
    assert counts == {"preserved": 2, "expanded": 1, "shrunk": 1, "out": 1, "prompts": 5, "samples": 4}
    assert (found["support.srr"], found["support.ndr"], found["support.nscr"]) == (2 / 3, 1 / 3, 0.0)
    assert 0 <= found["support.srr.low"] <= 2 / 3 <= found["support.srr.high"] <= 1
    assert found["support.detectable_mass"] == pytest.approx(1 - 0.05**0.25)
    json.dumps(found, allow_nan=False)


def test_an_undefined_rate_is_none_and_not_zero():
    found = support_figures(frame(rows(0, [0, 0]), rows(5, [0, 0])))
    assert (found["support.srr"], found["support.ndr.low"], found["support.out"]) == (None, None, 2)


def test_prompts_lost_by_chance_are_those_of_every_deal():
    """All c right answers in the second half, counted over all deals of 2n cards."""
    for n, right in ((2, 1), (2, 2), (3, 2), (3, 3), (3, 4)):
        deals = [set(deal) for deal in itertools.combinations(range(2 * n), right)]
        share = sum(all(card >= n for card in deal) for deal in deals) / len(deals)
        assert chance_flips(np.array([0]), np.array([right]), n) == pytest.approx(share)


@pytest.mark.parametrize(
    "answers",
    [
        pl.DataFrame(),
        frame(rows(0, [1, 2])),
        frame(rows(5, [1, 2]), rows(10, [1, 2])),  # no evaluation of the base: the tape began before the table did
        frame(rows(0, [1, 2]), rows(10, [1])),
        frame(rows(0, [1, 2]), rows(10, [1, 2], samples=8)),
        frame(rows(0, [9, 9]), rows(10, [9, 9])),
        frame(rows(0, [1]), rows(10, [1])).with_columns(pl.lit("x").alias("correct")),
        frame(rows(0, [1]), rows(10, [1])).with_columns(pl.lit(math.nan).alias("correct")),
    ],
)
def test_without_two_ends_there_is_nothing(answers):
    assert ends(answers) is None
    assert support_figures(answers) == {}
    assert profile(answers) == []


def test_the_profile_weighs_prompts_by_their_tokens_and_keeps_their_class():
    start, end = rows(0, [0, 1, 4]), rows(9, [4, 4, 0], entropy=0.5)
    start[1]["entropy"], end[2]["entropy"] = 2.0, 4.0
    found = {context.name: context for context in profile(frame(start, end))}
    assert list(found) == ["never right at the start", "right in less than half", "right in half or more"]
    assert (found["right in less than half"].start, found["right in less than half"].end) == (2.0, 0.5)
    assert found["right in half or more"].change == 3.0
    kinds = frame(start, end).with_columns(pl.Series("kind", ["b", "a", "a"] * 2))
    found = {context.name: context for context in profile(kinds)}
    assert list(found) == ["a", "b"]
    assert found["a"].start == pytest.approx((20 * 2.0 + 30 * 1.0) / 50)
    assert found["a"].low is not None
    assert found["a"].low <= found["a"].change <= found["a"].high


def test_the_profile_does_not_hear_padding_or_the_order_of_rows():
    answers = frame(rows(0, [0, 1, 4]), rows(9, [4, 4, 0], entropy=0.5))
    assert profile(answers.sample(fraction=1.0, shuffle=True, seed=1)) == profile(answers)
    assert profile(pl.concat([answers, answers.filter(pl.col("group") == 1)])) == profile(answers)


def test_a_context_without_tokens_at_one_end_has_no_change():
    answers = frame(rows(0, [0, 1], **{"tokens/right": 0, "entropy/right": None}), rows(9, [4, 4], **{"tokens/right": 3, "entropy/right": 0.25}))
    (right,) = [context for context in profile(answers) if context.kind == "responses"]
    assert (right.start, right.end, right.change, right.low) == (None, 0.25, None, None)
    assert dataclasses.astuple(right)[:3] == ("responses", "right", 2)


# --- majorities


def votes(*said: tuple[str | None, bool]) -> list[dict]:
    return [{"answer": answer, "correct": right} for answer, right in said]


def test_a_majority_is_the_most_frequent_answer_and_its_verdict():
    assert majority(votes(("4", True), ("5", False), ("4", True))) == 1
    assert majority(votes(("4", True), ("5", False), ("5", False))) == 0
    assert majority(votes(("4", True), ("5", False))) == 0.5
    assert majority(votes((None, False), (None, False), ("4", True))) == 1  # no answer is no vote
    assert majority(votes((None, False))) is None
    assert prompt_rows([response(0, 1, True, "7", [1.0]), response(0, 1, False, "8", [1.0]), response(0, 1, True, "7", [1.0])], 3)[0]["majority"] == 1


def test_what_became_of_majorities_by_hand():
    start = [row | {"majority": value} for row, value in zip(rows(0, [3, 1, 1, 2, 0]), (1.0, 0.0, 0.0, 0.5, None), strict=True)]
    end = [row | {"majority": value} for row, value in zip(rows(9, [4, 0, 4, 4, 0]), (1.0, 0.0, 1.0, 1.0, None), strict=True)]
    right, wrong, tied = majorities(frame(start, end))
    assert (right.first, right.prompts, right.start, right.end, right.low) == ("right", 1, 0.75, 1.0, None)
    assert (wrong.first, wrong.prompts, wrong.start, wrong.end, wrong.right, wrong.wrong) == ("wrong", 2, 0.25, 0.5, 1, 1)
    assert wrong.low == -0.25
    assert wrong.high == 0.75
    assert (tied.first, tied.prompts, tied.start, tied.end, tied.right, tied.wrong) == ("tied or none", 2, 0.25, 0.5, 1, 0)
    assert majorities(frame(rows(0, [1]), rows(9, [2]))) == []  # a tape of before this column
