"""The contract of DESIGN section 5 over the whole registry: every intervention, every variant, in its embedded setting and as constructed."""

from dataclasses import replace

import pytest

from isentrope.control.papers import __path__ as papers
from isentrope.control.registry import registry
from isentrope.control.stages import stages_of
from isentrope.testing import checks, parametrize_with_checks, variants


@parametrize_with_checks(registry())
def test_contract(intervention, check):
    check(intervention)


AS_CONSTRUCTED = [kind() for kind in registry().values() if kind() != kind().embedded()]


@parametrize_with_checks(AS_CONSTRUCTED)
def test_contract_as_constructed(intervention, check):
    """The paper's own numbers may touch nothing in a small world, so whether it acts and what its placebo moves is not asked."""
    if check.slow or check.name in ("acts_somewhere", "placebo_keeps_the_budget"):
        pytest.skip("asked of the embedded setting")
    check(intervention)


def test_every_paper_file_is_registered():
    import pkgutil

    files = {module.name for module in pkgutil.iter_modules(papers) if not module.name.endswith("_test")}
    assert files == {kind.__module__.rpartition(".")[2] for kind in registry().values() if kind.slug is not None}


def test_what_has_no_paper_of_its_own_is_standard():
    from isentrope.control import standard

    assert {kind for kind in registry().values() if kind.slug is None} == {vars(standard)[name] for name in standard.__all__}


def test_names_are_command_line_words_and_slugs_name_the_file():
    for name, kind in registry().items():
        assert name == name.lower()
        assert name.replace("-", "").isalnum()
        assert kind.slug is None or kind.__module__.endswith("." + kind.slug.replace("-", "_"))


def test_expected_failures_give_reasons():
    names = {check.name for check in checks()}
    for kind in registry().values():
        for instance in variants(kind):
            assert set(instance.expected_failures) <= names
            assert all(len(reason) > 20 for reason in instance.expected_failures.values())


def test_variants_differ_in_a_formula_only():
    for kind in registry().values():
        for instance in variants(kind):
            default = kind().embedded()
            if "variant" in default.__dict__:
                assert replace(instance, variant=default.__dict__["variant"]) == default
            assert stages_of(instance) == stages_of(default)
