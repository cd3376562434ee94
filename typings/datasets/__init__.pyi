# datasets is far too large to be followed (minutes): its names are Any here.
from typing import Any

def __getattr__(name: str) -> Any: ...
