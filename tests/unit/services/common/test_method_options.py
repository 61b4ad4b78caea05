import fsr_core
from fsr.common import method_options


def test_default_method_is_the_same_with_and_without_fsr_core():
    assert method_options.DEFAULT_METHOD == fsr_core.DEFAULT_METHOD
    assert method_options.DEFAULT_METHOD in fsr_core.methods()
