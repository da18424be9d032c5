"""This file knows the families of text models: the names that --model_type takes."""

from __future__ import annotations

from swift.catalog.family import Family, Task


def _row(
    name: str,
    architectures: str,
    templates: str,
    names: str = "",
    *,
    task: Task = "causal_lm",
    remote: bool = False,
    note: str = "",
) -> Family:
    """A row; words are parted by spaces."""
    parts = [tuple(words.split()) for words in (architectures, templates, names)]
    return Family(name, *parts, task=task, is_native=not remote, note=note)


_LLAMA = "LlamaForCausalLM"
_MISTRAL = "MistralForCausalLM"
_CHATGLM = "ChatGLMModel ChatGLMForConditionalGeneration"
_BAICHUAN = "BaichuanForCausalLM BaiChuanForCausalLM"

# fmt: off
ROWS = (
    # Qwen
    _row("qwen", "QWenLMHeadModel", "qwen", "qwen-* tongyi-finance-14b*", remote=True),
    _row("modelscope_agent", "QWenLMHeadModel", "modelscope_agent", "modelscope-agent-*", remote=True),
    _row("codefuse_qwen", "QWenLMHeadModel", "codefuse", "codefuse-qwen-*", remote=True),
    _row("qwen2", "Qwen2ForCausalLM", "qwen qwen2_5 qwen2_5_math marco_o1 qwq_preview qwq deepseek_r1",
         "qwen2.5-math-*=qwen2_5_math qwen2.5*=qwen2_5 qwen1.5* qwen2-* codeqwen* openbuddy-* marco-o1*=marco_o1 "
         "qwq-32b-preview*=qwq_preview qwq-32b*=qwq deepseek-r1-distill-qwen-*=deepseek_r1 qwenlong-l1-*=deepseek_r1"),
    _row("qwen2_moe", "Qwen2MoeForCausalLM", "qwen", "qwen1.5-moe-* qwen2-57b-a14b*"),
    _row("qwen2_gte", "Qwen2ForCausalLM", "dummy", "gte-qwen2-*", task="embedding"),
    _row("qwen2_reward", "Qwen2ForRewardModel", "qwen qwen2_5_math", "qwen2-math-rm-* qwen2.5-math-rm-*=qwen2_5_math",
         task="seq_cls", remote=True, note="reward model"),
    _row("qwen2_5_prm", "Qwen2ForProcessRewardModel", "qwen2_5_math_prm", "qwen2.5-math-prm-* qwen2.5-math-*-prm*",
         task="prm", remote=True, note="process reward model"),
    _row("qwen3", "Qwen3ForCausalLM", "qwen3 deepseek_r1 qwen3_guard qwen3_thinking qwen3_nothinking",
         "qwen3guard-gen-*=qwen3_guard deepseek-r1-0528-qwen3-8b*=deepseek_r1 qwen3-*-thinking-2507*=qwen3_thinking "
         "qwen3-*-instruct-2507*=qwen3_nothinking qwen3-[0-9]*"),
    _row("qwen3_moe", "Qwen3MoeForCausalLM", "qwen3 qwen3_nothinking qwen3_coder qwen3_thinking",
         "qwen3-coder-*=qwen3_coder qwen3-*-thinking-2507*=qwen3_thinking qwen3-*-instruct-2507*=qwen3_nothinking "
         "qwen3-*-a*b* tongyi-deepresearch-*"),
    _row("qwen3_next", "Qwen3NextForCausalLM", "qwen3_nothinking qwen3_thinking qwen3_coder",
         "qwen3-next-*-instruct* qwen3-next-*-thinking*=qwen3_thinking qwen3-coder-next*=qwen3_coder"),
    _row("qwen3_emb", "Qwen3ForCausalLM", "qwen3_emb", "qwen3-embedding-*", task="embedding"),
    _row("qwen3_reranker", "Qwen3ForCausalLM", "qwen3_reranker", "qwen3-reranker-*", task="generative_reranker"),
    # DeepSeek, Kimi
    _row("deepseek", "DeepseekForCausalLM", "deepseek", "deepseek-moe-*", remote=True),
    _row("deepseek_v2", "DeepseekV2ForCausalLM", "deepseek deepseek_v2_5",
         "deepseek-v2.5*=deepseek_v2_5 deepseek-v2* deepseek-coder-v2*"),
    _row("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek_v2_5 deepseek_r1 moonlight kimi_k2 deepseek_v3_1",
         "deepseek-v3.1*=deepseek_v3_1 deepseek-v3* deepseek-prover-v2-* deepseek-r1*=deepseek_r1 "
         "moonlight-*=moonlight kimi-k2*=kimi_k2"),
    _row("deepseek_v3_2", "DeepseekV32ForCausalLM", "deepseek_v3_1", "deepseek-v3.2*"),
    _row("deepseek_v32", "DeepseekV32ForCausalLM", "deepseek_v3_1"),
    _row("deepseek_v4", "DeepseekV4ForCausalLM", "deepseek_v4 deepseek_v4_flash",
         "deepseek-v4-flash*=deepseek_v4_flash deepseek-v4*"),
    # Llama and what is built on it
    _row("llama", _LLAMA,
         "llama atom mengzi numina ziya megrez deepseek minimind llama3 llama3_2 skywork_o1 longwriter_llama deepseek_r1 "
         "reflection",
         "llama-2-* chinese-llama-2-* chinese-alpaca-2-* llama-3.[123]*=llama3_2 meta-llama-3.[123]*=llama3_2 "
         "meta-llama-3-*=llama3 llama-3-chinese-*=llama3 deepseek-llm-*=deepseek deepseek-math-*=deepseek "
         "deepseek-coder-*=deepseek deepseek-r1-distill-llama-*=deepseek_r1 atom-7b*=atom mengzi3-*=mengzi "
         "numinamath-*=numina ziya2-*=ziya megrez-3b-*=megrez minimind*=minimind skywork-o1-*=skywork_o1 "
         "longwriter-llama*=longwriter_llama reflection-llama-*=reflection"),
    _row("yi", _LLAMA, "chatml yi_coder sus", "yi-coder-*=yi_coder yi-[0-9]* sus-chat-*=sus"),
    _row("codefuse_codellama", _LLAMA, "codefuse_codellama", "codefuse-codellama-*"),
    _row("openbuddy_llama", _LLAMA, "openbuddy openbuddy2", "openbuddy-llama3*=openbuddy2 openbuddy-llama*"),
    _row("minicpm5", _LLAMA, "minicpm5", "minicpm5-*"),
    _row("llama3_2_reward", "LlamaForSequenceClassification", "llama3_2",
         "skywork-reward-llama-* grm-llama3.2-* grm_llama3.1_*", task="seq_cls", note="reward model"),
    # Mistral and what is built on it
    _row("mistral", _MISTRAL, "llama", "mistral-7b-*"),
    _row("mixtral", "MixtralForCausalLM", "llama", "mixtral-*"),
    _row("mistral_nemo", _MISTRAL, "mistral_nemo",
         "mistral-nemo-* mistral-small-instruct-2409* mistral-large-instruct-* ministral-8b-*"),
    _row("mistral_2501", _MISTRAL, "mistral_2501", "mistral-small-24b-*-2501*"),
    _row("devstral", _MISTRAL, "devstral", "devstral-small-*"),
    _row("zephyr", _MISTRAL, "zephyr", "zephyr-7b-*"),
    _row("wizardlm2", _MISTRAL, "wizardlm2", "wizardlm-2-7b*"),
    _row("wizardlm2_moe", "MixtralForCausalLM", "wizardlm2_moe", "wizardlm-2-8x22b*"),
    _row("openbuddy_mistral", _MISTRAL, "openbuddy", "openbuddy-mistral-* openbuddy-zephyr-*"),
    _row("openbuddy_mixtral", "MixtralForCausalLM", "openbuddy", "openbuddy-mixtral-*"),
    # GLM
    _row("chatglm2", _CHATGLM, "chatglm2", "chatglm2-* codegeex2-*", remote=True),
    _row("chatglm3", _CHATGLM, "chatglm4", "chatglm3-*", remote=True),
    _row("chatglm4", _CHATGLM, "chatglm4", "glm-4-9b* longwriter-glm4-*", remote=True),
    _row("codegeex4", _CHATGLM, "codegeex4", "codegeex4-*", remote=True),
    _row("codefuse_codegeex2", _CHATGLM, "codefuse", "codefuse-codegeex2-*", remote=True),
    _row("glm_edge", "GlmForCausalLM", "chatglm4", "glm-edge-*"),
    _row("glm4", "Glm4ForCausalLM", "glm4 glm4_z1_rumination",
         "glm-z1-rumination-*=glm4_z1_rumination glm-4-*-0414* glm-z1-*"),
    _row("glm4_moe", "Glm4MoeForCausalLM", "glm4_5 glm4_7", "glm-4.7*=glm4_7 glm-4.[56]*"),
    _row("glm4_moe_lite", "Glm4MoeLiteForCausalLM", "glm4_7", "glm-4.7-flash*"),
    _row("glm_moe_dsa", "GlmMoeDsaForCausalLM", "glm4_7 glm5_1 glm5_2",
         "glm-5.1*=glm5_1 glm-5.2*=glm5_2 glm-5 glm-5-*"),
    # Google
    _row("gemma", "GemmaForCausalLM", "gemma", "gemma-[27]b*"),
    _row("gemma2", "Gemma2ForCausalLM", "gemma", "gemma-2-*"),
    _row("gemma3_text", "Gemma3ForCausalLM", "gemma3_text", "gemma-3-*"),
    _row("gemma_emb", "Gemma3TextModel", "dummy", "embeddinggemma-*", task="embedding"),
    _row("gemma_reward", "Gemma2ForSequenceClassification", "gemma", "skywork-reward-gemma-*", task="seq_cls",
         note="reward model"),
    # others that transformers knows
    _row("bge_reranker", "XLMRobertaForSequenceClassification", "bge_reranker", "bge-reranker-*", task="reranker"),
    _row("modern_bert", "ModernBertForMaskedLM", "dummy", "modernbert-*", task="masked_lm"),
    _row("modern_bert_gte", "ModernBertModel", "dummy", "gte-modernbert-*", task="embedding"),
    _row("modern_bert_gte_reranker", "ModernBertForSequenceClassification", "bert", "gte-reranker-modernbert-*",
         task="reranker"),
    _row("bert", "", "dummy", "nlp_structbert_backbone_*", task="masked_lm", remote=True),
    _row("ernie4_5", "Ernie4_5ForCausalLM Ernie4_5_ForCausalLM", "ernie", "ernie-4.5-0.3b-*"),
    _row("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", "ernie ernie_thinking",
         "ernie-4.5-*-thinking*=ernie_thinking ernie-4.5-*"),
    _row("polylm", "GPT2LMHeadModel", "default", "polylm-*"),
    _row("seggpt", "BloomForCausalLM", "default", "seqgpt-*"),
    _row("mamba", "MambaForCausalLM", "default", "mamba-*-hf"),
    _row("dbrx", "DbrxForCausalLM", "dbrx", "dbrx-*"),
    _row("c4ai", "CohereForCausalLM", "c4ai", "c4ai-command-r*"),
    _row("aya", "CohereForCausalLM", "aya", "aya-expanse-*"),
    _row("dots1", "Dots1ForCausalLM", "dots1", "dots.llm1.*"),
    _row("hunyuan", "HunYuanMoEV1ForCausalLM", "hunyuan_moe", "hunyuan-a13b-*"),
    _row("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", "hunyuan", "hunyuan-*b-* hunyuan-mt-*"),
    _row("hy_v3", "HYV3ForCausalLM", "hy_v3_preview hy_v3", "hy3-preview* hy3*=hy_v3"),
    _row("gpt_oss", "GptOssForCausalLM", "gpt_oss", "gpt-oss-*"),
    _row("longchat", "LongcatFlashForCausalLM", "longchat", "longcat-flash-*"),
    _row("youtu_llm", "YoutuForCausalLM", "youtu_llm", "youtu-llm-*"),
    _row("olmoe", "OlmoeForCausalLM", "olmoe olmoe_0924", "olmoe-1b-7b-0924*=olmoe_0924 olmoe-*"),
    _row("phi2", "PhiForCausalLM", "default", "phi-2*"),
    _row("phi3", "Phi3ForCausalLM", "phi3", "phi-3-* phi-3.5-mini-*"),
    _row("phi4", "Phi3ForCausalLM", "phi4", "phi-4*"),
    _row("phi3_moe", "PhiMoEForCausalLM PhimoeForCausalLM", "phi3", "phi-3.5-moe-*"),
    _row("minicpm3", "MiniCPM3ForCausalLM", "chatml", "minicpm3-*"),
    _row("minimax_m2", "MiniMaxM2ForCausalLM", "minimax_m2 minimax_m2_1",
         "minimax-m2.1*=minimax_m2_1 minimax-m2 minimax-m2-*"),
    _row("seed_oss", "SeedOssForCausalLM", "seed_oss", "seed-oss-*"),
    _row("nemotron_h", "NemotronHForCausalLM", "nemotron_h", "nvidia-nemotron-*"),
    # others whose code comes with the checkpoint
    _row("baichuan", _BAICHUAN, "baichuan", "baichuan-*", remote=True),
    _row("baichuan2", _BAICHUAN, "baichuan", "baichuan2-*", remote=True),
    _row("baichuan_m1", "BaichuanM1ForCausalLM", "baichuan_m1", "baichuan-m1-*", remote=True),
    _row("internlm", "InternLMForCausalLM", "internlm", "internlm-*", remote=True),
    _row("internlm2", "InternLM2ForCausalLM", "internlm2", "internlm2* internlm2_5-*", remote=True),
    _row("internlm3", "InternLM3ForCausalLM", "internlm2", "internlm3-*", remote=True),
    _row("internlm2_reward", "InternLM2ForRewardModel", "internlm2_reward", "internlm2-*-reward", task="seq_cls",
         remote=True, note="reward model"),
    _row("grok", "Grok1ModelForCausalLM", "default", "grok-1*", remote=True),
    _row("yuan2", "YuanForCausalLM", "yuan", "yuan2*", remote=True),
    _row("orion", "OrionForCausalLM", "orion", "orion-14b-*", remote=True),
    _row("bluelm", "BlueLMForCausalLM", "bluelm", "bluelm-7b-*", remote=True),
    _row("xverse", "XverseForCausalLM", "xverse", "xverse-[0-9]*b*", remote=True),
    _row("xverse_moe", "XverseForCausalLM", "xverse", "xverse-moe-*", remote=True),
    _row("ling", "BailingMoeForCausalLM", "ling", "ling-lite* ling-plus*", remote=True),
    _row("ling2", "BailingMoeV2ForCausalLM", "ling2", "ling-*-2.0*", remote=True),
    _row("ring2", "BailingMoeV2ForCausalLM", "ring2", "ring-*-2.0*", remote=True),
    _row("bailing_hybrid", "BailingMoeV2_5ForCausalLM", "ling2 ring2_5", "ling-2.5-* ring-2.5-*=ring2_5", remote=True),
    _row("mimo", "MiMoForCausalLM", "qwen mimo_rl", "mimo-7b-rl-0530*=mimo_rl mimo-7b-*", remote=True),
    _row("mimo_v2", "MiMoV2ForCausalLM", "mimo_v2", "mimo-v2*", remote=True),
    _row("iquestcoder", "IQuestCoderForCausalLM", "iquestcoder", "iquest-coder-*", remote=True),
    _row("phi3_small", "Phi3SmallForCausalLM", "phi3", "phi-3-small-*", remote=True),
    _row("minicpm_moe", "MiniCPMForCausalLM", "minicpm", "minicpm-moe-*", remote=True),
    _row("minicpm", "MiniCPMForCausalLM", "minicpm", "minicpm-2b-sft-* minicpm-2b-dpo-*", remote=True),
    _row("minicpm_chatml", "MiniCPMForCausalLM", "chatml", "minicpm-2b-128k* minicpm4-*", remote=True),
    _row("minimax", "MiniMaxText01ForCausalLM", "minimax", "minimax-text-01*", remote=True),
    _row("minimax_m1", "MiniMaxM1ForCausalLM", "minimax_m1", "minimax-m1-*", remote=True),
    _row("skywork", "SkyworkForCausalLM", "skywork", "skywork-13b-*", remote=True),
    _row("telechat", "TelechatForCausalLM TeleChatForCausalLM", "telechat", "telechat-*", remote=True),
    _row("telechat2", "TeleChat2ForCausalLM", "telechat2", "telechat2-*", remote=True),
)
# fmt: on

FAMILIES: dict[str, Family] = {row.name: row for row in ROWS}
"""Every family of text models by its name."""
