"""Which layers a penalty was asked for, which it acts on, and what is in the way at the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from snnreg_plugins.training.carried import Carrier, Graph


class Sightings:
    """What the first batches show of each layer, so that no penalty is lost without a word.

    Args:
        layers: The layers that a penalty was asked for, by name.
        model: The model that they are in.
    """

    def __init__(self, layers: dict[str, nn.Module], model: nn.Module) -> None:
        self.looking = True  # until everything is said
        self.passes = 0  # backward passes seen
        self._layers = layers
        owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
        self._owner = {
            id(weight): name
            for name, layer in layers.items()
            for weight in layer.parameters()
            if owners[id(weight)] == 1  # else using it is no sign of using the layer
        }
        self._scripted = {
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
            and any(weight.requires_grad for weight in module.parameters())
        }
        self._expected: set[str] = set()
        self._called: set[str] = set()  # in a forward pass; calls in compiled regions are not seen
        self._empty: set[str] = set()  # called on no samples
        self._dependent: set[str] = set()  # called with what may depend on parameters
        self._fixed: set[str] = set()  # called with what does not
        self._reached: set[str] = set()  # by a backward pass
        self._twice: set[str] = set()  # by one of a loss with a gradient in it
        self._used: set[str] = set()  # with weights that a backward pass reached
        self._compiled = False
        self._acting: set[str] = set()
        self._flat: set[str] = set()  # with a penalty of gradient 0 though there is activity
        self._silent: set[str] = set()

    def expect(self, name: str) -> None:
        """Be asked to look for a layer."""
        self._expected.add(name)

    def called(self, name: str) -> None:
        """Note a call in a forward pass."""
        self._called.add(name)

    def without_samples(self, name: str) -> None:
        """Note a call on no samples, which has no activity to regularize."""
        if not torch.compiler.is_compiling():
            self._empty.add(name)

    def called_again(self, name: str) -> None:
        """Note a call in a backward pass that belongs to no call of :func:`torch.utils.checkpoint.checkpoint`.

        Raises:
            MisconfigurationException: If none of this layer in a forward pass was seen: then something else computes
                it again.
        """
        if name not in self._dependent:
            raise MisconfigurationException(
                f"ActivityRegularization cannot serve layer {name!r}, which is computed without gradients in the "
                "forward pass, and again in the backward pass, by something else than torch.utils.checkpoint. Use "
                "torch.utils.checkpoint.checkpoint there, or leave the layer out by the argument `layers`."
            )

    def depends(self, name: str, activity: Tensor, acts: Callable[[], bool]) -> None:
        """Note a call with what may depend on parameters.

        Args:
            name: The layer's.
            activity: What it reads.
            acts: Tells whether the penalty has a gradient by it; asked until it does.
        """
        self._dependent.add(name)
        if not self.looking or name in self._acting:
            return
        if acts():
            self._acting.add(name)
        elif activity.detach().any():
            self._flat.add(name)
        else:
            self._silent.add(name)

    def reached(self, carrier: Carrier, graph: Graph) -> None:
        """Note what a backward pass reaches."""
        self.passes += 1
        self._reached.update(call.name for call in carrier.calls)
        self._compiled = self._compiled or any(call.activity is not None for call in carrier.calls)
        self._fixed |= carrier.fixed
        self._twice |= carrier.twice
        self._used.update(self._owner[id(leaf)] for leaf in graph.leaves() if id(leaf) in self._owner)

    def refuse_what_cannot_act(self, by_name: set[str], penalty: str) -> None:
        """Refuse what one batch shows for sure.

        Args:
            by_name: Layers that were asked for by their name, not a pattern.
            penalty: Name of the penalty.

        Raises:
            MisconfigurationException: If layers that were asked for by name are used without being called, or if the
                gradient of the penalty is 0 everywhere.
        """
        if bypassed := self._bypassed() & by_name:
            raise MisconfigurationException(f"ActivityRegularization cannot serve {_used_uncalled(bypassed)}")
        if self._reached and self._flat and not self._acting and not self._compiled:
            raise MisconfigurationException(
                f"The gradient of penalty {penalty!r} is 0 on all activity of the first batch, so it does nothing: "
                f"{_list(self._flat)} read(s) values where it is flat, such as binary ones, which expected_rate clips "
                "and Hoyer's ratios do not tell apart. Take penalty='l1' there, or neurons of snnTorch, Norse, "
                "SpikingJelly or sinabs, on whose spikes every named penalty acts."
            )

    def refuse_if_nothing_seen(self) -> None:
        """Refuse to go on without any penalty.

        Raises:
            MisconfigurationException: If no backward pass reached a layer.
        """
        if self._expected and not self._reached:
            raise MisconfigurationException(
                f"ActivityRegularization saw no activity in the first batch: none of {sorted(self._expected)} received "
                "an input that depends on parameters and is in the loss. Only what nn.Linear, nn.Conv and "
                "nn.ConvTranspose modules read is seen, not F.linear or a module that was never called; a network "
                "compiled before training is not seen either."
            )

    def warnings(self, by_name: set[str]) -> list[str]:
        """Say of which layers there is no penalty, and why.

        Args:
            by_name: As in :meth:`refuse_what_cannot_act`.
        """
        missing = self._expected - self._reached
        bypassed = self._bypassed()
        fixed = (self._called - self._dependent) | self._fixed
        frozen = {
            name
            for name, layer in self._layers.items()
            if not any(weight.requires_grad for weight in layer.parameters())
        }
        unused = missing - bypassed - fixed - (self._empty - self._called)
        if self._compiled:  # what reads the network's own input is not seen there
            unused &= by_name
        outermost = {name for name in self._scripted if name.rpartition(".")[0] not in self._scripted}
        found = [
            (
                outermost if not by_name else set(),
                "{} is (are) compiled by torch.jit, so what the layers within read(s) is not seen. Use the module that "
                "was compiled.",
            ),
            (bypassed, _used_uncalled(bypassed)),
            (
                missing & fixed & (by_name | frozen),
                "what {} read(s) depends on no trained parameter: it is the network's own input, or comes from frozen "
                "layers.",
            ),
            (
                self._twice,
                "a loss holds a gradient of what {} read(s), taken with create_graph=True, as gradient penalties do. "
                "Such calls count as far as the graph of that gradient leads through them.",
            ),
            (unused & self._called, "what {} read(s) is in no loss."),
            (missing & self._empty - self._called, "{} was (were) called on no samples yet."),
            (unused - self._called, "{} was (were) not called."),
            (
                self._flat - self._acting if self._acting else set(),
                "the gradient of the penalty is 0 on all that {} read(s), which is active.",
            ),
        ]
        if self._reached and self._silent and not (self._acting or self._flat or self._compiled):
            found.append((self._silent, "what {} read(s) is silent, so there is nothing to push down yet."))
        return [f"ActivityRegularization: {text.format(_list(names))}" for names, text in found if names]

    def _bypassed(self) -> set[str]:
        """Layers whose weights are used without a call of theirs."""
        return set() if self._compiled else (self._used & self._expected) - self._called - self._empty


def _used_uncalled(names: set[str]) -> str:
    return (
        f"{_list(names)}: its weights are used, but the module is never called (as in nn.MultiheadAttention, or by "
        "F.linear), so what it reads is not seen. Call the module, or leave it out by the argument `layers` or "
        "`strength`."
    )


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
