"""Grok-1's parameters as its released model code has them: `{"a/b/c": {"w": leaf}}`, with quantised pairs.

Run as `python examples/grok1.py STORE [MESH]`; STORE comes from `gdist fetch grok-1`, MESH is 1x8 or another.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import gdist


def haiku_params(tree):
    """Nested dicts as Haiku nests them: a module's path in one key, the parameter's name in another."""
    params = {}
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_pair)
    for path, leaf in leaves:
        *module, name = (key.key for key in path)
        params.setdefault("/".join(module), {})[name] = leaf
    return params


def is_pair(node):
    """Whether it is int8 weights and their scales."""
    return isinstance(node, gdist.QuantizedWeight8bit)


def values(pair):
    """What a quantised pair stands for: each entry of the scales belongs to a run of rows of the weight."""
    rows = pair.weight.shape[-2] // pair.scales.shape[-2]
    return pair.weight.astype(jnp.float32) * jnp.repeat(pair.scales.astype(jnp.float32), rows, axis=-2)


def main(store, mesh="1x8"):
    """Loads the parameters and sends numbers through one attention layer's first and last matrix."""
    params = haiku_params(gdist.load(store, mesh=mesh)["params"])  # sharded by the release's own rules
    attention = "transformer/decoder_layer_0/multi_head_attention"
    query, linear = params[f"{attention}/query"]["w"], params[f"{attention}/linear"]["w"]

    x = np.random.default_rng(0).normal(size=(4, query.shape[0])).astype(np.float32)
    y = jax.jit(lambda query, linear, x: x @ values(query) @ values(linear))(query, linear, x)

    with gdist.open(store) as arrays:  # the same without JAX, shardings or trees
        for name in ("query", "linear"):
            prefix = f"params.{attention}.{name}.w".replace("/", ".")
            weight, scales = (np.asarray(arrays[f"{prefix}.{half}"]) for half in ("weight", "scales"))
            groups = weight.reshape(len(scales), -1, weight.shape[1]).astype(np.float32)
            x = x @ (groups * scales[:, None, :].astype(np.float32)).reshape(weight.shape)
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5 * np.abs(x).max())

    print(len(params), "modules;", linear.weight.sharding.spec, "splits", f"{attention}/linear")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # pretend devices; leave this out where there are real ones
    main(*sys.argv[1:])
