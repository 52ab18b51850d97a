"""The tensors of a small Llama in the three spellings that circulate; no bytes, names and shapes only."""

from __future__ import annotations

from collections.abc import Mapping

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.tensor import Part, StoredTensor, TensorSpec

VOCABULARY, WIDTH, KEYS, HIDDEN = 256, 64, 32, 192

HUGGING_FACE = {
    "embed": "model.embed_tokens.weight",
    "query": "model.layers.0.self_attn.q_proj.weight",
    "key": "model.layers.0.self_attn.k_proj.weight",
    "value": "model.layers.0.self_attn.v_proj.weight",
    "out": "model.layers.0.self_attn.o_proj.weight",
    "gate": "model.layers.0.mlp.gate_proj.weight",
    "up": "model.layers.0.mlp.up_proj.weight",
    "down": "model.layers.0.mlp.down_proj.weight",
    "attention_norm": "model.layers.0.input_layernorm.weight",
    "mlp_norm": "model.layers.0.post_attention_layernorm.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
META = {
    "embed": "tok_embeddings.weight",
    "query": "layers.0.attention.wq.weight",
    "key": "layers.0.attention.wk.weight",
    "value": "layers.0.attention.wv.weight",
    "out": "layers.0.attention.wo.weight",
    "gate": "layers.0.feed_forward.w1.weight",
    "up": "layers.0.feed_forward.w3.weight",
    "down": "layers.0.feed_forward.w2.weight",
    "attention_norm": "layers.0.attention_norm.weight",
    "mlp_norm": "layers.0.ffn_norm.weight",
    "norm": "norm.weight",
    "head": "output.weight",
}
FLAX = {
    "embed": "transformer.wte.embedding",
    "query": "transformer.h.0.attention.wq.kernel",
    "key": "transformer.h.0.attention.wk.kernel",
    "value": "transformer.h.0.attention.wv.kernel",
    "out": "transformer.h.0.attention.wo.kernel",
    "gate": "transformer.h.0.feed_forward.w1.kernel",
    "up": "transformer.h.0.feed_forward.w3.kernel",
    "down": "transformer.h.0.feed_forward.w2.kernel",
    "attention_norm": "transformer.h.0.attention_norm.kernel",
    "mlp_norm": "transformer.h.0.ffn_norm.kernel",
    "norm": "transformer.ln_f.kernel",
    "head": "lm_head.kernel",
}

SHAPES = {  # as PyTorch has them: [out, in]
    "embed": (VOCABULARY, WIDTH),
    "query": (WIDTH, WIDTH),
    "key": (KEYS, WIDTH),
    "value": (KEYS, WIDTH),
    "out": (WIDTH, WIDTH),
    "gate": (HIDDEN, WIDTH),
    "up": (HIDDEN, WIDTH),
    "down": (WIDTH, HIDDEN),
    "attention_norm": (WIDTH,),
    "mlp_norm": (WIDTH,),
    "norm": (WIDTH,),
    "head": (VOCABULARY, WIDTH),
}


def llama_tensors(
    names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> tuple[StoredTensor, ...]:
    """The tensors of these names, by role; a Flax kernel has its shape reversed."""
    found = []
    for role, name in names.items():
        shape = shapes[role][::-1] if name.endswith(".kernel") else shapes[role]
        spec = TensorSpec(name, shape, BY_NAME["bfloat16"])
        found.append(StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(shape)),)))
    return tuple(found)
