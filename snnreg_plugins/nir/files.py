"""Spiking networks as NIR files, which come back as the same network in snnTorch or Norse.

A network is described as a plain graph, first: nodes of NIR's types with their fields, and in the metadata of each what
NIR does not say. To write is to describe a network and hand the graph to ``nir``; to read is to build a network from a
graph, to describe that network, and to accept it only if the two graphs are the same, number by number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from snnreg_plugins._checks import as_integers, one_of
from snnreg_plugins._files import atomic
from snnreg_plugins._imports import needed
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.frameworks.registry import exported_to
from snnreg_plugins.neurons import AdaptiveNeuron
from snnreg_plugins.nir.describe import FORMAT, Description
from snnreg_plugins.nir.fields import ELEMENTS
from snnreg_plugins.nir.hdf5 import import_h5py, opened
from snnreg_plugins.nir.rebuild import rebuild
from snnreg_plugins.spiking.network import SpikingNetwork, require_network


def to_nir(network: SpikingNetwork, path: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None) -> None:
    r"""Write a spiking network as a NIR file (Pedersen et al. 2024), for :func:`from_nir` and for other tools.

    The standard fields have the standard meaning, with a time step of 1: neurons are ``IF`` with r = 1 where β = 1, and
    ``LIF`` with :math:`\tau = r = 1 / (1 - \beta)` otherwise; sum pooling is ``SumPool2d``, one-to-one synapses
    are ``Scale``, a bias that differs from place to place is an ``Affine``, and a node that several edges enter gets
    their sum. What NIR cannot say is in the metadata: neurons of this package *subtract* the threshold, a step after
    the spike, and start from an initial potential; those of NIR set the potential to ``v_reset`` and start from zero.
    Where the input is coded at random or by latency, other tools expect its spikes for input.

    What other tools make of the file, as they are today:

    - Norse 1.1 (``norse.torch.from_nir(graph, dt=1.0)``): hard reset, from zero. ``LIF`` loses r, so that currents
      count 1 - β times; ``Flatten`` takes one sample without a batch; ``Scale`` is a KeyError.
    - snnTorch 1.0 (``import_from_nir``): ``IF`` becomes ``Leaky`` with β = 0.9 and fails when run; ``LIF``, taken with
      a step of 1e-4, is silent; thresholds per channel and ``Scale`` are refused.
    - SpikingJelly 2.0 (``import_from_nir(graph, dt=1.0)``): hard reset, from zero; thresholds per channel, grouped
      convolutions and ``Scale`` are refused; the padding of ``SumPool2d`` is lost.
    - sinabs 3.1: soft reset, but any number of spikes in a step, and no potential below -λ; the padding of
      ``SumPool2d`` is lost, and ``Scale`` too: without a word where another edge enters the same node.
    - nirtorch 2.6: has no neurons; with modules made from fields and metadata, the scores of this network. Its own
      ``Affine`` has a bias at random.
    - ``nir.read`` itself takes ``type_check=False`` for grouped convolutions and kernels that are not square.

    Args:
        network: A network of :func:`~snnreg_plugins.to_snntorch` or :func:`~snnreg_plugins.to_norse`; it is not run.
        path: The file; it is there whole or not at all.
        input_shape: Shape of one input, without the batch: ``(C, H, W)``. Not needed where
            ``network.conversion["input_shape"]`` says it.

    Raises:
        ConversionError: If NIR cannot express a layer: max pooling of spikes, concatenation, transposed or
            3d convolution, padding other than by zeros, pools of unequal windows, a head that does not spike, a
            reshape that is no flattening, thresholds that adapt. Names the layer and what to do.
        ValueError: If ``input_shape`` is missing, or does not fit the network.
        ImportError: If nir or h5py is missing.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> network = to_snntorch(model, x, timesteps=4)
        >>> path = os.path.join(tempfile.mkdtemp(), "network.nir")
        >>> to_nir(network, path, input_shape=(2,))
        >>> torch.equal(from_nir(path, target="norse")(x), network(x))
        True
    """
    import_h5py()
    with needed("A NIR file", "nir and h5py", "snnreg_plugins[nir]"):
        import nir
    _refuse_adaptive(network)
    require_network(network)
    graph: Any = Description(network, _input_shape(network, input_shape)).graph
    nodes = {}
    for name, node in graph["nodes"].items():
        fields = {key: value for key, value in node.items() if key not in ("type", "shape")}
        if "shape" in node:
            fields["input_type" if node["type"] == "Input" else "output_type"] = node["shape"]
        nodes[name] = getattr(nir, node["type"])(**fields)
    # The shapes are known; those that nir infers are wrong for grouped convolutions and kernels that are not square.
    whole = nir.NIRGraph(nodes, graph["edges"], graph["metadata"], type_check=False)
    with atomic(path) as temporary:
        nir.write(temporary, whole, compression=None)
        try:
            _read(temporary, network.neurons.name)
        except ValueError as error:
            raise ConversionError(
                f"Cannot write this network to NIR, as it would not come back the same: {error.__cause__}"
            ) from error


def from_nir(path: str | os.PathLike[str], target: str = "snntorch") -> SpikingNetwork:
    """Read a spiking network from a NIR file of :func:`to_nir`.

    The file may come from anyone: no code is run from it, no link in it is followed, it cannot claim more memory than
    it has bytes, and it is taken whole or not at all. It must say the same thing in the standard fields and in the
    metadata.

    A NIR file of another tool is refused: the neurons of NIR set their potential to ``v_reset`` when they fire, and
    say nothing of time steps, which are other dynamics than those of a :class:`~snnreg_plugins.SpikingNetwork`; read
    it with ``norse.torch.from_nir`` or ``snntorch.import_nir.import_from_nir``.

    Args:
        path: The file.
        target: ``"snntorch"`` or ``"norse"``, whichever the network was exported to before.

    Returns:
        The network that was written, on the CPU: spikes, scores, ``state_dict`` (of the same target), time steps and
        ``conversion`` (but for its framework) are equal, and it can be trained.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``target`` is unknown, or the file is damaged, is not one of :func:`to_nir`, or contradicts
            itself; names the file, the node and what is wrong.
        ImportError: If h5py is missing.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> path = os.path.join(tempfile.mkdtemp(), "network.nir")
        >>> to_nir(to_snntorch(model, x, timesteps=4), path, input_shape=(2,))
        >>> from_nir(path).timesteps
        4
    """
    return _read(path, one_of("target", target, exported_to()))


def _refuse_adaptive(network: Any) -> None:
    """Refuse neurons that no export makes, and no node of NIR does as."""
    parts = network.named_modules() if isinstance(network, nn.Module) else ()
    for name, module in parts:
        if isinstance(module, AdaptiveNeuron):
            raise ConversionError(
                f"NIR cannot express layer {name!r}: {type(module).__name__} has a threshold that adapts, which no "
                "node of NIR has. Keep the network by its state_dict(): torch.save(network.state_dict(), path)."
            )


def _input_shape(network: SpikingNetwork, given: Sequence[int] | None) -> tuple[int, ...]:
    found = network.conversion.get("input_shape") if given is None else given
    if found is None:
        raise ValueError("Expected argument `input_shape` to be given, as the network does not say it, but got None.")
    shape = as_integers("input_shape", found, such_as=(1, 28, 28))
    if math.prod(shape) > ELEMENTS:
        raise ValueError(f"Expected argument `input_shape` to be of at most {ELEMENTS} values in all, but got {shape}.")
    return shape


def _read(path: str | os.PathLike[str], target: str) -> SpikingNetwork:
    with opened(path) as file:
        if file.string("node", "metadata", "format") != FORMAT:
            raise ValueError(
                "it is none of `to_nir`. NIR of other tools has neurons that set their potential to v_reset when they "
                "fire, which networks of this package do not; read it with norse.torch.from_nir or snnTorch's "
                "import_from_nir."
            )
        network = rebuild(file.read(), target, file.size)
    if "framework" in network.conversion:
        network.conversion["framework"] = target
    return network
