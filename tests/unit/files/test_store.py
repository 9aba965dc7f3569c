# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import numpy as np
import pytest

from slimrank import FileError
from slimrank.files import Store, write_bytes
from slimrank.tensors import read_tensors


def test_json_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    assert not store.has("a.json")
    store.write_json("a.json", {"b": [1, None, "x"], "a": {"c": 0.5}})
    assert store.read_json("a.json") == {"a": {"c": 0.5}, "b": [1, None, "x"]}
    assert store.has("a.json")
    assert [path.name for path in store.root.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"a\.json cannot be read .*is this a directory of slimrank\?"),
        (b'{"a": ', r"a\.json is not whole JSON .*delete it or restore a copy"),
        (b"[1]", r"a\.json holds a list, not an object"),
        (b"\xff", r"a\.json is not whole JSON"),
    ],
)
def test_json_that_is_not_whole(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=words):
        Store(tmp_path).read_json("a.json")


def test_arrays_come_back(tmp_path: Path) -> None:
    base = np.arange(12.0).reshape(3, 4)
    arrays = {
        "a": base,
        "t": base.T,
        "n": np.array([1, 2], dtype=np.int64),
        "text": np.frombuffer(b"conv", dtype=np.uint8),
        "e": base[:0],
    }
    store = Store(tmp_path)
    store.write_arrays("a.safetensors", arrays, {"layer": "x"})
    found = store.read_arrays("a.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    # Tensors are files of the same format.
    assert read_tensors(tmp_path / "a.safetensors")["t"].tolist() == base.T.tolist()


@pytest.mark.parametrize("metadata", [None, {}, {"layer": "x"}])
def test_no_arrays_come_back_as_none(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_arrays("a.safetensors", {}, metadata)
    assert store.read_arrays("a.safetensors") == {}


@pytest.mark.parametrize("length", [0, 4, 50])
def test_arrays_that_are_not_whole(length: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_arrays("a.safetensors", {"a": np.ones(100)})
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"a\.safetensors is truncated or altered"):
        store.read_arrays("a.safetensors")
    path.unlink()
    with pytest.raises(FileError, match=r"a\.safetensors does not exist; is this a directory of slimrank\?"):
        store.read_arrays("a.safetensors")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"cannot be written \(.*No space left.*give a directory with room"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "a", b"")
    with pytest.raises(FileError, match="cannot be written"):
        Store(tmp_path / "file").write_arrays("t.safetensors", {"a": np.ones(1)})


def test_makes_its_directory_and_folders_within_but_none_above(tmp_path: Path) -> None:
    Store(tmp_path / "run").write_arrays("deep/er/t.safetensors", {"a": np.ones(1)})
    assert (tmp_path / "run" / "deep" / "er" / "t.safetensors").is_file()
    with pytest.raises(FileError, match=r"no/run cannot be written: there is no folder .*no; make it first"):
        Store(tmp_path / "no" / "run").write_json("a.json", {})
    assert not (tmp_path / "no").exists()
