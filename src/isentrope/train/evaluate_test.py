"""Evaluation: deterministic, silent towards the training, and right about what it counts."""

import math
import random

import numpy
import pytest
import torch

from isentrope.measure.answers import answer_entropy
from isentrope.train.evaluate import _own_randomness, _played, evaluate
from isentrope.train.models import load
from isentrope.train.tasks import build


@pytest.fixture(scope="module")
def embedded():
    return load("embedded")


@pytest.fixture(scope="module")
def task():
    return build({"name": "sums", "size": 600})


def run(embedded, task, **options):
    settings = {"prompts": 6, "samples": 8, "seed": 3, "batch_size": 64, **options}
    return evaluate(embedded.model, embedded.tokenizer, task, **settings)


@pytest.fixture(scope="module")
def found(embedded, task):
    return run(embedded, task)


def test_same_seed_same_samples_and_another_seed_others(embedded, task, found):
    assert run(embedded, task) == found
    assert run(embedded, task, seed=4).samples != found.samples


def test_training_randomness_and_mode_are_left_alone(embedded, task):
    embedded.model.train()
    torch.manual_seed(1)
    numpy.random.seed(1)
    want = (torch.rand(3).tolist(), numpy.random.rand())
    torch.manual_seed(1)
    numpy.random.seed(1)
    run(embedded, task, samples=2)
    assert (torch.rand(3).tolist(), numpy.random.rand()) == want
    assert embedded.model.training
    assert all(parameter.grad is None for parameter in embedded.model.parameters())


def test_all_generators_get_their_states_back():
    """Python's own as well; apart, because run-time type checks draw from it on every call."""
    random.seed(1)
    want = random.random()
    random.seed(1)
    with _own_randomness(7, torch.device("cpu")):
        inside = random.random()
    assert random.random() == want != inside


def test_rows_are_those_of_the_tape_and_agree_with_the_samples(found):
    metrics = ["pass@1", "pass@2", "pass@4", "pass@8", "maj@8", "answer_entropy", "length", "entropy", "truncated"]
    assert [row["metric"] for row in found.rows] == metrics
    assert all(set(row) == {"metric", "value", "low", "high", "prompts", "samples"} for row in found.rows)
    assert all(row["low"] <= row["value"] <= row["high"] for row in found.rows)
    assert found.value("pass@1") == pytest.approx(sum(s["correct"] for s in found.samples) / 48)
    assert found.value("length") == pytest.approx(sum(s["length"] for s in found.samples) / 48)
    tokens = sum(s["length"] for s in found.samples)
    assert found.value("entropy") == pytest.approx(sum(s["entropy"] * s["length"] for s in found.samples) / tokens)
    groups = [[s["answer"] for s in found.samples if s["group"] == g] for g in range(6)]
    assert found.value("answer_entropy") == pytest.approx(sum(map(answer_entropy, groups)) / 6)
    with pytest.raises(KeyError, match="pass@3"):
        found.value("pass@3")


def test_entropy_is_that_of_a_scoring_forward_at_the_temperature(embedded, task):
    """The generation's own entropies equal those of one forward over prompt and completion."""
    found = run(embedded, task, prompts=2, samples=2, temperature=0.7)
    tokenizer, model, compared = embedded.tokenizer, embedded.model.eval(), 0
    for sample in found.samples:
        prompt = tokenizer(sample["prompt"], return_tensors="pt")["input_ids"]
        tail = tokenizer(sample["completion"])["input_ids"] + ([] if sample["truncated"] else [tokenizer.eos_token_id])
        if len(tail) != sample["length"]:
            continue  # sampled pieces need not be the tokenizer's own
        with torch.no_grad():
            logits = model(torch.cat([prompt, torch.tensor([tail])], 1)).logits[0, prompt.shape[1] - 1 : -1] / 0.7
        assert sample["entropy"] == pytest.approx(float(torch.distributions.Categorical(logits=logits).entropy().mean()), abs=1e-4)
        compared += 1
    assert compared


def test_greedy_limit_has_no_answer_entropy_and_a_short_limit_truncates(embedded, task):
    cold = run(embedded, task, temperature=1e-3)
    assert cold.value("answer_entropy") < 0.05
    assert cold.value("entropy") < 0.05
    short = run(embedded, task, max_completion_length=1)
    assert short.value("truncated") == 1.0
    assert short.value("length") == 1.0


def test_a_reward_that_fails_counts_as_wrong(embedded, task):
    from dataclasses import replace

    from isentrope.train.rewards import GuardedReward

    broken = replace(task, reward_funcs=(GuardedReward(lambda **_: 1 / 0, name="broken"),))
    found = run(embedded, broken, samples=2)
    assert found.value("pass@1") == 0.0
    assert {s["reward"] for s in found.samples} == {None}
    assert broken.reward_faults() == {"broken/raised": 12}


def test_bad_counts_are_refused_by_name(embedded, task):
    for options, word in [({"samples": 0}, "samples"), ({"temperature": 0.0}, "temperature"), ({"batch_size": 0}, "batch_size")]:
        with pytest.raises(ValueError, match=f"evaluate: {word} must be"):
            run(embedded, task, **options)


@pytest.mark.slow
def test_the_base_model_is_calibrated(embedded):
    """Held-out prompts of the default task: issue 2, section 2."""
    found = evaluate(embedded.model, embedded.tokenizer, build("sums"), prompts=256, samples=16, seed=0, batch_size=1024)
    assert 0.10 <= found.value("pass@1") <= 0.40
    assert found.value("pass@16") >= 0.80
    assert found.value("entropy") >= 0.30
    assert math.isfinite(found.value("maj@16"))


def test_rewards_get_what_trl_gives_them_and_the_first_says_what_is_correct(embedded, tmp_path, monkeypatch):
    (tmp_path / "two_rewards.py").write_text(
        "seen = {}\n"
        "def judge(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, group, **_):\n"
        "    log_extra('length', completions); log_metric(name='x', value=1.0); seen.update(ids=completion_ids, state=trainer_state, group=group)\n"
        "    return [0.5 * (row % 2) for row in range(len(prompts))]\n"
        "def shape(completions, **_):\n"
        "    return [5.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(f'{{"prompt": "{i}+{i}=", "group": "g{i}"}}' for i in range(10, 99)))
    task = build({"jsonl": str(file), "reward": ["two_rewards:judge", "two_rewards:shape"], "correct_at": 0.5})
    found = run(embedded, task, prompts=2, samples=4, trainer_state="state")
    assert task.reward_faults() == {}
    assert [row["correct"] for row in found.samples] == [False, True] * 4
    assert [row["reward"] for row in found.samples] == [5.0, 5.5] * 4
    assert found.value("pass@1") == 0.5
    import two_rewards

    assert [len(ids) for ids in two_rewards.seen["ids"]] == [row["length"] for row in found.samples]
    assert two_rewards.seen["state"] == "state"
    assert len(set(two_rewards.seen["group"])) == 2


def test_entropies_of_an_episode_are_those_of_its_row_read_at_once():
    """Turn by turn with left padding, or the whole row in one pass: the same entropies, on the tokens that the policy wrote."""
    loaded, task = load("embedded-game"), build("keys")
    assert task.game is not None
    rows = [dict(row) for row in task.validation.select(range(3)) for _ in range(4)]
    with torch.no_grad(), _own_randomness(5, torch.device("cpu")):
        found = _played(loaded.model.eval(), loaded.tokenizer, rows, 0.7, 48, task.game)
    for row, response in zip(rows, found, strict=True):
        prompt = loaded.tokenizer(row["prompt"])["input_ids"]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + response["completion_ids"]])).logits[0, len(prompt) - 1 : -1] / 0.7
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        wrote, own = [], True  # plain replies: the policy's tokens end with the end token, the environment's with a line
        for token in response["completion_ids"]:
            wrote.append(own)
            own = own if token not in (loaded.tokenizer.eos_token_id, loaded.tokenizer("\n")["input_ids"][0]) else not own
        assert response["length"] == sum(wrote)
        assert response["entropy"] == pytest.approx(float(entropy[torch.tensor(wrote)].mean()), abs=1e-4)


def test_episodes_are_judged_by_their_game():
    loaded = load("embedded-game")
    found = evaluate(loaded.model, loaded.tokenizer, build("keys"), prompts=4, samples=8, batch_size=16)
    rewards = [sample["reward"] for sample in found.samples]
    assert set(rewards) == {0.0, 1.0}
    assert found.value("pass@1") == pytest.approx(sum(rewards) / len(rewards))
    assert all(sample["turns"] == 5 for sample in found.samples if sample["reward"] == 0)
    assert all(sample["answer"] == sample["completion"].split("\n")[-1] for sample in found.samples)
