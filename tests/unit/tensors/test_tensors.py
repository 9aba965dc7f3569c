# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from slimrank import FileError
from slimrank.files import Store
from slimrank.forward import as_batch
from slimrank.survey import batches_from_files, batches_to_files
from slimrank.tensors import digest_tensors, read_tensors, write_tensors


def test_tensors_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a": base,
        "t": base.T,
        "view": base[1:],
        "half": base.bfloat16(),
        "n": torch.tensor(3),
        "e": base[:0],
    }
    store = Store(tmp_path)
    write_tensors(store.path_of("t.safetensors"), tensors, {"layer": "x"})
    found = read_tensors(store.root / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("metadata", [None, {}, {"layer": "x"}])
def test_no_tensors_come_back_as_none(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_tensors(store.path_of("t.safetensors"), {}, metadata)
    assert read_tensors(store.root / "t.safetensors") == {}


@pytest.mark.parametrize("length", [0, 4, 50])
def test_tensors_that_are_not_whole(length: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_tensors(store.path_of("t.safetensors"), {"a": torch.ones(100)})
    path = tmp_path / "t.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"t\.safetensors is truncated or altered"):
        read_tensors(store.root / "t.safetensors")
    path.unlink()
    with pytest.raises(FileError, match=r"t\.safetensors does not exist; is this a directory of slimrank\?"):
        read_tensors(store.root / "t.safetensors")


def test_digest_follows_names_values_and_dtypes() -> None:
    x = torch.arange(4.0)
    states = (
        {"a": x},
        {"b": x},
        {"a": x + 1},
        {"a": x.double()},
        {"a": x.reshape(2, 2)},
        {"a": x, "e": x[:0]},
    )
    assert len({digest_tensors(state) for state in states}) == len(states)
    assert digest_tensors({"a": x, "b": x + 1}) == digest_tensors({"b": x + 1, "a": x.clone()})


@pytest.mark.parametrize(
    "raw",
    [
        torch.ones(2, 3),
        (torch.ones(2), 3, None, "text", [torch.zeros(2), torch.ones(1)], True),
        {"x": torch.ones(2), "deep": {"y": (torch.zeros(1), 0.5)}},
    ],
)
def test_inputs_come_back(raw: object, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert batches_to_files(store, [as_batch(raw), as_batch(raw)]) is None
    found = batches_from_files(store)
    assert len(found) == 2
    expected, got = as_batch(raw), as_batch(found[1])
    assert repr(got.args) == repr(expected.args)
    assert repr(got.kwargs) == repr(expected.kwargs)


def test_inputs_that_no_file_can_keep(tmp_path: Path) -> None:
    told = batches_to_files(Store(tmp_path), [as_batch((torch.ones(2), object()))])
    assert told == "input 0.1 is a object"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", r"inputs\.json holds no batches; restore a copy"),
        ('{"batches": [3]}', r"an entry of unknown kind"),
        ('{"batches": [{}]}', r"an entry of unknown kind"),
        ('{"batches": [{"tuple": 1}]}', r"an entry of unknown kind 'tuple'"),
        ('{"batches": [{"tuple": [{"code": "x"}]}]}', r"an entry of unknown kind 'code'"),
        ('{"batches": [{"tuple": [{"tensor": "gone"}]}]}', r"an entry of unknown kind 'tensor'"),
        ('{"batches": [{"dict": [7]}]}', r"an entry of unknown kind 'dict'"),
    ],
)
def test_inputs_that_were_altered(text: str, words: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    batches_to_files(store, [as_batch(torch.ones(2))])
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(FileError, match=words):
        batches_from_files(store)
