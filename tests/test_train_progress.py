"""Training goes on where it was killed, whenever that was."""

import pytest
import torch
from torch import nn

from soir_qdrant.lab.train.progress import HeadPlan, Progress, train_epochs


def train(folder):
    """Three epochs of a linear layer that learns to sum its inputs; returns it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    head, rows = nn.Linear(4, 1), torch.rand(40, 4)
    progress = Progress(HeadPlan(epochs=3, batch=8), folder / "state", folder / "log.jsonl")

    def loss(some, rng):
        return (head(rows[some])[:, 0] - rows[some].sum(1)).square().mean()

    train_epochs(head, progress, len(rows), 5, loss, lambda: {"bias": head.bias.item()}, lambda line: None)
    return head


@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_between_the_log_and_the_state(tmp_path, monkeypatch, epoch):
    """The line of an epoch that is done once more stands in the log once."""
    whole = train(tmp_path / "whole")
    save, calls = torch.save, []

    def killed(*args):
        calls.append(args)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed")
    assert len((tmp_path / "killed" / "log.jsonl").read_text().splitlines()) == epoch
    monkeypatch.undo()
    resumed = train(tmp_path / "killed")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    assert len(log.splitlines()) == 3
    assert (tmp_path / "killed" / "log.jsonl").read_text() == log
