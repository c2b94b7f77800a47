"""How far something long has come, for a log file, which has no progress bar."""

from rich.console import Console

_PARTS = 10


class Milestones:
    """Prints a line at each tenth of the way, unless the console is a terminal, where a bar tells more."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reached: dict[str, int] = {}

    def report(self, name: str, done: int, total: int, detail: str) -> None:
        """Tell that ``done`` of ``total`` are done, if that is another tenth; what begins anew is told of again."""
        part, before = _PARTS * done // total, self._reached.get(name, 0)
        self._reached[name] = part
        if part > before and not self._console.is_terminal:
            line = f"{name} {done}/{total}  {detail}".rstrip()
            self._console.print(line, soft_wrap=True, markup=False, emoji=False, highlight=False)
