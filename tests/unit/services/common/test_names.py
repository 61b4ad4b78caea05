"""The name of a model that is given none."""

import pytest

from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings


@pytest.mark.parametrize("kind", [EncoderSettings, DecoderSettings])
def test_model_without_a_name_has_its_folders_or_its_hub_id(kind, tmp_path, monkeypatch):
    folder = tmp_path / "org" / "möd"
    folder.mkdir(parents=True)
    assert kind(model="fsr-tiny").announced_name == "fsr-tiny"
    assert kind(model="org/name").announced_name == "org/name"
    assert kind(model=str(folder)).announced_name == kind(model=f"{folder}/").announced_name == "möd"
    monkeypatch.chdir(tmp_path)
    assert kind(model="org/möd").announced_name == "möd"  # a folder wins over the hub, as where it is loaded
    monkeypatch.chdir(folder)
    assert kind(model=".").announced_name == "möd"
    assert kind(model=str(folder), served_name="mine").announced_name == "mine"
