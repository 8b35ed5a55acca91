"""What any network spends, layer by layer: a DNN, or a spiking network of snnTorch, Norse, SpikingJelly or sinabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_flag, as_integer
from snnreg_plugins._models import as_module, device_of, eval_and_back
from snnreg_plugins.functional.cost_models import Model, cost_models
from snnreg_plugins.functional.costs import Cost, CostModel, LayerFacts
from snnreg_plugins.profile.result import LayerProfile, ModelProfile, Profile
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.facts import layer_facts, needs_of, require_prices
from snnreg_plugins.watching.inputs import warn_of_whole_numbers
from snnreg_plugins.watching.layers import forget_states, spikes_already
from snnreg_plugins.watching.stepped import outputs_of_steps
from snnreg_plugins.watching.tally import Tally


def profile(
    model: nn.Module,
    inputs: Tensor,
    *,
    timesteps: int | None = None,
    table: Model | Sequence[Model] = "horowitz_fp32",
    batch_dim: int = 0,
    input_events: bool | None = None,
    count_zero_weights: bool | None = None,
) -> Profile:
    """Run a network on a batch and count what each of its layers does: operations, spikes, energy.

    The network need not come from this package: a plain DNN, or modules of snnTorch, Norse, SpikingJelly and sinabs.
    One whose time loop is inside is called once. One that takes a step at a time is called ``timesteps`` times with
    the same inputs; states that it returns (``output, state``) and takes as a further argument are handed back to it.
    States kept inside its neurons are reset before and after, its mode is eval, and both hooks and mode are as they
    were afterwards.

    Operations are those of :class:`~snnreg_plugins.SynapticOperations`, and spikes those of
    :class:`~snnreg_plugins.SpikeRate`, exact: synaptic layers, and products with weights or of two activities that no
    layer makes (attention, recurrent cells, ``F.linear``), under the name of the module that makes them. What cannot be
    counted is named.

    Args:
        model: The network.
        inputs: A batch, as the network takes it.
        timesteps: Number of calls of a network that takes a step at a time; None for one call.
        table: What operations cost: a name in ``functional.COST_MODELS``, a YAML file of your own prices, an
            ``EnergyTable`` or another model of your own; or several of these, of which the first is shown by layer.
            For those with memory access or neurons, a layer's cost is that of the neurons behind it, too: those called
            after it and before the next one. What leaks is told by a neuron's ``beta`` or its class's name.
        batch_dim: Dimension of the batch in ``inputs``; 1 for ``(T, B, ...)``.
        input_events: Whether whole numbers in ``inputs`` are counts of events, or cost MACs, as those of images of 0 to
            255 do; see :class:`~snnreg_plugins.SynapticOperations`.
        count_zero_weights: Whether a weight that is exactly zero is a synapse, in operations and costs. If None it is
            one in operations, and in costs where the model says nothing else.

    Returns:
        The numbers, with ``print()`` and ``save_json(path)``.

    Raises:
        TypeError: If ``model`` is no module or ``inputs`` no tensor.
        ValueError: If the network cannot take ``inputs``, has no synaptic layer and no other weights, multiplies by
            none of them, or an argument is out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = profile(net, torch.rand(2, 4))
        >>> [layer.name for layer in result.layers], result.dense_macs
        (['0', '1', '2'], 56.0)
    """
    timesteps = None if timesteps is None else as_integer("timesteps", timesteps)
    batch_dim = as_integer("batch_dim", batch_dim, at_least=0)
    _require_fitting(model, inputs, timesteps, batch_dim)
    if count_zero_weights is not None:
        count_zero_weights = as_flag("count_zero_weights", count_zero_weights)
    models = cost_models(table)
    needs = needs_of(models, count_zero_weights)
    require_prices(models, model)
    tally = Tally(
        model,
        batch_dim=batch_dim,
        input_events=input_events,
        counting=needs,
        on_doubt=partial(warn_of_whole_numbers, "profile"),
    )
    tally.require_operations()
    with torch.no_grad(), tally, _at_rest(model):
        try:
            _run(model, inputs.to(device_of(model, inputs.device)), timesteps)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"Expected argument `inputs` to be a batch that {type(model).__name__} takes, but for one of shape "
                f"{tuple(inputs.shape)} it raised {type(error).__name__}: {reason}"
            ) from error
    if tally.unbatched:
        raise ValueError(
            f"Expected argument `inputs` to hold a batch of samples along dimension {batch_dim}, but "
            f"{type(model).__name__} reads {tuple(inputs.shape)} as one sample. Give `inputs.unsqueeze({batch_dim})`."
        )
    if not tally.total("dense_macs") and not tally.missed:
        raise ValueError(
            f"Expected argument `model` to multiply activity by its weights, but {type(model).__name__} called none of "
            f"{sorted(tally.synapses)} and made no other product."
        )
    samples = inputs.shape[batch_dim]
    facts = layer_facts(tally, timesteps=timesteps, samples=samples)
    priced = [_Priced.by(one, facts, count_zero_weights) for one in models]
    by_name = {
        layer.name: layer if count_zero_weights is not False else layer.without_zero_weights() for layer in facts
    }
    layers = tuple(_layer(name, tally, by_name.get(name), samples, priced[0]) for name in tally.called)
    spikes, neuron_steps = tally.total("spikes"), tally.total("neuron_steps")
    first, weights = priced[0], sum(layer.weights for layer in facts)
    looked_at = "zero_weights" in needs and weights
    return Profile(
        model=type(model).__name__,
        samples=samples,
        timesteps=timesteps,
        spiking=spikes_already(model),
        layers=layers,
        unused=tuple(name for name in tally.layers if name not in tally.called),
        uncounted=tuple(dict.fromkeys(name for name, _ in tally.missed)),
        sops=sum(layer.sops for layer in by_name.values()),
        effective_macs=sum(layer.effective_macs for layer in by_name.values()),
        dense_macs=sum(layer.dense_macs or 0.0 for layer in layers),
        spike_rate=spikes / neuron_steps if neuron_steps else None,
        energy=first.cost.total,
        dense_energy=first.of_dnn,
        left_out=tuple(name for name, cost in first.costs.items() if cost.unpriced),
        breakdown=first.cost.details() if first.cost.memory else None,
        table=models[0].name,
        source=models[0].source,
        unit=models[0].unit,
        models=tuple(one.told() for one in priced),
        count_zero_weights=count_zero_weights,
        zero_weights=sum(layer.zero_weights for layer in facts) / weights if looked_at else None,
    )


def _require_fitting(model: nn.Module, inputs: Tensor, timesteps: int | None, batch_dim: int) -> None:
    """Raise an error where the arguments do not fit each other."""
    as_module("model", model)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"Expected argument `inputs` to be a tensor, but got {type(inputs).__name__}.")
    if not batch_dim < inputs.dim() or not inputs.numel():
        raise ValueError(
            f"Expected argument `inputs` to hold a batch of samples along dimension {batch_dim}, but got the shape "
            f"{tuple(inputs.shape)}."
        )
    if timesteps is not None and isinstance(model, SpikingNetwork):
        raise ValueError(
            f"Expected argument `timesteps` to be None for a SpikingNetwork, whose time loop is inside, but got "
            f"{timesteps}. Set `network.timesteps` instead."
        )


def _run(model: nn.Module, inputs: Tensor, timesteps: int | None) -> None:
    if timesteps is None:
        model(inputs)
        return
    for _ in outputs_of_steps(model, repeat(inputs, timesteps)):
        pass


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode with fresh states, and leave neither of them behind."""
    with eval_and_back(model):
        try:
            forget_states(model)
            yield
        finally:
            forget_states(model)


@dataclass
class _Priced:
    """What was counted, and what it costs by one model.

    Args:
        model: The model.
        costs: The cost of each layer that costs something, by name.
        dense: The same of a DNN that skips no zeros; None where there is no price.
    """

    model: CostModel
    costs: dict[str, Cost]
    dense: dict[str, float | None]

    @classmethod
    def by(cls, model: CostModel, facts: list[LayerFacts], count_zero_weights: bool | None) -> _Priced:
        """Price all layers."""
        costs = {layer.name: model.price(layer, count_zero_weights) for layer in facts}
        dense: dict[str, float | None] = {}
        for layer in facts:
            one = model.dnn(layer.without_zero_weights() if count_zero_weights is False else layer)
            dense[layer.name] = None if one is None or one.unpriced else one.total
        return cls(model, costs, dense)

    def of(self, name: str) -> float | None:
        """Give the cost of a layer; None where it is none, or has operations without a price."""
        cost = self.costs.get(name)
        return None if cost is None or cost.unpriced else cost.total

    @property
    def cost(self) -> Cost:
        """All layers together."""
        return sum(self.costs.values(), self.model.nothing())

    @property
    def of_dnn(self) -> float | None:
        """The DNN."""
        known = [value for value in self.dense.values() if value is not None]
        return sum(known) if len(known) == len(self.dense) else None

    def told(self) -> ModelProfile:
        """Say it in plain numbers."""
        model, cost = self.model, self.cost
        layers = {name: self.of(name) for name in self.costs}
        return ModelProfile(
            model.name,
            model.title,
            model.unit,
            model.source,
            model.left_out,
            total=cost.total,
            **cost.parts(),
            dense=self.of_dnn,
            layers=layers,
            unpriced=cost.unpriced,
        )


def _layer(name: str, tally: Tally, facts: LayerFacts | None, samples: int, priced: _Priced) -> LayerProfile:
    """Say what a layer does."""
    kind, calls = type(tally.modules[name]).__name__, tally.called[name]
    neuron_steps = tally.by_layer("neuron_steps")[name]
    rate = tally.by_layer("spikes")[name] / neuron_steps if neuron_steps else None
    if facts is None:
        return LayerProfile(name, kind, calls, spike_rate=rate)
    if not facts.dense_macs:  # neurons that no layer drives
        return LayerProfile(name, kind, calls, spike_rate=rate, energy=priced.of(name) or None)
    return LayerProfile(
        name,
        kind,
        calls,
        sops=facts.sops,
        effective_macs=facts.effective_macs,
        dense_macs=tally.by_layer("dense_macs")[name] / samples,
        spike_rate=rate,
        energy=priced.of(name),
        dense_energy=priced.dense[name],
    )
