import pytest

from helpers.stand_ins import StandIns


@pytest.fixture
def port(free_ports):
    return str(free_ports(30))


@pytest.fixture
def stand_ins(monkeypatch):
    stand_ins = StandIns(monkeypatch)
    yield stand_ins
    stand_ins.end()
