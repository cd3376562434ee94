"""Tests of the verl host, in its own environment: `make test-verl`. Where verl is not installed nothing here is collected."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("verl") is not None else ["test_*.py"]
