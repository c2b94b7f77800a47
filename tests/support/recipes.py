"""The code in CONTRIBUTING.md, so that tests carry its recipes out."""

import re
import types
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def code_of(file: str) -> str:
    """The block of CONTRIBUTING.md that begins with a comment of this file's name."""
    found = re.search(rf"^```python\n(# {re.escape(file)}\n.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"CONTRIBUTING.md has no block of code that begins with # {file}"
    return found[1]


def module_of(file: str) -> types.ModuleType:
    """The same block as a module."""
    module = types.ModuleType(file.removesuffix(".py"))
    exec(compile(code_of(file), str(GUIDE), "exec"), module.__dict__)
    return module
