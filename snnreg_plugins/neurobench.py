"""NeuroBench's harness on an exported network; needs ``pip install "snnreg_plugins[neurobench]"``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from snnreg_plugins._imports import needed
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.layers import neuron_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    #: See :func:`make`.
    NeuroBenchNetwork: Callable[[SpikingNetwork], Any]

__all__ = ["NeuroBenchNetwork"]


def make() -> type:
    """Make the class ``NeuroBenchNetwork``; NeuroBench is imported only when it is asked for.

    Raises:
        ModuleNotFoundError: If NeuroBench, or something that it needs, is missing.
    """
    with needed("NeuroBenchNetwork", "neurobench", "snnreg_plugins[neurobench]"):
        from neurobench.hooks.layer import LayerHook
        from neurobench.hooks.neuron import NeuronHook
        from neurobench.models import NeuroBenchModel

    class OutputHook(NeuronHook):  # type: ignore[misc]
        """Keeps the spikes alone of a neuron that returns its state beside them."""

        def hook_fn(self, layer: nn.Module, args: Any, output: Any) -> None:
            if self.spiking:  # of snnTorch
                super().hook_fn(layer, args, output)
            else:
                self.activation_outputs.append(output[0] if isinstance(output, tuple) else output)

    class NeuroBenchNetwork(NeuroBenchModel):  # type: ignore[misc]
        r"""An exported network as a model of NeuroBench (Yik et al. 2025), for its ``Benchmark``.

        Its ``SynapticOperations`` gives the same per sample as ours: ``Effective_ACs`` are SOPs, ``Effective_MACs``
        effective MACs, ``Dense`` dense MACs; and ``ActivationSparsity`` is 1 - spike rate. NeuroBench counts otherwise

        - where spikes were summed, as after average pooling: an input that holds a number above 1 makes the whole
          tensor real-valued, so MACs, one for each non-zero position;
        - at weights that are exactly 0: they are no synapses in its effective counts;
        - at ConvTranspose and at the one-to-one synapses of identity shortcuts, which it does not see;
        - beyond 2²⁴ operations of a layer in a call: it adds them up in the precision of the network.

        Args:
            network: The exported network. It is set to eval mode.

        Raises:
            TypeError: If ``network`` is no SpikingNetwork.
        """

        def __init__(self, network: SpikingNetwork) -> None:
            if not isinstance(network, SpikingNetwork):
                raise TypeError(
                    "Expected argument `network` to be a SpikingNetwork, such as to_snntorch() makes, but got "
                    f"{type(network).__name__}."
                )
            super().__init__()
            self.network = network.eval()

        def __call__(self, batch: Tensor) -> Tensor:
            """Return scores of shape ``(B, K)`` for a batch ``(B, ...)``."""
            scores: Tensor = self.network(batch)
            return scores

        def __net__(self) -> SpikingNetwork:
            """Return the network."""
            return self.network

        def activation_layers(self) -> list[dict[str, Any]]:
            """Find the neuron layers, of any framework."""
            return [{"layer_name": name, "layer": layer} for name, layer in neuron_layers(self.network).items()]

        def register_hooks(self) -> None:
            """Watch neurons and synapses, as the harness asks."""
            self.activation_hooks.extend(
                OutputHook(each["layer"], each["layer_name"]) for each in self.activation_layers()
            )
            self.connection_hooks.extend(LayerHook(layer) for layer in self.connection_layers())

    # Found again by pickle.
    NeuroBenchNetwork.__module__, NeuroBenchNetwork.__qualname__ = __name__, "NeuroBenchNetwork"
    return NeuroBenchNetwork


def __getattr__(name: str) -> Any:
    if name != "NeuroBenchNetwork":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = make()
    return value
