"""What a user gets by pip: the wheel holds the model, the presets and the page's parts, and no tests."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_what_a_run_needs(tmp_path):
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
        entry_points = next(archive.read(name).decode() for name in sizes if name.endswith("entry_points.txt"))
    assert "isentrope = isentrope.cli:main" in entry_points
    held = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/isentrope").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in held if not name.endswith("_test.py")} <= set(sizes)
    assert not [name for name in sizes if name.endswith("_test.py")]
    model = [size for name, size in sizes.items() if name.startswith("isentrope/assets/base-model/")]
    assert len(model) >= 3
    assert sum(model) <= 6_000_000
