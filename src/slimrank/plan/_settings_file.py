# SPDX-License-Identifier: Apache-2.0
"""Settings that a person wrote into a CSV or JSON file."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from slimrank._errors import PlanError
from slimrank._names import nearest
from slimrank.files import Json, from_text, read_text
from slimrank.plan._layer_setting import SettingLike, TypedSetting
from slimrank.plan._typed_settings import DROP

# What a CSV file may have, in any order.
_COLUMNS = ("layer", "method", "ratio", "rank", "form", "keep", "channels_kept")
# A line without a method leaves its layer alone; a file without the column is more likely a mistake.
_REQUIRED_COLUMNS = ("layer", "method")
# What spreadsheets put between columns in place of a comma.
_OTHER_SEPARATORS = (";", "\t")


def read_settings(path: str | os.PathLike[str]) -> dict[str, SettingLike]:
    """Settings by layer from a file.

    Args:
        path: of a ``.json`` file, an object of layer -> ``["weight_svd", 0.5]``, ``{"method": ..., "ratio":
            ...}``, ``{"method": ..., "rank": ...}``, a list of such, "drop" or null; or of a ``.csv`` file
            with the columns layer, method, ratio or rank (two with a space between, of three factors),
            and form where one is wanted; and for channel_pruning keep, or channels_kept with spaces between
            the units. Without a method, a layer is left alone. A second row gives a layer another method
            beside the first.

    Returns:
        What ``Plan.manual`` takes, in the order of the file.

    Raises:
        FileError: it cannot be read.
        PlanError: it is no such file; the message names the line or the layer.
    """
    file = Path(path)
    where = f"settings file {file}"
    # Spreadsheets write a byte order mark, which would become part of the first column's name.
    text = read_text(file, where, advice="give a .csv or .json file", error=PlanError, encoding="utf-8-sig")
    if file.suffix.lower() == ".json":
        return _settings_from_json(text, where)
    if file.suffix.lower() == ".csv":
        return _settings_from_csv(text, where)
    raise PlanError(f"{where}: the ending {file.suffix!r} is unknown; give a .csv or .json file")


def _settings_from_json(text: str, where: str) -> dict[str, SettingLike]:
    content = from_text(text, where)
    if not isinstance(content, dict):
        raise PlanError(f'{where}: no object; write {{"layer": ["weight_svd", 0.5], ...}}')
    return {name: _layer_from_value(value, f"{where}: layer {name!r}") for name, value in content.items()}


def _layer_from_value(value: Json, where: str) -> SettingLike:
    """What a JSON file says of one layer."""
    if value is None:
        return None
    if value == DROP:
        return "drop"
    if isinstance(value, Sequence) and value and all(isinstance(item, dict | list) for item in value):
        return [_setting_from_value(item, where) for item in value]
    return _setting_from_value(value, where)


def _setting_from_value(value: Json, where: str) -> TypedSetting:
    if isinstance(value, dict):
        amount = dict(value)
        return _checked_setting(amount.pop("method", None), amount, where)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return _checked_setting(value[0], value[1], where)
    raise PlanError(
        f"{where}: {json.dumps(value)} is no setting; write "
        '["weight_svd", 0.5] or {"method": "weight_svd", "rank": 32}, or "drop" for a block'
    )


def _checked_setting(method: object, amount: object, where: str) -> TypedSetting:
    if not isinstance(method, str):
        raise PlanError(f"{where}: the method is {method!r}; give its name, e.g. weight_svd")
    if isinstance(amount, Mapping):
        return method, {str(key): _checked_amount(value, where) for key, value in amount.items()}
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise PlanError(
            f"{where}: {amount!r} is no ratio; give the share of the layer's MACs to keep, e.g. 0.5"
        )
    return method, amount


def _checked_amount(value: object, where: str) -> int | float | str | list[int]:
    # Python takes true for 1.
    if isinstance(value, list) and all(
        isinstance(unit, int) and not isinstance(unit, bool) for unit in value
    ):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PlanError(f"{where}: {value!r} is neither number nor name; give a ratio, a rank or a form")
    return value


def _settings_from_csv(text: str, where: str) -> dict[str, SettingLike]:
    reader = csv.DictReader(StringIO(text))
    columns = [column.strip() for column in reader.fieldnames or ()]
    for column in columns:
        if any(separator in column for separator in _OTHER_SEPARATORS):
            raise PlanError(f"{where}: the first line is {column!r}; separate columns by commas")
        if column not in _COLUMNS:
            raise PlanError(f"{where}: column {column!r} is unknown; {nearest(column, _COLUMNS)}")
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise PlanError(f"{where}: column {repeated!r} stands twice in the first line; delete one of them")
    missing = [column for column in _REQUIRED_COLUMNS if column not in columns]
    if missing:
        raise PlanError(
            f"{where}: the first line names no column {missing[0]!r}; start with layer,method,ratio or "
            "layer,method,rank"
        )
    settings: dict[str, SettingLike] = {}
    for row in reader:
        line = f"{where}, line {reader.line_num}"
        # Cells for which the first line has no column stand under None.
        if None in row:
            raise PlanError(f"{line}: it has more cells than the first line; remove them")
        cells = {key.strip(): (value or "").strip() for key, value in row.items()}
        name = cells["layer"]
        if not name:
            raise PlanError(f"{line}: it names no layer; fill in the column layer or delete the line")
        setting = _setting_from_cells(cells, f"{line}: layer {name!r}")
        if name in settings:
            setting = _both_settings(settings[name], setting, f"{line}: layer {name!r}")
        settings[name] = setting
    return settings


def _both_settings(first: SettingLike, second: SettingLike, where: str) -> SettingLike:
    """Both settings of a layer that has two lines, each with another method."""
    if (
        not isinstance(first, tuple)
        or not isinstance(second, tuple)
        or not isinstance(first[0], str)
        or not isinstance(second[0], str)
        or first[0] == second[0]
    ):
        raise PlanError(f"{where} stands twice; delete one of the lines")
    return [first, second]


def _setting_from_cells(cells: Mapping[str, str], where: str) -> SettingLike:
    if not cells["method"]:
        return None
    amount: dict[str, int | float | str | Sequence[int]] = {}
    try:
        if cells.get("ratio"):
            amount["ratio"] = float(cells["ratio"])
        if cells.get("rank"):
            ranks = [int(rank) for rank in cells["rank"].split()]
            amount["rank"] = ranks[0] if len(ranks) == 1 else ranks
        if cells.get("keep"):
            amount["keep"] = int(cells["keep"])
        if cells.get("channels_kept"):
            amount["channels_kept"] = [int(unit) for unit in cells["channels_kept"].split()]
    except ValueError as error:
        raise PlanError(
            f"{where}: {error}; a ratio is a decimal like 0.5, a rank or width a whole number"
        ) from error
    if cells.get("form"):
        amount["form"] = cells["form"]
    if cells["method"] != DROP:
        return cells["method"], amount
    if amount:
        raise PlanError(f"{where}: drop takes no number; clear the cells {sorted(amount)}")
    return "drop"
