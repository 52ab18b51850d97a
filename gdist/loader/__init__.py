"""Store to `jax.Array` tree; the only importer of JAX.

tree = gdist.load("/data/model")                                  # on the store's own mesh
tree = gdist.load("/data/model", mesh=mesh, rules=rules)          # on another
params = gdist.load("/data/model", target=jax.eval_shape(init))   # into a model's own tree
for path, array in gdist.stream("/data/model"): ...                # one by one, while it downloads
"""

from gdist.loader.devices import device_order
from gdist.loader.load import load
from gdist.loader.quantized import QuantizedWeight8bit
from gdist.loader.stream import stream

__all__ = ["QuantizedWeight8bit", "device_order", "load", "stream"]
