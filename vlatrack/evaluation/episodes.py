"""Episodes of an evaluation: what each was, how it ended, and how two evaluations of the same episodes are paired."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vlatrack.errors import DataError

Outcome = Literal["success", "failure", "error"]
"""An error is an episode that says nothing about the policy: the simulator, its worker or the connection broke."""
OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "error")

_NAMED = 3  # episodes that a message names


@dataclass(frozen=True)
class EpisodeId:
    """What makes an episode the same for two policies."""

    task: str
    initial_state: str
    seed: str

    def __str__(self) -> str:
        return f"{self.task}, initial state {self.initial_state}, seed {self.seed}"


@dataclass(frozen=True)
class EpisodeTable:
    """The outcome of each episode of an evaluation, in the order in which they were run."""

    name: str  # where it comes from, for people
    outcomes: Mapping[EpisodeId, Outcome]
    settings: Mapping[str, str] = field(default_factory=dict)  # of the episode set, as far as it is known

    @classmethod
    def of(
        cls, name: str, rows: Iterable[tuple[EpisodeId, Outcome]], settings: Mapping[str, str] | None = None
    ) -> "EpisodeTable":
        """A table of these rows.

        Raises:
            DataError: there are none, or an episode occurs twice.
        """
        outcomes: dict[EpisodeId, Outcome] = {}
        for episode, outcome in rows:
            if episode in outcomes:
                raise DataError(f"{name}: the episode {episode} occurs twice; keep one row of it")
            outcomes[episode] = outcome
        if not outcomes:
            raise DataError(f"{name}: no episodes")
        return cls(name, outcomes, settings or {})

    def counts(self) -> Counter[Outcome]:
        return Counter(self.outcomes.values())

    def by_task(self) -> dict[str, Counter[Outcome]]:
        """The outcomes of each task, in the order of the table."""
        counted: dict[str, Counter[Outcome]] = {}
        for episode, outcome in self.outcomes.items():
            counted.setdefault(episode.task, Counter())[outcome] += 1
        return counted


@dataclass(frozen=True)
class Pairs:
    """Two evaluations of the same episodes, without those that were an error in either.

    The counts are those of McNemar's table.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    differences: tuple[int, ...]  # of each pair: 1 if only A succeeded, -1 if only B did, else 0
    errors: int  # episodes left out

    def __len__(self) -> int:
        return len(self.differences)


def pair_episodes(a: EpisodeTable, b: EpisodeTable) -> Pairs:
    """The episodes of both tables in pairs, in the order of A.

    Raises:
        DataError: they are not of the same episodes.
    """
    _check_same_episodes(a, b)
    outcomes = [(outcome, b.outcomes[episode]) for episode, outcome in a.outcomes.items()]
    valid = [pair for pair in outcomes if "error" not in pair]
    table = Counter((one == "success", other == "success") for one, other in valid)
    return Pairs(
        both=table[True, True],
        only_a=table[True, False],
        only_b=table[False, True],
        neither=table[False, False],
        differences=tuple((one == "success") - (other == "success") for one, other in valid),
        errors=len(outcomes) - len(valid),
    )


def _check_same_episodes(a: EpisodeTable, b: EpisodeTable) -> None:
    problems = [*_other_settings(a, b), *_missing(a, b), *_missing(b, a)]
    if problems:
        raise DataError(
            f"{a.name} and {b.name} are not of the same episodes: {'; '.join(problems)}; evaluate both on one set"
        )


def _other_settings(a: EpisodeTable, b: EpisodeTable) -> Iterator[str]:
    if a.settings and b.settings:
        for name in dict.fromkeys([*a.settings, *b.settings]):
            one, other = (table.settings.get(name, "none") for table in (a, b))
            if one != other:
                yield f"{name} is {one} and {other}"


def _missing(table: EpisodeTable, other: EpisodeTable) -> Iterator[str]:
    only = [episode for episode in table.outcomes if episode not in other.outcomes]
    if only:
        yield f"{len(only)} of {len(table.outcomes)} are only in {table.name} ({_named(only)})"


def _named(episodes: Sequence[EpisodeId]) -> str:
    more = ", …" if len(episodes) > _NAMED else ""
    return " | ".join(map(str, episodes[:_NAMED])) + more
