"""Backgrounds of scenes: quilts of pieces that differ in tint and texture, as much from each other as things do."""

from __future__ import annotations

from functools import cached_property

import numpy as np

SIDE = 144  # pixels of a quilt; it is scaled up to the canvas
TINTS = {
    "grey": (128, 128, 128),
    "slate": (60, 72, 92),
    "sand": (214, 196, 158),
    "olive": (104, 108, 62),
    "rust": (142, 84, 58),
    "mauve": (170, 140, 168),
    "mint": (164, 202, 178),
    "navy": (32, 34, 60),
}
TEXTURES = ("plain", "rough", "striped", "barred", "checked", "dotted")
PIECES = (12, 18)  # the fewest and the most of a quilt


class Quilt:
    """The background of a seed. `pieces` [144, 144] says to which piece each pixel belongs; `tints` and `textures`
    [pieces] are indices into `TINTS` and `TEXTURES`."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 2))
        count = int(self._rng.integers(PIECES[0], PIECES[1] + 1))
        self._sites = self._rng.integers(0, SIDE, (count, 2))
        self.tints = self._rng.integers(0, len(TINTS), count)
        self.textures = self._rng.integers(0, len(TEXTURES), count)

    def _piece_of(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The nearest site of each point."""
        away = (y[..., None] - self._sites[:, 0]) ** 2 + (x[..., None] - self._sites[:, 1]) ** 2
        return away.argmin(-1)

    @cached_property
    def pieces(self) -> np.ndarray:
        y, x = np.mgrid[:SIDE, :SIDE]
        return self._piece_of(y, x)

    def patches(self, grid: int = 12) -> tuple[np.ndarray, np.ndarray]:
        """Tint and texture in the middle of each patch: two int arrays [grid, grid]."""
        middles = ((np.arange(grid) + 0.5) * SIDE / grid).astype(np.int64)
        y, x = np.meshgrid(middles, middles, indexing="ij")
        piece = self._piece_of(y, x)
        return self.tints[piece], self.textures[piece]

    def picture(self) -> np.ndarray:
        """uint8 [144, 144, 3]."""
        rng, count = self._rng, len(self.tints)
        y, x = np.mgrid[:SIDE, :SIDE]
        periods, contrasts = rng.integers(5, 9, count), rng.integers(28, 48, count) * rng.choice((-1, 1), count)
        base = np.array(list(TINTS.values()))[self.tints] + rng.integers(-12, 13, (count, 3))
        piece = self.pieces
        period, texture = periods[piece], self.textures[piece]
        column, row = 2 * (x % period) < period, 2 * (y % period) < period
        patterns = np.stack(
            [
                np.zeros_like(column),
                np.zeros_like(column),
                column,
                row,
                column ^ row,
                column & row,
            ]
        )
        on = np.take_along_axis(patterns, texture[None], 0)[0]
        grain = rng.integers(-8, 9, (SIDE, SIDE, 1)) + np.where(
            texture[..., None] == 1, rng.integers(-44, 45, (SIDE, SIDE, 1)), 0
        )
        return (base[piece] + (on * contrasts[piece])[..., None] + grain).clip(0, 255).astype(np.uint8)
