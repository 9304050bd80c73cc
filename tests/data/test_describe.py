import json
import struct

import pytest

from rwkvkit import BinidxWriter
from rwkvkit.data.build import Build
from rwkvkit.data.describe import describe_binidx
from rwkvkit.data.stages import Encode, Plan, Read, Split, WriteBinidx
from rwkvkit.data.text_stages import TextStage
from rwkvkit.errors import DataError


def test_a_build_described(build, jsonl, tmp_path):
    texts = ["", "Hello world", "a b c d e f g h", "x" * 5000, "last"]
    build(jsonl("a.jsonl", texts), plan=True).run()
    told = describe_binidx(tmp_path / "out" / "data.idx")
    json.dumps(told)
    assert told["documents"] == 5
    assert told["bytes"] == 2 * told["tokens"]
    assert told["dtype"] == "uint16"
    length = told["length"]
    assert (length["min"], length["median"]) == (1, 3)
    assert length["mean"] == pytest.approx(told["tokens"] / 5)
    assert length["median"] <= length["p90"] <= length["max"]
    assert sum(part["documents"] for part in told["histogram"]) == 5
    assert told["histogram"][0] == {"from": 1, "to": 2, "documents": 1}
    assert told["histogram"][1] == {"from": 2, "to": 4, "documents": 2}
    assert told["histogram"][-1]["from"] <= length["max"] < told["histogram"][-1]["to"]
    assert [sample["text"] for sample in told["first"]] == ["", "Hello world"]
    assert [sample["document"] for sample in told["last"]] == [3, 4]
    assert told["last"][0]["text"].endswith("x …")
    assert len(told["last"][0]["text"]) < 5000
    assert told["last"][1] == {"document": 4, "tokens": 2, "text": "last"}
    assert told["verified"] == [
        "index agrees with data",
        "every token in range",
        "files agree with the manifest",
    ]
    assert told["manifest"]["plan"]["my_exit_tokens"] == told["tokens"]


def test_a_pair_without_a_manifest(golden):
    told = describe_binidx(golden / "docs-x1")
    assert told["manifest"] is None
    assert told["verified"] == ["index agrees with data", "every token in range"]
    assert told["first"][0]["text"] == "Hello world"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_documents_are_shown_once(tmp_path, count):
    with BinidxWriter(tmp_path / "d") as writer:
        for _ in range(count):
            writer.add([0])
    told = describe_binidx(tmp_path / "d")
    shown = [sample["document"] for sample in told["first"] + told["last"]]
    assert shown == list(range(count))


def test_a_token_of_no_vocabulary_is_named(tmp_path):
    with BinidxWriter(tmp_path / "d") as writer:
        writer.add([1, 65529, 65530])
    with pytest.raises(DataError, match="token 2 is 65530, not in") as caught:
        describe_binidx(tmp_path / "d")
    assert caught.value.where.endswith("d.bin")


def test_files_that_are_not_those_of_the_manifest(build, jsonl, tmp_path):
    build(jsonl("a.jsonl", ["Hello world"])).run()
    path = tmp_path / "out" / "data.bin"
    path.write_bytes(struct.pack("<3H", 5, 6, 0))
    with pytest.raises(DataError, match="not the file that the manifest"):
        describe_binidx(tmp_path / "out" / "data")


def test_a_mask_that_is_gone_is_named(build, jsonl, tmp_path):
    build({"path": jsonl("a.jsonl", ["Hello world"]), "loss": "none"}).run()
    (tmp_path / "out" / "data.mask").unlink()
    with pytest.raises(DataError, match="loss mask that the manifest names is gone") as caught:
        describe_binidx(tmp_path / "out" / "data")
    assert caught.value.where.endswith("data.mask")


def test_a_damaged_index_is_an_error(build, jsonl, tmp_path):
    build(jsonl("a.jsonl", ["Hello world", "x"])).run()
    path = tmp_path / "out" / "data.idx"
    content = bytearray(path.read_bytes())
    content[-1] = 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="document entries"):
        describe_binidx(tmp_path / "out" / "data")


def test_another_world_vocabulary_is_not_shown_as_text(build, jsonl, tmp_path):
    vocab = tmp_path / "v.txt"
    vocab.write_text("".join(f"{256 - byte} {bytes([byte])!r} 1\n" for byte in range(256)))
    build(jsonl("a.jsonl", ["ab"]), vocab=str(vocab)).run()
    told = describe_binidx(tmp_path / "out" / "data")
    assert told["first"][0]["text"] == "159 158 0"


class _Sized(TextStage):
    vocab_size: int = 10

    def run(self, documents):
        return documents


def test_only_encode_says_which_vocabulary(jsonl, tmp_path):
    read = Read.model_validate(Read.expand(jsonl("a.jsonl", ["Hello world"])))
    prefix = tmp_path / "out" / "data"
    chain = [read, _Sized(), Encode(), WriteBinidx(prefix=str(prefix))]
    Build(chain, seed=1, ctx_len=4).run(workers=1)
    assert describe_binidx(prefix)["first"][0]["text"] == "Hello world"


def test_the_validation_part_is_checked_against_the_manifest_of_the_whole(jsonl, tmp_path):
    read = Read.model_validate(Read.expand(jsonl("a.jsonl", [f"text {i}" for i in range(60)])))
    prefix = tmp_path / "out" / "data"
    chain = [read, Encode(), Split(validation=0.3), WriteBinidx(prefix=str(prefix)), Plan()]
    Build(chain, seed=1, ctx_len=4).run(workers=1)
    path = prefix.with_name("data-val")
    told = describe_binidx(path)
    assert told["verified"][-1] == "files agree with the manifest"
    assert told["manifest"]["plan"] is None  # which is for the whole
    assert describe_binidx(prefix)["manifest"]["plan"] is not None
    tokens = path.with_suffix(".bin")
    tokens.write_bytes(b"\1" + tokens.read_bytes()[1:])
    with pytest.raises(DataError, match="not the file that the manifest"):
        describe_binidx(path)


def test_a_pair_with_the_name_of_a_validation_part(build, jsonl, tmp_path):
    build(jsonl("a.jsonl", ["Hello world"])).run()
    with BinidxWriter(tmp_path / "out" / "data-val") as writer:
        writer.add([5, 0])
    assert describe_binidx(tmp_path / "out" / "data-val")["manifest"] is None
