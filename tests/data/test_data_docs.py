"""Every piece of recipe in docs/data.md is one."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rwkvkit.data.stages import Encode, Read

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def parsed(text):
    return YAML(typ="safe").load(text)


SOURCES = [
    *[one for block in re.findall(r"```yaml\n(- .*?)```", TEXT, re.S) for one in parsed(block)],
    *[parsed(text) for text in re.findall(r"\{(?:path|dataset): [^`]+\}(?=`)", TEXT)],
]


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_source(source):
    read = Read.model_validate(Read.expand(source))
    assert read.sources[0].form.columns


def test_there_are_sources():
    assert len(SOURCES) == 13


@pytest.mark.parametrize(
    "value", re.findall(r"^\| `(.*)` \| .*(?:vocabulary|form|json|same)", TEXT, re.M)
)
def test_an_encoder(value):
    Encode.model_validate(Encode.expand(parsed(value)))
