"""The files and commands of the pages in docs/ that say how vlatrack is extended, so that tests carry them out.

A block of such a page that begins with a comment, such as `# my_terms.py`, is the file of that name.
"""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

from program import ENVIRONMENT

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "extending.md",
    "write-a-loss-term.md",
    "write-a-backbone.md",
    "write-a-dataset-format.md",
    "write-an-environment.md",
    "write-a-tracker.md",
)
COMMENT = "needs the files of this page"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def files_of(page: str) -> dict[str, str]:
    """Each file that the page shows, by its path."""
    blocks = re.findall(r"^```(?:python|yaml|toml)\n(# ([\w./-]+)\n.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return {name: code for code, name in blocks}


def write_files(page: str, folder: Path) -> None:
    for name, code in files_of(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)


def module_of(page: str, file: str) -> types.ModuleType:
    """A file of the page as a module that nothing has to find."""
    module = types.ModuleType(Path(file).stem)
    exec(compile(files_of(page)[file], f"{page}: {file}", "exec"), module.__dict__)
    return module


def commands_of(page: str) -> str:
    """The commands for a shell in a folder that has the page's files."""
    return "\n".join(re.findall(rf"^```sh not run: {COMMENT}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL))


def carry_out(page: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Write the files of a page into the folder, and run its commands there, up to the first that fails."""
    write_files(page, folder)
    programs = folder / "bin"
    programs.mkdir()
    for name, words in (("python", ""), ("vlatrack", " -P -m vlatrack")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | ENVIRONMENT | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euxo", "pipefail", "-c", commands_of(page)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=250
    )
