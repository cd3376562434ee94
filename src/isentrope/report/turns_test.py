"""The turn section agrees with the tape, stays away where responses have one turn, and shows what was said as text only."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from isentrope.report import synthetic
from isentrope.report.data import Run, read
from isentrope.report.page import html
from isentrope.report.sections import turns


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    return read(synthetic.write(tmp_path_factory.mktemp("run"), updates=10, seed=3))


def talk(step: int, row: int, group: int, said: list[tuple[str, str]], reward: float, ending: str = "end") -> list[dict]:
    return [
        {"step": step, "row_id": row, "group": group, "turn": turn, "action": action, "reply": reply, "tokens": 3, "advantage": reward - 0.5,
         "reward": reward, "correct": reward, "ending": ending}
        for turn, (action, reply) in enumerate(said)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(plain) -> Run:
    """Ten updates; turn 0 has 30 tokens of 1 nat at first and 10 tokens of 0.1 nats less each update, turn 1 is taken from the third update on."""
    count = len(plain.steps)
    at = np.arange(count, dtype=float)
    second = np.where(at >= 2, 0.5, np.nan)
    steps = plain.steps.with_columns(
        pl.Series("turn-00/entropy", 1 - 0.1 * at), pl.Series("turn-00/tokens", np.where(at == 0, 30.0, 10.0)),
        pl.Series("turn-00/responses", np.full(count, 8.0)),
        pl.Series("turn-00/advantage", at), pl.Series("turn-01/entropy", second), pl.Series("turn-01/tokens", np.where(at >= 2, 4.0, np.nan)),
        pl.Series("turn-01/responses", np.where(at >= 2, 2.0, np.nan)), pl.Series("turn-01/advantage", -at), pl.Series("turns/mean", 1 + at / 10),
    )  # fmt: skip
    said = (
        talk(1, 1, 0, [("17", "more\n"), ("20", "found\n")], 1.0)
        + talk(1, 2, 1, [("", "a number\n")], 0.0, "budget")
        + talk(9, 3, 2, [("9", "")], 0.0, "step raised X")
    )
    return dataclasses.replace(plain, steps=steps, turns=pl.DataFrame(said))


def test_a_run_of_single_turns_has_no_such_section(plain):
    assert turns.section(plain) is None
    assert 'id="turns"' not in html(plain)


def test_means_by_turn_are_token_means_of_their_phase(run):
    found = turns.section(run)
    assert found is not None
    early, middle, late = found.charts["turns-entropy"]["series"]
    assert early["x"] == [1.0, 2.0]
    assert early["y"][0] == pytest.approx((30 * 1.0 + 10 * 0.9) / 40)
    assert np.isnan(early["y"][1])  # nobody took it
    assert late["y"] == pytest.approx([(0.2 + 0.1) / 2, 0.5])
    assert middle["y"][1] == pytest.approx(0.5)
    assert found.charts["turns-reach"]["series"][-1]["y"] == pytest.approx([1.0, 0.25])
    assert found.charts["turns-advantage"]["series"][-1]["y"] == pytest.approx([8.5, -8.5])
    assert "turn 1 from 0.975 to 0.150" in str(found.lead)


def test_an_episode_stands_there_as_it_was_played(run):
    found = turns.section(run)
    assert found is not None
    body = str(found.body)
    order = [
        body.index(part)
        for part in ('<div class="action">17</div>', '<div class="reply">more</div>', '<div class="action">20</div>', '<div class="reply">found</div>')
    ]
    assert order == sorted(order)
    assert '<div class="action empty">(nothing)</div>' in body
    assert "Cut: no token was left for another action." in body
    assert "The game failed: step raised X" in body


def test_what_was_said_is_text(run):
    hostile = [(text, text) for text in synthetic.HOSTILE]
    attacked = dataclasses.replace(run, turns=pl.DataFrame(talk(1, 1, 0, hostile, 1.0, synthetic.HOSTILE[0])))
    page = html(attacked)
    for text in ("<script>window", "<img src=x", "<svg onload", "\u202e", "\x00"):
        assert text not in page
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in page


def test_a_long_episode_is_cut_and_says_so(run):
    long = dataclasses.replace(run, turns=pl.DataFrame(talk(1, 1, 0, [("a", "b")] * 40, 1.0)))
    found = turns.section(long)
    assert found is not None
    assert str(found.body).count('class="action"') == turns.MAX_TURNS
    assert "and 16 more turns" in str(found.body)


@pytest.mark.parametrize("name", ["group", "turn", "action", "reply", "tokens", "advantage", "reward", "correct", "ending"])
@pytest.mark.parametrize("value", [None, "x", float("nan"), -1])
def test_an_odd_column_stops_no_page(run, tmp_path, name, value):
    """As it would be read from a tape that somebody else wrote."""
    folder = tmp_path / "tape" / "turns"
    folder.mkdir(parents=True)
    run.turns.with_columns(pl.lit(value).alias(name)).write_parquet(folder / "part-00000010.parquet")
    found = turns.section(dataclasses.replace(run, turns=read(tmp_path).turns))
    assert found is not None
    assert "Entropy by turn" in str(found.body)


def test_without_sampled_episodes_the_pictures_stand(run):
    bare = dataclasses.replace(run, turns=pl.DataFrame({"step": pl.Series([], dtype=pl.Int64)}))
    found = turns.section(bare)
    assert found is not None
    assert "Episodes" not in str(found.body)
