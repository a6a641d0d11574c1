"""Which release this process runs."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from worker import __version__


@cache
def release() -> str:
    """The folder below `releases/` that this interpreter's environment lies in, else the package's version.

    Read once: a later switch of `current` does not change what already runs.
    """
    prefix = Path(sys.prefix).resolve()
    for folder in (prefix, *prefix.parents):
        if folder.parent.name == "releases":
            return folder.name
    return __version__
