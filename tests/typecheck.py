"""The checker that jaxtyping applies to every annotated function of isentrope in the test run (`addopts` in pyproject.toml)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is declared an int is one, as in every type checker
