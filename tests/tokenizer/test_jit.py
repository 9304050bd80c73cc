import numba

from rwkvkit.tokenizer.jit import compiled


def test_without_a_cache_folder_it_still_compiles(monkeypatch):
    real = numba.njit

    def refuses_to_cache(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", refuses_to_cache)

    @compiled
    def double(x):
        return 2 * x

    assert double(21) == 42
