"""The spiking network: time loop, state and readout around the neurons of any framework."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from snnreg_plugins._models import dtype_of
from snnreg_plugins.frameworks.base import Neurons
from snnreg_plugins.functional.readout import score_after, with_step
from snnreg_plugins.spiking.early_exit import EarlyExit
from snnreg_plugins.spiking.engine import LayerwiseCall, can_hold_steps
from snnreg_plugins.spiking.inputs import checked_time_dim, require_fitting, require_tensor, require_type
from snnreg_plugins.spiking.layers import BatchNorm, InitialState, for_summing, map_tensors, marked
from snnreg_plugins.spiking.plan import Plan, all_modules
from snnreg_plugins.spiking.recording import Recorder, Recording
from snnreg_plugins.spiking.settings import NetworkSettings
from snnreg_plugins.spiking.stepwise import Frames, NetworkState, StepByStep
from snnreg_plugins.spiking.structure import events_in
from snnreg_plugins.watching.simulated import Known
from snnreg_plugins.watching.steps import CallSteps

# Into how many parts a batch is split at least where its activations are computed twice.
_PARTS = 8


class SpikingNetwork(NetworkSettings):
    r"""A rate-coded spiking network with a non-spiking, integrating readout.

    In every time step the last layer gives :math:`y_t`; the scores are their mean over the steps so far,

    .. math:: \text{scores}_T = \frac{1}{T} \sum_{t=1}^{T} y_t

    which is on the output scale of the DNN that the network was exported from (or what another ``readout`` makes of
    them). Every call starts from fresh
    states, so calls are independent of each other, bit for bit, and of the batch size, but for rounding. Made by
    :func:`~snnreg_plugins.to_snntorch`.

    A layer runs all steps before the next one does, on a part of the batch that stays in the processor's cache; with
    numba installed (``pip install "snnreg_plugins[fast]"``) neurons are one compiled loop, and layers that few spikes
    reach are computed spike by spike. Currents then differ from those of one step at a time by rounding (relative
    1e-6 in float32), so that once in a while a spike comes a step earlier or later (of two networks on Fashion-MNIST,
    fewer than one spike in a million at T = 32, and no image changed its class); ``exact`` forbids that. One step
    is taken at a time where something looks on that expects it: hooks of others than our metrics, compilers, and modes
    that see every operation.

    Args:
        encoder: What depends on the input alone, computed once a call: the first layer's constant current.
        body: One time step, ``(constants, states) -> (output, states)``. Its spikes are 0 or 1; sum pooling makes
            integer counts of them.
        timesteps: Number of time steps T; may be set later.
        states: Number of states that the body passes on.
        neurons: How neurons of its framework are made, described and released.
        head: What is computed once, from the mean of the outputs, where only a part of the DNN spikes.
        conversion: How the network was made; plain data.

    Attributes:
        neurons: As given.
        conversion: How the network was made: the options of the export, with what ``"auto"`` chose.
        exact: Take one step at a time, each through the modules as their framework runs them. Derivatives of second
            order need it. May be set.
        checkpointing: In training, keep only the input for the backward pass, and simulate an eighth of the batch (or
            less) at a time again there: a fraction of the memory, for the time of one more forward pass. The same
            gradients but for the order of sums over samples. May be set.

    ``timesteps``, ``time_dim``, ``truncation``, ``exit_margins`` and ``readout`` may be set, too; another name, which
    nothing would read, is refused.

    Example:
        >>> from torch import nn
        >>> from snnreg_plugins import to_snntorch
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> network = to_snntorch(model, torch.rand(100, 2), timesteps=4)
        >>> network(torch.rand(5, 2)).shape
        torch.Size([5, 3])
        >>> network(torch.rand(5, 2), per_step=True).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        encoder: fx.GraphModule,
        body: fx.GraphModule,
        timesteps: int,
        states: int,
        neurons: Neurons,
        head: fx.GraphModule | None = None,
        conversion: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.body = body
        self.head = head
        self.conversion = dict(conversion or {})
        self.timesteps = timesteps
        checked_time_dim(self.time_dim)
        self._states = states
        self.neurons = neurons
        for name in {"readout", "readout_decay"} & self.conversion.keys():
            setattr(self, name, self.conversion[name])  # checks what a file says
        self.parts_changed()

    def parts_changed(self) -> None:
        """Take note of other parts in the body."""
        # Listed once: the compiler cannot walk modules that a step has just written to.
        self._modules_of_step = tuple(self.body.modules())
        self._plan: Plan | None = None

    @property
    def only_layers_multiply(self) -> bool:
        """Whether nothing but synaptic layers multiplies activity: true but for a part of the DNN behind the spikes."""
        return self.head is None

    def batch_dim_of(
        self, x: Any = None, per_step: bool = False, time_dim: int | None = None, _state: NetworkState | None = None
    ) -> int:
        """Give the dimension of the batch in the input of a call with these arguments."""
        return int((self.time_dim if time_dim is None else time_dim) == 0 and _state is None)

    def name_in_dnn(self, path: str) -> str:
        """Give the name that a module has in the user's DNN, without that of the part that it is in.

        Args:
            path: Its name in this network.
        """
        part, _, name = path.partition(".")
        return name if part in ("encoder", "body", "head") else path

    def known_events(self) -> Known:
        """Find the layers that read nothing but spikes and sums of spikes, and the neurons whose spikes are 0 or 1.

        What is computed once reads a constant current, which images of 0 to 255 are too.
        """
        return events_in(self.body, self.neurons.describe)._replace(
            analog=frozenset(self.encoder.modules()),
            averaged=frozenset(() if self.head is None else self.head.modules()),
        )

    @property
    def weight_bits(self) -> int | None:
        """Bits that a weight has in memory; None for those of all numbers."""
        return self.conversion.get("weight_bits")

    def initial_potentials(self) -> dict[nn.Module, Tensor]:
        """Give the potentials that neuron layers begin with."""
        starts = {name: it for name, it in self.body.named_modules() if isinstance(it, InitialState)}
        return {self.body.get_submodule(name.removesuffix("_initial")): it.potential for name, it in starts.items()}

    @property
    def levels(self) -> dict[str, Tensor]:
        """What a spike of each neuron layer is worth in activation of the DNN, by the layer's name in the body.

        Each is shaped to broadcast over a sample.
        """
        return {
            name.removesuffix("_initial"): module.level
            for name, module in self.body.named_modules()
            if isinstance(module, InitialState)
        }

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Fuse the loop over time steps with ``torch.compile``; arguments are passed on to it.

        One step at a time, unrolled: compiling takes long for many steps, and a machine without a compiler for its
        processor cannot. Early exit breaks the graph at every step. Metrics that are built later need
        ``torch._dynamo.reset()``, which they call.
        """
        super().compile(*args, **kwargs)

    if TYPE_CHECKING:  # nn.Module says Any

        def __call__(self, x: Tensor, per_step: bool = False, time_dim: int | None = None) -> Tensor: ...

    def forward(
        self, x: Tensor, per_step: bool = False, time_dim: int | None = None, _state: NetworkState | None = None
    ) -> Tensor:
        """Run the network for ``timesteps`` steps.

        Args:
            x: Input of shape ``(B, ...)``, constant over the steps; coded into spikes where the export says so. With
                a dimension of time, such as ``(T, B, ...)`` for events, step t reads ``x[t]``, T being ``timesteps``:
                the first layer is computed in every step.
            per_step: Return the scores at every step instead of the last one only.
            time_dim: Dimension of time in ``x``, 0 or 1; None for that of the attribute.

        Returns:
            Scores of shape ``(B, K)``; with ``per_step``, the running scores ``(T, B, K)``: those that a run of
            1, 2, ..., T steps gives. NaN for a sample whose input, or what becomes of it, is not finite.

        Raises:
            ValueError: If the input is of a size that the network was not made for. One that has neither averages nor
                neurons that depend on the size takes any, as its DNN does. If it holds other than ``timesteps`` steps.
            TypeError: If the input is no tensor, or of a type that the network cannot compute with.
        """
        require_tensor(x, self)
        self._steps_taken = None
        try:
            if _state is not None:
                return self._step(x, _state)  # type: ignore[return-value]
            return self._run(x, per_step, self.time_dim if time_dim is None else checked_time_dim(time_dim))
        except RuntimeError as error:
            require_type(x, self, error)
            raise

    def _run(self, x: Tensor, per_step: bool, time_dim: int | None) -> Tensor:
        require_fitting(x, time_dim, self.timesteps, self.conversion)
        given: Any = x if time_dim is None else Frames(x.movedim(time_dim, 1), dtype_of(self))
        like = x if time_dim is None else given.of(0)
        run = self._call_of(given, like)
        trained = torch.is_grad_enabled() and any(
            # Buffers too: thresholds and initial potentials may be all that is trained.
            tensor.requires_grad
            for tensor in chain((x,), self.parameters(), self.buffers())
        )
        if isinstance(run, LayerwiseCall) and trained and self.checkpointing:
            run.prepare()
        size = like.shape[0]  # not len(x): an exporter keeps this open
        normalizing = self.training and self._is_normalizing()
        if normalizing:
            self._require_all_at_once(run)
        leaving = None
        if self.exit_margins is not None and not (trained or per_step):
            leaving = EarlyExit(self.exit_margins, self.timesteps, size, x.device)
        means: list[Tensor] = []
        first = 0
        while first < size or not means:
            samples, steps = run.split(size, self.timesteps, trained) if leaving is None else (size, 1)
            if trained:
                steps = self.truncation or self.timesteps
                if self.checkpointing:
                    samples = min(samples, max(-(-size // _PARTS), run.least(self.timesteps)))
            samples += first + samples == size - 1  # leaves none alone
            if normalizing:
                samples, steps = size, (self.truncation or self.timesteps) if trained else self.timesteps
            # Of this call: a part that is computed again for the backward pass is, however that was set since then.
            simulate = partial(
                self._simulate, run, timesteps=self.timesteps, steps=steps, per_step=per_step, leaving=leaving
            )
            part = map_tensors(itemgetter(slice(first, first + samples)), given)
            if trained and self.checkpointing:
                means.append(checkpoint(simulate, part, use_reentrant=False))
            else:
                means.append(simulate(part))
            first += max(1, samples)
        if leaving is not None:
            self._steps_taken = leaving.steps_taken
        mean = torch.cat(means, 1) if len(means) > 1 else means[0]
        return torch.stack([self._scores(step) for step in mean]) if per_step else self._scores(mean[0])

    def _is_normalizing(self) -> bool:
        parts = chain(all_modules(self.encoder), all_modules(self.body))
        return any(isinstance(part, (BatchNorm, nn.SyncBatchNorm)) and part.training for part in parts)

    def _require_all_at_once(self, run: LayerwiseCall | StepByStep) -> None:
        """Raise a ValueError if the batch or its steps would come apart, of which batch norms take statistics."""
        apart = "`checkpointing`" if self.checkpointing else None
        if isinstance(run, StepByStep):
            apart = "`exact`" if self.exact else "a compiler or a hook of another library, which wants single steps,"
        if apart is not None:
            raise ValueError(
                "Expected all samples and steps at once, as batch norms in training take their statistics of them, but "
                f"{apart} splits them up. Train without it, call eval(), or fold them with deploy()."
            )

    def step(self, x: Tensor, state: NetworkState | None = None) -> tuple[Tensor, NetworkState]:
        r"""Take one time step: for a time loop of your own.

        Each step goes through the modules as their framework runs them, as with ``exact``, whose scores are
        :math:`\frac{1}{T} \sum_t y_t`, bit for bit if summed up step by step. Gradients flow through the state; cut
        them off with ``state.detach()``. Metrics that watch the network count the samples once. The first layer is
        computed anew in every step, whether its input changes or not.

        Args:
            x: Input of this step, ``(B, ...)``, another one in each step, or always the same.
            state: What the step before gave; None to begin.

        Returns:
            Output :math:`y_t` of the step, ``(B, K)``, on the DNN's output scale (where a part of the DNN comes behind
            the spikes, what ``head`` reads the mean of), and the state for the next step.

        Raises:
            ValueError: If the state is of other samples, or the input does not fit the network.
            TypeError: If the state is none that a step gave.

        Example:
            >>> from torch import nn
            >>> from snnreg_plugins import to_snntorch
            >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
            >>> network = to_snntorch(model, x, timesteps=4)
            >>> outputs, state = [], None
            >>> for t in range(4):
            ...     output, state = network.step(x, state)
            ...     outputs.append(output)
            >>> network.exact = True
            >>> torch.equal(sum(outputs) / 4, network(x))
            True
        """
        if state is not None and not (isinstance(state, NetworkState) and len(state.values) == self._states):
            raise TypeError(
                "Expected argument `state` to be None or the state that a step of this network gave, but got "
                f"{type(state).__name__}. Begin with state=None."
            )
        found: tuple[Tensor, NetworkState] = cast(Any, self)(x, _state=state or NetworkState(0, self._no_states()))
        return found

    def _step(self, x: Tensor, state: NetworkState) -> tuple[Tensor, NetworkState]:
        require_fitting(x, None, self.timesteps, self.conversion)
        run = self._one_at_a_time()
        if self.training and self._is_normalizing():
            self._require_all_at_once(run)
        try:
            x = x if self.time_dim is None else Frames(x.unsqueeze(1), dtype_of(self)).of(0)
            read = run.encoded(x, CallSteps(1, state.steps, events=self.time_dim is not None))
            outputs, values = run(read, state.values, 1, state.steps)
        finally:
            run.end()
        after = NetworkState(state.steps + 1, values)
        state.require_fitting(after)
        return marked(outputs, values, at_once=False)[0], after

    def record(self, x: Tensor, time_dim: int | None = None) -> Recording:
        """Run the network as :meth:`forward` does with ``exact``, and keep spikes and potentials of every step.

        All of it stays in memory; without gradients under ``torch.no_grad()``, else they flow. No sample leaves early.
        :func:`snnreg_plugins.record` writes down some neurons of some samples, for reports.

        The outputs are values and no spikes. Of the losses of ``snntorch.functional``, ``ce_rate_loss`` on them is the
        mean cross-entropy of the steps, and ``ce_count_loss`` that of T times the scores; divide outputs by T for that
        of the scores. ``mse_count_loss`` and the other losses on counts mean something for the spikes of a layer only,
        such as a last one with a ReLU.

        Args:
            x: Input, as for :meth:`forward`.
            time_dim: Dimension of time in it, as there.

        Returns:
            Spikes and potentials by layer, outputs and scores, over the steps.

        Example:
            >>> from torch import nn
            >>> import snntorch.functional as SF
            >>> from snnreg_plugins import to_snntorch
            >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
            >>> network = to_snntorch(model, x, timesteps=4)
            >>> recording = network.record(x)
            >>> recording.spikes["1"].shape, recording.potentials["1"].shape, recording.outputs.shape
            (torch.Size([4, 100, 16]), torch.Size([4, 100, 16]), torch.Size([4, 100, 3]))
            >>> SF.ce_rate_loss()(recording.outputs, torch.randint(3, (100,))).backward()
            >>> spikes_of_the_first_sample = recording.spikes["1"][:, 0]  # (T, N), as spikeplot.raster takes them
        """
        return Recorder(self).run(x, time_dim=time_dim)

    def _call_of(self, given: Any, like: Tensor) -> LayerwiseCall | StepByStep:
        """Choose how to run the steps.

        Args:
            given: Input, or the :class:`Frames` of it.
            like: The input of a step.
        """
        if self.exact or torch.compiler.is_compiling() or not can_hold_steps(all_modules(self)[1:], like):
            return self._one_at_a_time()
        if self._plan is None or not self._plan.is_of(self.body):
            self._plan = Plan(self.body, self.neurons.describe)
        call = LayerwiseCall(self._plan, self.encoder, like, isinstance(given, Frames))
        if call.key not in self._plan.sizes:
            # Two samples: a DNN that squeezes its tensors takes a batch of one for none.
            few = map_tensors(itemgetter(slice(2)), given)
            LayerwiseCall(self._plan, self.encoder, like[:2], isinstance(given, Frames)).learn(few, self._no_states())
        return call

    def _one_at_a_time(self) -> StepByStep:
        return StepByStep(self.encoder, self.body, self._modules_of_step, self.neurons.release)

    def _no_states(self) -> tuple[None, ...]:
        return (None,) * self._states

    def _simulate(
        self,
        run: LayerwiseCall | StepByStep,
        given: Any,
        timesteps: int,
        steps: int,
        per_step: bool,
        leaving: EarlyExit | None,
    ) -> Tensor:
        """Give what is read out of the outputs, ``(1, B, ...)``; with ``per_step`` after every step, ``(T, B, ...)``.

        Args:
            run: How to run steps.
            given: Input, or the :class:`Frames` of it.
            timesteps: T.
            steps: Steps to run at once; no gradient flows from one such number of steps to those before.
            per_step: Which means to give.
            leaving: Which samples run; None for all.
        """
        means: list[Tensor] = []
        states: Any = self._no_states()
        readout, decay = self.readout, self.readout_decay
        worth = None if readout != "spike_count" or not self._worth else self.body.get_buffer(self._worth)
        total: Any = None
        at_once = isinstance(run, LayerwiseCall) and run.like.device.type == "cpu"
        try:
            constants = run.begin(given)
            if leaving is not None and not isinstance(constants, Frames):
                leaving.require_samples(constants)
            for first in range(0, timesteps, steps):
                states = map_tensors(Tensor.detach, states)
                outputs, states = run(constants, states, min(steps, timesteps - first), first)
                for step, output in enumerate(outputs, start=first + 1):
                    spikes = output if worth is None else output / worth
                    total = with_step(readout, total, for_summing(spikes), decay)
                    if per_step or leaving is not None or step == timesteps:
                        means.append(score_after(readout, total, step).to(output.dtype))
                if leaving is not None:
                    mean = marked(means.pop().unsqueeze(0), states, at_once).squeeze(0)
                    constants, states, total = leaving.leave(mean, step, (constants, states, total))
                    if not leaving.samples:
                        return leaving.scores.unsqueeze(0)
        finally:
            run.end()
        return marked(torch.stack(means), states, at_once)

    def _scores(self, mean: Tensor) -> Tensor:
        scores: Tensor = mean if self.head is None else self.head(mean)
        return scores

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self), "_plan": None, "_steps_taken": None}
        state.pop("_compiled_call_impl", None)  # it would call this network
        return state

    def extra_repr(self) -> str:
        """Show the time steps in ``print(network)``."""
        return f"timesteps={self.timesteps}"


def require_network(value: Any) -> None:
    """Raise a TypeError unless a value is a spiking network."""
    if not isinstance(value, SpikingNetwork):
        raise TypeError(
            "Expected argument `network` to be a SpikingNetwork, such as to_snntorch() makes, but got "
            f"{type(value).__name__}."
        )
