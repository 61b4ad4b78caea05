"""The expected layout of kept tokens in a prompt, computed from the library's own model.

The library makes embeddings, positions and DeepStack rows for all tokens. Then the places of dropped tokens are cut
out. A newline stays if its row keeps a token.
"""

import torch


def newline_rows(bench, inputs, run, video):
    """For each of the `run` placeholders of an image: the number of the row that it ends, or -1 if it is no newline."""
    name = bench.name
    ends = torch.full((run,), -1)
    if name == "llava_next" or (name == "llava_onevision" and not video):
        side = 8 if name == "llava_next" else 6
        base = side * side
        width = packed_width(bench, inputs)
        for row, at in enumerate(range(base + width, run, width + 1)):
            ends[at] = row
    elif name == "llava_onevision":
        ends[-1] = 0
    return ends


def packed_width(bench, inputs):
    """Width of the tiles' grid, from packing tokens of zeros and newlines of ones."""
    core, sizes = bench.whole.model, inputs["image_sizes"]
    side = 8 if bench.name == "llava_next" else 6
    marks = torch.zeros(len(inputs["pixel_values"][0]), side * side, 1)
    extra = (
        {"vision_feature_select_strategy": "default"}
        if bench.name == "llava_next"
        else {"vision_aspect_ratio": "anyres_max_4"}
    )
    packed, _ = core.pack_image_features([marks], sizes, image_newline=torch.ones(1), **extra)
    places = packed[0][:, 0].nonzero().flatten()
    return int(places[0]) - side * side


def expected(bench, inputs, index, video=False):
    """Embeddings [L, D], positions [3, L] or None, visual mask [L] and DeepStack rows after compression to `index`."""
    model, ids = bench.whole, inputs["input_ids"][0]
    # InternVL writes frames with the token of pictures.
    token = getattr(model.config, "video_token_id", None) if video else None
    token = model.config.image_token_id if token is None else token
    with torch.inference_mode():
        recorded = {}
        handle = model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: recorded.update(kwargs), with_kwargs=True
        )
        model(**inputs)
        handle.remove()
    places = (ids == token).nonzero().flatten()
    ends = newline_rows(bench, inputs, len(places), video)
    kept = set(index.tolist())
    keep, evidence, row_kept = torch.ones(len(ids), dtype=torch.bool), -1, False
    tiled = bench.name == "llava_next" or (bench.name == "llava_onevision" and not video)
    first = {"llava_next": 64, "llava_onevision": 36}.get(bench.name, 0) if tiled else 0
    deep = []
    for place, end in zip(places.tolist(), ends.tolist(), strict=True):
        if end >= 0:
            keep[place] = row_kept
            row_kept = False
            continue
        evidence += 1
        keep[place] = evidence in kept
        row_kept |= evidence in kept and evidence >= first
        deep += [evidence] if evidence in kept else []
    positions = recorded.get("position_ids")
    positions = positions[-3:, 0][:, keep] if bench.name.startswith("qwen") else None
    layers = recorded.get("deepstack_visual_embeds")
    layers = None if layers is None else [layer[torch.tensor(deep)] for layer in layers]
    return recorded["inputs_embeds"][0][keep], positions, (ids == token)[keep], layers


def logits(model, embeds, positions, mask, layers, answer=()):
    """Logits [L + answer, V] of the library's language model and head. The answer stands past all of the prompt."""
    count, extra = len(answer), {}
    with torch.inference_mode():
        rows = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(answer, dtype=torch.long))]).unsqueeze(0)
        if positions is not None:
            after = (positions.max() + 1 + torch.arange(count)).expand(3, -1)
            extra["position_ids"] = torch.cat([positions, after], dim=1).unsqueeze(1)
        if layers is not None:
            grown = torch.cat([mask, torch.zeros(count, dtype=torch.bool)])
            extra |= {"visual_pos_masks": grown.unsqueeze(0), "deepstack_visual_embeds": layers}
        hidden = model.get_decoder()(inputs_embeds=rows, use_cache=False, **extra).last_hidden_state
        return model.lm_head(hidden[0])


def greedy(model, embeds, positions, mask, layers, steps, ends):
    """Greedy ids of the library's language model and head; the whole sequence runs again for every token."""
    out = []
    for _ in range(steps):
        out.append(int(logits(model, embeds, positions, mask, layers, out)[-1].argmax()))
        if out[-1] in ends:
            break
    return out
