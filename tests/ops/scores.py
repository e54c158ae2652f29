"""Rows of scores with everything that a table can hold."""

import torch

NAN, INF = float("nan"), float("inf")


def special_rows(n):
    g = torch.Generator().manual_seed(n)
    rows = torch.rand(12, n, generator=g)
    rows[1] = 0.25  # one distinct value
    rows[2, ::2] = rows[2, 0]  # ties
    rows[3] = NAN  # none visited
    rows[4, n // 2 :] = NAN
    rows[5, 0] = INF
    rows[6, -1] = -INF
    rows[7] = torch.where(rows[7] > 0.5, 3e38, -3e38)  # the range overflows
    rows[8] *= 1e-45  # denormals
    rows[9, 1:] = NAN  # one visited
    rows[10] = torch.randint(0, 3, (n,), generator=g)
    return rows
