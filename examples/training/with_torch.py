"""Train with torch on partitions of Dask; export; score; evaluate. README.md shows what it prints."""

import dask.dataframe as dd
import features
import torch
from torch import Tensor, nn

import batchserve as bs

PASSES = 3
BATCH_ROWS = 512


class Delay(nn.Module):
    """What a flight's delay on arrival adds to that on departure; its scaling is part of the model."""

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.layers = nn.Sequential(nn.Linear(len(mean), 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Take [rows, columns] as in `features.COLUMNS`, give [rows, 1] in minutes."""
        return x[:, :1] + 10 * self.layers((x - self.mean) / self.spread)


def fit(table: dd.DataFrame) -> Delay:
    """Fit partition by partition: one is in memory at a time."""
    columns = table[features.COLUMNS]
    mean, spread = (
        torch.tensor(each.compute().to_numpy("float32")) for each in (columns.mean(), columns.std())
    )
    torch.manual_seed(0)
    model = Delay(mean, spread)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(PASSES):
        for part in table.partitions:
            rows = part[[*features.COLUMNS, features.LABEL]].compute().to_numpy("float32")
            step_through(model, optimizer, torch.from_numpy(rows))
    return model.eval()


def step_through(model: Delay, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
    """Take one step for each batch of rows in random order; the label is the last column."""
    for batch in rows[torch.randperm(len(rows))].split(BATCH_ROWS):
        loss = nn.functional.huber_loss(model(batch[:, :-1]), batch[:, -1:], delta=10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    arguments = features.asked(__doc__)
    table = features.write(arguments.flights, arguments.rows)
    model = fit(table)
    sample = (
        table[features.COLUMNS].sample(frac=0.02, random_state=0).compute()
    )  # its columns are the input's
    print(bs.export(model, "torch.onnx", sample=sample, overwrite=True))
    print(bs.score("held_out", "scored.parquet", model="torch.onnx", overwrite=True))
    print(bs.evaluate("scored.parquet", label=features.LABEL, prediction="output"))


if __name__ == "__main__":
    main()
