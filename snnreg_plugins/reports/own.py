"""What a network scores and spends that spikes already, as it is: no DNN, and a time loop of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins.metrics.scores import Loss, Score, Task, choose_score
from snnreg_plugins.reports.counted import Answers, Counts, layer_report, step_report
from snnreg_plugins.reports.pricing import Prices
from snnreg_plugins.reports.report import Report
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.facts import layer_facts
from snnreg_plugins.watching.hooks import unwatched
from snnreg_plugins.watching.inputs import warn_of_whole_numbers
from snnreg_plugins.watching.layers import emits_spikes, forget_states, is_spiking_neuron
from snnreg_plugins.watching.tally import Tally

_COMPARED = 64  # samples, at most

#: From what a network returns for a batch to its scores.
Readout = Callable[[Any], Any]


def as_it_is(outputs: Any) -> Any:
    """Take what a network returns for its scores."""
    return outputs


def scores_of(outputs: Any, targets: Any, how: str) -> Tensor:
    """Check that what was read out are the scores of a batch.

    Args:
        outputs: What was read out.
        targets: Targets of the batch.
        how: How the user tells what else to read out.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If there is not one for each target.
    """
    got = f"{len(outputs)} calls of it" if isinstance(outputs, list) else type(outputs).__name__
    remedy = f"{how} to return the scores, such as `outputs[0].sum(0)` for (spikes, potentials) over time."
    if not isinstance(outputs, Tensor):
        raise TypeError(f"Expected the network to give one tensor of scores for a batch, but got {got}. {remedy}")
    if isinstance(targets, Tensor) and targets.dim() and outputs.shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"Expected the network to give scores (B, ...) beside {len(targets)} targets, but got the shape "
            f"{tuple(outputs.shape)}. {remedy}"
        )
    return outputs


def exported_within(model: nn.Module) -> SpikingNetwork | None:
    """Find the exported network that a model is, or is around; None if it has none, or others that spike beside it.

    Args:
        model: The model.
    """
    found = [module for module in model.modules() if isinstance(module, SpikingNetwork)]
    inside = {part for network in found for part in network.modules()}
    others = any(is_spiking_neuron(module) for module in model.modules() if module not in inside)
    return found[0] if len(found) == 1 and not others else None


def require_around(model: nn.Module, network: SpikingNetwork, inputs: Tensor) -> None:
    """Raise a ValueError unless a model hands its input to the exported network within it, and returns what that gives.

    Args:
        model: The model.
        network: The network.
        inputs: Inputs ``(B, ...)``, some of which the model is called with.
    """
    if model is network:
        return
    calls: list[tuple[Any, Any]] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(([*args, *kwargs.values()], output))

    inputs = inputs[:_COMPARED].to(device_of(network))
    handle = network.register_forward_hook(see, with_kwargs=True)  # which is seen where nobody else looks
    try:
        with torch.no_grad(), unwatched(), eval_and_back(model), torch.random.fork_rng(devices=[]):
            given = model(inputs)
    except NotImplementedError:  # a LightningModule without forward()
        return
    finally:
        handle.remove()
    if len(calls) != 1 or not (_same(calls[0][0][:1], [inputs]) and _same([calls[0][1]], [given])):
        raise ValueError(
            f"Expected argument `network` to name the SpikingNetwork within {type(model).__name__}, as that does more "
            "than call it. What is done to the input before is for `unpack`, and to the output for `metric`."
        )


def _same(found: list[Any], expected: list[Any]) -> bool:
    return all(isinstance(one, Tensor) and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def measure_own(
    network: nn.Module,
    pairs: Iterator[tuple[Tensor, Tensor]],
    prices: Prices,
    *,
    metric: Metric | Task | Score | None,
    loss: Loss | None,
    readout: Readout,
    input_events: bool | None,
) -> Report:
    """Measure a network that takes a batch alone, from fresh states.

    Args:
        network: The network.
        pairs: Its inputs, however it takes them, and targets ``(B, ...)``.
        prices: Models of cost.
        metric: What is scored; None if targets and loss tell.
        loss: What the loss tells.
        readout: From what it returns for a batch to scores ``(B, ...)``.
        input_events: Whether whole numbers in its input are events; None if nobody said.
    """
    prices.require(network)
    score: Score | None = None
    samples, answers = 0, Answers()
    on_doubt = partial(warn_of_whole_numbers, "report()")
    tally = Tally(network, input_events=input_events, counting=prices.needs, on_doubt=on_doubt)
    try:
        with torch.no_grad(), tally, eval_and_back(network):
            for inputs, targets in pairs:
                forget_states(network)
                outputs = scores_of(readout(_called(network, inputs)), targets, "Pass a function `readout`").cpu()
                if score is None:
                    score = choose_score(outputs, targets, loss, metric).fresh(sync=False)
                score.update(outputs, targets)
                answers.add(targets)
                samples += len(targets)
    finally:
        forget_states(network)
    assert score is not None, "there is a batch"
    # Not that of activations, which spike never.
    shown = [name for name in tally.called if name not in tally.neurons or emits_spikes(tally.modules[name])]
    # What is called once reads all steps together, or a constant current; a shared layer is called more often.
    timesteps = math.gcd(*(steps for steps in map(tally.steps_of, shown) if steps > 1)) or 1
    facts = layer_facts(tally, timesteps=timesteps)
    return Report(
        **prices.of_report(
            dnn=None,
            steps=(step_report(timesteps, score, Counts.of(tally, shown), samples, facts),),
            timesteps=timesteps,
            layers=tuple(layer_report(name, tally.modules[name], Counts.of(tally, [name]), samples) for name in shown),
        ),
        samples=samples,
        timesteps=timesteps,
        score_name=score.name,
        higher_is_better=score.higher_is_better,
        decisions=None if score.decisions == samples else score.decisions,
        chance=answers.chance() if score.is_accuracy else None,
    )


def _called(network: nn.Module, inputs: Tensor) -> Any:
    try:
        return network(inputs.to(device_of(network)))
    except TypeError as error:
        raise TypeError(
            f"Expected argument `network` to take a batch alone, but {type(network).__name__} raised: {error} Call one "
            "that takes a step at a time with profile(network, inputs, timesteps=T), or watch it in its module's own "
            "steps with SpikingValidation."
        ) from error
