# SPDX-License-Identifier: Apache-2.0
"""Save and load, without pickle; files for other runtimes."""

from slimrank.deploy._architecture import (
    has_architecture,
    load_architecture,
    record_architecture,
    write_architecture,
)
from slimrank.deploy._check import Reading
from slimrank.deploy._cpu import sums_overflow
from slimrank.deploy._difference import relative_difference
from slimrank.deploy._export import (
    LooseFile,
    OpenFile,
    TimedFile,
    check_export,
    export_model,
    write_compiled,
    write_loose,
    write_open,
    write_timed,
)
from slimrank.deploy._formats import FORMATS, format_named, format_of
from slimrank.deploy._measure_script import (
    MEASURED_FILE,
    ORIGINAL,
    PREPARED_FILE,
    PREPARED_FORMAT,
    PROFILES,
    SCRIPT_FILE,
    SCRIPT_PATH,
    STEP,
    Comparison,
    RunNode,
    Times,
    compare_in_turns,
    machine_name,
    profile_time,
    session_options,
)
from slimrank.deploy._node_times import GraphNode, NodeTime
from slimrank.deploy._onnx_profile import nodes_in_graph
from slimrank.deploy._packages import import_package
from slimrank.deploy._prepare import Prepared, prepare
from slimrank.deploy._pretrained import Tokenizer, load_pretrained_model, save_pretrained_model
from slimrank.deploy._quantize import quantizer_for
from slimrank.deploy._quantizer import Precision
from slimrank.deploy._record_program import Recorded
from slimrank.deploy._samples import read_samples
from slimrank.deploy._saved_model import (
    PLAN_FILE,
    REPORT_FILE,
    check_target,
    is_saved_model,
    load_artifact,
    save_artifact,
    update_artifact,
)
from slimrank.deploy._source import ExportSource
from slimrank.deploy._timing import time_in_turns
from slimrank.deploy._torch import torch_threads

__all__ = [
    "FORMATS",
    "MEASURED_FILE",
    "ORIGINAL",
    "PLAN_FILE",
    "PREPARED_FILE",
    "PREPARED_FORMAT",
    "PROFILES",
    "REPORT_FILE",
    "SCRIPT_FILE",
    "SCRIPT_PATH",
    "STEP",
    "Comparison",
    "ExportSource",
    "GraphNode",
    "LooseFile",
    "NodeTime",
    "OpenFile",
    "Precision",
    "Prepared",
    "Reading",
    "Recorded",
    "RunNode",
    "TimedFile",
    "Times",
    "Tokenizer",
    "check_export",
    "check_target",
    "compare_in_turns",
    "export_model",
    "format_named",
    "format_of",
    "has_architecture",
    "import_package",
    "is_saved_model",
    "load_architecture",
    "load_artifact",
    "load_pretrained_model",
    "machine_name",
    "nodes_in_graph",
    "prepare",
    "profile_time",
    "quantizer_for",
    "read_samples",
    "record_architecture",
    "relative_difference",
    "save_artifact",
    "save_pretrained_model",
    "session_options",
    "sums_overflow",
    "time_in_turns",
    "torch_threads",
    "update_artifact",
    "write_architecture",
    "write_compiled",
    "write_loose",
    "write_open",
    "write_timed",
]
