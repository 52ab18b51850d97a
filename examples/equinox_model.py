"""A store into an Equinox model, sharded by rules on the store's names.

Run as `python examples/equinox_model.py STORE`, with a store of `examples/small_model.py`.
"""

import sys
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
import small_model

import gdist

jax.config.update("jax_num_cpu_devices", 8)  # pretend devices; leave this out where there are real ones
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


class Linear(eqx.Module):
    w: jax.Array  # (in, out), as it is stored; eqx.nn.Linear has (out, in)
    b: jax.Array

    def __init__(self, inputs, outputs, key):
        self.w, self.b = jax.random.normal(key, (inputs, outputs)), jax.numpy.zeros(outputs)

    def __call__(self, x):
        return x @ self.w + self.b


class Layer(eqx.Module):
    up: Linear
    down: Linear
    activation: Callable = jax.nn.relu  # a leaf of the module's tree, and no array

    def __call__(self, x):
        return x + self.down(self.activation(self.up(x)))


class Model(eqx.Module):
    embed: jax.Array
    layers: list[Layer]

    def __init__(self, key):
        keys = jax.random.split(key, 1 + 2 * small_model.LAYERS)
        self.embed = jax.random.normal(keys[0], (small_model.VOCABULARY, small_model.WIDTH))
        sizes = small_model.WIDTH, small_model.HIDDEN
        self.layers = [
            Layer(Linear(*sizes, key=up), Linear(*sizes[::-1], key=down))
            for up, down in zip(keys[1::2], keys[2::2], strict=True)
        ]

    def __call__(self, tokens):
        x = self.embed[tokens]
        for layer in self.layers:
            x = layer(x)
        return x @ self.embed.T


abstract = eqx.filter_eval_shape(Model, jax.random.key(0))  # no weights are made
arrays, rest = eqx.partition(abstract, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
rules = {
    "rules": [
        [r"\.up\.w$", [None, "model"]],
        [r"\.up\.b$", ["model"]],
        [r"\.down\.w$", ["model"]],
        [r".*", []],
    ]
}
# attribute paths are the store's names but for one: layers.0.up.w
arrays = gdist.load(sys.argv[1], target=arrays, mesh=mesh, rules=rules, rename={"embed": "token_embed"})
model = eqx.combine(arrays, rest)

logits = eqx.filter_jit(model)(small_model.TOKENS)
np.testing.assert_allclose(logits, small_model.logits(small_model.TOKENS), rtol=1e-4, atol=1e-5)
print("layers.0.up.w is split by", model.layers[0].up.w.sharding.spec)
