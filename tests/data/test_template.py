import json

import pytest
from pydantic import ValidationError

from rwkvkit.data.forms import BadLine
from rwkvkit.data.sources import Source
from rwkvkit.errors import DataError


def rendered(template, record):
    return Source(path="x", template=template).form.render(record).content.decode()


def test_columns_stand_in_braces():
    record = {"q": "why {q}?", "a": "so", "a b": "spaced", "n": 5}
    assert rendered("User: {q}\n\nAssistant: {a}", record) == "User: why {q}?\n\nAssistant: so"
    assert rendered("{{{a b}}} {{}}", record) == "{spaced} {}"
    assert Source(path="x", template="{a}{q}{a}").form.columns == ("a", "q")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"a": "x"}, "no field 'q'"),
        ({"q": 5}, "field 'q' is a number, not a string"),
        ({"q": "\udc00"}, "template filled in holds a lone surrogate"),
    ],
)
def test_a_line_that_does_not_fill_it(record, reason):
    with pytest.raises(BadLine, match=reason):
        rendered("{q}", record)


@pytest.mark.parametrize("template", ["", "no column", "{", "}", "{}", "{a!r}", "{a:>5}", "{{a}}"])
def test_a_template_that_cannot_be(template):
    with pytest.raises(ValidationError):
        Source(path="x", template=template)


def test_an_unknown_column_is_named_with_those_there_are(build, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "a": "y"}\n{"question": "x", "a": "y"}\n')
    with pytest.raises(DataError, match="no field 'q'") as caught:
        build({"path": str(path), "template": "{q}{a}"}).run()
    assert caught.value.where == f"{path}:2"
    assert "the line has 'question', 'a': set 'template' of the source" in caught.value.hint


def test_it_makes_documents(build, tmp_path):
    lines = [{"q": f"q{i}", "a": f"a{i}", "x": float("nan")} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build({"path": str(tmp_path / "a.jsonl"), "template": "{q}: {a}"}).run()
    from rwkvkit import WorldTokenizer, open_binidx

    decode = WorldTokenizer().decode
    assert [decode(tokens) for tokens in open_binidx(tmp_path / "out" / "data")] == [
        "q0: a0",
        "q1: a1",
        "q2: a2",
    ]
