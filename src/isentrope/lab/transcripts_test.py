"""Conversations of a tiny model: who reads whom, and entropies that are those of the distributions the tokens came from."""

import pytest
import torch

from isentrope.lab.transcripts import ROLES, Said, asked, converse
from isentrope.measure.agents import call_statistics, round_of
from isentrope.train.models import LoadedModel, load
from isentrope.train.tiny import save_tiny_model

QUESTIONS = ["1+1=", "abc 22+5="]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> LoadedModel:
    return load(save_tiny_model(tmp_path_factory.mktemp("tiny")))


def said(text: str, agent: str = "a", number: int = 1, pieces: tuple[str, ...] | None = None) -> Said:
    pieces = tuple(text) if pieces is None else pieces
    values = torch.arange(len(pieces), dtype=torch.float32)
    return Said(agent, number, text, torch.zeros(len(pieces), dtype=torch.long), values, 2 * values, pieces)


def test_entropies_are_those_of_the_model_and_of_what_was_sampled_from(tiny):
    talks = converse(tiny, QUESTIONS, "single", rounds=1, temperature=0.7, top_p=0.8, max_tokens=6)
    for question, (one,) in zip(QUESTIONS, talks, strict=True):
        context = tiny.tokenizer(f"{question}\n{ROLES['single'][0].task}\n")["input_ids"]
        with torch.no_grad():
            logits = tiny.model(torch.tensor([context + one.ids.tolist()])).logits[0, len(context) - 1 : -1].double()
        p = logits.softmax(-1)
        torch.testing.assert_close(one.full.double(), torch.special.entr(p).sum(-1), rtol=1e-4, atol=1e-5)
        ordered, place = (logits / 0.7).softmax(-1).sort(descending=True)
        kept = ordered * (ordered.cumsum(-1) - ordered < 0.8)  # the fewest of the most likely that hold 0.8
        torch.testing.assert_close(one.sampled.double(), torch.special.entr(kept / kept.sum(-1, keepdim=True)).sum(-1), rtol=1e-3, atol=1e-4)
        drawn = (place == one.ids[:, None]).double()
        assert (kept * drawn).sum(-1).gt(0).all()  # nothing was drawn that was filtered
        assert (one.sampled <= one.full + 1).all()
        assert call_statistics(one.full)["tokens"] == len(one.ids) <= 6


def test_a_conversation_is_the_same_for_one_seed_and_leaves_the_generator_alone(tiny):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, other = (converse(tiny, QUESTIONS, "debate", rounds=1, max_tokens=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    texts = [[[said.text for said in talk] for talk in talks] for talks in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("topology", list(ROLES))
def test_every_agent_speaks_once_a_round_in_order(tiny, topology):
    talks = converse(tiny, QUESTIONS, topology, rounds=2, max_tokens=3)
    names = [role.name for role in ROLES[topology]]
    for talk in talks:
        assert [one.agent for one in talk] == names * 2
        assert [one.round for one in talk] == [round_of(order, topology) for order in range(1, len(talk) + 1)]


def test_who_reads_whom(tiny):
    debate = [said(f"word{letter}", f"debater {letter}", 1) for letter in "ABC"]
    first, second = (asked(tiny, "Q", ROLES["debate"][0], number, debate if number == 2 else []) for number in (1, 2))
    assert "What was said" not in first
    assert "debater B: wordB" in second
    assert "debater C: wordC" in second
    assert "wordA" not in second
    chain = [said("plan", "planner", 1), said("solution", "solver", 1), said("old", "judge", 0)]
    assert "plan" in asked(tiny, "Q", ROLES["sequential"][2], 1, chain)
    assert "old" not in asked(tiny, "Q", ROLES["sequential"][2], 1, chain)
    assert "old" in asked(tiny, "Q", ROLES["sequential"][0], 1, chain)
    experts = [said(f"view{letter}", f"expert {letter}", 1) for letter in "ABC"] + [said("sum", "orchestrator", 1)]
    assert all(f"view{letter}" in asked(tiny, "Q", ROLES["centralized"][3], 1, experts[:3]) for letter in "ABC")
    again = asked(tiny, "Q", ROLES["centralized"][0], 2, experts)
    assert "sum" in again
    assert "view" not in again


def test_the_answer_is_the_last_number_and_its_tokens_are_found():
    one = said("so 12 + 3 is 1,015.", pieces=("so", " 12", " +", " 3", " is", " 1", ",0", "15", "."))
    assert one.answer() == "1015"
    assert one.span("full").tolist() == [5, 6, 7]
    assert one.span("sampled").tolist() == [10, 12, 14]
    assert said("no idea").answer() is None
    assert len(said("no idea").span("full")) == 0
    assert said("-4.5").answer() == "-4.5"


def test_what_makes_no_sense_is_refused(tiny):
    with pytest.raises(ValueError, match="must be one of single, debate"):
        converse(tiny, QUESTIONS, "parliament")
    for wrong in ({"rounds": 0}, {"temperature": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="rounds >= 1, temperature > 0"):
            converse(tiny, QUESTIONS, "single", **wrong)
    assert converse(tiny, [], "single") == []
