# SPDX-License-Identifier: Apache-2.0
"""Settings from CSV and JSON files."""

from pathlib import Path

import pytest

from slimrank import FileError, PlanError
from slimrank.plan import read_settings


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_csv_gives_ratios_ranks_forms_and_layers_left_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "plan.csv",
        "layer, method, ratio, rank, form\nstem,,,,\nconv,spatial_svd,0.5,,v_h\nfc,weight_svd,,32,\n",
    )
    assert read_settings(path) == {
        "stem": None,
        "conv": ("spatial_svd", {"ratio": 0.5, "form": "v_h"}),
        "fc": ("weight_svd", {"rank": 32}),
    }


def test_json_takes_the_same_three_ways(tmp_path: Path) -> None:
    text = '{"stem": null, "conv": ["spatial_svd", 0.5], "fc": {"method": "weight_svd", "rank": 32}}'
    assert read_settings(written(tmp_path, "plan.json", text)) == {
        "stem": None,
        "conv": ("spatial_svd", 0.5),
        "fc": ("weight_svd", {"rank": 32}),
    }


def test_csv_gives_widths_blocks_and_both_settings_of_a_layer(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "plan.csv",
        "layer,method,ratio,rank,keep,channels_kept\nconv,channel_pruning,0.5,,,\nfc,channel_pruning,,,24,\n"
        "conv,spatial_svd,,8,,\nstem,channel_pruning,,,,0 3  5\nblocks.3,drop,,,,\n",
    )
    assert read_settings(path) == {
        "conv": [("channel_pruning", {"ratio": 0.5}), ("spatial_svd", {"rank": 8})],
        "fc": ("channel_pruning", {"keep": 24}),
        "stem": ("channel_pruning", {"channels_kept": [0, 3, 5]}),
        "blocks.3": "drop",
    }


def test_json_takes_widths_blocks_and_both_settings_of_a_layer(tmp_path: Path) -> None:
    text = """{"conv": [["channel_pruning", 0.5], {"method": "spatial_svd", "rank": 8}], "blocks.3": "drop",
        "stem": ["channel_pruning", {"channels_kept": [0, 3]}],
        "fc": {"method": "channel_pruning", "keep": 24}}"""
    assert read_settings(written(tmp_path, "plan.json", text)) == {
        "conv": [("channel_pruning", 0.5), ("spatial_svd", {"rank": 8})],
        "blocks.3": "drop",
        "stem": ("channel_pruning", {"channels_kept": [0, 3]}),
        "fc": ("channel_pruning", {"keep": 24}),
    }


def test_a_file_from_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    path.write_bytes("﻿layer,method,ratio\r\nfc,weight_svd,0.25\r\n".encode())
    assert read_settings(path) == {"fc": ("weight_svd", {"ratio": 0.25})}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "layer,method,rato\n", r"column 'rato' is unknown; did you mean 'ratio'"),
        (
            "a.csv",
            "layer;method;ratio\nfc;weight_svd;0.5\n",
            "'layer;method;ratio'; separate columns by commas",
        ),
        ("a.csv", "layer\tmethod\tratio\n", "separate columns by commas"),
        ("a.csv", "layer,method,ratio,ratio\n", "column 'ratio' stands twice"),
        ("a.csv", "layer,ratio\n", "names no column 'method'"),
        ("a.csv", "", "names no column 'layer'"),
        ("a.csv", "layer,method,ratio\nfc,weight_svd,0.5,8\n", "line 2: it has more cells"),
        ("a.csv", "layer,method,ratio\n,weight_svd,0.5\n", "line 2: it names no layer"),
        ("a.csv", "layer,method,ratio\nfc,weight_svd,0.5\nfc,,\n", "line 3: layer 'fc' stands twice"),
        ("a.csv", "layer,method,ratio\nfc,weight_svd,0.5\nfc,weight_svd,0.4\n", "line 3: layer 'fc' stands"),
        ("a.csv", "layer,method\nb,drop\nb,channel_pruning\n", "line 3: layer 'b' stands twice"),
        ("a.csv", "layer,method,ratio\nb,drop,0.5\n", "line 2: layer 'b': drop takes no number"),
        (
            "a.csv",
            "layer,method,keep\nfc,channel_pruning,3.5\n",
            "line 2: layer 'fc': .*3.5.*a rank or width a",
        ),
        ("a.csv", 'layer,method,channels_kept\nfc,channel_pruning,"0, 1"\n', "line 2: layer 'fc': .*'0,'"),
        ("a.csv", "layer,method,ratio\nfc,weight_svd,half\n", "line 2: layer 'fc': .*half.*; a ratio is"),
        (
            "a.csv",
            "layer,method,rank\nfc,weight_svd,3.5\n",
            "line 2: layer 'fc': .*3.5.*a rank or width a whole",
        ),
        ("a.json", "[1]", "no object; write"),
        ("a.json", '{"fc": 0.5}', r"layer 'fc': 0.5 is no setting; write \[\"weight_svd\", 0.5\]"),
        ("a.json", '{"fc": {"rank": 3}}', "layer 'fc': the method is None"),
        ("a.json", '{"fc": ["weight_svd", "half"]}', "layer 'fc': 'half' is no ratio"),
        ("a.json", '{"fc": ["weight_svd", [1]]}', r"layer 'fc': \[1\] is no ratio"),
        ("a.json", '{"fc": ["weight_svd", {"rank": null}]}', "layer 'fc': None is neither number nor name"),
        (
            "a.json",
            '{"fc": ["a", {"channels_kept": [1.5]}]}',
            r"layer 'fc': \[1.5\] is neither number nor name",
        ),
        ("a.json", '{"fc": ["weight_svd", null]}', "layer 'fc': None is no ratio"),
        ("a.json", '{"fc": "dropp"}', r"layer 'fc': \"dropp\" is no setting; .* or \"drop\" for a block"),
        ("a.json", '{"fc": [["a", 0.5], 3]}', "layer 'fc': the method is"),
        ("a.json", '{"fc": []}', "layer 'fc': .* is no setting"),
        ("a.json", '{"fc": [', "a.json"),
        ("a.txt", "fc 0.5", "the ending '.txt' is unknown"),
    ],
)
def test_what_is_no_settings_file_is_refused_by_line_or_layer(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=message):
        read_settings(written(tmp_path, name, text))


def test_a_missing_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be read .*give a \.csv or \.json file"):
        read_settings(tmp_path / "no.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(PlanError, match="no text"):
        read_settings(tmp_path / "a.csv")
