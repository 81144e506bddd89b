"""Where the program is."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from ._errors import StartError

NAME = "code-mode.exe" if sys.platform == "win32" else "code-mode"


def find_program() -> str:
    """The path of the program ``code-mode``: what ``CODE_MODE_BIN`` names, the one that this package
    carries, or the first one on ``PATH``.

    Raises:
        StartError: there is none; the message says where it looked.
    """
    named = os.environ.get("CODE_MODE_BIN")
    if named:
        if os.access(named, os.X_OK):
            return named
        raise StartError(f"CODE_MODE_BIN names {named}, which is not a program")
    looked = ["CODE_MODE_BIN is not set"]
    # Where installers put the program of a wheel: of this environment, of the user, of `--target`.
    own = Path(__file__).resolve().parents[1] / "bin"
    folders: list[str | Path] = [sysconfig.get_path("scripts"), own]
    try:
        folders.append(sysconfig.get_path("scripts", scheme=f"{os.name}_user"))
    except KeyError:
        pass
    for folder in folders:
        path = Path(folder) / NAME
        if os.access(path, os.X_OK):
            return str(path)
    looked.append(f"not beside this package ({folders[0]})")
    found = shutil.which(NAME)
    if found:
        return found
    looked.append("not on PATH")
    raise StartError(f"the program code-mode was not found: {'; '.join(looked)}")
