"""Similarity of tokens: the cosine of their keys."""

from __future__ import annotations

import torch
from torch import Tensor

from fsr_core.norms import lengths

__all__ = ["Keys"]

# CPU products are padded to a multiple of this width. Other widths take up to twice as long (19 columns take longer
# than 32), and BLAS rounds narrow products differently. With padding a similarity has the same bits in every product,
# so a sample's picks do not depend on the rest of its batch.
LANES = 16
MATRIX_TOKENS = 1024  # most tokens whose matrix of all similarities is computed; with more, rows of the picks cost less
SMALL = 256  # tokens whose matrix, of 256 KiB at most, always costs less than the steps that choose rows
CUDA_MATRIX_TOKENS = 3072  # the same on CUDA, where a launch costs more than a product: 36 MiB a sample at most
STRIPE = 9 * LANES  # rows of the matrix of all similarities that are computed at a time


class Keys:
    """Keys [B, N, Dk] in fp32, whose cosines are the similarities; with `centre` their mean is subtracted first.

    The keys are not scaled to unit length, because that would copy them; products are scaled, first by the token of
    their row, then by the other one. A zero key has similarity 1 to other zero keys, which are its duplicates, and 0 to
    the rest.
    """

    def __init__(self, keys: Tensor, centre: bool = False) -> None:
        keys = keys.detach()
        self.values, norm, shortest = lengths(keys - keys.float().mean(1, keepdim=True) if centre else keys)
        self.scale, self.zero = norm.reciprocal(), None  # [B, N]; 1 for zero keys, if there are any
        if shortest == 0:
            self.zero = (norm == 0).float()
            self.scale.masked_fill_(norm == 0, 0.0)
        self.matrix = self._matrix() if self._fits() else None  # [B, N, N], the similarities of all tokens

    def _fits(self) -> bool:
        """Whether the matrix of all similarities costs less than rows of the picks, whatever the batch is."""
        n, width = self.values.shape[1:]
        if self.values.is_cuda:
            return n <= CUDA_MATRIX_TOKENS
        return n <= min(max(width, SMALL), MATRIX_TOKENS)

    def _matrix(self) -> Tensor:
        batch, n, _ = self.values.shape
        matrix = self.values.new_empty(batch, n, n)
        # One product for each sample: a product of the whole batch may be rounded differently.
        for values, products in zip(self.values.unbind(), matrix.unbind(), strict=True):
            if values.is_cuda or n <= 2 * STRIPE:
                torch.mm(values, values.T, out=products)
                continue
            for start in range(0, n, STRIPE):
                stripe, rest = slice(start, start + STRIPE), slice(start, n)
                products[rest, stripe] = part = values[rest] @ values[stripe].T
                products[stripe, rest] = part.T
        return self._scaled(matrix, self.scale, self.zero)

    def cosine(self, index: Tensor) -> Tensor:
        """Similarity of the tokens `index` [B, m] to all tokens: [B, m, N]."""
        if self.matrix is not None:
            return self._rows(self.matrix, index)
        return self._products(index, to_all=True)

    def gram(self, index: Tensor) -> Tensor:
        """Similarity of the tokens `index` [B, m] to one another: [B, m, m]."""
        return self._products(index, to_all=False)

    def _products(self, index: Tensor, to_all: bool) -> Tensor:
        padded, count = index, index.shape[1]
        if (missing := -count % LANES) and not index.is_cuda:
            padded = torch.cat([index, index[:, :1].expand(-1, missing)], dim=1)
        rows = self._rows(self.values, padded)
        # On CPU the product is faster with its long side first.
        others = self.values if to_all else rows[:, :count]
        products = torch.bmm(others, rows.transpose(1, 2)).transpose(1, 2)[:, :count]
        zero = None if self.zero is None else self.zero.gather(1, index)
        return self._scaled(products, self.scale.gather(1, index), zero, to_all)

    def _scaled(self, products: Tensor, scale: Tensor, zero: Tensor | None, to_all: bool = True) -> Tensor:
        """Products [B, m, N], or [B, m, m], of keys as similarities, given `scale` and `zero` [B, m] of their rows."""
        products *= scale.unsqueeze(2)
        products *= (self.scale if to_all else scale).unsqueeze(1)
        if zero is not None and self.zero is not None:
            products += zero.unsqueeze(2) * (self.zero if to_all else zero).unsqueeze(1)
        return products

    @staticmethod
    def _rows(table: Tensor, index: Tensor) -> Tensor:
        """The rows `index` [B, m] of each sample of a table [B, N, D]: [B, m, D]."""
        batch, n, width = table.shape
        if batch > 1:
            index = index + n * torch.arange(batch, device=index.device).unsqueeze(1)
        return table.reshape(-1, width).index_select(0, index.flatten()).view(batch, -1, width)
