"""Sources of a configuration, their order, and the sentences for what is wrong."""

from pathlib import Path

import pytest
import yaml

from isentrope.config import Config, differences, known_keys, load, parse_yaml, presets, read_preset, validate
from isentrope.errors import UserError


@pytest.fixture
def write(tmp_path):
    def _write(text: str) -> Path:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return _write


# --- sources


def test_later_sources_win(write):
    file = write("preset: demo\nseed: 3\ntrl: {max_steps: 7, beta: 0.1}\nout: from-file\n")
    config = load(file, sets=["trl.max_steps=12", "evaluate.prompts=8"], seed=5, out="here")
    assert (config.trl["max_steps"], config.trl["beta"], config.trl["num_generations"]) == (12, 0.1, read_preset("demo")["trl"]["num_generations"])
    assert (config.seed, config.out, config.evaluate.prompts) == (5, "here", 8)
    assert config.preset == "demo"


def test_the_flag_preset_replaces_the_one_of_the_file(write):
    assert load(write("preset: demo\n"), preset="control-check").task.name == read_preset("control-check")["task"]["name"]


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_configuration_and_survives_its_own_dump(name, write):
    config = load(preset=name)
    assert config.trl["max_steps"] > 0
    assert load(write(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        ("trl.learning_rate=1e-4", "trl.learning_rate", 1e-4),
        ("trl.learning_rate=3.0e-4", "trl.learning_rate", 3e-4),
        ("trl.bf16=false", "trl.bf16", False),
        ("trl.epsilon_high=null", "trl.epsilon_high", None),
        ("trl.run_name='7'", "trl.run_name", "7"),
        ("trl.report_to=[tensorboard, wandb]", "trl.report_to", ["tensorboard", "wandb"]),
        ("task.config={min_terms: 2, max_digits: 1}", "task.config", {"min_terms": 2, "max_digits": 1}),
        ("task.config.max_digits=3", "task.config", {"max_digits": 3}),
        ("trl.run_name=a=b", "trl.run_name", "a=b"),
        ("evaluate.every=null", "evaluate.every", None),
        ("control=clip-cov", "control", [{"name": "clip-cov"}]),
        ("control=[clip-cov, {name: siren, beta: 0.01}]", "control", [{"name": "clip-cov"}, {"name": "siren", "beta": 0.01}]),
        ("model=smollm2", "model.name", "smollm2"),
    ],
)
def test_set_reads_yaml(item, path, value):
    found = load(sets=[item]).model_dump()
    for key in path.split("."):
        found = found[key]
    assert found == value
    assert type(found) is type(value)


def test_sets_build_on_each_other_and_on_a_section_that_is_a_name(write):
    assert load(sets=["model=smollm2", "model.dtype=auto"]).model.model_dump(exclude_none=True) == {"name": "smollm2", "dtype": "auto"}
    assert load(write("model: smollm2\n"), sets=["model.dtype=auto"]).model.name == "smollm2"
    assert load(write("task: sums-think\n"), sets=["task.size=40"]).task.model_dump(exclude_none=True) == {"name": "sums-think", "size": 40}


def test_another_source_of_prompts_replaces_the_task_whole():
    task = load(preset="demo", sets=["task.reasoning_gym=chain_sum", "task.size=9"]).task
    assert task.model_dump(exclude_none=True) == {"reasoning_gym": "chain_sum", "size": 9}
    assert load(preset="demo", sets=["task.size=9"]).task.name == "sums"


def test_an_empty_section_is_the_default(write):
    assert load(write("trl:\nmodel:\ncontrol:\n")) == Config()


# --- what is wrong


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["evaluate.promts=3"], ["unknown key evaluate.promts", "'evaluate.prompts'", "evaluate takes:"]),
        (["modle=embedded"], ["unknown key modle", "'model'"]),
        (["max_steps=12"], ["unknown key max_steps", "'trl.max_steps'"]),
        (["evaluate.temperature=1"], ["unknown key evaluate.temperature", "'trl.temperature'"]),
        (["tape.every=1"], ["unknown key tape.every", "'evaluate.every'"]),
        (["zzz.y=1"], ["unknown key zzz", "Did you mean"]),
        (["task.sise=3"], ["unknown key task.sise", "'task.size'"]),
    ],
)
def test_an_unknown_key_names_the_nearest(sets, words):
    with pytest.raises(UserError) as found:
        load(sets=sets)
    for word in words:
        assert word in str(found.value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("evaluate.every=-1", ["evaluate.every", "must be greater than 0", "Got -1", "Off is null"]),
        ("evaluate.prompts=many", ["evaluate.prompts", "integer", "'many'"]),
        ("seed=-2", ["seed", "Got -2"]),
        ("model.dtype=float16", ["model.dtype", "'float32'", "'float16'"]),
        ("task.validation_share=1.5", ["task.validation_share", "less than 1", "1.5"]),
        ("control=[{ratio: 1}]", ["control", "name"]),
        ("control=3", ["control", "list"]),
        ("trl=3", ["trl", "dictionary"]),
        ("trl.output_dir=x", ["trl.output_dir", "use out instead"]),
        ("trl.seed=1", ["trl.seed", "use seed instead"]),
        ("trl.eval_steps=1", ["evaluate.every"]),
        ("trl.max_steps", ["key.path=value", "'trl.max_steps'"]),
        ("=3", ["key.path=value"]),
        ("trl..x=3", ["key.path=value"]),
        ("control=[a", ["not YAML"]),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(item, words):
    with pytest.raises(UserError) as found:
        load(sets=[item])
    for word in words:
        assert word in str(found.value)


def test_a_plain_value_has_no_keys():
    with pytest.raises(UserError, match=r"seed.*plain value"):
        load(sets=["seed=3", "seed.x=1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", ["must hold sections", "list"]),
        ("trl: {a: [}\n", ["is not YAML"]),
        ("seed: 1\nseed: 2\n", ["'seed' stands here twice"]),
        ("preset: dmo\n", ["unknown preset 'dmo'", "'demo'"]),
    ],
)
def test_a_file_that_is_no_configuration(text, words, write):
    with pytest.raises(UserError) as found:
        load(write(text))
    for word in words:
        assert word in str(found.value)


def test_a_missing_file_names_the_presets():
    with pytest.raises(UserError, match=r"no file nowhere\.yaml.*demo"):
        load("nowhere.yaml")


def test_all_faults_are_told_at_once():
    with pytest.raises(UserError) as found:
        load(sets=["evaluate.prompts=0", "tape.token_rows=0"])
    assert "evaluate.prompts" in str(found.value)
    assert "tape.token_rows" in str(found.value)


# --- the rest


def test_differences_leave_out_where_it_lies():
    before, after = load(preset="demo", out="a"), load(preset="demo", out="b", sets=["trl.max_steps=3", "model.name=x"])
    assert differences(before, before) == []
    assert differences(before, after) == ["model.name: 'embedded' -> 'x'", f"trl.max_steps: {before.trl['max_steps']} -> 3"]


def test_every_key_is_described():
    for section, keys in known_keys().items():
        kind = Config if section == "" else Config.model_fields[section].annotation
        for key in keys:
            if section or key not in known_keys():
                assert kind.model_fields[key].description, f"{section}.{key}"


def test_yaml_reads_numbers_and_no_objects():
    assert parse_yaml("[1e-4, 1.5e3, 0x1f, 1e4x, '1e-4']") == [1e-4, 1500.0, 31, "1e4x", "1e-4"]
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_a_configuration_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 3


def test_plain_data_is_validated_too():
    assert validate({"task": "sums-think"}).task.name == "sums-think"
    with pytest.raises(UserError, match="nme"):
        validate({"task": {"nme": "sums"}})
