"""Builds with other tokenizers than World, and the round trip that each build checks."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rwkvkit import open_binidx
from rwkvkit.data.build import Build
from rwkvkit.data.chunks import task_chunks
from rwkvkit.data.describe import describe_binidx
from rwkvkit.data.stages import Encode, Plan, Read, Split, WriteBinidx
from rwkvkit.data.tasks import make_tasks
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.huggingface import HuggingFaceTokenizer
from rwkvkit.tokenizer.world import WorldTokenizer
from rwkvkit.train.sampler import SampleReader

WIDE = 70_000


@pytest.fixture
def wide(tmp_path):
    """A vocabulary of characters, one of which has an id that needs more than 16 bits."""
    letters = {letter: i + 5 for i, letter in enumerate("abcdefghijklm ")} | {"z": WIDE, "?": 1}
    made = tokenizers.Tokenizer(models.WordLevel(letters | {"<|endoftext|>": 0}, unk_token="?"))
    made.add_special_tokens(["<|endoftext|>"])
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.normalizer = normalizers.Lowercase()
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.fixture
def build(tmp_path):
    def make(read, **encode):
        chain = [
            Read.model_validate(Read.expand(read)),
            Encode(**encode),
            WriteBinidx(prefix=str(tmp_path / "out" / "data")),
            Plan(),
        ]
        return Build(chain, seed=1, ctx_len=4)

    return make


def test_a_wide_vocabulary_from_text_to_samples(build, jsonl, tmp_path, wide):
    texts = ["bad cab", "", "zz<|endoftext|>", "a" * 40]
    made = build(jsonl("a.jsonl", texts), tokenizer=wide)
    assert f"{wide}, 70,001 ids in int32, documents end with '<|endoftext|>' (0)" in (
        "\n".join(made.describe())
    )
    for workers in (1, 2):
        manifest = made.run(workers=workers)
    data = open_binidx(tmp_path / "out" / "data")
    data.verify()
    assert data.dtype == np.int32
    assert data[0].tolist() == [6, 5, 8, 18, 7, 5, 6, 0]
    assert data[1].tolist() == [0]
    assert data[2][:2].tolist() == [WIDE, WIDE]
    settings = manifest.prepare[1].settings
    assert settings == {
        "tokenizer": "tokenizer.json",
        "vocabulary": HuggingFaceTokenizer(wide).fingerprint,
        "vocab_size": WIDE + 1,
        "end": 0,
    }
    assert made.status().up_to_date

    told = describe_binidx(tmp_path / "out" / "data")
    assert told["dtype"] == "int32"
    assert told["first"][0]["text"] == "6 5 8 18 7 5 6 0"
    assert told["bytes"] == 4 * told["tokens"]

    reader = SampleReader(data, manifest.plan.magic_prime, 4, vocab_size=WIDE + 1)
    batch = reader.read(start=1, count=manifest.plan.magic_prime)
    assert max(batch.x.max(), batch.y.max()) == WIDE
    with pytest.raises(DataError, match="token id 70000 is outside the model's vocabulary"):
        SampleReader(data, manifest.plan.magic_prime, 4, vocab_size=WIDE).read(
            start=1, count=manifest.plan.magic_prime
        )


def test_a_validation_part_is_of_the_vocabulary_of_the_whole(jsonl, tmp_path, wide):
    read = Read.model_validate(Read.expand(jsonl("a.jsonl", [f"z{'a' * i}" for i in range(40)])))
    prefix = tmp_path / "out" / "data"
    chain = [read, Encode(tokenizer=wide), Split(validation=0.3), WriteBinidx(prefix=str(prefix))]
    Build(chain, seed=1, ctx_len=4).run(workers=1)
    told = describe_binidx(prefix.with_name("data-val"))
    assert told["first"][0]["text"].startswith(f"{WIDE} ")


def test_another_end_changes_the_dataset(build, jsonl, wide):
    path = jsonl("a.jsonl", ["abc abc abc abc"])
    build(path, tokenizer=wide).run()
    assert build(
        path, tokenizer=wide, end="z"
    ).status().reason == f"encode: end 0 -> {WIDE}".replace("encode: ", "")
    assert build(path, tokenizer=wide, verify="full").status().up_to_date


def unigram(path):
    """A vocabulary that holds </s> as a piece of text, as those of T5 do."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("?", 0.0), ("\u2581", -2.0), ("a", -1.0), ("b", -2.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "?"])
    made.save(path)


def not_special(path):
    made = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2}, unk_token="b"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_tokens([tokenizers.AddedToken("</s>", special=False)])
    made.save(path)


@pytest.mark.parametrize("vocabulary", [unigram, not_special])
@pytest.mark.parametrize("chat", [False, True])
def test_no_document_forges_its_end(build, jsonl, tmp_path, vocabulary, chat):
    texts = ["a b", "b a </s> b", "b"]
    if chat:
        answers = [[{"role": "assistant", "content": text}] for text in texts]
        read = {"path": jsonl("a.jsonl", answers, field="m"), "chat": "m"}
    else:
        read = {"path": jsonl("a.jsonl", texts)}
    vocabulary(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="encodes to '</s>', the token that ends") as caught:
        build(read, tokenizer=str(tmp_path / "tokenizer.json")).run(workers=1)
    second = len((tmp_path / "a.jsonl").read_text().splitlines(keepends=True)[0])
    assert caught.value.where == f"{read['path']}, document at byte {second}"
    assert "forbid" in caught.value.hint
    assert "end: TOKEN" in caught.value.hint


def test_another_state_of_the_file_is_another_tokenizer(build, jsonl, tmp_path, wide):
    """A process that goes on reads a changed file anew; one build is of one state."""
    path = jsonl("a.jsonl", ["abc abc abc"])
    build(path, tokenizer=wide).run(workers=1)
    made = build(path, tokenizer=wide)
    made._chain.work.load()
    assert made.status().up_to_date
    old = Path(wide).read_text(encoding="utf-8")
    Path(wide).write_text(old.replace('"a": 5', '"a": 90'), encoding="utf-8")
    assert made.status().reason.startswith("vocabulary ")
    inputs = made._inputs()
    [chunk] = task_chunks(make_tasks(inputs)[0], 1 << 20, {})
    with pytest.raises(DataError, match="the vocabulary changed while the build ran") as caught:
        made._chain.work(chunk)
    assert caught.value.where == wide
    assert caught.value.hint
    made.run(workers=1)
    assert open_binidx(tmp_path / "out" / "data")[0][0] == 90


def test_a_vocabulary_that_changes_after_the_last_chunk_ends_the_build(
    build, jsonl, tmp_path, wide
):
    path = Path(wide)

    def change(progress):
        if progress.phase == "write":
            path.write_text(path.read_text(encoding="utf-8").replace('"a": 5', '"a": 90'))

    with pytest.raises(DataError, match="changed while the build ran") as caught:
        build(jsonl("a.jsonl", ["abc" * 9]), tokenizer=wide).run(workers=1, progress=change)
    assert caught.value.where == wide
    assert caught.value.hint == "run it again"
    assert not (tmp_path / "out").exists()


def test_the_ending_token_follows_the_file_that_names_it(build, jsonl, tmp_path, wide):
    path = jsonl("a.jsonl", ["abc abc abc"])
    build(path, tokenizer=wide).run(workers=1)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "z"}')
    assert build(path, tokenizer=wide).status().reason == f"end 0 -> {WIDE}"


def test_a_conversation_with_another_tokenizer(build, jsonl, tmp_path, wide):
    chat = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "cab"}]
    build({"path": jsonl("a.jsonl", [chat] * 3, field="m"), "chat": "m"}, tokenizer=wide).run()
    data = open_binidx(tmp_path / "out" / "data")
    counted = data[0][data.mask(0, len(data[0])) == 1]
    assert counted.tolist() == [18, 7, 5, 6, 1, 1, 0]


def test_verify_full_names_a_document_that_a_tokenizer_changes(build, jsonl, wide):
    path = jsonl("a.jsonl", ["abc", "abc def gh", "ABC"])
    build(path, tokenizer=wide).run()
    with pytest.raises(DataError, match="do not give back its text") as caught:
        build(path, tokenizer=wide, verify="full").run()
    assert caught.value.where == f"{path}, document at byte 39"
    assert "changes text" in caught.value.hint


@pytest.mark.parametrize("verify", ["sample", "full"])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("damage", ["drop", "same length"])
def test_a_wrong_encoding_is_caught(build, jsonl, monkeypatch, verify, marked, damage):
    """Damage to the second of three documents: its length always shows, its bytes if decoded."""
    texts = ["the first one of three", "the second", "the last one of three"]
    if marked:
        texts = [
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
            for text in texts
        ]
    read = {"path": jsonl("a.jsonl", texts, field="m")}
    read |= {"chat": "m"} if marked else {"field": "m"}
    build(read, verify=verify).run()

    right = WorldTokenizer.encode_segments
    [was], [shorter], [other] = map(WorldTokenizer().encode, (" second", "x", " center"))

    def wrong(self, buffer):
        tokens, sizes = right(self, buffer)
        changed = shorter if damage == "drop" else other
        return np.where(tokens == was, changed, tokens), sizes

    monkeypatch.setattr(WorldTokenizer, "encode_segments", wrong)
    with pytest.raises(DataError, match="do not give back its text") as caught:
        build(read, verify=verify).run()
    assert caught.value.where.startswith(f"{read['path']}, document at byte ")
