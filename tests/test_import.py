"""`import isentrope`, its measures and its control load torch, numpy, jaxtyping and what these load themselves: nothing else of third parties."""

import json
import subprocess
import sys

import pytest

WALK = """
import importlib, pkgutil
for room in ("isentrope.measure", "isentrope.control"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if not module.name.endswith("_test"):
            importlib.import_module(module.name)
"""


def third_parties(code: str) -> set[str]:
    """Top-level packages in sys.modules after `code`, in a fresh interpreter, that are neither ours nor the standard library's."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return {name for name in json.loads(done.stdout.splitlines()[-1]) if name not in sys.stdlib_module_names} - {"isentrope", "__mp_main__"}


@pytest.fixture(scope="module")
def allowed() -> set[str]:
    return third_parties("import torch, numpy, jaxtyping")


def test_the_package_alone_loads_no_third_party():
    assert third_parties("import isentrope") <= third_parties("pass")


@pytest.mark.parametrize("code", ["import isentrope, isentrope.measure, isentrope.control", WALK], ids=["rooms", "every module of the rooms"])
def test_measure_and_control_load_torch_numpy_jaxtyping_alone(allowed, code):
    loaded = third_parties(code)
    assert loaded - allowed == set()
    assert "torch" in third_parties("import isentrope.measure")


@pytest.mark.parametrize(("code", "name"), [("import isentrope.tape", "polars"), ("import isentrope.config", "pydantic")])
def test_this_check_sees_what_is_loaded(allowed, code, name):
    assert name in third_parties(code) - allowed
