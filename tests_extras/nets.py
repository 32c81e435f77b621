# ruff: noqa: INP001  modules of torch for the tests, imported by name
"""Small modules of torch, each of another kind."""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """A transformer's layer over 6 steps of 4 numbers, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Take [rows, 24]."""
        return torch.mean(self.layer(x.reshape(-1, 6, 4)), 1)


class Recurrent(nn.Module):
    """An LSTM over the values of a row, its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(1, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Take [rows, steps]."""
        states: Tensor = self.layer(x.unsqueeze(-1))[0]
        return states[:, -1]


class Two(nn.Module):
    """Two heads on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take [rows, 4]."""
        body = torch.tanh(self.body(x))
        return self.first(body), torch.softmax(self.second(body), 1)


class Words(nn.Module):
    """The mean of the embeddings of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Take [rows, words]."""
        return torch.mean(self.table(x), 1)


class Mixer(nn.Module):
    """Centred over the batch: rows depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        """Take [rows, columns]."""
        return x - x.mean(0)


def image() -> nn.Module:
    """Return a convolution over [rows, 24], taken for images of 6 by 4."""
    filters = nn.Sequential(nn.Unflatten(1, (1, 6, 4)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(filters, nn.Linear(24, 2))
