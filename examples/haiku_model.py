"""A store into the parameters of a Haiku model, sharded by rules on the store's names.

Run as `python examples/haiku_model.py STORE`, with a store of `examples/small_model.py`.
"""

import sys

import haiku as hk
import jax
import numpy as np
import small_model

import gdist

jax.config.update("jax_num_cpu_devices", 8)  # pretend devices; leave this out where there are real ones
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


class Layer(hk.Module):
    def __call__(self, x):
        hidden = jax.nn.relu(hk.Linear(small_model.HIDDEN, name="up")(x))
        return x + hk.Linear(small_model.WIDTH, name="down")(hidden)


@hk.without_apply_rng
@hk.transform
def model(tokens):
    embed = hk.Embed(small_model.VOCABULARY, small_model.WIDTH, name="embed")
    x = embed(tokens)
    for number in range(small_model.LAYERS):
        x = Layer(name=f"layer_{number}")(x)
    return x @ embed.embeddings.T


abstract = jax.eval_shape(model.init, jax.random.key(0), small_model.TOKENS)  # no weights are made
rename = [  # ["layer_0/up"]["w"] is layer_0/up.w  ->  layers.0.up.w
    (r"/", "."),
    (r"^layer_(\d+)", r"layers.\1"),
    (r"^embed\.embeddings$", "token_embed"),
]
rules = {
    "rules": [
        [r"\.up\.w$", [None, "model"]],
        [r"\.up\.b$", ["model"]],
        [r"\.down\.w$", ["model"]],
        [r".*", []],
    ]
}
params = gdist.load(sys.argv[1], target=abstract, mesh=mesh, rules=rules, rename=rename)

logits = jax.jit(model.apply)(params, small_model.TOKENS)
np.testing.assert_allclose(logits, small_model.logits(small_model.TOKENS), rtol=1e-4, atol=1e-5)
print("layers.0.up.w is split by", params["layer_0/up"]["w"].sharding.spec)
