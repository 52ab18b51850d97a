"""The small model of the other examples: what it computes, in NumPy, and a store of its weights.

`python examples/small_model.py STORE` writes the store. Its tensors are named as somebody else named them,
`token_embed`, `layers.0.up.w` and so on.
"""

import sys

import numpy as np

VOCABULARY, WIDTH, HIDDEN, LAYERS = 64, 32, 128, 2
TOKENS = np.arange(8 * 16).reshape(8, 16) % VOCABULARY  # a batch of eight sequences


def weights() -> dict[str, np.ndarray]:
    """The tensors by name."""
    shapes = {"token_embed": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"layers.{layer}.up.w": (WIDTH, HIDDEN), f"layers.{layer}.up.b": (HIDDEN,)}
        shapes |= {f"layers.{layer}.down.w": (HIDDEN, WIDTH), f"layers.{layer}.down.b": (WIDTH,)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def logits(tokens: np.ndarray) -> np.ndarray:
    """What the model computes; the models of the other examples have to come to the same."""
    w = weights()
    x = w["token_embed"][tokens]
    for layer in range(LAYERS):
        hidden = np.maximum(x @ w[f"layers.{layer}.up.w"] + w[f"layers.{layer}.up.b"], 0)
        x = x + hidden @ w[f"layers.{layer}.down.w"] + w[f"layers.{layer}.down.b"]
    return x @ w["token_embed"].T


if __name__ == "__main__":
    from gdist.testing.stores import write_store  # a real one comes from gdist fetch

    write_store(sys.argv[1], weights())
