"""Store to `jax.Array` tree; the only importer of JAX.

tree = gdist.load("/data/model")                                  # on the store's own mesh
tree = gdist.load("/data/model", mesh=mesh, rules=rules)          # on another
params = gdist.load("/data/model", target=jax.eval_shape(init))   # into a model's own tree
"""

from gdist.loader.devices import device_order
from gdist.loader.load import load
from gdist.loader.quantized import QuantizedWeight8bit

__all__ = ["QuantizedWeight8bit", "device_order", "load"]
