"""Every recipe is where it says it is, and the catalogue and the command know it."""

import importlib
import json
from pathlib import Path

import pytest

from isentrope.cli import main
from isentrope.control.recipes import __path__ as formulas
from isentrope.errors import UserError
from isentrope.lab import recipes as experiments
from isentrope.papers import catalogue, describe, listing
from isentrope.recipes import RECIPES, by_name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_where_it_says_it_is(recipe):
    module, experiment = importlib.import_module(recipe.module), importlib.import_module(recipe.experiment)
    assert (module.__doc__ or "").strip()
    assert next(iter(experiment.ARMS)) == "neutral"
    assert "placebo" in experiment.ARMS
    assert experiment.STEPS >= 100
    assert (Path(module.__file__ or "").parent / f"{Path(module.__file__ or '').stem}_test.py").is_file()


def test_every_file_of_formulas_is_listed():
    import pkgutil

    found = {module.name for module in pkgutil.iter_modules(formulas) if not module.name.endswith("_test")}
    assert found - {"mixture"} == {recipe.module.rpartition(".")[2] for recipe in RECIPES}


def test_the_catalogue_says_done_with_where_and_how():
    rows = catalogue()
    for recipe in RECIPES:
        row = next(row for row in rows if row["slug"] == recipe.slug)
        assert row["status"] == "done"
        found = next(item for item in row["recipes"] if item["name"] == recipe.name)
        assert (found["module"], found["command"], found["status"]) == (recipe.module, f"isentrope recipe {recipe.name}", "done")
        assert recipe.command in describe(row)
        assert found["verified"] in (["vectors"], ["identities"], ["identities", "inferred"])
    told = {item["name"]: item["verified"] for row in rows for item in row["recipes"]}
    assert (told["awm"], told["pld"], told["red"]) == (["vectors"], ["identities"], ["identities", "inferred"])
    assert "entropy-sft" in next(line for line in listing(rows).splitlines() if line.startswith("done") and " light-if " in line)


class Toy:
    """An experiment of no training."""

    STEPS = 3
    ARMS = {"neutral": "a", "ours": "b"}
    FIGURES = {"x": "number", "y": "number of ours"}
    calls: list = []

    @classmethod
    def arm(cls, name, seed, steps):
        cls.calls.append((name, seed))
        return {"x": seed + (name == "ours") * (1 + 0.1 * seed), **({"y": 5.0} if name == "ours" else {})}


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(experiments, "experiment", lambda recipe: Toy)
    Toy.calls = []
    return Toy


def test_a_killed_experiment_goes_on_where_it_was(toy, tmp_path, monkeypatch):
    whole = experiments.run("pld", tmp_path / "whole", seeds=2, show=str)
    toy.calls.clear()
    arm = Toy.arm

    def killed(name, seed, steps):
        if (name, seed) == ("ours", 1):
            raise KeyboardInterrupt
        return arm(name, seed, steps)

    monkeypatch.setattr(Toy, "arm", killed)
    with pytest.raises(KeyboardInterrupt):
        experiments.run("pld", tmp_path / "cut", seeds=2, show=str)
    monkeypatch.setattr(Toy, "arm", arm)
    toy.calls.clear()
    assert experiments.run("pld", tmp_path / "cut", seeds=2, show=str) == whole
    assert toy.calls == [("ours", 1)]


def test_the_table_pairs_the_seeds(toy, tmp_path):
    text = experiments.table(experiments.run("pld", tmp_path, seeds=3, show=str))
    assert "| neutral | 1 | - |" in text
    assert "| ours | 2.1 (+1.1 ± 0.25) | 5 |" in text  # gaps 1, 1.1, 1.2: 4.303 x 0.1 / sqrt 3
    assert "3 updates, 3 seeds" in text


def test_bad_input_is_told(toy, tmp_path):
    with pytest.raises(UserError, match=r"unknown recipe 'dpo'\. Recipes: entropy-sft"):
        experiments.find("dpo")
    with pytest.raises(UserError, match="--seeds and --steps must be at least 1"):
        experiments.run("pld", tmp_path, seeds=0)
    experiments.run("pld", tmp_path, seeds=1, show=str)
    with pytest.raises(UserError, match="holds pld with 3 steps"):
        experiments.run("pld", tmp_path, seeds=1, steps=4)
    (tmp_path / "recipe.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        experiments.run("pld", tmp_path, seeds=1)


def test_the_command_lists_and_runs(toy, tmp_path, capsys):
    assert main(["recipe"]) == 0
    assert set(by_name()) <= set(capsys.readouterr().out.split())
    assert main(["recipe", "pld", "--seeds", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert "| ours |" in out.out
    assert "ours seed 0: x 1" in out.err
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))["rows"]["ours"]["0"]["y"] == 5
    assert main(["recipe", "dpo"]) == 2
