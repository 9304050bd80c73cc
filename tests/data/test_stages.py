import pytest
from pydantic import ValidationError

from rwkvkit.data.chain import check_chain
from rwkvkit.data.stages import (
    STAGES,
    Encode,
    Filter,
    Plan,
    Read,
    RepeatShuffle,
    WriteBinidx,
)
from rwkvkit.errors import RecipeError

READ = Read.model_validate(Read.expand("a.jsonl"))
FILTER = Filter(min_chars=1)
ENCODE, REPEAT, WRITE, PLAN = Encode(), RepeatShuffle(), WriteBinidx(prefix="out/d"), Plan()


@pytest.mark.parametrize(
    ("stage", "value", "fields"),
    [
        (Read, "a.jsonl", {"sources": [{"path": "a.jsonl"}]}),
        (Read, {"path": "a", "repeat": 4}, {"sources": [{"path": "a", "repeat": 4}]}),
        (Read, ["a", {"path": "b"}], {"sources": [{"path": "a"}, {"path": "b"}]}),
        (
            Read,
            {"sources": "a", "on_error": "skip"},
            {"sources": [{"path": "a"}], "on_error": "skip"},
        ),
        (
            Read,
            {"path": "a", "on_error": "skip"},
            {"sources": [{"path": "a"}], "on_error": "skip"},
        ),
        (Read, {"builtin": "python-stdlib"}, {"sources": [{"builtin": "python-stdlib"}]}),
        (Encode, "world", {"tokenizer": "world"}),
        (Encode, {"tokenizer": "world", "vocab": "v"}, {"tokenizer": "world", "vocab": "v"}),
        (Encode, "a/tokenizer.json", {"tokenizer": "a/tokenizer.json"}),
        (RepeatShuffle, {"epochs": 3}, {"epochs": 3}),
        (RepeatShuffle, 3, {"epochs": 3}),
        (RepeatShuffle, None, {}),
        (WriteBinidx, "out/d", {"prefix": "out/d"}),
        (Plan, None, {}),
    ],
)
def test_shorthand(stage, value, fields):
    assert stage.expand(value) == fields
    stage.model_validate(fields)


@pytest.mark.parametrize(
    ("stage", "value"),
    [
        (Read, []),
        (Read, None),
        (Read, 5),
        (Read, {"sources": ["a"], "on_error": "ignore"}),
        (Encode, "gpt2"),
        (Encode, {"tokenizer": "t.json", "vocab": "v"}),
        (Encode, {"end": 5}),
        (Encode, {"verify": "none"}),
        (RepeatShuffle, {"epochs": 0}),
        (RepeatShuffle, {"epochs": "3"}),
        (RepeatShuffle, {"shuffle": 1}),
        (RepeatShuffle, True),
        (WriteBinidx, None),
        (WriteBinidx, ""),
        (Plan, "x"),
        (Plan, {"ctx_len": 5}),
    ],
)
def test_wrong_values_are_refused(stage, value):
    with pytest.raises(ValidationError):
        stage.model_validate(stage.expand(value))


def test_every_field_has_help():
    for stage in STAGES:
        assert stage.__doc__
        for name, field in stage.model_fields.items():
            assert field.description, f"{stage.key}.{name}"


@pytest.mark.parametrize(
    "chain",
    [
        [READ, ENCODE, WRITE],
        [READ, ENCODE, REPEAT, WRITE, PLAN],
        [READ, ENCODE, WRITE, PLAN],
        [READ, FILTER, FILTER, ENCODE, WRITE],
    ],
)
def test_good_chains(chain):
    check_chain(chain)


@pytest.mark.parametrize(
    ("chain", "where", "message", "hint"),
    [
        ([], "prepare", "the chain writes nothing", "read, encode"),
        ([READ, ENCODE], "prepare", "the chain writes nothing", "write-binidx"),
        ([ENCODE], "prepare[0].encode", "encode needs text before it", "text comes from read"),
        ([READ, WRITE], "prepare[1].write-binidx", "needs tokens before it", "come from encode"),
        ([READ, REPEAT], "prepare[1].repeat-shuffle", "finds text", "tokens come from encode"),
        ([READ, ENCODE, PLAN], "prepare[2].plan", "needs binidx", "comes from write-binidx"),
        ([READ, ENCODE, WRITE, REPEAT], "prepare[3].repeat-shuffle", "needs tokens", "encode"),
        ([READ, ENCODE, FILTER], "prepare[2].filter", "needs text before it, and finds tokens", ""),
        ([FILTER], "prepare[0].filter", "needs text", "text comes from read"),
        ([READ, READ], "prepare[1].read", "a second read", "one of each"),
        ([READ, ENCODE, REPEAT, REPEAT, WRITE], "prepare[3].repeat-shuffle", "a second", "one"),
    ],
)
def test_bad_chains_say_what_is_missing(chain, where, message, hint):
    with pytest.raises(RecipeError, match=message) as caught:
        check_chain(chain)
    assert caught.value.where == where
    assert hint in caught.value.hint
