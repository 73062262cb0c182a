import torch
from f3_training.muon import MuonWithAdamW, hidden_matrices, orthogonalize
from torch import nn


def test_orthogonalized_matrix_has_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 32), (32, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator)))
        assert values.min() > 0.4 and values.max() < 1.4


def test_every_parameter_that_is_trained_belongs_to_exactly_one_group():
    model = nn.ModuleDict({"stem": nn.Conv2d(2, 4, 3), "body": nn.Conv2d(4, 4, 3), "head": nn.Linear(4, 2)})
    trained = {id(parameter) for parameter in model.parameters()}
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    matrices, others = hidden_matrices(model, ends=("stem", "head"))
    assert [weight is model["body"].weight for weight in matrices] == [True]
    assert {id(parameter) for parameter in matrices + others} == trained


def test_it_fits_a_small_network_and_leaves_parameters_without_gradient_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    idle = nn.Parameter(torch.ones(3))
    optimizer = MuonWithAdamW([model[0].weight, model[2].weight], [model[0].bias, model[2].bias, idle], lr=0.02)
    inputs = torch.randn(64, 4)
    targets = inputs[:, :1] * inputs[:, 1:2]
    losses = []
    for _ in range(200):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert idle.tolist() == [1, 1, 1]


def test_update_of_a_convolution_does_not_depend_on_the_size_of_its_gradient():
    weights = [nn.Parameter(torch.zeros(4, 3, 3, 3)) for _ in range(2)]
    gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for weight, size in zip(weights, (1.0, 1000.0)):
        weight.grad = size * gradient
        MuonWithAdamW([weight], [], lr=0.1).step()
    torch.testing.assert_close(weights[0], weights[1], rtol=0.05, atol=1e-3)
