"""What the verl host says of every intervention, without verl: carried, or refused with a reason per stage and signal."""

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from isentrope.control.registry import build, registry
from isentrope.control.stages import STAGES, Intervention, stages_of
from isentrope.errors import UserError
from isentrope.train.verl_carried import ADVANTAGE_STAGES, ALGORITHM, LOSS, LOSS_STAGES, NOT_CARRIED, built, check_version, refuse_links, side, why_not


def test_every_stage_is_carried_on_one_side_or_refused_with_a_reason():
    assert set(STAGES) == LOSS_STAGES | ADVANTAGE_STAGES | set(NOT_CARRIED)
    assert not (LOSS_STAGES | ADVANTAGE_STAGES) & set(NOT_CARRIED)


@pytest.mark.parametrize("name", list(registry()))
def test_a_link_is_carried_under_one_key_or_refused_under_both(name):
    chain, link = build([name]), registry()[name]()
    reasons = why_not(link)
    refused = {}
    for where in (LOSS, ALGORITHM):
        with contextlib.suppress(UserError):
            refuse_links(chain, where)
            continue
        with pytest.raises(UserError) as found:
            refuse_links(chain, where)
        refused[where] = str(found.value)
    assert set(refused) == ({LOSS, ALGORITHM} if reasons else {LOSS, ALGORITHM} - {side(link)})
    for where, words in refused.items():
        assert words.startswith(f"{where}.chain: {name} ")
        assert (reasons[0] if reasons else f"Write it under {side(link)}.chain") in words
    if not reasons:
        assert set(stages_of(link)) <= (LOSS_STAGES if side(link) == LOSS else ADVANTAGE_STAGES)


class Later(Intervention):
    name = "later"

    def rows(self, rollouts, extra, state, rng): ...


def test_an_intervention_of_ones_own_is_judged_by_its_stages():
    assert why_not(Later()) == ("stage rows: it replaces or drops rows, and verl's advantage estimator gives back advantages only",)


def test_a_chain_that_is_no_list_is_refused():
    for wrong in ("clip-cov", {"name": "clip-cov"}, 3):
        with pytest.raises(UserError, match=r"policy_loss\.chain must be a list of names"):
            built(wrong, LOSS)


def test_another_verl_is_refused_with_the_versions_tested(monkeypatch):
    import isentrope.train.verl_carried as carried

    monkeypatch.setattr(carried, "version", lambda name: "0.8.0")
    with pytest.raises(UserError, match=r"verl 0\.8\.0 is not tested with this host; tested: 0\.9\.1\. pip install 'verl==0\.9\.1'"):
        check_version()


def test_the_rules_import_without_verl_and_without_a_trainer():
    code = "import sys; sys.modules['verl'] = None; import isentrope.train.verl_carried; print({'trl', 'ray', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_an_option_off_its_default_is_refused_only_with_the_link_that_means_the_same():
    from isentrope.train.verl_carried import refuse_options

    class Actor(SimpleNamespace):
        def get(self, key):
            return self.__dict__[key]

    actor = Actor(
        entropy_coeff=0, clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0, calculate_entropy=True,
        use_fused_kernels=False, strategy="fsdp",
    )  # fmt: skip
    refuse_options(actor, build(["clip-cov"]))
    with pytest.raises(UserError, match=r"clip_ratio_high=0\.28 and the intervention 'clip-higher' mean the same"):
        refuse_options(actor, build(["clip-higher"]))
