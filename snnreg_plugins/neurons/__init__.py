"""Neurons with an adaptive threshold and recurrent weights: ``snntorch`` and ``norse`` hold those of a framework."""

from snnreg_plugins.neurons.alif import AdaptiveNeuron, ALIFParameters, ALIFState, Drawn, alif_step
from snnreg_plugins.neurons.recurrent import Recurrent

__all__ = ["ALIFParameters", "ALIFState", "AdaptiveNeuron", "Drawn", "Recurrent", "alif_step"]
