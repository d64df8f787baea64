"""What a user can do wrong, as one tree.

    MmxError                    exit code 1
    ├── InputError              2   bad configuration or input
    │   ├── ConfigError             every fault of a sweep file at once
    │   └── DataError               data that is missing or does not fit
    ├── PluginError             3   a plugin problem in what was asked for
    ├── StoreError              1   a store that cannot be reached or written just now
    └── TrialError              1   one point failed; the sweep goes on
        └── DivergedError           a loss that is NaN or infinite

Every message says what is wrong (quoted), where (file and key) and what to do.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class MmxError(Exception):
    """Any fault that is told in one message, without a traceback."""

    exit_code = 1


class InputError(MmxError):
    """Bad configuration or input."""

    exit_code = 2


class DataError(InputError):
    """Data that is missing, incomplete or does not fit its description."""


class PluginError(MmxError):
    """A plugin problem in what was asked for."""

    exit_code = 3


class StoreError(MmxError):
    """A store cannot be reached or written just now; what it should have taken must be sent again."""


class TrialError(MmxError):
    """One point failed."""


class DivergedError(TrialError):
    """A loss became NaN or infinite."""


class Stopped(BaseException):
    """Ends a trial after the epoch whose checkpoint was written, because the user wants the call to end.

    No Exception: nothing between the training loop and the command may take it for a failure.
    """


@dataclass(frozen=True)
class Fault:
    """One thing wrong in a configuration: the dotted key where it stands, and what to do about it."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class ConfigError(InputError):
    """All faults of one sweep file."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(dict.fromkeys(faults))
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {fault}" for fault in self.faults)]))


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Give ' Did you mean …?' for the nearest known word, else the list of what is known."""
    options = sorted(known)
    near = difflib.get_close_matches(word, options, n=1, cutoff=cutoff)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(options)}." if options else ""
