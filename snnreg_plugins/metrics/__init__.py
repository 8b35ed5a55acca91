"""Metrics of cost, in the manner of torchmetrics: built on a model, they count in its forward passes."""

from snnreg_plugins.metrics.energy import Energy
from snnreg_plugins.metrics.operations import SynapticOperations
from snnreg_plugins.metrics.spike_rate import SpikeRate
from snnreg_plugins.metrics.spike_statistics import SpikeStatistics
from snnreg_plugins.metrics.time_steps import TimeSteps

__all__ = ["Energy", "SpikeRate", "SpikeStatistics", "SynapticOperations", "TimeSteps"]
