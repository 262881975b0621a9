"""timm brings torchvision, whose usual wheel is built for CUDA: beside a CPU torch its operators do
not load, and with them every import of transformers and PEFT fails. Nothing here uses them, so they
are declared without an implementation."""
import importlib.util
import re
import sys

import torch


def declare_operators():
    package = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    with open(package + "/_meta_registrations.py") as f:
        names = re.findall(r'(?:torchvision::|register_meta\(")(\w+)', f.read())
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(set(names)):
        library.define(name + "(Tensor x) -> Tensor")
    return library


try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:
    for name in [m for m in sys.modules if m.startswith("torchvision")]:
        del sys.modules[name]
    library = declare_operators()
    import torchvision  # noqa: F401
