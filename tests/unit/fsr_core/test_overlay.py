import json
import sys

from PIL import Image, ImageChops

from fsr_core import overlay


def test_a_photograph_is_drawn_upright_as_the_encoder_saw_it(tmp_path, monkeypatch):
    plan, turned = (
        {"views": [[0, 2, 1, [0, 0, 6, 8]]], "index": [0], "stage": [0], "merged_into": [-1, -1]},
        Image.Exif(),
    )
    turned[0x0112] = 6  # to be turned clockwise
    picture = Image.linear_gradient("L").resize((8, 6)).convert("RGB")
    picture.save(tmp_path / "photo.png", exif=turned)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for name in ("photo", "upright"):
        paths = [
            str(tmp_path / f"{name}.png"),
            "--plan",
            str(tmp_path / "plan.json"),
            "-o",
            str(tmp_path / f"{name}-why.png"),
        ]
        monkeypatch.setattr(sys, "argv", ["overlay", *paths])
        overlay.main()
    drawn = [Image.open(tmp_path / f"{name}-why.png") for name in ("photo", "upright")]
    assert drawn[0].size == drawn[1].size and not ImageChops.difference(*drawn).getbbox()
