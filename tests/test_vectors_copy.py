"""tests/vectors is the published folder of recorded outputs, byte for byte, and stays small."""

import hashlib
from pathlib import Path

import pytest

COPY = Path(__file__).parent / "vectors"
ORIGINAL = COPY.parents[2] / "shared" / "vectors"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_the_copy_has_its_readme_and_a_sensible_size():
    files = [path for path in COPY.iterdir() if path.is_file()]
    assert (COPY / "README.md") in files
    assert sum(path.suffix == ".npz" for path in files) >= 200
    assert sum(path.stat().st_size for path in files) < 4 * 2**20


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="../shared/vectors does not lie beside this checkout")
def test_the_copy_is_the_original():
    assert hashes(COPY) == hashes(ORIGINAL)
