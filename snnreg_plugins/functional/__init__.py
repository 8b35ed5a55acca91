"""Pure arithmetic: tensors in, tensors out. Imports torch only."""

from snnreg_plugins.functional.energy import ENERGY_TABLES, EnergyTable, energy
from snnreg_plugins.functional.penalties import (
    PENALTIES,
    expected_rate,
    hoyer,
    hoyer_square,
    l1,
    l2,
    transformed_l1,
)
from snnreg_plugins.functional.synapses import (
    SYNAPTIC_LAYERS,
    OneToOne,
    count_events,
    dense_macs,
    fan_out,
    is_integer_valued,
    is_synaptic,
    operations,
)
from snnreg_plugins.functional.thresholds import local, maximum, mmse, percentile

__all__ = [
    "ENERGY_TABLES",
    "PENALTIES",
    "SYNAPTIC_LAYERS",
    "EnergyTable",
    "OneToOne",
    "count_events",
    "dense_macs",
    "energy",
    "expected_rate",
    "fan_out",
    "hoyer",
    "hoyer_square",
    "is_integer_valued",
    "is_synaptic",
    "l1",
    "l2",
    "local",
    "maximum",
    "mmse",
    "operations",
    "percentile",
    "transformed_l1",
]
