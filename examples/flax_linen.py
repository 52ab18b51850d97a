"""A store into a Flax linen model that says itself how it is sharded.

Run as `python examples/flax_linen.py STORE`, with a store of `examples/small_model.py`.
"""

import sys

import flax.linen as nn
import jax
import numpy as np
import small_model

import gdist

jax.config.update("jax_num_cpu_devices", 8)  # pretend devices; leave this out where there are real ones
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        columns = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        rows = nn.with_partitioning(nn.initializers.lecun_normal(), ("model", None))
        hidden = nn.relu(nn.Dense(small_model.HIDDEN, kernel_init=columns, name="up")(x))
        return x + nn.Dense(small_model.WIDTH, kernel_init=rows, name="down")(hidden)


class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(small_model.VOCABULARY, small_model.WIDTH, name="embed")
        x = embed(tokens)
        for number in range(small_model.LAYERS):
            x = Layer(name=f"layer_{number}")(x)
        return embed.attend(x)


model = Model()
abstract = jax.eval_shape(model.init, jax.random.key(0), small_model.TOKENS)  # no weights are made
target = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    nn.unbox(abstract),
    nn.get_sharding(abstract, mesh),
)
rename = [  # params.layer_0.up.kernel  ->  layers.0.up.w
    (r"^params\.", ""),
    (r"^layer_(\d+)", r"layers.\1"),
    (r"kernel$", "w"),
    (r"bias$", "b"),
    (r"^embed\.embedding$", "token_embed"),
]
params = gdist.load(sys.argv[1], target=target, rename=rename)

logits = jax.jit(model.apply)(params, small_model.TOKENS)
np.testing.assert_allclose(logits, small_model.logits(small_model.TOKENS), rtol=1e-4, atol=1e-5)
print("layers.0.up.w is split by", params["params"]["layer_0"]["up"]["kernel"].sharding.spec)
