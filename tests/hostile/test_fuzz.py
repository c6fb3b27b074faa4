"""Mutated headers: mergd's reader, the strict one and safetensors' own agree; `make fuzz` runs as many as you like."""

import json
import random
from pathlib import Path

import pytest
from hostile.fuzz import fuzz
from hostile.mutants import MUTATIONS, a_file
from hostile.strict import Judgement, judge
from safetensors import deserialize

COUNT = 500


def test_mergd_says_of_each_what_the_strict_reader_says(tmp_path: Path) -> None:
    report = fuzz(COUNT, 1, tmp_path)
    assert not report.differences, report.differences[0]
    assert report.mutations.keys() >= MUTATIONS.keys()
    assert all(report.decisions[decision] > COUNT / 20 for decision in ("whole", "refused", "incomplete"))


def library(content: bytes) -> dict[str, str]:
    """Return the dtypes of the tensors that safetensors' own library finds."""
    return {name: tensor["dtype"] for name, tensor in deserialize(content)}  # type: ignore[no-untyped-call]


def test_what_the_strict_reader_lets_pass_the_library_lets_pass_too() -> None:
    contents = [a_file(random.Random(f"2 {k}"))[0] for k in range(COUNT)]
    whole = [(content, found) for content in contents if (found := judge(content)).decision == "whole"]
    for content, found in whole:
        assert {name: dtype for name, dtype, *_ in found.tensors} == library(content)
    assert len(whole) > COUNT / 20


def lenient(path: Path) -> Judgement:
    """Read a header as one would who trusts it: the last of two equal keys counts, NaN is a number, -0 is 0."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max((end for _, end in places), default=0) == len(content)
    except Exception:  # noqa: BLE001
        return Judgement("refused", [])
    return Judgement("whole" if whole else "refused", judge(content).tensors)


def test_the_fuzzing_finds_a_reader_that_is_not_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostile.fuzz.mergds_judgement", lenient)
    assert len(fuzz(COUNT, 1, tmp_path).differences) > COUNT / 20
