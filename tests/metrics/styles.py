"""Networks in the styles that users write, each run over its time steps as such a network is run.

A style is a function that makes (model, run, batch_dim): ``run(batch)`` presents a batch of shape (B, 6) for 3 steps.
"""

from __future__ import annotations

import norse.torch as norse
import snntorch
import torch
from lightning.pytorch import LightningModule
from snntorch import utils
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import to_snntorch

STEPS = 3
STYLES = {}


def style(make):
    STYLES[make.__name__] = make
    return make


def leaky(**arguments):
    return snntorch.Leaky(beta=0.9, threshold=0.5, **arguments)


def body(neuron):
    return nn.Sequential(nn.Linear(6, 5), neuron(), nn.Linear(5, 4), neuron())


def run_after_reset(net, x):
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    return [net(x) for _ in range(STEPS)]


# A DNN: one pass a batch.


@style
def dnn():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    return net, net, 0


@style
def dnn_with_functional_relu_and_reused_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)
            self.alias = self.again

        def forward(self, x):
            x = F.relu(self.first(x))
            x = F.relu(self.alias(F.relu(self.again(x))))
            return self.last(x)

    net = Net()
    return net, net, 0


@style
def dnn_called_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, *, image):
            return self.last(input=F.relu(self.first(input=image)))

    net = Net()
    return net, lambda x: net(image=x), 0


@style
def dnn_whose_layers_are_called_alone():
    net = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])
    return net, lambda x: net[1](F.relu(net[0](x), inplace=True)), 0


@style
def dnn_entered_at_two_places():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 4)
            self.calls = 0

        def forward(self, x):
            return self.head(self.features(x))

    net = Net()

    def run(x):
        net.calls += 1
        return net(x) if net.calls % 2 else net.head(net.features(x))

    return net, run, 0


@style
def dnn_on_batches_of_dicts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, batch):
            return {"scores": self.layer(batch["image"])}

    net = Net()
    return net, lambda x: net({"image": x, "label": torch.zeros(len(x))}), 0


@style
def a_single_layer():
    net = nn.Linear(6, 5)
    return net, net, 0


# Exported by this package.


@style
def exported():
    dnn = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        dnn[2].bias.fill_(0.2)
    net = to_snntorch(dnn, torch.rand(64, 6), timesteps=STEPS)
    return net, net, 0


@style
def exported_in_a_lightning_module():
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.network = exported()[0]

        def forward(self, x):
            return self.network(x)

    module = Module()
    return module, module, 0


# snnTorch with the state inside the neurons.


@style
def snntorch_reset_outside():
    net = body(lambda: leaky(init_hidden=True))

    def run(x):
        utils.reset(net)
        return [net(x) for _ in range(STEPS)]

    return net, run, 0


@style
def snntorch_new_input_at_every_step():
    net = body(lambda: leaky(init_hidden=True))

    def run(x):
        utils.reset(net)
        return [net(torch.bernoulli(x)) for _ in range(STEPS)]

    return net, run, 0


@style
def snntorch_reset_outside_of_nested_blocks():
    net = nn.Sequential(body(lambda: leaky(init_hidden=True)), nn.Sequential(nn.Linear(4, 3), leaky(init_hidden=True)))
    return net, lambda x: run_after_reset(net, x), 0


@style
def snntorch_reset_inside():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(6, 5), leaky(init_hidden=True)
            self.fc2, self.lif2 = nn.Linear(5, 4), leaky(init_hidden=True, output=True)

        def forward(self, x):
            utils.reset(self)
            return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x))))[0] for _ in range(STEPS)])

    net = Net()
    return net, net, 0


@style
def snntorch_neurons_called_without_memory():
    net = nn.ModuleList([nn.Linear(6, 5), leaky(), nn.Linear(5, 4), leaky()])

    def run(x):
        utils.reset(net)
        for _ in range(STEPS):
            net[3](net[2](net[1](net[0](x))[0]))

    return net, run, 0


@style
def snntorch_synaptic():
    net = body(lambda: snntorch.Synaptic(alpha=0.8, beta=0.9, threshold=0.5, init_hidden=True))

    def run(x):
        utils.reset(net)
        return [net(x) for _ in range(STEPS)]

    return net, run, 0


@style
def snntorch_recurrent():
    net = nn.Sequential(
        nn.Linear(6, 5),
        snntorch.RLeaky(beta=0.9, threshold=0.5, linear_features=5, init_hidden=True),
        nn.Linear(5, 4),
        snntorch.RSynaptic(alpha=0.8, beta=0.9, threshold=0.5, linear_features=4, init_hidden=True),
    )

    def run(x):
        utils.reset(net)
        return [net(x) for _ in range(STEPS)]

    return net, run, 0


@style
def snntorch_reset_in_place():
    net = body(lambda: leaky(init_hidden=True))

    def run(x):
        for neuron in (net[1], net[3]):
            neuron.mem.zero_()
        return [net(x) for _ in range(STEPS)]

    return net, run, 0


@style
def snntorch_neuron_of_the_users_own_that_updates_in_place():
    class InPlace(snntorch.SpikingNeuron):
        def __init__(self):
            super().__init__(threshold=0.5)
            self.v = None

        def forward(self, x):
            if self.v is None or self.v.shape != x.shape:
                self.v = torch.zeros_like(x)
            self.v.mul_(0.9).add_(x.detach())
            spikes = self.fire(self.v)
            self.v.sub_(0.5 * spikes)
            return spikes

    net = body(InPlace)

    def run(x):
        net[1].v = net[3].v = None
        return [net(x) for _ in range(STEPS)]

    return net, run, 0


# snnTorch with the state handed in and out.


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(6, 5), leaky(), nn.Linear(5, 4), leaky()

    def forward(self, x, mem1=None, mem2=None):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


def stateful(start, between=lambda mem: mem):
    net = Stateful()

    def run(x):
        mem1, mem2 = start(net.lif1, len(x), 5), start(net.lif2, len(x), 4)
        for _ in range(STEPS):
            _, mem1, mem2 = net(x, mem1, mem2)
            mem1, mem2 = between(mem1), between(mem2)

    return net, run, 0


@style
def snntorch_states_from_init_leaky():
    return stateful(lambda lif, *_: lif.init_leaky())


@style
def snntorch_states_from_reset_mem():
    return stateful(lambda lif, *_: lif.reset_mem())


@style
def snntorch_states_from_none():
    return stateful(lambda *_: None)


@style
def snntorch_states_from_zeros():
    return stateful(lambda _, *shape: torch.zeros(shape))


@style
def snntorch_states_from_one_tensor_for_all_batches():
    first = {size: torch.full((7, size), 0.25) for size in (5, 4)}
    return stateful(lambda _, batch, size: first[size][:batch])


@style
def snntorch_states_detached_at_every_step():
    return stateful(lambda lif, *_: lif.init_leaky(), between=torch.Tensor.detach)


@style
def snntorch_states_by_keyword():
    net = Stateful()

    def run(x):
        mem1, mem2 = torch.zeros(len(x), 5), torch.zeros(len(x), 4)
        for _ in range(STEPS):
            _, mem1, mem2 = net(mem1=mem1, x=x, mem2=mem2)

    return net, run, 0


@style
def snntorch_memory_by_keyword():
    class Net(Stateful):
        def forward(self, x, mem1, mem2):
            spk1, mem1 = self.lif1(self.fc1(x), mem=mem1)
            spk2, mem2 = self.lif2(input_=self.fc2(spk1), mem=mem2)
            return spk2, [mem1, mem2]

    net = Net()

    def run(x):
        mem1, mem2 = torch.zeros(len(x), 5), torch.zeros(len(x), 4)
        for _ in range(STEPS):
            _, (mem1, mem2) = net(x, mem1, mem2)

    return net, run, 0


@style
def snntorch_states_in_a_dict():
    class Net(Stateful):
        def forward(self, x, states):
            out, *states["mem"] = super().forward(x, *states["mem"])
            return out, {"mem": list(states["mem"])}

    net = Net()

    def run(x):
        states = {"mem": [None, None]}
        for _ in range(STEPS):
            _, states = net(x, states)

    return net, run, 0


@style
def snntorch_loop_inside():
    class Net(Stateful):
        def forward(self, x):
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            for _ in range(STEPS):
                out, mem1, mem2 = super().forward(x, mem1, mem2)
            return out

    net = Net()
    return net, net, 0


@style
def snntorch_time_first():
    class Net(Stateful):
        def forward(self, x):
            mem1, mem2, outputs = None, None, []
            for x_t in x:
                out, mem1, mem2 = super().forward(x_t, mem1, mem2)
                outputs.append(out)
            return torch.stack(outputs)

    net = Net()
    return net, lambda x: net(x.expand(STEPS, -1, -1)), 1


@style
def snntorch_layers_called_alone():
    net = Stateful()

    def run(x):
        mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
        for _ in range(STEPS):
            spk1, mem1 = net.lif1(net.fc1(x), mem1)
            _, mem2 = net.lif2(net.fc2(spk1), mem2)

    return net, run, 0


@style
def snntorch_blocks_called_alone():
    net = nn.ModuleList([nn.Sequential(nn.Linear(6, 5), leaky(init_hidden=True)), nn.Linear(5, 4)])

    def run(x):
        net[0][1].reset_mem()
        return [net[1](net[0](x)) for _ in range(STEPS)]

    return net, run, 0


@style
def snntorch_truncated_backpropagation():
    net = Stateful()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def run(x):
        mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
        for _ in range(STEPS):
            _, mem1, mem2 = net(x, mem1, mem2)
            if mem2.requires_grad:
                optimizer.zero_grad()
                mem2.sum().backward()
                optimizer.step()
            mem1, mem2 = mem1.detach(), mem2.detach()

    return net, run, 0


@style
def snntorch_truncated_backpropagation_of_hidden_states():
    net = body(lambda: leaky(init_hidden=True))

    def run(x):
        utils.reset(net)
        for _ in range(STEPS):
            net(x)
            snntorch.Leaky.detach_hidden()

    return net, run, 0


# Norse.


def norse_parameters():
    return norse.LIFParameters(v_th=torch.tensor(0.05))


@style
def norse_cells_with_states():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(6, 5), norse.LIFCell(norse_parameters())
            self.fc2, self.lif2 = nn.Linear(5, 4), norse.LIFBoxCell()

        def forward(self, x, s1=None, s2=None):
            z, s1 = self.lif1(self.fc1(x), s1)
            z, s2 = self.lif2(self.fc2(z), s2)
            return z, s1, s2

    net = Net()

    def run(x):
        s1 = s2 = None
        for _ in range(STEPS):
            _, s1, s2 = net(x, s1, s2)

    return net, run, 0


def norse_sequence():
    cells = norse.LIFCell(norse_parameters()), norse.LIFBoxCell(), norse.LICell()
    return norse.SequentialState(nn.Linear(6, 5), cells[0], nn.Linear(5, 5), cells[1], nn.Linear(5, 4), cells[2])


@style
def norse_sequential_state():
    net = norse_sequence()

    def run(x):
        state = None
        for _ in range(STEPS):
            _, state = net(x, state)

    return net, run, 0


@style
def norse_sequential_state_truncated():
    net = norse_sequence()

    def run(x):
        state = None
        for _ in range(STEPS):
            _, state = net(x, state)
            state = [None if s is None else type(s)(*(v.detach() for v in s)) for s in state]

    return net, run, 0


@style
def norse_loop_inside():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.sequence = norse_sequence()

        def forward(self, x):
            state, voltages = None, []
            for _ in range(STEPS):
                v, state = self.sequence(x, state)
                voltages.append(v)
            return torch.stack(voltages).amax(0)

    net = Net()
    return net, net, 0


@style
def norse_time_first():
    net = norse.SequentialState(
        norse.Lift(nn.Linear(6, 5)), norse.LIF(norse_parameters()), norse.Lift(nn.Linear(5, 4)), norse.LI()
    )
    return net, lambda x: net(x.expand(STEPS, -1, -1)), 1


@style
def norse_time_first_with_linear_on_all_steps():
    net = norse.SequentialState(nn.Linear(6, 5), norse.LIFRecurrent(5, 5, p=norse_parameters()), nn.Linear(5, 4))
    return net, lambda x: net(x.expand(STEPS, -1, -1)), 1


@style
def norse_layers_called_alone():
    fc1, fc2 = nn.Linear(6, 5), nn.Linear(5, 4)
    lif1, lif2 = norse.LIFCell(norse_parameters()), norse.LIFRecurrentCell(4, 4, p=norse_parameters())
    net = nn.ModuleList([fc1, lif1, fc2, lif2])

    def run(x):
        s1 = s2 = None
        for _ in range(STEPS):
            z, s1 = lif1(fc1(x), s1)
            _, s2 = lif2(fc2(z), s2)

    return net, run, 0


# A neuron that no framework has.


@style
def own_neuron_with_its_state_handed_in_and_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x, v):
            v = 0.9 * v + self.fc1(x)
            spikes = (v > 0.3).float()
            return self.fc2(spikes), v - 0.3 * spikes

    net = Net()

    def run(x):
        v = torch.zeros(len(x), 5)
        for _ in range(STEPS):
            _, v = net(x, v)

    return net, run, 0


@style
def own_neuron_with_a_constant_in_its_state():
    class Decaying(snntorch.SpikingNeuron):
        def __init__(self):
            super().__init__(threshold=0.5)

        def forward(self, x, state):
            v, decay = state
            v = decay * v + x
            return self.fire(v), (v, decay)

    net = nn.ModuleList([nn.Linear(6, 5), Decaying(), nn.Linear(5, 4)])
    decay = torch.tensor(0.9)

    def run(x):
        state = (torch.zeros(len(x), 5), decay)
        for _ in range(STEPS):
            spikes, state = net[1](net[0](x), state)
            net[2](spikes)

    return net, run, 0


@style
def own_neuron_with_a_constant_of_the_network_in_its_state():
    neuron = own_neuron_with_a_constant_in_its_state()[0][1]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron, self.decay = nn.Linear(6, 5), neuron, torch.tensor(0.9)

        def forward(self, x, v):
            spikes, (v, _) = self.neuron(self.fc(x), (v, self.decay))
            return spikes, v

    net = Net()

    def run(x):
        v = torch.zeros(len(x), 5)
        for _ in range(STEPS):
            _, v = net(x, v)

    return net, run, 0


@style
def own_network_with_a_constant_in_its_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x, state):
            v, decay = state
            v = decay * v + self.fc1(x)
            return self.fc2((v > 0.3).float()), (v, decay)

    net = Net()
    decay = torch.tensor(0.9)

    def run(x):
        state = (torch.zeros(len(x), 5), decay)
        for _ in range(STEPS):
            _, state = net(x, state)

    return net, run, 0


@style
def own_neuron_whose_state_is_updated_in_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x, v):
            v.mul_(0.9).add_(self.fc1(x).detach())
            spikes = (v > 0.3).float()
            v.sub_(0.3 * spikes)
            return self.fc2(spikes), v

    net = Net()

    def run(x):
        v = torch.zeros(len(x), 5)
        for _ in range(STEPS):
            _, v = net(x, v)

    return net, run, 0
