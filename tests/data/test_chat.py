"""Conversations become documents in the World template, and the mask holds the answers."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rwkvkit import WorldTokenizer, open_binidx
from rwkvkit.data.chat import chat_prompt
from rwkvkit.data.describe import describe_binidx
from rwkvkit.data.forms import BadLine
from rwkvkit.data.sources import Source
from rwkvkit.errors import DataError

TOKENIZER = WorldTokenizer()


def source(**keys):
    return Source.model_validate(Source.expand({"path": "x.jsonl", **keys}))


def rendered(record, **keys):
    text = source(**keys).form.render(record)
    segments = [part.decode() for part in text.content.split(b"\xff")]
    assert text.marks is None or len(text.marks) == len(segments)
    return segments, list(text.marks or b"")


def message(role, content):
    return {"role": role, "content": content}


def counted(prefix) -> list[list[str]]:
    """Return the runs of tokens that count in the loss, decoded, document by document."""
    data = open_binidx(prefix)
    data.verify()
    runs, start = [], 0
    for tokens in data:
        mask = data.mask(start, len(tokens))
        start += len(tokens)
        borders = np.flatnonzero(np.diff(mask, prepend=0, append=0)).tolist()
        runs.append([TOKENIZER.decode(tokens[a:b]) for a, b in pairwise(borders) if mask[a] == 1])
    return runs


def test_the_world_template():
    messages = [
        message("system", "You are  brief.\n\n"),
        message("user", "one\r\n\r\n two\n \n\n three\n"),
        message("assistant", "<think>\nhm\n\nso\n</think>\n\nyes "),
        message("user", "bye"),
        message("assistant", "bye"),
    ]
    assert rendered({"messages": messages}, chat="messages") == (
        [
            "System: You are  brief.\n\nUser: one\n two\n three\n\nAssistant:",
            " <think>\nhm\n\nso\n</think>\n\nyes\n\n",
            "User: bye\n\nAssistant:",
            " bye\n\n",
        ],
        [0, 1, 0, 1],
    )


def test_what_comes_after_the_last_answer_does_not_count():
    messages = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c"},
    ]
    assert rendered({"conversations": messages}, chat="conversations") == (
        ["User: a\n\nAssistant:", " b\n\n", "User: c\n\n"],
        [0, 1, 0],
    )


@pytest.mark.parametrize(
    ("loss", "marks"), [(None, [0, 1]), ("assistant", [0, 1]), ("all", [1, 1]), ("none", [0, 0])]
)
def test_columns_and_loss(loss, marks):
    record = {"q": "Q\n\nq", "hint": "h", "a": "A", "s": None}
    chat = {"prompt": "{q}\n{hint}", "response": "a", "system": "s"}
    text = ["User: Q\nq\nh\n\nAssistant:", " A\n\n"]
    assert rendered(record, chat=chat, loss=loss) == (text, marks)
    text[0] = "System: S\n\n" + text[0]
    assert rendered(record | {"s": " S"}, chat=chat, loss=loss) == (text, marks)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "no field 'messages'"),
        ({"messages": "x"}, "field 'messages' is a string, not a list of messages"),
        ({"messages": []}, "the chat has no message of the assistant"),
        ({"messages": [message("user", "x")]}, "the chat has no message of the assistant"),
        ({"messages": [message("user", "x"), 5]}, r"messages\[1\] is a number, not a message"),
        ({"messages": [message("tool", "x")]}, r"messages\[0\]: unknown role 'tool'"),
        ({"messages": [message(["user"], "x")]}, "unknown role"),
        ({"messages": [message("user", None)]}, r"messages\[0\].content is null, not a string"),
        ({"messages": [{"role": "user", "value": "x"}]}, "has neither role and content, nor"),
        ({"messages": [message("assistant", " \n")]}, "the text of the assistant is empty"),
        ({"messages": [message("user", "\ud800")]}, "lone surrogate"),
    ],
)
def test_what_is_no_conversation(record, reason):
    with pytest.raises(BadLine, match=reason):
        rendered(record, chat="messages")


def test_a_bad_conversation_is_named_with_its_line(build, tmp_path):
    path = tmp_path / "chat.jsonl"
    good = {"messages": [message("user", "a"), message("assistant", "b")]}
    bad = {"messages": [message("robot", "a")]}
    path.write_text("\n".join(map(json.dumps, [good, good, bad])))
    with pytest.raises(DataError, match="unknown role 'robot'") as caught:
        build({"path": str(path), "chat": "messages"}).run()
    assert caught.value.where == f"{path}:3"
    assert "roles are system, user, human" in caught.value.hint


@pytest.mark.parametrize(
    "keys",
    [
        {"chat": {}},
        {"chat": {"messages": "m", "prompt": "q"}},
        {"chat": {"prompt": "q"}},
        {"chat": {"prompt": "{q", "response": "a"}},
        {"chat": "m", "template": "{a}"},
        {"chat": "m", "field": "a"},
        {"chat": "m", "format": "text"},
        {"loss": "assistant"},
        {"loss": "user"},
    ],
)
def test_wrong_settings(keys):
    with pytest.raises(ValidationError):
        source(**keys)


words = st.text(st.sampled_from("ab .!\n中🙂\x00é"), max_size=12)
spoken = words.filter(lambda text: text.strip())
conversations = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), spoken), min_size=1, max_size=6
).map(lambda turns: [*turns, ("assistant", "last")])


@settings(max_examples=60, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=8), st.lists(words, max_size=3))
def test_the_mask_holds_exactly_the_answers(tmp_path_factory, build_at, chats, plain):
    folder = tmp_path_factory.mktemp("mask")
    lines = [{"messages": [message(role, text) for role, text in turns]} for turns in chats]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "base.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in plain))
    (folder / "quiet.jsonl").write_text(json.dumps({"text": "context only"}))
    build_at(
        folder,
        [
            {"path": str(folder / "chat.jsonl"), "chat": "messages"},
            {"path": str(folder / "base.jsonl")},
            {"path": str(folder / "quiet.jsonl"), "loss": "none"},
        ],
    ).run()
    answers = [
        [f" {text.strip()}\n\n" for role, text in turns if role == "assistant"] for turns in chats
    ]
    found = counted(folder / "data")
    assert found[: len(chats)] == answers
    assert ["".join(runs) for runs in found[len(chats) : -1]] == plain
    assert found[-1] == []


def test_a_masked_build_with_everything(build, jsonl, tmp_path):
    """Shuffled, repeated, in small chunks and by several workers: the mask stays with its text."""
    chats = [
        [message("user", f"question {i} " * (i % 7)), message("assistant", f"answer {i}")]
        for i in range(1, 60)
        if i % 7
    ]
    path = jsonl("chat.jsonl", chats, field="talk")
    base = jsonl("base.jsonl", [f"text {i}" for i in range(30)])
    read = [{"path": path, "chat": "talk", "repeat": 2}, base]
    made = {}
    for workers in (1, 2):
        made[workers] = build(
            read, repeat={"epochs": 2}, chunk_bytes=300, prefix=tmp_path / f"{workers}" / "data"
        ).run(workers=workers)
    assert made[1] == made[2]
    assert [output.path for output in made[1].outputs] == ["data.bin", "data.idx", "data.mask"]
    prefix = tmp_path / "1" / "data"
    data = open_binidx(prefix)
    assert data.has_mask
    for tokens, runs in zip(data, counted(prefix), strict=True):
        text = TOKENIZER.decode(tokens)
        if text.startswith("User:"):
            assert runs == [text.rpartition("Assistant:")[2]]
        else:
            assert runs == [text]
    told = describe_binidx(prefix)
    assert told["masked"]["counted"] == data.mask(0, data.n_tokens).sum()
    assert 0 < told["masked"]["share"] < 1
    assert all("counted" in sample for sample in told["first"])


def test_without_a_mask_the_old_one_goes(build, jsonl, tmp_path):
    path = jsonl("a.jsonl", ["x"])
    build({"path": path, "loss": "none"}).run()
    assert (tmp_path / "out" / "data.mask").read_bytes() == b"\0\0"
    build(path).run()
    assert not (tmp_path / "out" / "data.mask").exists()
    assert describe_binidx(tmp_path / "out" / "data")["masked"] is None


@pytest.mark.parametrize("system", [None, "", " \n", " You are brief.\n\n\nBe kind. "])
def test_a_prompt_is_what_the_first_answer_of_a_conversation_follows(system):
    user = "\nHi\r\n\r\nthere "
    messages = [message("user", user), message("assistant", "Hello")]
    if system is not None:
        messages.insert(0, message("system", system))
    [context, _], _ = rendered({"messages": messages}, chat="messages")
    assert chat_prompt(user, system) == context


def test_a_prompt_without_a_question():
    with pytest.raises(BadLine, match="the text of the user is empty"):
        chat_prompt(" \n", "Be brief.")
