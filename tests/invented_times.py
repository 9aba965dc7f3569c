# SPDX-License-Identifier: Apache-2.0
"""Tables of times that nobody measured: a time for each MAC, and what runtimes add to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slimrank import LatencyError
from slimrank.cost import factor_costs, forms_of, rows_and_columns
from slimrank.plan import Structure
from slimrank.records import DenseTime, LayerTimes, NetworkTimes, PairTime


@dataclass(frozen=True, kw_only=True)
class Table:
    """Has what plans and ``meet_latency`` ask of a table."""

    times: NetworkTimes
    structure: Structure
    backend: str = "torch"
    threads: int = 1
    batch: int = 1
    precision: str = "float32"

    def check(self, structure: Structure) -> None:
        if structure.sha256 != self.structure.sha256:
            raise LatencyError("the latency table was measured with other layers; measure one for this study")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How fast an invented machine is, ns.

    Attributes:
        mac: of each MAC of a layer in one piece.
        pair_mac: the same of a pair, by form; ``mac`` where it is not named.
        call: of each layer or factor beside.
        unit: of each unit of a group.
        share_fixed: of the whole, that no plan changes.
    """

    mac: float = 1.0
    pair_mac: Mapping[str, float] = field(default_factory=dict)
    call: float = 100.0
    unit: float = 20.0
    share_fixed: float = 0.1


def times_on(
    structure: Structure, machine: Machine, *, step: int = 1, reference: float = 1.0
) -> NetworkTimes:
    """The times of a network on such a machine; ``reference`` is a multiple of its own time."""
    layers: dict[str, LayerTimes] = {}
    whole = 0.0
    for name, spec in structure.layers.items():
        rows, columns = rows_and_columns(spec)
        dense = DenseTime(
            fixed=machine.call,
            per_row=0.0,
            per_column=0.0,
            per_product=machine.mac * spec.macs / (rows * columns),
        )
        whole += float(dense.time(rows, columns))
        pairs = {}
        for method in spec.methods:
            for form in forms_of(spec, method) if method != "channel_pruning" else ():  # type: ignore[arg-type]
                column, row = factor_costs(spec, form)
                mac = machine.pair_mac.get(form, machine.mac)
                pairs[form] = PairTime(
                    fixed=2 * machine.call,
                    per_rank=0.0,
                    per_row=mac * row.macs,
                    per_column=mac * column.macs,
                )
        layers[name] = LayerTimes(dense=dense, pairs=pairs)
    groups = {name: machine.unit for name, group in structure.channels.groups.items() if group.reason is None}
    whole += sum(structure.channels.groups[name].units * unit for name, unit in groups.items())
    fixed = whole * machine.share_fixed / (1 - machine.share_fixed)
    return NetworkTimes(
        layers=layers,
        groups=groups,
        blocks={},
        fixed=fixed,
        before=fixed + whole,
        reference=reference * (fixed + whole),
        step=step,
    )


def table_on(structure: Structure, machine: Machine, **fields: object) -> Table:
    """A table of such times; fields are those of the table, ``step`` or ``reference``."""
    of_times = {name: fields.pop(name) for name in ("step", "reference") if name in fields}
    return Table(times=times_on(structure, machine, **of_times), structure=structure, **fields)  # type: ignore[arg-type]
