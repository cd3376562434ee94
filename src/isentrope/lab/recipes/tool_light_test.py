"""Where episodes of the tool game are cut, and what goes on from there."""

import pytest
import torch

from isentrope.control.recipes.tool_light import Brancher
from isentrope.lab.recipes.embedded import task
from isentrope.lab.recipes.tool_light import LENGTH, _played, entropies, places, rules
from isentrope.measure.tokens import TopKEntropy, token_signals_from_logits
from isentrope.train.games import Reckon
from isentrope.train.models import load
from isentrope.train.turns import Episode, forked, opened


def test_cuts_by_hand():
    """Two actions of two and three tokens with a reply between; entropies 1, 0 and 2, 4, 0."""
    episode = Episode(Reckon(), [1])
    for turn, ids, wrote in ((0, [5, 6], True), (0, [7, 8, 9], False), (1, [5, 6, 7], True)):
        episode.append(ids, turn, {"entropy": [0.0] * len(ids)} if wrote else None)
    entropy = [1.0, 0.0, 2.0, 4.0, 0.0]
    assert places(episode, entropy, Brancher(prefixes=(1, 2, 3))) == [7, 1]  # means 2, 3, 2: two tokens of the second action stay; one of the first
    assert places(episode, [0.0, 5.0, 1.0, 0.0, 0.0], Brancher(prefixes=(2,), points=1)) == [5]  # the whole first action stays, and its reply
    assert places(episode, [0.0, 0.0, 1.0, 2.0, 6.0], Brancher(prefixes=(3,), points=1)) == [7]  # nothing goes on after the last token


@pytest.fixture(scope="module")
def played():
    loaded = load("embedded-tool")
    loaded.model.eval()
    torch.manual_seed(1)
    rows = [dict(row) for row in task("reckon").train.select(range(12))]
    episodes = opened(rules(), rows, loaded.tokenizer([str(row["prompt"]) for row in rows])["input_ids"])
    tokens = _played(loaded, episodes)
    assert tokens == sum(sum(episode.wrote) for episode in episodes)
    return loaded, episodes


def test_every_branch_goes_on_inside_its_episode(played):
    loaded, episodes = played
    for episode, entropy in zip(episodes, entropies(loaded, episodes), strict=True):
        cuts = places(episode, entropy)
        assert 1 <= len(cuts) <= min(3, len(episode.actions))
        assert all(episode.wrote[cut] for cut in cuts)
        more = [forked(episode, rules(), cut) for cut in cuts]
        _played(loaded, more)
        for cut, branch in zip(cuts, more, strict=True):
            assert branch.ids[:cut] == episode.ids[:cut]
            assert branch.ending
            assert len(branch.ids) <= LENGTH


def test_entropies_are_those_at_the_policys_own_tokens(played):
    loaded, episodes = played
    with torch.no_grad():
        for episode, found in zip(episodes[:3], entropies(loaded, episodes), strict=False):
            logits = loaded.model(input_ids=torch.tensor([episode.prompt_ids + episode.ids])).logits[:, len(episode.prompt_ids) - 1 : -1]
            exact = token_signals_from_logits(logits, torch.tensor([episode.ids]), [TopKEntropy(k=50)])["top_k_entropy[50]"][0]
            torch.testing.assert_close(torch.tensor(found), exact[torch.tensor(episode.wrote)].float(), rtol=0, atol=1e-5)
