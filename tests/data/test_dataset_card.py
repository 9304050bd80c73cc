"""The card of a dataset."""

from pathlib import Path

import pytest

from rwkvkit import WorldTokenizer
from rwkvkit.data.build import Build
from rwkvkit.data.card import card_path, write_card
from rwkvkit.data.filters import Filter
from rwkvkit.data.stages import Encode, Read, WriteBinidx
from rwkvkit.errors import DataError


def test_it_names_a_hundred_inputs_and_counts_the_rest(build, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(103):
        (folder / f"{number}.txt").write_text("a" * (number + 1))
    made = build({"path": f"{folder}/*.txt", "format": "text"})
    made.run()
    write_card(made.prefix, WorldTokenizer())
    card = card_path(made.prefix).read_text()
    assert sum(".txt | " in line for line in card.splitlines()) == 100
    assert f"| 3 more, all in the manifest | {101 + 102 + 103} | |" in card
    assert "99.txt" in card
    assert "100.txt" not in card


def test_it_is_no_input_of_the_next_build(build, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a text")
    made = build({"path": str(tmp_path), "format": "text"}, prefix=tmp_path / "data")
    made.run()
    write_card(made.prefix, WorldTokenizer())
    assert made.status().up_to_date
    assert made.run().documents == 1


def test_what_is_no_table_stays_within_its_cell(build, tmp_path: Path) -> None:
    path = tmp_path / "a|b.txt"
    path.write_text("one|\ntwo")
    made = build({"path": str(path), "separator": "|\n"})
    made.run()
    write_card(made.prefix, WorldTokenizer())
    rows = [line for line in card_path(made.prefix).read_text().splitlines() if "b.txt |" in line]
    assert [row.replace("\\|", "").count("|") for row in rows] == [4]
    assert rows[0].startswith(f"| {tmp_path}/a\\|b.txt | ")


def test_it_counts_all_that_was_read_and_names_no_seed_that_was_not_used(jsonl, tmp_path) -> None:
    chain = [
        Read.model_validate(Read.expand(jsonl("a.jsonl", ["long enough"] * 2 + ["short"]))),
        Filter(min_chars=8),
        Encode(),
        WriteBinidx(prefix=str(tmp_path / "data")),
    ]
    made = Build(chain, seed=42, ctx_len=16)
    made.run()
    write_card(made.prefix, WorldTokenizer())
    card = card_path(made.prefix).read_text()
    for row in ("documents read | 3", "documents filtered out | 1", "seed | not used"):
        assert f"| {row} |" in card


def test_without_a_manifest_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest") as caught:
        write_card(tmp_path / "data", WorldTokenizer())
    assert "rwkvkit prepare" in caught.value.hint
