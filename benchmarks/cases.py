"""What is measured: cases, those who take part in them, and the ratios that a case is there to show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Quantity = Literal["time", "memory", "time per operation", "state size"]


@dataclass(frozen=True)
class Contestant:
    """One way of doing the work of a case.

    Args:
        name: in the tables; ours begin with "exlstm".
        build: "module:function" that makes the `Work`, called with `arguments`.
        arguments: plain values, for they travel to another process as JSON.
        small: replaces some arguments for a first small run, which loads all that is loaded lazily.
        peer: the distribution that is needed, one of `benchmarks.peers.PEERS`.
        checks: our operators that must agree with the reference before a time counts.
    """

    name: str
    build: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A quantity of the contestant `of` over that of `to`, and the bound it should keep on one thread, if any."""

    of: str
    to: str
    quantity: Quantity = "time"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    def met(self, value: float) -> bool | None:
        """Whether `value` keeps the bound; None without one."""
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most

    def missed_by(self, value: float) -> float:
        """How far `value` is from the bound, as a part of it."""
        bound = self.at_least if self.at_least is not None else self.at_most
        assert bound is not None
        return abs(value / bound - 1)


@dataclass(frozen=True)
class Case:
    """Contestants that take turns at the same work."""

    title: str
    contestants: tuple[Contestant, ...]
    ratios: tuple[Ratio, ...] = ()
