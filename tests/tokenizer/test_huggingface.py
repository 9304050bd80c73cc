import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from rwkvkit.errors import DataError, RecipeError, SetupError
from rwkvkit.tokenizer.huggingface import HuggingFaceTokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small BPE over bytes, as the 20B tokenizer is, whose file asks to truncate and pad."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat " * 5], trainer)
    made.enable_truncation(3)
    made.enable_padding(length=10)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    made.save(str(path))
    return path


@given(st.lists(st.text(max_size=20) | st.just("a<|endoftext|>b <pad>"), max_size=5))
def test_documents_come_back(path, texts):
    tokenizer = HuggingFaceTokenizer(path)
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    tokens, sizes = tokenizer.encode_segments(b"".join(text.encode() + b"\xff" for text in texts))
    assert tokens.dtype == np.uint16
    assert sizes.sum() == len(tokens)
    assert len(sizes) == len(texts)
    stops = np.cumsum(sizes)
    for text, start, stop in zip(texts, stops - sizes, stops, strict=True):
        assert tokens[stop - 1] == tokenizer.end_id == 1
        assert 1 not in tokens[start : stop - 1]
        assert tokenizer.decode(tokens[start:stop]) == text


def test_what_ends_documents(path, tmp_path):
    assert HuggingFaceTokenizer(path).end_token == "<|endoftext|>"
    assert HuggingFaceTokenizer(path, end=7).end_id == 7
    assert HuggingFaceTokenizer(path, end="<pad>").end_id == 0
    beside = tmp_path / "tokenizer.json"
    beside.write_bytes(path.read_bytes())
    config = tmp_path / "tokenizer_config.json"
    for content, end in (
        ('{"eos_token": "<pad>"}', 0),
        ('{"eos_token": {"content": "a"}}', 66),
        ('{"eos_token": null}', 1),
        ('{"eos_token": "absent"}', 1),
        ("[]", 1),
        ("no json", 1),
    ):
        config.write_text(content)
        assert HuggingFaceTokenizer(beside).end_id == end
    stored = json.loads(path.read_text())
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": 70000}, "unk_token": "a"}
    beside.write_text(json.dumps(stored | {"model": words, "added_tokens": []}))
    with pytest.raises(RecipeError, match="not known which token ends documents") as caught:
        HuggingFaceTokenizer(beside)  # 0 is a word
    assert "end: TOKEN" in caught.value.hint
    config.write_text('{"eos_token": "a"}')
    plain = HuggingFaceTokenizer(beside)
    assert (plain.end_id, plain.vocab_size, plain.dtype) == (0, 70001, np.int32)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = flags | {"id": 0, "content": "a", "special": True}
    content = stored | {"model": words, "added_tokens": [special]}
    config.unlink()
    beside.write_text(json.dumps(content))
    assert HuggingFaceTokenizer(beside).end_id == 0
    for end in ("absent", 5, 10**6):
        with pytest.raises(RecipeError, match="the vocabulary has no token") as caught:
            HuggingFaceTokenizer(beside, end=end)
        assert caught.value.hint


def test_what_is_no_tokenizer(tmp_path, monkeypatch, path):
    with pytest.raises(DataError, match="cannot read the tokenizer: No such file") as caught:
        HuggingFaceTokenizer(tmp_path / "absent.json")
    assert caught.value.hint
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer: ") as caught:
        HuggingFaceTokenizer(tmp_path / "t.json")
    assert caught.value.where == str(tmp_path / "t.json")
    assert "tokenizer.json of the package" in caught.value.hint
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SetupError, match="the package 'tokenizers' is needed"):
        HuggingFaceTokenizer(path)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (models.WordPiece({"</s>": 0, "a": 1}, unk_token="[UNK]"), r"cannot encode 'é': .*\[UNK\]"),
        (models.Unigram([("</s>", 0.0), ("a", -1.0)], None), "cannot encode 'é': .*unk_id"),
        (models.BPE({"</s>": 0, "a": 1}, [], unk_token="<unk>"), "cannot encode 'é': .*<unk>"),
    ],
)
def test_a_character_without_a_token_is_named(tmp_path, model, named):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(model).save(str(path))
    tokenizer = HuggingFaceTokenizer(path, end="</s>")
    assert tokenizer.encode("a").tolist() == [1]
    with pytest.raises(DataError, match=named) as caught:
        tokenizer.encode_segments("a\xff".encode("latin-1") + "aé".encode() + b"\xff")
    assert caught.value.where == str(path)
    assert "byte fallback" in caught.value.hint
