"""Compiled emulators, one a program and session."""

from collections.abc import Callable

import pytest
from emulator import Emulator

from rwkvkit.ops.cuda.compile import Program


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Program], Emulator]:
    """Return the emulator of a program, compiled once."""
    known: dict[Program, Emulator] = {}

    def emulator(program: Program) -> Emulator:
        if program not in known:
            known[program] = Emulator(program, tmp_path_factory.mktemp("emulator"))
        known[program].seed = 1
        return known[program]

    return emulator
