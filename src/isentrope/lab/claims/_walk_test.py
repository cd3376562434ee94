"""Updates one by one are those of a training, and a token by itself does what the closed form says."""

import pytest
import torch

from isentrope.control.objectives import Objective
from isentrope.control.papers.steer import Steer
from isentrope.explain.theory import token_change
from isentrope.lab.claims._walk import alone, correlation, walk
from isentrope.lab.claims._worlds import forks
from isentrope.lab.tabular import Settings, exact, train

SETTINGS = Settings(updates=3, samples=4, inner=2, rate=2.0)


@pytest.mark.parametrize("link", [None, Steer(low=0.5)])
def test_a_walk_is_the_training(link):
    objective = Objective.named("dapo")
    moments = list(walk(forks(0), seed=1, settings=SETTINGS, objective=objective, link=link))
    history = train(forks(0), () if link is None else link, seed=1, objective=objective, settings=SETTINGS)
    assert len(moments) == 6
    assert torch.equal(moments[-1].after.own, history.world.own)
    assert exact(moments[-1].after).entropy == history["entropy"][-1]


def test_a_token_alone_does_what_the_closed_form_says():
    moment = next(walk(forks(0), seed=1, settings=SETTINGS, objective=Objective.named("dapo")))
    predicted = token_change(moment.log_probs, moment.token, moment.advantage)
    misses = [float((alone(moment, step) - step * predicted).norm()) for step in (0.02, 0.01)]
    assert misses[0] / misses[1] == pytest.approx(4.0, abs=0.2)
    assert correlation(alone(moment, 0.01), predicted) > 0.999


def test_the_change_is_that_of_the_same_tokens():
    moment = next(walk(forks(0), seed=1, settings=SETTINGS, objective=Objective.named("dapo")))
    still = type(moment)(moment.before, moment.before, moment.rollouts, moment.prompt)
    assert still.change == 0.0
    assert moment.change != 0.0
