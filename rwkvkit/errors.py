"""The errors a user can cause or meet, each with the exit code its class stands for."""


class RwkvkitError(Exception):
    """An error with a message made for a person: where, what, and what to do next.

    Attributes:
        what: what is wrong and why, one sentence without a full stop.
        where: the file, line or key it concerns (``data.jsonl:17``), or None.
        hint: what to do next, or None.
        exit_code: the process exit status the command line uses for this class.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.where, self.hint)


def _rebuild(cls: type[RwkvkitError], what: str, where: str | None, hint: str | None) -> Exception:
    """Unpickle an error that crossed a process border, keyword arguments included."""
    return cls(what, where=where, hint=hint)


class UsageError(RwkvkitError):
    """The command line or a function call is off (exit code 2)."""

    exit_code = 2


class RecipeError(RwkvkitError):
    """The recipe is wrong, or asks for what does not exist (exit code 3)."""

    exit_code = 3


class DataError(RwkvkitError):
    """The training data or a file made from it is wrong (exit code 4)."""

    exit_code = 4


class UnreachableError(DataError):
    """An input cannot be read now, which says nothing about its content (exit code 4)."""


class SetupError(RwkvkitError):
    """The machine lacks what is needed: space, permission, a package, a device (exit code 5)."""

    exit_code = 5


class DivergedError(RwkvkitError):
    """Training produced a loss or gradient that is not finite (exit code 6)."""

    exit_code = 6


class InterruptedRun(RwkvkitError):
    """A signal stopped the work after its state was saved (exit code 130)."""

    exit_code = 130


class StoppedAtOnce(InterruptedRun):
    """A signal stopped this process wherever it was: others may wait for it (exit code 130)."""


class LostProcess(SetupError):
    """Another process of the run ended in the middle of a step (exit code 5)."""


class FailedElsewhere(RwkvkitError):
    """Another process of the run has failed and says why; this one ends with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of the run has failed")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple:
        return FailedElsewhere, (self.exit_code,)
