from types import SimpleNamespace

import numba

from rwkvkit.tokenizer import jit


def test_without_a_cache_folder_it_still_compiles(monkeypatch):
    def refuses_to_cache(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(jit, "numba", SimpleNamespace(njit=refuses_to_cache))

    @jit.compiled
    def double(x):
        return 2 * x

    assert double(21) == 42
