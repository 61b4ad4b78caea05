"""Pictures as a base view and tiles of higher resolution. LLaVA-NeXT and LLaVA-OneVision lay them out in the same way.

The tiles' tokens form one grid. Padding is cut off the grid, a very large grid is scaled down, and each row of it ends
in a newline token. The model class's own packing does all that. It treats every channel of a token alike, so place,
saliency and joint embedding of the tokens are packed by the same function and stay in step with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr_core.backbones.features import Box, ImageFeatures, PreparedImage, Tile
from fsr_core.backbones.vision.image_processors import square
from fsr_core.backbones.vision.patch_tower import TowerOutput

__all__ = ["Pack", "packed_features", "packer", "tile_boxes", "tiled_features"]

#: (tokens [T, n, C], (height, width) of the picture, newline [C]) -> tokens in layout order [L, C]
Pack = Callable[[Tensor, tuple[int, int], Tensor], Tensor]


def packer(kind: Any, config: Any, **options: Any) -> Pack:
    """The packing of a model class of the library, which reads only the model's configuration."""
    holder = SimpleNamespace(config=config)

    def pack(tokens: Tensor, size: tuple[int, int], newline: Tensor) -> Tensor:
        packed, _ = kind.pack_image_features(holder, [tokens], [list(size)], image_newline=newline, **options)
        rows: Tensor = packed[0]
        return rows

    return pack


def packed_features(
    image: PreparedImage, output: TowerOutput, side: int, columns: int, newline: Tensor, pack: Pack
) -> ImageFeatures:
    """Base view and tiles in the class's own layout; `columns` tiles of `side` x `side` tokens lie side by side."""
    tiles, n, _ = output.features.shape
    height, width = image.size[1], image.size[0]
    joint = output.saliency.new_zeros(tiles, n, 0) if output.joint is None else output.joint
    facts = torch.cat([_places(tiles, side, columns, output.saliency), output.saliency.unsqueeze(-1), joint], dim=-1)
    packed = pack(facts, (height, width), facts.new_zeros(facts.shape[-1]))
    rows = pack(output.features, (height, width), newline.to(output.features))
    evidence = packed[:, 0] > 0.5
    lines = (~evidence).cumsum(0)[evidence]
    place = packed[evidence]
    # One of several pictures has no tiles and is padded to a square. A picture with tiles is stretched to a square.
    view = (0.0, 0.0, float(width), float(height)) if tiles > 1 else square(image.size)
    views = [Tile(0, side, side, view)]
    groups, empty_lines = None, 0
    if tiles > 1:
        lines[:n] = -1
        down = int((~evidence).sum())
        if len(place) > n:
            views.append(Tile(n, down, (len(place) - n) // down, view))
        else:  # of a very oblong picture the class leaves the base view, and of a tall one the ends of empty rows too
            empty_lines = down
        groups = 1 + (place[:, 1] // side).long() * columns + (place[:, 2] // side).long()
        groups[:n] = 0
    return ImageFeatures(
        features=rows[evidence],
        saliency=place[:, 3].contiguous(),
        joint=F.normalize(place[:, 4:], dim=-1) if output.joint is not None else None,
        tiles=tuple(views),
        size=image.size,
        groups=groups,
        lines=lines,
        newline=newline,
        empty_lines=empty_lines,
    )


def _places(tiles: int, side: int, columns: int, like: Tensor) -> Tensor:
    """``[T, n, 3]``: 1 for a token (newlines get 0), its row and its column in the grid of all tiles."""
    down, across = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    tile = torch.arange(-1, tiles - 1).clamp(min=0).unsqueeze(1)  # the base view comes first
    rows, cols = down + tile // columns * side, across + tile % columns * side
    return torch.stack([torch.ones_like(rows), rows, cols], dim=-1).to(like)


def tiled_features(image: PreparedImage, output: TowerOutput) -> ImageFeatures:
    """The tokens of all views one after the other, without newlines and with padding.

    This is the layout of the papers that count 2880 tokens per picture.
    """
    tiles, n, _ = output.features.shape
    return ImageFeatures(
        features=output.features.flatten(0, 1),
        saliency=output.saliency.flatten(),
        joint=None if output.joint is None else output.joint.flatten(0, 1),
        tiles=image.tiles,
        size=image.size,
        groups=torch.arange(tiles, device=output.saliency.device).repeat_interleave(n),
    )


def tile_boxes(size: tuple[int, int], grid: tuple[int, int], edge: int) -> list[Box]:
    """Regions of the picture that `grid` (rows, columns) tiles of `edge` pixels show.

    The picture is scaled to fit into the tiles and centred. Regions reach beyond the picture if it is padded.
    """
    width, height = size
    rows, columns = grid
    scale = min(columns * edge / width, rows * edge / height)
    left, top = (columns * edge - width * scale) / 2, (rows * edge - height * scale) / 2

    def box(row: int, column: int) -> Box:
        x, y = column * edge - left, row * edge - top
        return (x / scale, y / scale, (x + edge) / scale, (y + edge) / scale)

    return [box(row, column) for row in range(rows) for column in range(columns)]
