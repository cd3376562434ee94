"""Every paper's claim by slug. A file `<slug_with_underscores>.py` here is registered by existing; it holds one `CLAIM`."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from isentrope.errors import UserError
from isentrope.lab.claim import Claim


@cache
def claims() -> Mapping[str, Claim]:
    """Slug -> claim, in alphabetical order."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.endswith("_test") or module.name.startswith("_"):
            continue
        claim = importlib.import_module(f"{__name__}.{module.name}").CLAIM
        if claim.slug.replace("-", "_") != module.name:
            raise ValueError(f"claims: the file {module.name}.py holds the claim of {claim.slug!r}.")
        found[claim.slug] = claim
    return dict(sorted(found.items()))


def claim_of(slug: str) -> Claim:
    """The claim of a paper.

    Raises UserError naming the nearest slug.
    """
    known = claims()
    if slug not in known:
        nearest = difflib.get_close_matches(slug, list(known), n=1, cutoff=0.0)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"reproduce: there is no experiment for {slug!r}.{hint} There is one for: {', '.join(known)}.")
    return known[slug]
