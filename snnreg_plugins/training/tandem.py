"""A spiking network of which the first layers spike and the others do not yet, trained through a coupled DNN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.frameworks.base import Dynamics
from snnreg_plugins.spiking.engine import AllSteps, Chunk, LayerwiseCall
from snnreg_plugins.spiking.inputs import require_fitting, require_tensor
from snnreg_plugins.spiking.layers import BatchNorm, InitialState, SpikeMaxPool, by_step
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.spiking.stepwise import NetworkState
from snnreg_plugins.watching.hooks import is_watched, unwatched
from snnreg_plugins.watching.steps import holding_steps

_AS_A_WHOLE = (
    " It stands for the DNN while ProgressiveTandem converts that, and can be called as a whole alone: put what is "
    "between its parts into forward() of the network."
)


class TandemNetwork(SpikingNetwork):
    r"""A spiking network whose first :attr:`spiking_layers` neuron layers spike; the others are a DNN's yet.

    With :math:`r_l` what the layer l of neurons hands on, and W and b of the layer in front of it (pools, batch norm
    and sums of branches included), each neuron layer is

    .. math::
        r_l = \frac{1}{T} \sum_{t=1}^{T} s_{l,t} \quad \text{if it spikes, else} \quad
        r_l = \frac{1}{\lambda_l} \max(0, W_l r_{l-1} + b_l)

    where :math:`s_{l,t}` are the spikes that the network gives in T steps, from the spikes, and not the rates, of the
    layers below. The backward pass is that of the coupled DNN layer, which has the same weights, and reads the spike
    counts of the layer below (Wu et al. 2019, A tandem learning rule for effective training and rapid inference of deep
    spiking neural networks):

    .. math::
        \frac{\partial r_l}{\partial (W_l r_{l-1} + b_l)} := \frac{1}{\lambda_l} [W_l r_{l-1} + b_l > 0]

    for all layers. So with none that spikes this is the DNN that the network was exported from, and with all of them
    the forward pass is the spiking network's; in eval mode it then is nothing but a
    :class:`~snnreg_plugins.SpikingNetwork`.

    Batch norms in front of layers that spike keep their statistics in training, too, so that spikes and coupled DNN go
    by the same ones.

    Args:
        network: The spiking network; its parts are taken over, not copied.
        layers: Names of the neurons in its body, as many names as populations for each layer, from the first layer on.
        spiking_layers: How many of them spike.

    Raises:
        ValueError: If the network has other neurons, or leaky ones, or reads an input with a dimension of time.
    """

    def __init__(self, network: SpikingNetwork, layers: Sequence[Sequence[str]], spiking_layers: int = 0) -> None:
        super().__init__(*_parts_of(network))
        self.layers = [list(names) for names in layers]
        self._check()
        self._spiking_layers = 0
        self.spiking_layers = spiking_layers

    def _check(self) -> None:
        modules = dict(self.body.named_modules())
        found = [name for name in self._calls() if self.neurons.describe(modules[name]) is not None]
        known = [name for names in self.layers for name in names]
        if sorted(found) != sorted(known):
            raise ValueError(f"Expected argument `layers` to name the neurons {found}, but got {known}.")
        if any(bool((self.dynamics(name).beta != 1).any()) for name in known):
            raise ValueError("Expected neurons that keep their potential, beta = 1, which the coupled DNN stands for.")
        if self.time_dim is not None:
            raise ValueError("Expected a network of constant inputs, but its `time_dim` is set.")

    @property
    def spiking_layers(self) -> int:
        """Number of neuron layers that spike, from the first one on; may be set."""
        return self._spiking_layers

    @spiking_layers.setter
    def spiking_layers(self, value: int) -> None:
        if not 0 <= value <= len(self.layers):
            raise ValueError(f"Expected `spiking_layers` to be from 0 to {len(self.layers)}, but got {value}.")
        self._spiking_layers = value
        self._spiking = {name for names in self.layers[:value] for name in names}
        # By name: a copy has nodes of its own.
        self._needed = {node.name for node in self._in_front_of(value)}
        self.train(self.training)

    @property
    def all_spike(self) -> bool:
        """Whether all neuron layers spike."""
        return self._spiking_layers == len(self.layers)

    def train(self, mode: bool = True) -> TandemNetwork:
        """Set the mode; batch norms in front of layers that spike stay in eval mode."""
        super().train(mode)
        for module in self._modules_before(self._spiking_layers):
            if isinstance(module, (BatchNorm, nn.SyncBatchNorm)):
                module.eval()
        return self

    def parameters_before(self, layers: int) -> list[nn.Parameter]:
        """List the parameters that the first layers of neurons depend on.

        Args:
            layers: Number of layers.
        """
        modules = self._modules_before(layers)
        return list({id(p): p for module in modules for p in module.parameters(recurse=False)}.values())

    def _calls(self) -> dict[str, fx.Node]:
        """Give the calls of modules in a time step, by the module's name."""
        return {str(node.target): node for node in self.body.graph.nodes if node.op == "call_module"}

    def _in_front_of(self, layers: int) -> set[fx.Node]:
        """Give the nodes that the first layers of neurons depend on, and these."""
        calls = self._calls()
        return _with_sources(calls[name] for names in self.layers[:layers] for name in names)

    def _modules_before(self, layers: int) -> list[nn.Module]:
        """List the modules that the first layers of neurons depend on, and these neurons."""
        needed = self._in_front_of(layers)
        modules = [self.body.get_submodule(str(node.target)) for node in needed if node.op == "call_module"]
        read = {
            node.args[1]
            for node in needed
            if node.op == "call_function" and getattr(node.args[0], "target", None) == "constants"
        }
        (output,) = (node for node in self.encoder.graph.nodes if node.op == "output")
        once = _with_sources(source for index, source in enumerate(output.args[0]) if index in read)
        return modules + [self.encoder.get_submodule(str(node.target)) for node in once if node.op == "call_module"]

    def forward(
        self, x: Tensor, per_step: bool = False, time_dim: int | None = None, _state: NetworkState | None = None
    ) -> Tensor:
        """Give scores ``(B, K)``; see :meth:`SpikingNetwork.forward`.

        Raises:
            RuntimeError: If not all layers spike, and there is more asked for than scores: those of single steps, or a
                metric's count.
        """
        is_trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        if self.all_spike and not (is_trained and self.training):
            return super().forward(x, per_step, time_dim, _state)
        require_tensor(x, self)
        if per_step or time_dim is not None or _state is not None:
            raise RuntimeError(
                f"{self._how_many()}, so it has no scores of single time steps. Call eval(), and set spiking_layers to "
                f"{len(self.layers)}, to have it simulated."
            )
        if any(map(is_watched, self._layers_of_body())):
            raise RuntimeError(
                f"{self._how_many()}, but a metric or penalty watches its layers, and would count what is none of a "
                "spiking network. Watch it in eval mode after the fit, or ProgressiveTandem.network."
            )
        require_fitting(x, None, self.timesteps, self.conversion)
        return self._scores(Coupled(self, self.rates(x)).give(self.encoder(x)))

    def __getattr__(self, name: str) -> Any:
        """Find a part; one of the DNN's is none of this."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{error}{_AS_A_WHOLE}") from None

    def __getitem__(self, index: Any) -> Any:
        """Refuse to be taken apart, as an ``nn.Sequential`` can be."""
        raise TypeError(f"{type(self).__name__} has no parts to index.{_AS_A_WHOLE}")

    def _how_many(self) -> str:
        return f"{self._spiking_layers} of {len(self.layers)} layers of this network spike, and it is being trained"

    def _layers_of_body(self) -> Iterator[nn.Module]:
        for part in (self.encoder, self.body):
            yield from part.children()

    def initial_state(self, name: str) -> InitialState:
        """Give what neurons start with, and what their spikes are worth, by their name."""
        initial = self.body.get_submodule(f"{name}_initial")
        assert isinstance(initial, InitialState)
        return initial

    def dynamics(self, name: str) -> Dynamics:
        """Give what neurons do, by their name."""
        dynamics = self.neurons.describe(self.body.get_submodule(name))
        assert dynamics is not None
        return dynamics

    @torch.no_grad()
    def rates(self, x: Tensor) -> dict[str, Tensor]:
        """Simulate as far as layers spike: gives the mean spikes of each neuron over the steps, by layer."""
        if not self._spiking:
            return {}
        call = self._call_of(x, x)
        if not isinstance(call, LayerwiseCall):
            raise RuntimeError(
                "Expected to run all time steps at once, but `exact`, a compiler or a hook of another library on the "
                "network wants single steps. Train without it."
            )
        samples, _ = call.split(len(x), self.timesteps, False)
        found: list[dict[str, Tensor]] = []
        with unwatched():
            for part in torch.split(x, max(1, samples)):
                chunk = _Prefix(call, call.begin(part), self._no_states(), self.timesteps, 0)
                found.append(chunk.simulate(self._needed))
        return {name: torch.cat([rates[name] for rates in found]) for name in found[0]}

    def plain(self) -> SpikingNetwork:
        """Give the spiking network on the same parts, all of whose layers spike."""
        return SpikingNetwork(*_parts_of(self))


def layers_of(traced: fx.GraphModule, network: SpikingNetwork) -> list[list[str]]:
    """List the neurons of a network by layer, in the order that its DNN computes them.

    Args:
        traced: The DNN, as :func:`~snnreg_plugins.export.trace.trace` gives it.
        network: What it was exported to.

    Raises:
        ConversionError: If an activation is bounded, which the coupled DNN is not.
    """
    layers = []
    for node in traced.graph.nodes:
        kinds = {} if node.meta.get("head") else node.meta.get("populations", {})
        if any(math.isfinite(kind.limit) for kind in kinds.values()):
            raise ConversionError(
                f"Layer {str(node.target)!r} is bounded, as ReLU6 and quantized activations are, which "
                "ProgressiveTandem does not serve. Use nn.ReLU in its place, or fine-tune with SpikingClassifier."
            )
        layers += [list(kinds)] if kinds else []
    known = {name for names in layers for name in names}
    modules = dict(network.body.named_modules())
    called = [str(node.target) for node in network.body.graph.nodes if node.op == "call_module"]
    encoder = [name for name in called if name not in known and network.neurons.describe(modules[name]) is not None]
    return [encoder, *layers] if encoder else layers


class _Prefix(Chunk):
    """The first layers of a network over all time steps."""

    def simulate(self, needed: set[str]) -> dict[str, Tensor]:
        """Run some nodes, and give the mean spikes of each neuron among them, ``(B, ...)``, by its name."""
        self.rates: dict[str, Tensor] = {}
        with holding_steps(self.held):
            for node, how, _ in self.plan.nodes:
                if node.name in needed:
                    self.values[node] = getattr(self, how)(node)
        return self.rates

    def neurons(self, node: Any) -> tuple[AllSteps, Any]:
        spikes, state = super().neurons(node)
        self.rates[str(node.target)] = by_step(spikes.values, self.steps).mean(0)
        return spikes, state


class Coupled(fx.Interpreter):
    """Runs the time step of a network once, on rates: as the DNN that its spikes follow.

    Args:
        network: The network.
        rates: Of the neurons that spike, by name; the others give what the DNN does.
    """

    def __init__(self, network: TandemNetwork, rates: Mapping[str, Tensor]) -> None:
        super().__init__(network.body)
        self.network, self.rates = network, rates

    def give(self, constants: Any) -> Tensor:
        """Run on what the encoder computed, and give the output."""
        output: Tensor = self.run(constants, self.network._no_states())[0]
        return output

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, InitialState):
            return None  # nothing has a state
        if isinstance(module, SpikeMaxPool):
            return module.pool(args[0]), None
        dynamics = self.network.neurons.describe(module)
        if dynamics is None:
            return super().call_module(target, args, kwargs)
        return self.neurons(str(target), args[0], dynamics.threshold), None

    def neurons(self, name: str, current: Tensor, threshold: Tensor) -> Tensor:
        """Give what a layer hands on."""
        rate = current.relu() / threshold
        return _Replaced.apply(rate, self.rates[name]) if name in self.rates else rate


class _Replaced(torch.autograd.Function):
    """Puts the rate of spikes in the place of what it follows, which gets its gradient."""

    @staticmethod
    def forward(ctx: Any, follows: Tensor, rate: Tensor) -> Tensor:
        # Neurons are silent on NaN, which would so be lost.
        return rate.to(follows.dtype).where(follows.isfinite(), torch.nan)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _parts_of(network: SpikingNetwork) -> tuple[Any, ...]:
    parts = network.encoder, network.body, network.timesteps, network._states, network.neurons
    return (*parts, network.head, network.conversion)


def _with_sources(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Give nodes, and all that they depend on."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
