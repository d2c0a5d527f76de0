"""Test that damage in a sealed file is detected, and that older files without a digest are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mtsae_lens.errors import DataError
from mtsae_lens.sealed import DIGEST, SEAL, read_json, read_tensors, write_sealed_json, write_tensors

TENSORS = {
    "x": torch.arange(6.0).view(2, 3).T,
    "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "none": torch.empty(0, 3),
}


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"about": "y"})
    tensors, metadata = read_tensors(path, "")
    assert metadata == {"about": "y"}
    assert tensors.keys() == TENSORS.keys() == load_file(path).keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    write_tensors(path, tensors, {DIGEST: "of another file"})
    read_tensors(path, "")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_every_flipped_bit_of_the_tensors_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"about": "y"})
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole)):
        path.write_bytes(whole)
        flip(path, place, place % 8)
        with pytest.raises(
            DataError,
            match=r"a\.safetensors: expected the content of its SHA-256, got other content \(damaged\); copy it again",
        ):
            read_tensors(path, "copy it again")


def test_no_flipped_bit_of_the_header_gives_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"about": "y"})
    whole = path.read_bytes()
    refused = 0
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole)
        flip(path, place)
        try:
            tensors, _ = read_tensors(path, "")
        except DataError:
            refused += 1
        else:
            assert tensors.keys() == TENSORS.keys()
            assert all(
                torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
            )
    assert refused > 100


def test_tensors_from_before_are_read(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"a": "b"})
    tensors, metadata = read_tensors(tmp_path / "a.safetensors", "")
    assert tensors["x"].tolist() == [1, 1]
    assert metadata == {"a": "b"}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10" + bytes(7) + b"{" * 16, None])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.safetensors: expected .*, got .* \(damaged\); delete it"):
        read_tensors(path, "delete it")


def test_the_digest_can_be_checked_without_this_package(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert len(json.loads(file.metadata()[SEAL])[DIGEST]) == 64


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    """Safetensors writes metadata of several keys in a random order."""
    names = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for name in names:
        write_tensors(name, TENSORS, {key: key for key in "abcde"})
    assert len({name.read_bytes() for name in names}) == 1


def test_sealed_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed_json(path, {"b": (1, 2.5), "a": {"c": None}, 3: "x"})
    assert read_json(path, dict[str, Any], "") == {"b": [1, 2.5], "a": {"c": None}, "3": "x"}
    path.write_text(path.read_text().replace("2.5", "2.4"))
    with pytest.raises(
        DataError, match=r"a\.json: expected the content of its SHA-256, got other content \(damaged\); delete it"
    ):
        read_json(path, dict[str, Any], "delete it")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != DIGEST}))
    assert read_json(path, dict[str, Any], "")["b"] == [1, 2.4]  # as from before
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_sealed_json(path, {"x": float("nan")})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"text"', b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 10_000 + b"}", None],
    ids=lambda content: repr(content)[:12],
)
def test_json_of_another_shape_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*a\.json: expected [^\n]*, got [^\n]* \(damaged\); delete it$"):
        read_json(path, dict[str, Any], "delete it")
