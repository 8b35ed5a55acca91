"""Pure arithmetic: tensors in, tensors out. Imports torch only."""

from snnreg_plugins.functional.bits import (
    dequantize,
    dequantize_packed,
    pack_bits,
    quantize,
    quantize_at_random,
    unpack_bits,
    whole_codes,
)
from snnreg_plugins.functional.cost_models import (
    COST_MODELS,
    Arithmetic,
    BitMatched,
    EFLOPs,
    Lemaire,
    cost_model,
    cost_models,
)
from snnreg_plugins.functional.costs import Cost, CostModel, LayerFacts
from snnreg_plugins.functional.distillation import kl_of_logits, l2_of_logits, mean_square, prefix_means
from snnreg_plugins.functional.draws import DISTRIBUTIONS, draw
from snnreg_plugins.functional.encoding import midrise, normalized_rows, rounded_pattern
from snnreg_plugins.functional.energy import ENERGY_TABLES, EnergyTable, break_even_rate, energy, energy_table
from snnreg_plugins.functional.fewbits import FEW_BITS, magnitudes, round_weights, straight_through, unit_of
from snnreg_plugins.functional.geometry import Geometry
from snnreg_plugins.functional.lemaire import (
    LEMAIRE_SOURCE,
    LemaireEnergy,
    lemaire_break_even_rate,
    lemaire_dense_energy,
    lemaire_energy,
    ram_access,
)
from snnreg_plugins.functional.penalties import (
    PENALTIES,
    expected_rate,
    hoyer,
    hoyer_square,
    l1,
    l2,
    rate_bounds,
    transformed_l1,
)
from snnreg_plugins.functional.prices import PriceList
from snnreg_plugins.functional.readout import READOUTS, outputs_of, per_step_loss, running_scores
from snnreg_plugins.functional.symbols import bit_error_rate, gray_code
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
    "COST_MODELS",
    "DISTRIBUTIONS",
    "ENERGY_TABLES",
    "FEW_BITS",
    "LEMAIRE_SOURCE",
    "PENALTIES",
    "READOUTS",
    "SYNAPTIC_LAYERS",
    "Arithmetic",
    "BitMatched",
    "Cost",
    "CostModel",
    "EFLOPs",
    "EnergyTable",
    "Geometry",
    "LayerFacts",
    "Lemaire",
    "LemaireEnergy",
    "OneToOne",
    "PriceList",
    "bit_error_rate",
    "break_even_rate",
    "cost_model",
    "cost_models",
    "count_events",
    "dense_macs",
    "dequantize",
    "dequantize_packed",
    "draw",
    "energy",
    "energy_table",
    "expected_rate",
    "fan_out",
    "gray_code",
    "hoyer",
    "hoyer_square",
    "is_integer_valued",
    "is_synaptic",
    "kl_of_logits",
    "l1",
    "l2",
    "l2_of_logits",
    "lemaire_break_even_rate",
    "lemaire_dense_energy",
    "lemaire_energy",
    "local",
    "magnitudes",
    "maximum",
    "mean_square",
    "midrise",
    "mmse",
    "normalized_rows",
    "operations",
    "outputs_of",
    "pack_bits",
    "per_step_loss",
    "percentile",
    "prefix_means",
    "quantize",
    "quantize_at_random",
    "ram_access",
    "rate_bounds",
    "round_weights",
    "rounded_pattern",
    "running_scores",
    "straight_through",
    "transformed_l1",
    "unit_of",
    "unpack_bits",
    "whole_codes",
]
