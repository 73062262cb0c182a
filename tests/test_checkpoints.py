import pytest
import torch
from f3_training import checkpoints
from f3_training.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from f3_training.muon import MuonWithAdamW
from torch import nn


def test_the_newest_complete_checkpoint_is_found_and_older_ones_are_gone(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10):
        save_checkpoint(tmp_path, step, {"weights": {"w": torch.full((2,), float(step))}}, {"note": "x"})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    parts, progress = load_checkpoint(latest_checkpoint(tmp_path))
    assert parts["weights"]["w"].tolist() == [10, 10] and progress == {"step": 10, "note": "x"}


def test_a_save_that_dies_half_way_leaves_the_previous_checkpoint_in_force(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"weights": {"w": torch.ones(2)}}, {})

    def die(*_):
        raise KeyboardInterrupt  # as abrupt as a process can see it

    monkeypatch.setattr(checkpoints.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {"weights": {"w": torch.zeros(2)}}, {})
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path).name == "checkpoint-1"
    save_checkpoint(tmp_path, 2, {"weights": {"w": torch.zeros(2)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_restored_optimizer_makes_the_same_next_step(kind):
    def build():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        if kind == "muon":
            return layer, MuonWithAdamW([layer.weight], [layer.bias], lr=0.01)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.01)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    layer, optimizer = build()
    for _ in range(3):
        step(layer, optimizer)
    twin, twin_optimizer = build()
    twin.load_state_dict(layer.state_dict())
    restore_optimizer(twin_optimizer, {name: t.clone() for name, t in optimizer_tensors(optimizer).items()})
    step(layer, optimizer)
    step(twin, twin_optimizer)
    assert torch.equal(layer.weight, twin.weight) and torch.equal(layer.bias, twin.bias)
