"""A store into a Flax NNX model that says itself how it is sharded.

Run as `python examples/flax_nnx.py STORE`, with a store of `examples/small_model.py`.
"""

import sys

import jax
import numpy as np
import small_model
from flax import nnx

import gdist

jax.config.update("jax_num_cpu_devices", 8)  # pretend devices; leave this out where there are real ones
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


class Layer(nnx.Module):
    def __init__(self, rngs):
        columns = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        rows = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("model", None))
        self.up = nnx.Linear(small_model.WIDTH, small_model.HIDDEN, kernel_init=columns, rngs=rngs)
        self.down = nnx.Linear(small_model.HIDDEN, small_model.WIDTH, kernel_init=rows, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(small_model.VOCABULARY, small_model.WIDTH, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(small_model.LAYERS)])

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(x)


# No weights are made. nnx.eval_shape alone would leave the shardings without devices.
graph, abstract = nnx.get_abstract_model(lambda: Model(nnx.Rngs(0)), mesh)
rename = [  # layers.0.up.kernel.value  ->  layers.0.up.w
    (r"\.value$", ""),
    (r"kernel$", "w"),
    (r"bias$", "b"),
    (r"^embed\.embedding$", "token_embed"),
]
state = gdist.load(sys.argv[1], target=abstract, rename=rename)
model = nnx.merge(graph, state)

logits = nnx.jit(lambda model, tokens: model(tokens))(model, small_model.TOKENS)
np.testing.assert_allclose(logits, small_model.logits(small_model.TOKENS), rtol=1e-4, atol=1e-5)
print("layers.0.up.w is split by", model.layers[0].up.kernel[...].sharding.spec)
