"""This file knows the options of the faster engines: vLLM, SGLang, LMDeploy."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from swift.options.conditions import command, equals, given
from swift.options.declare import Fraction, Json, Options, option

COLOCATED = given("use_vllm") & equals("vllm_mode", "colocate")
VLLM = equals("infer_backend", "vllm") | equals("sampler_engine", "vllm") | command("rollout") | COLOCATED
VLLM_SERVED = (command("deploy", "eval", "app") & equals("infer_backend", "vllm")) | command("rollout")
SGLANG = equals("infer_backend", "sglang")
SPECULATIVE = SGLANG & given("sglang_speculative_algorithm")
LMDEPLOY = equals("infer_backend", "lmdeploy")


class VllmOptions(Options):
    """The vLLM engine."""

    vllm_gpu_memory_utilization: Fraction = option(0.9, important=True, when=VLLM)
    """Share of the GPU's memory that vLLM may take."""
    vllm_tensor_parallel_size: PositiveInt = option(1, important=True, when=VLLM)
    """Number of GPUs that share each layer."""
    vllm_pipeline_parallel_size: PositiveInt = option(1, when=VLLM)
    """Number of GPUs over which the layers are spread."""
    vllm_data_parallel_size: PositiveInt = option(1, when=VLLM_SERVED)
    """Number of copies of the model that share the requests to a server. For `swift infer` set NPROC_PER_NODE
    instead."""
    vllm_enable_expert_parallel: bool = option(False, when=VLLM)
    """Whether the experts of a mixture-of-experts model are spread over the GPUs."""
    vllm_max_num_seqs: PositiveInt = option(256, when=VLLM)
    """Most sequences that are worked on at a time."""
    vllm_max_model_len: PositiveInt | None = option(None, important=True, when=VLLM)
    """Most tokens of prompt and reply together; read from config.json when not given."""
    vllm_disable_custom_all_reduce: bool = option(True, when=VLLM)
    """Whether NCCL is used instead of vLLM's own all-reduce, which is safer."""
    vllm_enforce_eager: bool = option(False, when=VLLM)
    """Whether CUDA graphs are left out: less memory, slower."""
    vllm_mm_processor_cache_gb: NonNegativeFloat = option(4, when=VLLM, later="models of images, video and audio")
    """Size of the cache of processed images and videos in GiB; 0 turns it off. For multimodal models only."""
    vllm_speculative_config: Json | None = option(None, when=VLLM)
    """Settings of speculative decoding."""
    vllm_disable_cascade_attn: bool = option(False, when=VLLM)
    """Whether cascade attention is never used, against numerical deviations."""
    vllm_limit_mm_per_prompt: Json | None = option(
        None, important=True, when=VLLM, later="models of images, video and audio"
    )
    """Most media of each kind in one prompt, e.g. `'{"image": 5, "video": 2}'`."""
    vllm_max_lora_rank: PositiveInt = option(16, when=VLLM | given("use_vllm"))
    """Largest LoRA rank; at least that of the adapter, best equal to it."""
    vllm_quantization: str | None = option(None, when=VLLM)
    """Method by which vLLM quantizes or reads quantized weights."""
    vllm_enable_prefix_caching: bool | None = option(None, important=True, when=VLLM)
    """Whether the work on equal beginnings of prompts is done once; vLLM decides when not given. On for GRPO."""
    vllm_use_async_engine: bool | None = option(None, when=VLLM, rule="true for encode tasks and deploy, else false")
    """Whether the asynchronous engine is used. Tasks other than causal_lm need it."""
    vllm_reasoning_parser: str | None = option(
        None,
        when=command("deploy", "eval", "app") & equals("infer_backend", "vllm") & equals("task_type", "causal_lm"),
    )
    """Name of vLLM's parser that splits thinking from the reply."""
    vllm_engine_kwargs: Json | None = option(None, when=VLLM)
    """Further arguments of the engine."""


class SglangOptions(Options):
    """The SGLang engine."""

    sglang_tp_size: PositiveInt = option(1, important=True, when=SGLANG)
    """Number of GPUs that share each layer."""
    sglang_pp_size: PositiveInt = option(1, when=SGLANG)
    """Number of GPUs over which the layers are spread."""
    sglang_dp_size: PositiveInt = option(1, when=SGLANG)
    """Number of copies of the model."""
    sglang_ep_size: PositiveInt = option(1, when=SGLANG)
    """Number of GPUs over which experts are spread."""
    sglang_enable_ep_moe: bool = option(False, when=SGLANG)
    """Whether experts are spread over GPUs; recent versions of SGLang no longer have it."""
    sglang_mem_fraction_static: Fraction | None = option(None, when=SGLANG)
    """Share of the GPU's memory for weights and key-value cache. Lower it when memory runs out."""
    sglang_context_length: PositiveInt | None = option(None, when=SGLANG)
    """Most tokens of prompt and reply together; read from config.json when not given."""
    sglang_disable_cuda_graph: bool = option(False, when=SGLANG)
    """Whether CUDA graphs are left out."""
    sglang_quantization: str | None = option(None, when=SGLANG)
    """Method of quantization."""
    sglang_kv_cache_dtype: Literal["auto", "fp8_e5m2", "fp8_e4m3"] = option("auto", when=SGLANG)
    """Type of the key-value cache; auto is the model's own. The fp8 types need CUDA 11.8 or newer."""
    sglang_enable_dp_attention: bool = option(False, when=SGLANG)
    """Whether attention is data parallel while the rest is tensor parallel; both sizes must be equal. For
    DeepSeek-V2/3 and Qwen2/3 MoE."""
    sglang_disable_custom_all_reduce: bool = option(True, when=SGLANG)
    """Whether NCCL is used instead of SGLang's own all-reduce, which is safer."""
    sglang_speculative_algorithm: Literal["EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM"] | None = option(
        None, when=SGLANG
    )
    """Algorithm of speculative decoding."""
    sglang_speculative_num_steps: PositiveInt | None = option(None, when=SPECULATIVE)
    """Steps the draft model goes ahead."""
    sglang_speculative_eagle_topk: PositiveInt | None = option(None, when=SPECULATIVE)
    """Tokens the draft model samples at each step (EAGLE-2)."""
    sglang_speculative_num_draft_tokens: PositiveInt | None = option(None, when=SPECULATIVE)
    """Tokens of a draft that are checked at a time."""
    sglang_engine_kwargs: Json | None = option(None, when=SGLANG)
    """Further arguments of the engine, as `'{"speculative_draft_model_path": "./draft"}'`."""


class LmdeployOptions(Options):
    """The LMDeploy engine."""

    lmdeploy_tp: PositiveInt = option(1, important=True, when=LMDEPLOY)
    """Number of GPUs that share each layer."""
    lmdeploy_session_len: PositiveInt | None = option(None, when=LMDEPLOY)
    """Most tokens of a session."""
    lmdeploy_cache_max_entry_count: NonNegativeFloat = option(0.8, when=LMDEPLOY)
    """Share of the GPU's memory for the key-value cache."""
    lmdeploy_quant_policy: Literal[0, 4, 8] = option(0, when=LMDEPLOY)
    """Bits to which the key-value cache is quantized; 0 does not quantize."""
    lmdeploy_vision_batch_size: PositiveInt = option(1, when=LMDEPLOY, later="models of images, video and audio")
    """Images per batch of the vision tower."""
    lmdeploy_engine_kwargs: Json | None = option(None, when=LMDEPLOY)
    """Further arguments of the engine. Those that only one of its engines has, TurboMind or PyTorch, choose it."""
