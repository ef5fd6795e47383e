"""kserve's server without what only its client for Kubernetes imports: half the room on disk, a quarter less to start.

The plain way is ``from kserve import Model, ModelServer``; it needs all that kserve requires (server/excludes.txt).
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

_found = find_spec("kserve")
if _found is None:
    raise ImportError("kserve is not installed")
_package = ModuleType("kserve")
_package.__path__ = list(_found.submodule_search_locations or ())
sys.modules["kserve"] = _package  # its own __init__ imports the client

_no_pandas = find_spec("pandas") is None
if _no_pandas:  # the server names its DataFrame in annotations, and makes one only for requests of content type "pd"
    _pandas = ModuleType("pandas")
    _pandas.DataFrame = type("DataFrame", (), {})  # type: ignore[attr-defined]
    sys.modules["pandas"] = _pandas
try:
    from kserve.errors import InferenceError, InvalidInput
    from kserve.model import Model
    from kserve.model_server import ModelServer
    from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
finally:
    if _no_pandas:
        del sys.modules["pandas"]  # scikit-learn looks whether it is there

__all__ = ["InferOutput", "InferRequest", "InferResponse", "InferenceError", "InvalidInput", "Model", "ModelServer"]
