# SPDX-License-Identifier: Apache-2.0
"""JSON, text and arrays on disk, whole or not at all."""

from slimrank.files._arrays import Array, read_safetensors, write_safetensors
from slimrank.files._atomic import check_folder, draft_of, make_directory, write_bytes, write_text
from slimrank.files._format import check_format, spelled_number
from slimrank.files._json import (
    Json,
    as_flag,
    as_integer,
    as_integers,
    as_list,
    as_number,
    as_object,
    as_text,
    from_text,
    to_text,
)
from slimrank.files._read import read_text
from slimrank.files._store import Store

__all__ = [
    "Array",
    "Json",
    "Store",
    "as_flag",
    "as_integer",
    "as_integers",
    "as_list",
    "as_number",
    "as_object",
    "as_text",
    "check_folder",
    "check_format",
    "draft_of",
    "from_text",
    "make_directory",
    "read_safetensors",
    "read_text",
    "spelled_number",
    "to_text",
    "write_bytes",
    "write_safetensors",
    "write_text",
]
