"""A store as nested dicts, for a model that is a function of them.

Run as `python examples/plain_dict.py STORE`, with a store of `examples/small_model.py`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import small_model

import gdist

jax.config.update("jax_num_cpu_devices", 8)  # pretend devices; leave this out where there are real ones
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


def forward(params, tokens):
    """The logits of every token."""
    x = params["token_embed"][tokens]
    for number in range(small_model.LAYERS):  # under jit the dict's order is that of the text: 0, 1, 10, 2
        layer = params["layers"][str(number)]
        hidden = jax.nn.relu(x @ layer["up"]["w"] + layer["up"]["b"])
        x = x + hidden @ layer["down"]["w"] + layer["down"]["b"]
    return jnp.dot(x, params["token_embed"].T)


rules = {
    "rules": [
        [r"\.up\.w$", [None, "model"]],
        [r"\.up\.b$", ["model"]],
        [r"\.down\.w$", ["model"]],
        [r".*", []],
    ]
}
params = gdist.load(sys.argv[1], mesh=mesh, rules=rules)

logits = jax.jit(forward)(params, small_model.TOKENS)
np.testing.assert_allclose(logits, small_model.logits(small_model.TOKENS), rtol=1e-4, atol=1e-5)
print("layers.0.up.w is split by", params["layers"]["0"]["up"]["w"].sharding.spec)
