"""What a model file's keys do to the result, as tables: read, of no effect, of none with some values.

Here are any decoder's; an architecture adds its own (engine/models). What is in no table is looked at: refused where
its name sounds as if it changed the result, else noted. The tables of config.json are held to Transformers
(tests/golden/config.json), those of GGUF to llama.cpp (tests/oracle).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput


def brief(value: object) -> str:
    """A value of a file as a line of an error shows it: short, and one line (an array of NumPy's has several)."""
    return " ".join(reprlib.repr(value).split())


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one kind of file. A key may stand in one of the four.

    read: engine/config.py or the tokenizer reads or checks it;
    inert: of no effect, whatever it holds, by the reason;
    neutral: of no effect with one of these values; another would change what is computed, and is refused;
    noted: of no effect here, and the user should know why.
    """

    word: str = ""
    read: frozenset[str] = frozenset()
    inert: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    noted: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, own: Keys) -> Keys:
        """These, and an architecture's own."""
        tables = ({**getattr(self, name), **getattr(own, name)} for name in ("inert", "neutral", "noted"))
        return Keys(self.word, self.read | own.read, *tables)

    def known(self) -> set[str]:
        return {*self.read, *self.neutral, *self.noted, *(name for names in self.inert.values() for name in names)}

    def look(self, values: Mapping[str, Any], spelled: str = "{}") -> list[str]:
        """Notes on the keys that values holds. Raises BadInput for one that asks for what is not computed.

        spelled: what a name becomes in a message.
        """
        known, notes = self.known(), []
        for name, value in values.items():
            where = f"{self.word}{spelled.format(name)}"
            if name in self.neutral:
                harmless = self.neutral[name]
                if not any(type(value) in _alike(type(one)) and value == one for one in harmless):
                    only = brief(next((one for one in harmless if one is not None), None))
                    raise BadInput(f"{where} is {brief(value)}; that is not supported, only {only} is")
            elif name in self.noted and value is not None:
                notes.append(f"{where} {self.noted[name]}")
            elif name not in known and value is not None and getattr(value, "__len__", lambda: 1)():  # [] is nothing
                if TELLING.search(name) and value is not False:
                    raise BadInput(
                        f"{where} is {brief(value)}; it is not known here and sounds as if it changed the result; "
                        "if it does not, take it out"
                    )
                notes.append(f"{where} is not known here and was not used")
        return notes


def _alike(kind: type) -> tuple[type, ...]:
    """The types whose values compare with one another: 1, 1.0 and true; never an array of NumPy's."""
    return (int, float, bool) if kind in (int, float, bool) else (kind,)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Parts of a name that say that something else is computed.
TELLING = re.compile(
    "attn|attention|rope|rotary|position|window|causal|mask|alibi|scal|multipl|softcap|clip|clamp|norm|bias|expert|moe|"
    "head|layer|embed|activation|act_fn|residual|quant|prun|adapter|lora|chunk|sink|mtp|nextn|ssm|conv|sparse|logit|mlp"
)

# ------------------------------------------------------------------------------------------------------ config.json

# Of the fields that Transformers 4 and 5 know and write, and of those that others' files are seen to hold.
HF = Keys(
    read=frozenset(
        _names("""
            architectures model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
            intermediate_size vocab_size max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta
            rope_parameters rope_scaling partial_rotary_factor original_max_position_embeddings sliding_window
            layer_types is_causal bos_token_id eos_token_id pad_token_id
        """)
    ),
    inert={
        "says where the file is from": _names("""
            _name_or_path name_or_path transformers_version _commit_hash model_name library_name unsloth_fixed
            unsloth_version keys_to_ignore_at_inference transformers.js_config
        """),
        "weights are used in the precision that they are stored in": ("dtype", "torch_dtype", "use_bfloat16"),
        "how it is computed, not what": _names("""
            attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal
            _experts_implementation_internal use_flash_attn use_flash_attention_2 use_cache gradient_checkpointing
            chunk_size_feed_forward pretraining_tp torchscript tf_legacy_loss base_model_tp_plan base_model_pp_plan
        """),
        "training": _names("""
            initializer_range initializer_factor attention_dropout hidden_dropout hidden_dropout_prob dropout
            attention_probs_dropout_prob attn_dropout_prob emb_dropout_prob embedding_dropout residual_dropout
            attn_pdrop embd_pdrop resid_pdrop classifier_dropout output_router_logits router_aux_loss_coef
        """),
        "what is handed out, not what is computed": _names("""
            output_attentions output_hidden_states return_dict use_return_dict tie_last_hidden_states
        """),
        "heads of other tasks": _names("""
            id2label label2id num_labels problem_type finetuning_task task_specific_params
        """),
        "the tensors say it: a bias is there or is not": ("attention_bias", "mlp_bias", "qkv_bias", "use_bias"),
        "generation, which the command's own options rule": _names("""
            assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty
            do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
            exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length
            max_new_tokens min_length min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
            num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
            return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p
        """),
        "the tokenizer's": _names("""
            tokenizer_class prefix sep_token_id unk_token_id mask_token_id decoder_start_token_id pad_token bos_token
            eos_token model_max_length tokenizer_model_max_length max_sequence_length max_seq_length seq_length
        """),
    },
    neutral={
        "quantization_config": (None,),  # these three are read where weights lie as they say: quantised/
        "compression_config": (None,),
        "quantization": (None,),
        "use_bidirectional_attention": (None, False),
        "hidden_act": (None, "silu", "swish"),
        "hidden_activation": (None, "silu", "swish"),
        "is_encoder_decoder": (None, False),
        "add_cross_attention": (None, False),
        "cross_attention_hidden_size": (None,),
        "tie_encoder_decoder": (None, False),
        "pruned_heads": (None, {}, []),
        "per_layer_config": (None, {}),
        "text_config": (None,),
        "fusion_config": (None,),
        "attention_chunk_size": (None, 0),
        "attention_multiplier": (None, 1),
        "embedding_multiplier": (None, 1),
        "residual_multiplier": (None, 1),
        "logits_scaling": (None, 1),
        "logit_scale": (None, 1),
        "embedding_scale": (None, 1),
        "attn_logit_softcapping": (None, 0),
        "final_logit_softcapping": (None, 0),
        "clip_qkv": (None, 0),
        "use_qk_norm": (None, False),
        "qk_layernorm": (None, False),
        "use_logn_attn": (None, False),
        "use_dynamic_ntk": (None, False),
        "num_experts": (None, 0),
        "num_local_experts": (None, 0),
        "num_experts_per_tok": (None, 0),
        "moe_intermediate_size": (None, 0),
        "mlp_only_layers": (None, []),
        "num_nextn_predict_layers": (None, 0),
    },
)

# ------------------------------------------------------------------------------------------------------------- GGUF

# Config's fields and their GGUF keys, behind the architecture's name.
GGUF_KEYS: dict[str, tuple[str, type]] = {
    "hidden_size": ("embedding_length", int),
    "num_hidden_layers": ("block_count", int),
    "num_attention_heads": ("attention.head_count", int),
    "num_key_value_heads": ("attention.head_count_kv", int),
    "intermediate_size": ("feed_forward_length", int),
    "max_position_embeddings": ("context_length", int),
    "rope_theta": ("rope.freq_base", float),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float),
}
# For these a file may have an array with a value for each layer (llama.cpp's get_key_or_arr).
GGUF_BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")

# Of the keys behind the architecture's name (gguf-py's Keys, llama.cpp's LLM_KV_NAMES).
GGUF = Keys(
    word="key ",
    read=frozenset(_names("""
            attention.key_length attention.value_length attention.sliding_window attention.sliding_window_pattern
            attention.causal
            rope.dimension_count vocab_size
            embedding_length_out pooling_type classifier.output_labels
            rope.scaling.type rope.scaling.factor rope.scaling.attn_factor
            rope.scaling.original_context_length rope.scaling.yarn_ext_factor rope.scaling.yarn_beta_fast
            rope.scaling.yarn_beta_slow rope.scaling.yarn_log_multiplier rope.scale_linear
        """))
    | {name for name, _ in GGUF_KEYS.values()},
    inert={
        "says that the training knew of the scaling": ("rope.scaling.finetuned",),
        "of windowed layers, and there must be none": (
            "attention.key_length_swa", "attention.value_length_swa",
            "rope.dimension_count_swa", "rope.freq_base_swa",
        ),
        "of experts, and there must be none": _names("""
            expert_used_count expert_shared_count expert_feed_forward_length expert_shared_feed_forward_length
            expert_weights_scale expert_weights_norm expert_gating_func expert_group_count expert_group_used_count
            leading_dense_block_count
        """),
        "of norms of another kind": (
            "attention.layer_norm_epsilon", "attention.group_norm_epsilon", "attention.group_norm_groups",
        ),
        "of encoders": ("decoder_start_token_id",),
    },
    neutral={
        "rope.scaling.yarn_attn_factor": (1,),
        "rope.scaling.alpha": (0, 1),
        "attention.scale": (0,),
        "attention.output_scale": (1, 0),
        "attention.temperature_scale": (0,),
        "attention.temperature_length": (0,),
        "attention.clamp_kqv": (0,),
        "attention.max_alibi_bias": (0,),
        "attention.shared_kv_layers": (0,),
        "attn_logit_softcapping": (0,),
        "final_logit_softcapping": (0,),
        "logit_scale": (1, 0),
        "residual_scale": (1, 0),
        "embedding_scale": (1, 0),
        "expert_count": (0,),
        "moe_every_n_layers": (0,),
        "nextn_predict_layers": (0,),
        "n_deepstack_layers": (0,),
        "rescale_every_n_layers": (0,),
        "swin_norm": (False,),
        "use_parallel_residual": (False,),
    },
)  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- APR

# Hugging Face's name: the spellings that aprender's and realizar's writers use (realizar's serde aliases, PMAT-111).
APR_ALIASES = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_hidden_layers": ("num_layers", "n_layers", "n_layer"),
    "num_attention_heads": ("num_heads", "n_heads", "n_head"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
    "rope_theta": (),
    "head_dim": (),
    "tie_word_embeddings": (),
}
APR_ROPE_TYPE = 2  # rope_type of the rotary embedding of split halves, which the page computes
# APR's own keys (aprender's AprV2Metadata); what is left is looked at as if it stood in config.json.
APR_OWN = frozenset(
    _names("""
        name description author license data_source data_license version source original_format created_at
        total_size param_count quantization sharding chat_template chat_format special_tokens architecture
        hf_architecture hf_model_type model_type rope_type source_metadata model_config format
        tied_embeddings
    """)
)
