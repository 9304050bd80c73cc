"""Stages of the user's own, the one in docs/stages.md among them."""

import re
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import PrivateAttr

from rwkvkit import WorldTokenizer, open_binidx
from rwkvkit.data.chain import check_chain
from rwkvkit.data.manifest import read_manifest
from rwkvkit.data.stages import Encode, Read, WriteBinidx
from rwkvkit.data.text_stages import Document, Segment, TextStage
from rwkvkit.errors import DataError, RecipeError
from rwkvkit.recipe.dataset import make_build
from rwkvkit.recipe.load import load_recipe

DOCS = Path(__file__).parents[2] / "docs" / "stages.md"
DECODE = WorldTokenizer().decode


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("cleaning", "own"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def recipe(stage: str) -> str:
    return (
        "name: own\nctx_len: 16\nprepare:\n  - read: mail/a.jsonl\n"
        f"  - {stage}\n  - encode: world\n  - write-binidx: out/mail/data\n"
    )


def test_the_documented_stage(folder, jsonl):
    [code] = blocks("python")
    (folder / "cleaning.py").write_text(code)
    jsonl("mail/a.jsonl", ["ask me@here.org", "none", "a@b.c d@e.f g@h.i"])
    prepare = blocks("yaml")[1]
    (folder / "r.yaml").write_text("name: own\nctx_len: 16\n" + prepare)
    for name, workers, count in (("one", 1, 2), ("two", 2, 2)):
        override = f"prepare.write-binidx=out/{name}/data"
        build = make_build(load_recipe("r.yaml", [override]))
        assert build.run(workers=workers).documents == count
        written = [DECODE(tokens) for tokens in open_binidx(f"out/{name}/data")]
        assert written == ["ask someone", "none"]
    [record] = [r for r in read_manifest("out/one/data").prepare if ":" in r.stage]
    assert (record.stage, record.version) == ("cleaning:Anonymous", 1)
    assert record.settings == {"name": "someone", "most": 2}

    (folder / "cleaning.py").write_text(code.replace("ClassVar[int] = 1", "ClassVar[int] = 12"))
    del sys.modules["cleaning"]
    build = make_build(load_recipe("r.yaml", ["prepare.write-binidx=out/one/data"]))
    assert build.status().reason == "cleaning:Anonymous is version 12, was 1"


def test_the_first_recipe_of_the_docs_is_good(folder):
    (folder / "r.yaml").write_text("name: own\nctx_len: 16\n" + blocks("yaml")[0])
    check_chain(load_recipe("r.yaml").prepare)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("absent.module:X", "5:5  prepare[1].absent.module:X: cannot be imported: ModuleNotFound"),
        ("own:Absent", "cannot be imported: AttributeError"),
        ("own:broken", "is no stage: it should derive from rwkvkit.data.text_stages.TextStage"),
        ("own:Idle", "does not define run(documents)"),
        ("own:Fine: {mots: 2}", "unknown key (did you mean 'most'?)"),
        ("own:Fine: {most: x}", "should be a valid integer, not 'x'"),
        ("fliter", "unknown stage (did you mean 'filter'?)"),
        (":", "prepare[1]: should be one stage"),
        ("':'", "cannot be imported: ValueError"),
        ("own:Versioned", "own:Versioned: its version should be an integer, not '1.2'"),
        ("own:Listed", "own:Listed: cannot be made: FileNotFoundError: "),
    ],
)
def test_what_is_wrong_is_said_with_its_place(folder, stage, message):
    (folder / "own.py").write_text(
        "from rwkvkit.data.text_stages import TextStage\n"
        "broken = 5\n"
        "class Idle(TextStage): pass\n"
        "class Fine(TextStage):\n"
        "    most: int = 1\n"
        "    def run(self, documents): return documents\n"
        "class Versioned(Fine):\n"
        "    version = '1.2'\n"
        "class Listed(Fine):\n"
        "    def model_post_init(self, _): open('absent.txt')\n"
    )
    (folder / "r.yaml").write_text(recipe(stage))
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert message in caught.value.what
    assert "r.yaml:5:" in caught.value.what


def test_a_module_that_fails_while_it_is_imported(folder):
    (folder / "own.py").write_text("1 / 0\n")
    (folder / "r.yaml").write_text(recipe("own:Fine"))
    with pytest.raises(RecipeError, match="cannot be imported: ZeroDivisionError: division by"):
        load_recipe("r.yaml")


class Halves(TextStage):
    """Cut each document in two."""

    def run(self, documents):
        for document in documents:
            middle = len(document.text) // 2
            yield document.with_text(document.text[:middle])
            yield document.with_text(document.text[middle:])


class Shout(TextStage):
    """Change the case of all text."""

    version: ClassVar[int] = 3

    def run(self, documents):
        return [document.map_segments(str.upper) for document in documents]


class Wrong(TextStage):
    """Yield what cannot be."""

    what: str

    def run(self, documents):
        for document in documents:
            if self.what == "raise":
                raise KeyError("no such thing")
            if self.what == "number":
                yield 5
            if self.what == "empty":
                yield Document((), 0, 0)
            if self.what == "segments":
                yield Document((Segment("a", True), Segment("b", True)), 0, 0)
            if self.what == "exit":
                sys.exit("no")
            if self.what == "surrogate":
                yield document.with_text("\ud800")
            if self.what == "foreign":
                yield Document((Segment("a", True),), 0, 999)


def chain_with(read, stage, prefix):
    write = WriteBinidx(prefix=str(prefix))
    return [Read.model_validate(Read.expand(read)), stage, Encode(), write]


@pytest.fixture
def run(tmp_path):
    from rwkvkit.data.build import Build

    def run(read, stage):
        prefix = tmp_path / "out" / "data"
        Build(chain_with(read, stage, prefix), seed=1, ctx_len=16).run()
        return open_binidx(prefix)

    return run


def test_one_document_may_become_several(run, jsonl):
    data = run(jsonl("a.jsonl", ["abcd", "", "xyz"]), Halves())
    assert [DECODE(tokens) for tokens in data] == ["ab", "cd", "", "", "x", "yz"]


def test_a_conversation_keeps_its_mask(run, jsonl):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    read = {"path": jsonl("a.jsonl", [chat], field="m"), "chat": "m"}
    data = run(read, Shout())
    mask = data.mask(0, data.n_tokens)
    assert DECODE(data[0]) == "USER: HI\n\nASSISTANT: YES\n\n"
    assert DECODE(data[0][mask == 1]) == " YES\n\n"
    with pytest.raises(DataError, match="change each with map_segments"):
        run(read, Halves())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "Wrong failed: KeyError: 'no such thing'"),
        ("exit", "Wrong failed: SystemExit: no"),
        ("number", "it yielded int, not a Document"),
        ("empty", "a document without segments"),
        ("segments", "only a conversation has several segments"),
        ("surrogate", "UnicodeEncodeError"),
        ("foreign", "a document that it did not make from one of the given"),
    ],
)
def test_a_stage_that_fails_is_named(run, jsonl, what, message):
    path = jsonl("a.jsonl", ["x"])
    with pytest.raises(DataError, match=message) as caught:
        run(path, Wrong(what=what))
    assert caught.value.where == path
    assert "Wrong" in str(caught.value)


class Locked(TextStage):
    """Hold what cannot be sent to another process."""

    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def run(self, documents):
        return documents


def test_a_stage_that_cannot_be_sent_is_named(run, jsonl):
    with pytest.raises(DataError, match=r"Locked cannot be sent .*: cannot pickle '_thread.lock'"):
        run(jsonl("a.jsonl", ["x"]), Locked())
