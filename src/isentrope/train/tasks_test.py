"""Tasks: sides that cannot overlap, the adapter over reasoning-gym, JSONL files and their faults."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from isentrope.train.tasks import TaskError, auto, build, last_number, list_tasks, read_jsonl, side_of
from isentrope.train.worked import STYLES, Quality

REWARD = "isentrope.train.tasks_test:echo"


def echo(prompts, completions, **columns):
    return [float(c == p) for p, c in zip(prompts, completions, strict=True)]


def write(folder, *lines):
    file = folder / "task.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def prompts(n):
    return [json.dumps({"prompt": f"say {i}", "level": i % 3}) for i in range(n)]


@given(st.text(min_size=1), st.floats(0.01, 0.99))
def test_white_space_never_moves_a_prompt_to_the_other_side(text, share):
    assert side_of(text, share) == side_of(f"  {text}\n", share)


def test_the_sides_have_their_share():
    n = sum(side_of(f"{i}") == "validation" for i in range(20000))
    assert abs(n / 20000 - 0.125) < 4 * (0.125 * 0.875 / 20000) ** 0.5


@pytest.fixture(scope="module")
def sums():
    return build("sums")


def test_default_task_is_disjoint_compact_and_judged_by_reasoning_gym(sums):
    train, held = set(sums.train["prompt"]), set(sums.validation["prompt"])
    assert not train & held
    assert len(train) == len(sums.train) > 5000
    assert len(held) == len(sums.validation) > 500
    row = sums.train[0]
    a, b = row["prompt"].rstrip("=").split("+")
    assert int(a) + int(b) == int(row["answer"])
    completions = [f"1+1=2:{row['answer']}", f"<think>so {row['answer']}</think>{row['answer']}", row["answer"] + "1", "no number", ""]
    assert sums.reward_funcs[0](prompts=[row["prompt"]] * 5, completions=completions, index=[row["index"]] * 5) == [1, 1, 0, 0, 0]
    assert sums.describe()["train_prompts"] == len(sums.train)


def test_every_side_of_sums_think_is_that_of_sums(sums):
    think = build({"name": "sums-think", "size": 2000})
    assert think.train[0]["prompt"].endswith("=<think>")
    assert not {p.removesuffix("<think>") for p in think.train["prompt"]} & set(sums.validation["prompt"])


def test_duplicates_are_dropped_and_cannot_straddle(tmp_path):
    lines = prompts(60) + prompts(60) + [json.dumps({"prompt": f" say  {i} "}) for i in range(60)]
    task = build({"jsonl": write(tmp_path, *lines), "reward": REWARD, "validation_share": 0.3})
    keys = [" ".join(p.split()) for p in [*task.train["prompt"], *task.validation["prompt"]]]
    assert len(keys) == len(set(keys)) == 60


def test_any_reasoning_gym_dataset_gives_its_own_answers_full_marks():
    for name in ("basic_arithmetic", "spell_backward", "simple_equations"):
        task = build({"reasoning_gym": name, "size": 60, "seed": 3})
        rows = task.train.select(range(5))
        got = task.reward_funcs[0](prompts=rows["prompt"], completions=[f"<think>x</think> {a}" for a in rows["answer"]], index=rows["index"])
        assert got == [1.0] * 5, name


def test_the_seed_decides_the_prompts_and_chat_wraps_them():
    same, again, other = (build({"reasoning_gym": "chain_sum", "size": 40, "seed": s}) for s in (1, 1, 2))
    assert same.train["prompt"] == again.train["prompt"] != other.train["prompt"]
    chat = build({"reasoning_gym": "chain_sum", "size": 40, "seed": 1}, chat=True)
    assert chat.train[0]["prompt"] == [{"role": "user", "content": same.train[0]["prompt"]}]
    row = chat.train[0]
    completion = [[{"role": "assistant", "content": row["answer"]}]]
    assert chat.reward_funcs[0](prompts=[row["prompt"]], completions=completion, index=[row["index"]]) == [1.0]


def test_jsonl_columns_reach_the_reward(tmp_path):
    task = build({"jsonl": write(tmp_path, *prompts(40)), "reward": REWARD})
    assert task.train.column_names == ["prompt", "level"]
    assert task.name == "task"
    assert task.reward_funcs[0](prompts=["a"], completions=["a"], level=[1]) == [1.0]
    assert task.reward_funcs[0].__name__ == "echo"


def test_a_pydantic_spec_counts_none_as_absent(tmp_path):
    class Spec(BaseModel):
        name: str | None = None
        jsonl: str | None = None
        reward: str | None = None
        size: int | None = None

    assert build(Spec(jsonl=write(tmp_path, *prompts(40)), reward=REWARD)).name == "task"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "a"}', "{oops"], ("line 2", "not JSON")),
        (['{"prompt": "a"}', "", "[1]"], ("line 3", "string 'prompt'")),
        (['{"question": "a"}'], ("line 1", "string 'prompt'")),
        ([""], ("holds no rows",)),
    ],
)
def test_malformed_jsonl_names_file_and_line(tmp_path, lines, words):
    with pytest.raises(TaskError) as error:
        build({"jsonl": write(tmp_path, *lines), "reward": REWARD})
    assert all(word in str(error.value) for word in (*words, "task.jsonl"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sum", ("unknown task 'sum'", "'sums'")),
        ({"reasoning_gym": "chain_sums"}, ("chain_sums", "'chain_sum'")),
        ({"reasoning_gym": "chain_sum", "sizes": 3}, ("unknown field 'sizes'", "'size'")),
        ({"reasoning_gym": "chain_sum", "config": {"nope": 3}}, ("task.config", "nope")),
        ({"reasoning_gym": "chain_sum", "size": 1}, ("side is empty", "validation_share")),
        ({"reasoning_gym": "chain_sum", "validation_share": 12.5}, ("fraction in (0, 1)", "12.5")),
        ({"jsonl": "no/such/file.jsonl", "reward": REWARD}, ("no file", "no/such/file.jsonl")),
        ({"jsonl": "x.jsonl"}, ("task.reward", "pkg.mod:function")),
        ({}, ("task needs one of",)),
    ],
)
def test_what_bad_specs_get(spec, words):
    with pytest.raises(TaskError) as error:
        build(spec)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_read_jsonl_skips_blank_lines(tmp_path):
    from pathlib import Path

    assert read_jsonl(Path(write(tmp_path, '{"prompt": "a"}', "", '{"prompt": "b"}'))) == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("7+8=15,5+6+1=12:125", "125"),
        ("x\nso 125</think>125", "125"),
        ("12-5=7", "7"),
        ("5-7=-2", "-2"),
        ("it is -3.50.", "-3.50"),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text, want):
    assert last_number(text) == want


def test_auto_prefers_the_tag_then_what_follows_the_thoughts():
    assert auto("<think>1</think> <answer>2</answer> 3") == "2"
    assert auto("<think>1</think> 2 ") == "2"
    assert auto(" ") is None


def test_tasks_are_listed_presets_first():
    listed = list_tasks()
    assert [t.name for t in listed[:3]] == ["sums", "sums-think", "sums-chat"]
    assert {t.name for t in listed} >= {"reasoning-gym:chain_sum", "reasoning-gym:countdown"}
    assert all(t.summary for t in listed)


def test_a_writer_that_never_errs_is_right_in_every_style():
    from random import Random

    rng, perfect = Random(0), Quality(slip=0, lost_carry=0, miscopy=0, guess=0)
    for style in STYLES.values():
        for _ in range(300):
            a, b = rng.randrange(1000), rng.randrange(1000)
            if style.__name__ in ("tens", "think"):
                a, b = a % 100, b % 100
            assert last_number(style(a, b, perfect, rng)) == str(a + b)


# --- what a JSONL file can hold


def task_of(folder, *lines):
    return build({"jsonl": write(folder, *lines), "reward": REWARD})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt": "\xff"}', ["line 2 cannot be read", "utf-8"]),
        (b'{"prompt": "x", "completions": 1}', ["line 2 has a column 'completions'", "Rename"]),
        (b'{"prompt": "x", "image": "a.png"}', ["'image'"]),
        (b"[" * 100_000, ["line 2"]),
        (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", ["line 2 cannot be read"]),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, words):
    file = tmp_path / "task.jsonl"
    file.write_bytes(b'{"prompt": "first"}\n' + line + b"\n")
    with pytest.raises(TaskError) as error:
        read_jsonl(file)
    for word in words:
        assert word in str(error.value)


def test_unusual_lines_that_are_right(tmp_path):
    file = tmp_path / "task.jsonl"
    text = '{"prompt": "a\u2028b\u0085c", "key": 3}\r\n\n  \n{"prompt": "d", "group": "x"}'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_jsonl(file) == [{"prompt": "a\u2028b\u0085c", "key": 3}, {"prompt": "d", "group": "x"}]


def test_columns_named_as_ours_and_columns_that_some_rows_lack_reach_the_reward(tmp_path):
    task = task_of(tmp_path, *(json.dumps({"prompt": f"say {i}", "key": i, **({"group": str(i)} if i % 2 else {})}) for i in range(100)))
    for side in (task.train, task.validation):
        assert set(side.column_names) == {"prompt", "key", "group"}
        assert all(row["prompt"] == f"say {row['key']}" and row["group"] == (str(row["key"]) if row["key"] % 2 else None) for row in side)


def test_a_column_of_two_types_is_named(tmp_path):
    with pytest.raises(TaskError, match="a column must hold values of one type in all rows"):
        task_of(tmp_path, *(json.dumps({"prompt": f"say {i}", "answer": i if i % 2 else str(i)}) for i in range(100)))


def test_a_prompt_that_does_not_fit_names_what_the_entries_hold():
    with pytest.raises(TaskError, match=r"task\.prompt '\{metadata\[expresion\]\}' does not fit.*KeyError.*question, answer, metadata.*expression"):
        build({"name": "sums", "size": 10, "prompt": "{metadata[expresion]}"})


def test_correct_at_is_of_every_source(tmp_path):
    assert build({"name": "sums", "size": 200, "correct_at": 0.5}).correct_at == 0.5
    assert build({"jsonl": write(tmp_path, *prompts(100)), "reward": REWARD, "correct_at": 2.0}).correct_at == 2.0
    assert task_of(tmp_path, *prompts(100)).correct_at == 1.0


# --- games


class Broken:
    """A game that cannot begin with every seed."""

    def __init__(self, opening="go"):
        self.opening = opening

    def reset(self, seed):
        if seed == 3:
            raise KeyError("three")
        return self.opening

    def step(self, action):
        raise AssertionError("never played here")


def test_a_game_is_a_task_whose_prompts_are_its_openings_and_whose_sides_share_no_game():
    task = build("keys")
    assert task.game is not None
    sides = [{(row["prompt"], row["seed"]) for row in side} for side in (task.train, task.validation)]
    assert not sides[0] & sides[1]
    assert sum(map(len, sides)) == 400
    for prompt, seed in [*list(sides[0])[:5], *list(sides[1])[:5]]:
        assert task.game.game().reset(seed) == prompt
    assert task.extract("cnone\n71") == "71"
    assert (task.game.turns, task.game.turn_tokens) == (5, 4)


def test_the_reward_of_a_game_is_what_it_paid_and_a_fault_is_counted():
    task = build({"name": "keys", "size": 60})
    (reward,) = task.reward_funcs
    assert reward(prompts=["a:"] * 2, completions=["", ""], game_reward=[1.0, 0.0], game_fault=["", ""]) == [1.0, 0.0]
    assert reward(prompts=["a:"] * 2, completions=["", ""], game_reward=[1.0, 0.0], game_fault=["", "step raised KeyError: x"]) == [1.0, None]
    assert task.reward_faults() == {"keys/raised": 1}


def test_a_game_that_cannot_begin_is_refused_by_seed():
    path = "isentrope.train.tasks_test:Broken"
    with pytest.raises(TaskError, match=r"task.game .*Broken': reset\(3\) raised KeyError: 'three'"):
        build({"game": path})
    with pytest.raises(TaskError, match=r"reset\(0\) must return the text that the policy reads first. Got ' '"):
        build({"game": path, "arguments": {"opening": " "}})
    with pytest.raises(TaskError, match=r"unknown field 'turn_token'.* Did you mean 'turn_tokens'"):
        build({"game": "keys", "turn_token": 3})
    assert len(build({"game": path, "seed": 4, "size": 40}).train) > 0
