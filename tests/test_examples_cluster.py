"""The files that docs/cluster.md shows are those in examples/, and the launchers read them. verl's own reading of its file: tests/verl_host."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).parents[1]
SHOWN = ("examples/verl/chain.yaml", "examples/cluster/fsdp2.yaml", "examples/cluster/deepspeed_zero2.yaml")


@pytest.mark.parametrize("path", SHOWN)
def test_the_page_shows_the_file_as_it_is(path):
    assert (ROOT / path).read_text() in (ROOT / "docs" / "cluster.md").read_text()


@pytest.mark.parametrize(("path", "kind", "says"), [(SHOWN[1], "FSDP", {"fsdp_version": 2}), (SHOWN[2], "DEEPSPEED", {"zero_stage": 2})])
def test_accelerates_own_loader_reads_the_file(path, kind, says):
    found = load_config_from_file(str(ROOT / path))
    assert found.distributed_type == kind
    settings = found.fsdp_config if kind == "FSDP" else found.deepspeed_config
    assert settings.items() >= says.items()
