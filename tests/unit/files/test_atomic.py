# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from slimrank import FileError
from slimrank.files import check_folder, draft_of, make_directory, write_bytes, write_text


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(
        FileError, match=r"plan file .*: cannot be written .*; give a file in an existing folder"
    ):
        write_text(path, "text", what="plan file")
    with pytest.raises(FileError, match=r"cannot be written .*; give a directory with room and rights"):
        write_bytes(Path(path), b"data")


def test_no_folder_is_made_above_a_file(tmp_path: Path) -> None:
    path = tmp_path / "no" / "file"
    why = f"there is no folder {path.parent}"
    with pytest.raises(FileError, match=rf"plan file {path}: cannot be written .{why}"):
        write_text(path, "text", what="plan file")
    with pytest.raises(FileError, match=rf"^{path} cannot be written: {why}; make it first"):
        write_bytes(path, b"data")
    with pytest.raises(FileError, match=rf"^run_dir {path} cannot be written"):
        check_folder(path, "run_dir")
    check_folder(Path("new"))
    assert make_directory(path.parent).is_dir()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_while_writing_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with draft_of(path) as draft:
            draft.write_text("half of the new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
