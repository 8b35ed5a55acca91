"""Train a network to match a better one, from outside its LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.jit import ScriptModule
from typing_extensions import override

from snnreg_plugins._checks import as_flag, as_name, as_names, as_number, one_of, shown
from snnreg_plugins._lightning import both, put_before
from snnreg_plugins._models import as_module, dtype_of, part_of
from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.callbacks.activity_regularization import ActivityRegularization
from snnreg_plugins.callbacks.added_loss import AddedLossCallback
from snnreg_plugins.callbacks.measurement import Randomness
from snnreg_plugins.spiking.inputs import checked_time_dim
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.training.distillation import FORWARD, LOSSES, Aims, Distilled, Teacher


class Distillation(AddedLossCallback):
    r"""Train a network, such as a spiking one at few steps, to match a teacher; the LightningModule stays as it is.

    With w the warm-up factor of the epoch, every loss whose backward pass reaches outputs of the student becomes

    .. math::
        (1 - w\alpha) \cdot \text{loss} + w \left( \alpha D + s \sum_l \frac{\lVert a_l - a^\text{teacher}_l
        \rVert^2}{n_l} + \lambda \, \mathrm{mean}(z^2) \right)

    where z are the student's logits and D compares them with the teacher's for the same input: ``"kl"`` is
    :math:`\tau^2 \, \mathrm{KL}(\mathrm{softmax}(z^\text{teacher} / \tau) \,\Vert\, \mathrm{softmax}(z / \tau))`,
    ``"l2"`` the mean squared difference. With ``every_step``, D is the mean over the steps t of D at the mean of the
    outputs up to t, so that the network is good after any number of steps. :math:`a_l` is what layer l gives, n its
    values: of spiking neurons the mean over the time steps (spikes/step, times what a spike is worth in an exported
    network). All are means over samples. Losses that do not reach the student are left alone.

    The gradient is exactly that of this sum written by hand: with gradient accumulation, mixed precision (bf16, fp16
    with loss scaling), manual optimization, several losses and forward passes, activation checkpointing, DDP, and
    ``torch.compile`` (which breaks its graph at the student and at ``layers``, so not with ``fullgraph=True``). What is
    added counts once for each call of the student: for the first loss to go backward that depends on it; of several
    calls that one loss depends on, the mean over all their samples. The value of the loss that the module returns and
    logs stays the user's own. Refused are reentrant checkpointing around the student or one of ``layers``, and a
    network of spiking neurons that is stepped from outside, a time step a call: name a module that runs all steps.

    The teacher is a frozen copy in eval mode, made when a fit starts: it is trained, saved, counted and penalized by
    nobody, and draws no random numbers of others. Give the same one when you resume.

    Logged each epoch, as means over the backward passes that brought any: ``distillation/logits`` (D),
    ``distillation/layers/<layer>``, ``distillation/mean_square``, and ``distillation/total``, what is added to the
    loss, with all factors. A second such callback logs ``distillation_2/...``; each lessens the loss by its own α.

    Args:
        teacher: A network, or a LightningModule, that gives logits for what the student is called with; ``"self"`` for
            the DNN that a :class:`~snnreg_plugins.modules.SpikingClassifier` is exported from; None if nothing is
            matched and only ``logit_strength`` acts.
        checkpoint: A Lightning checkpoint or a file of a ``state_dict()`` with the teacher's weights, of which only
            tensors are read. None keeps those it has.
        student: Name of the module whose outputs are the student's logits, ``"net"`` for ``self.net``. None for the
            LightningModule's own forward, called as ``self(x)``, or its only child with trained parameters if
            ``training_step`` calls that.
        loss: How logits are compared: ``"kl"``, ``"l2"``; None if not at all, and the user's loss stays whole.
        alpha: α, the share of that.
        temperature: τ, for ``"kl"``.
        every_step: Compare after every time step, of a :class:`~snnreg_plugins.SpikingNetwork` that ``student`` names,
            or of outputs with a ``time_dim``.
        time_dim: Dimension of time where the student returns outputs of single steps, ``(T, B, K)`` or ``(B, T, K)``.
        layers: Layers whose activity is to match, from names in the student to names in the teacher; or a list of
            names that they have in both. In an exported network, layers are named as in the DNN.
        layer_strength: s, the factor of each layer.
        logit_strength: λ, the factor of the mean square of the student's logits: small logits need fewer spikes.
        start_epoch: First epoch to act in.
        warmup_epochs: Epochs over which all that rises linearly to its full value.

    Raises:
        ValueError: If an argument is out of range, or on start of training, if it names nothing.
        MisconfigurationException: In training, where the gradient could not be exact (LBFGS with line search,
            DeepSpeed, ``loss.backward()`` in place of ``manual_backward``), where the student is not called, gives
            other than logits ``(B, K)``, or is in no loss, and where the teacher's do not fit.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from snnreg_plugins.modules import Classifier
        >>> callback = Distillation(nn.Linear(4, 3), alpha=0.5, temperature=3.0)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    added = "distillation loss"

    def __init__(
        self,
        teacher: nn.Module | Literal["self"] | None = None,
        checkpoint: str | None = None,
        student: str | None = None,
        loss: Literal["kl", "l2"] | None = "kl",
        alpha: float = 0.5,
        temperature: float = 3.0,
        every_step: bool = False,
        time_dim: int | None = None,
        layers: dict[str, str] | list[str] | None = None,
        layer_strength: float = 1.0,
        logit_strength: float = 0.0,
        start_epoch: int = 0,
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__(start_epoch, warmup_epochs)
        self.teacher = _checked_teacher(teacher)
        self.checkpoint = as_name("checkpoint", checkpoint)
        self.student = as_name("student", student)
        self.aims = Aims(
            loss=None if loss is None else one_of("loss", loss, LOSSES),
            alpha=as_number("alpha", alpha, "[0, 1]"),
            temperature=as_number("temperature", temperature, "(0, inf)"),
            every_step=as_flag("every_step", every_step),
            time_dim=checked_time_dim(time_dim),
            layers=_pairs(layers),
            layer_strength=as_number("layer_strength", layer_strength, "[0, inf)"),
            logit_strength=as_number("logit_strength", logit_strength, "[0, inf)"),
        )
        if self.aims.needs_teacher and teacher is None:
            raise ValueError(
                "Expected argument `teacher` to be a network to match, but got None. Give one, or loss=None with a "
                "logit_strength to keep logits small alone."
            )
        if not (self.aims.needs_teacher or self.aims.logit_strength):
            raise ValueError(
                "Expected Distillation to have something to do, but got loss=None, no `layers` and logit_strength=0."
            )
        if self.checkpoint is not None and not isinstance(teacher, nn.Module):
            raise ValueError(
                f"Expected argument `teacher` to be the network that the weights of `checkpoint` are for, but got "
                f"{shown(teacher)}."
            )
        self._distilled: Distilled | None = None  # while a fit runs
        self._name = "distillation"  # of what is logged

    def readout(self, outputs: Any) -> Any:
        """Return the logits ``(B, K)`` of what student or teacher returns; override where that is something else.

        With ``time_dim``, ``(T, B, K)`` or ``(B, T, K)``. Of logits for every pixel, ``(B, K, H, W)``,
        ``outputs.movedim(1, -1).flatten(0, -2)`` makes a sample of each.

        Args:
            outputs: What the student, or the teacher, returned.
        """
        return outputs

    def teach(self, teacher: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what the teacher gives; override where it is not to be called with what the student is.

        Args:
            teacher: The frozen copy.
            args: What the student was called with; for the DNN of an exported network with a dimension of time, the
                mean over it.
            kwargs: The same by name.
        """
        return teacher(*args, **kwargs)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # In compiled regions, penalties are added to the loss itself: they are not to be lessened with the user's.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        put_before(trainer, self, [one for one in callbacks if isinstance(one, ActivityRegularization)])

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        number = [one for one in callbacks if isinstance(one, Distillation)].index(self) + 1
        self._name = "distillation" if number == 1 else f"distillation_{number}"
        students = _students(pl_module, self.student)
        self._require_steps(pl_module, students)
        randomness = Randomness(trainer.global_rank)

        def ask(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with randomness.drawn(pl_module.device):
                return self.teach(network, *args, **kwargs)

        teacher = None
        if self.aims.needs_teacher:
            teacher = Teacher(self._teacher_of(pl_module), list(self.aims.layers.values()), ask)
            teacher.network.to(device=pl_module.device, dtype=dtype_of(pl_module))
        layers = part_of(pl_module, self.student, "student")
        self._distilled = Distilled(students, layers, teacher, self.aims, self.readout)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._running.start_batch(self._factor(trainer))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._distilled is not None and self._distilled.active:  # else a backward pass in validation
            self._distilled.start_backward(loss, self._scale(trainer, pl_module), self._own_backward)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._distilled is not None:
            self._distilled.end_backward()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        running = self._running
        self._judge_backward(running.missed_backward, running.went_past)
        # By hand, the optimizers may take turns.
        if pl_module.automatic_optimization or running.found.passes >= _PATIENCE:
            self._judge_student(pl_module)
        running.end_batch()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._judge_student(pl_module)
        means = self._running.end_epoch()
        pl_module.log_dict({f"{self._name}/{part or 'total'}": mean for part, mean in means.items()}, sync_dist=True)

    @override
    def _remove(self) -> None:
        if self._distilled is not None:
            self._distilled.remove()
        self._distilled = None

    @property
    def _running(self) -> Distilled:
        return self._of_this_fit(self._distilled)

    def _judge_student(self, pl_module: LightningModule) -> None:
        """Go on no longer without any student."""
        found = self._running.found
        if not found.looking or not found.passes:
            return
        found.looking = False
        if not found.reached:
            children = [name for name, _ in pl_module.named_children()]
            raise MisconfigurationException(
                f"Distillation does nothing: {found.why_nothing(_students(pl_module, self.student), children)}"
            )

    def _teacher_of(self, pl_module: LightningModule) -> nn.Module:
        """Give the network that the teacher is a copy of."""
        teacher = self.teacher
        if isinstance(teacher, nn.Module):
            if isinstance(teacher, both(LightningModule)):
                teacher.configure_model()
            if self.checkpoint is not None:
                load_weights(teacher, read_weights(self.checkpoint, "checkpoint")[1], self.checkpoint)
            _require_apart(teacher, pl_module)
            return teacher
        dnn = getattr(pl_module, "dnn", None)
        if not isinstance(dnn, nn.Module):
            raise ValueError(
                f"Expected a module whose DNN is known for teacher='self', such as SpikingClassifier, but "
                f"{type(pl_module).__name__} has none under the name `dnn`. Give the network itself as `teacher`."
            )
        return dnn

    def _require_steps(self, pl_module: LightningModule, students: Mapping[str, nn.Module]) -> None:
        spiking = [isinstance(module, SpikingNetwork) for module in students.values()]
        if self.aims.every_step and self.aims.time_dim is None and not all(spiking):
            names = [name for name, module in pl_module.named_modules() if isinstance(module, SpikingNetwork)]
            named = f"Name the SpikingNetwork: student={names[0]!r}" if names else "Give time_dim=0 or 1"
            raise ValueError(
                f"Expected outputs of every time step for every_step=True, which {' or '.join(students)} may not give. "
                f"{named}."
            )


_PATIENCE = 100  # backward passes to wait for the student, in manual optimization


def _checked_teacher(teacher: Any) -> nn.Module | Literal["self"] | None:
    if teacher is None or isinstance(teacher, ScriptModule):
        return teacher
    if isinstance(teacher, str):
        if teacher != "self":
            raise ValueError(
                f"Expected argument `teacher` to be a network, 'self' or None, but got {shown(teacher)}. A file of "
                "weights is given as `checkpoint`, beside the network that they are for."
            )
        return "self"
    return as_module("teacher", teacher)


def _pairs(layers: Any) -> dict[str, str]:
    if isinstance(layers, Mapping):
        as_names("layers", [*layers, *layers.values()])
        return dict(layers)
    return {name: name for name in as_names("layers", layers) or ()}


def _students(pl_module: LightningModule, name: str | None) -> dict[str, nn.Module]:
    """Find the modules that may be the student, by what errors call them."""
    if name is not None:
        return {repr(name): part_of(pl_module, name, "student")}
    trained = {
        repr(child): module
        for child, module in pl_module.named_children()
        if any(parameter.requires_grad for parameter in module.parameters())
    }
    return {FORWARD: pl_module} | (trained if len(trained) == 1 else {})


def _require_apart(teacher: nn.Module, pl_module: LightningModule) -> None:
    """Raise a ValueError if a teacher is trained itself: it would be another one where a run is resumed."""
    own = {id(parameter): name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
    shared = [own[id(parameter)] for parameter in teacher.parameters() if id(parameter) in own]
    if shared:
        raise ValueError(
            f"Expected argument `teacher` to be a network of its own, but it shares {shared[0]!r} with the module that "
            "is trained. Give copy.deepcopy(network) as it was before the training."
        )
