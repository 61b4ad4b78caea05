"""SmolVLM and Idefics3: SigLIP without CLS, tiles and the whole picture, tags around the tokens of each view.

The text that the processor writes for a picture names the row and column of each tile::

    <fake_token_around_image><row_1_col_1><image>...<image><fake_token_around_image><row_1_col_2><image>...<image>

    <fake_token_around_image><global-img><image>...<image><fake_token_around_image>

All of it stays, also around a view of which no token is kept; only rows of `<image>` go. So the language model can tell
which tile a kept token belongs to.

Pictures only. The library's processor writes for a video its number of frames in words (by a package that is not among
our dependencies), with a chat template of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.weights import Placement
from fsr_core.backbones.features import PreparedImage
from fsr_core.backbones.language.blocks import blocks_by
from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.prompts import KeptImage
from fsr_core.backbones.vision.pixels import prepare
from fsr_core.backbones.vision.shuffled import ShuffledEncoder, ShuffledTower
from fsr_core.backbones.vision.word_relevance import WordRelevance
from fsr_core.pictures import to_rgb

__all__ = ["SmolDecoder", "SmolEncoder"]

_CONNECTORS = {"smolvlm": SmolVLMConnector, "idefics3": Idefics3Connector}


class SmolEncoder(ShuffledEncoder):
    """Option `relevance`: "none" or "instruction". Saliency is the attention received in the last block.

    A token of a tile has the position (0, row, column) in the grid of all tiles; a token of the whole picture has
    (1, row, column) if there are tiles. The decoder half finds a token's view by it.
    """

    default_processor = "SmolVLMImageProcessor"

    def view_edge(self) -> int:
        return int(self.processor.max_image_size["longest_edge"])

    @staticmethod
    def projector_of(family: str) -> Any:
        return _CONNECTORS[family]

    @staticmethod
    def modules_of(core: Any) -> tuple[Any, Any]:
        return core.vision_model, core.connector

    @staticmethod
    def tower_of(config: Any, tower: Any, projector: Any, words: WordRelevance | None) -> ShuffledTower:
        vision = config.vision_config
        return ShuffledTower(
            tower,
            tower.encoder.layers[-1],
            projector,
            patches=vision.image_size // vision.patch_size,
            merge=config.scale_factor,
            has_cls=False,
            text=words,
        )

    def preprocess(self, image: Image.Image) -> PreparedImage:
        out, normalisation = prepare(self.processor, [[to_rgb(image)]], return_row_col_info=True)
        grid, views = (int(out["rows"][0][0]), int(out["cols"][0][0])), out["pixel_values"][0]
        return replace(self._prepared(views, grid, image.size), normalisation=normalisation)

    def _prepared(self, views: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> PreparedImage:
        inputs = {"pixel_values": views, "grid": torch.tensor(grid)}
        return PreparedImage(inputs=inputs, tiles=self.tiles_of(grid, size), size=size)

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        """The batch does not say how many views a picture has; the tags in its prompts do."""
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return [], []
        pictures = []
        for views, ids in zip(pixels, inputs["input_ids"], strict=True):
            start = 0
            for rows, columns in _grids(ids.tolist(), self.config.image_token_id):
                stop = start + rows * columns + 1
                if stop > len(views):
                    raise ValueError(
                        "pixel_values: have fewer views than the prompt; pass all that the processor returned"
                    )
                size = (max(1, columns) * self.edge, max(1, rows) * self.edge)
                pictures.append(self._prepared(views[start:stop], (rows, columns), size))
                start = stop
        return pictures, []

    def places(self, image: PreparedImage, views: int) -> tuple[Tensor, tuple[int, int, int]]:
        side, (rows, columns) = self.vision.side, image.inputs["grid"].tolist()
        axis = torch.arange(side)
        inside = torch.stack(torch.meshgrid(torch.zeros(1, dtype=torch.int64), axis, axis, indexing="ij"), -1).view(
            -1, 3
        )
        first = [torch.tensor([0, row * side, column * side]) for row in range(rows) for column in range(columns)]
        first.append(torch.tensor([1 if first else 0, 0, 0]))
        positions = torch.cat([inside + corner for corner in first])
        return positions, (1 + (views > 1), max(1, rows) * side, max(1, columns) * side)

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return _by_view(image, self.vision.side)


def _grids(ids: Sequence[int], image_token: int) -> list[tuple[int, int]]:
    """Rows and columns of tiles of each picture in a prompt, (0, 0) for a picture without tiles.

    A fake token stands before each view and after the last one of a picture. So two of them or more are between the
    views of two pictures, and only one between two views of a picture; it comes first, unless a row of tiles ends.
    """
    places = [place for place, token in enumerate(ids) if token == image_token]
    if not places:
        return []
    ends = [place for place, following in pairwise(places) if following > place + 1] + [places[-1]]
    starts = [following for place, following in pairwise(places) if following > place + 1]
    fake = next(iter(ids[places[-1] + 1 :]), -1)
    grids, tiles, rows = [], 0, 0
    for end, start in zip(ends, [*starts, len(ids)], strict=True):
        gap = list(ids[end + 1 : start])
        if start == len(ids) or gap.count(fake) > 1:
            grids.append((rows, tiles // rows if rows else 0))
            tiles, rows = 0, 0
        else:
            tiles += 1
            rows += gap[0] != fake
    return grids


def _by_view(image: KeptImage, side: int) -> Sequence[KeptImage]:
    """One block for each tile in raster order, then one for the whole picture; a view without kept tokens is empty."""
    if image.positions is None or image.grid is None:
        return (image,)
    columns = image.grid[2] // side
    whole, row, column = image.positions.unbind(1)
    tiles = columns * (image.grid[1] // side) if image.grid[0] > 1 else 0
    view = torch.where(whole == 1, tiles, row // side * columns + column // side)
    return blocks_by(image, view, tiles + 1)


class SmolDecoder(HalfDecoder):
    """The language model. Kept tokens take contiguous positions, as in the library's class."""

    def __init__(self, checkpoint: Checkpoint, place: Placement) -> None:
        super().__init__(checkpoint, place)
        vision = checkpoint.config.vision_config
        self._side: int = vision.image_size // vision.patch_size // checkpoint.config.scale_factor

    def _check_image(self, image: KeptImage, field: str) -> None:
        super()._check_image(image, field)
        if image.positions is None or image.grid is None:
            raise ValueError(f"{field}.positions: are missing; {self.info.family} finds the view of each token by them")
        steps, height, width = image.grid
        whole = height % self._side == width % self._side == 0
        if not whole or steps > 2 or int(image.positions[:, 0].max()) >= steps:
            raise ValueError(
                f"{field}.grid: {list(image.grid)} does not divide into views of {self._side} x {self._side}"
            )
        self._check_length((steps - 1) * (height // self._side) * (width // self._side), "views of an image take")

    def placeholder(self, image: KeptImage) -> str | None:
        if image.grid is None:
            return None
        token, fake = self.chat.visual_tokens[0], "<fake_token_around_image>"
        steps, height, width = image.grid
        columns = range(width // self._side)
        rows = range(height // self._side if steps > 1 else 0)  # the whole picture is the only view of one step
        lines = ["".join(f"{fake}<row_{row + 1}_col_{c + 1}>{token}" for c in columns) + "\n" for row in rows]
        return "".join(lines) + ("\n" if lines else "") + f"{fake}<global-img>{token}{fake}"

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return _by_view(image, self._side)
