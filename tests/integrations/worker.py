"""One of two processes of torchrun: both end with the same weights, and what a process replans is what all do."""

import torch
from torch import distributed

import spectrim as st
from training import network

distributed.init_process_group("gloo")
rank = distributed.get_rank()
model, x, y = network(48)
kernels = {"conv1": (st.CP(), 4), "conv2": (st.ChannelSVD(), 3), "conv3": (st.CP("kernel"), 3)}
plan = st.plan_from(model, x[:1], kernels)
other = st.plan_from(model, x[:1], {"conv2": (st.SpatialSVD(), 2)})
distorted = []


def check_same(tensors, what):
    mine = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    both = [torch.empty_like(mine) for _ in range(2)]
    distributed.all_gather(both, mine)
    assert torch.equal(*both), f"{what} differ"


class Watching(st.Distortion):
    def distort(self, model=None):
        super().distort(model)
        factors = [factor for name in self.plan for factor in self.written[name]]
        check_same([*self.model.parameters(), *factors], "weights or factors after a distortion")
        distorted.append(self.steps)


schedule = st.Schedule(4, replan=2)
# a different plan in each process: the first one's must win
distortion = Watching(model, plan, every=schedule, replan=lambda network: other if rank == 0 else plan)
recipe = st.Recipe(epochs=4, batch=16, rate=0.05)
training = st.fit(model, (x, y), recipe=recipe, distortion=distortion)
assert training.steps == 12 and training.images == 48 and distorted == [4, 8, 12], (training, distorted)
assert list(distortion.plan) == ["conv2"]
small = distortion.finish()
check_same([*model.parameters(), *small.parameters()], "weights at the end")
torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
distributed.destroy_process_group()
