"""This file knows the layouts of text models, one row of data per name; see `layout.Layout` for the fields."""

from __future__ import annotations

from dataclasses import replace

from swift.catalog import systems
from swift.catalog.layout import Layout

EMPTY_THINKING = "<think>\n\n</think>\n\n"
_HELPFUL = "You are a helpful assistant."

# fmt: off
# --------------------------------------------------------------------------------------- <|im_start|> ... <|im_end|>
_CHATML = Layout(
    "chatml", "", "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n", "<|im_start|>user\n{{QUERY}}<|im_end|>\n",
    "<|im_start|>assistant\n", "<|im_end|>\n", "<|im_end|>\n", auto_add_bos=True,
)
_QWEN = replace(
    _CHATML, name="qwen", default_system=_HELPFUL, stop_words=("<|endoftext|>",), auto_add_bos=False,
    agent_template="hermes",
)
_BARE = replace(_QWEN, default_system="")
_ERNIE_MODE = "<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n"
_QWEN_FAMILY = (
    _CHATML,
    replace(_CHATML, name="yi_coder", default_system=_HELPFUL),
    replace(_CHATML, name="internlm2", default_system=systems.INTERNLM),
    replace(_CHATML, name="internlm2_reward", suffix="<|im_end|>\n<|reward|>"),
    replace(_CHATML, name="dbrx", default_system=systems.DBRX),
    replace(_CHATML, name="minicpm5", is_thinking=True, thinking_prefix="<think>\n",
            non_thinking_prefix=EMPTY_THINKING, agent_template="minicpm5"),
    _QWEN,
    replace(_QWEN, name="qwen2_5",
            default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    replace(_QWEN, name="qwen2_5_math",
            default_system="Please reason step by step, and put your final answer within \\boxed{}."),
    replace(_QWEN, name="qwen2_5_math_prm",
            default_system="Please reason step by step, and put your final answer within \\boxed{}."),
    replace(_QWEN, name="qwq_preview", default_system=systems.QWQ_PREVIEW),
    replace(_QWEN, name="marco_o1", default_system=systems.MARCO_O1),
    replace(_BARE, name="qwq", is_thinking=True, thinking_prefix="<think>\n"),
    replace(_BARE, name="qwen3", is_thinking=True, non_thinking_prefix=EMPTY_THINKING),
    replace(_BARE, name="qwen3_thinking", is_thinking=True, thinking_prefix="<think>\n"),
    replace(_BARE, name="qwen3_nothinking"),
    replace(_BARE, name="qwen3_coder", agent_template="qwen3_coder"),
    replace(_BARE, name="nemotron_h", is_thinking=True, thinking_prefix="<think>\n", stop_words=("<|im_end|>",)),
    replace(_QWEN, name="mimo_rl", default_system="You are MiMo, an AI assistant developed by Xiaomi."),
    replace(_QWEN, name="iquestcoder", default_system="You are LoopCoder, a helpful assistant developed by IQuest."),
    replace(_QWEN, name="minimind", default_system="You are a helpful assistant", agent_template="react_en"),
    # The query is the user's, the document stands where a reply would; the yes or no is read after the suffix.
    Layout(
        "qwen3_reranker", f"<|im_start|>system\n{systems.RERANKER}<|im_end|>\n", None,
        f"<|im_start|>user\n<Instruct>: {systems.WEB_SEARCH}\n<Query>: {{{{QUERY}}}}\n",
        "<Document>: ", None, "<|im_end|>\n<|im_start|>assistant\n" + EMPTY_THINKING,
        system_user="<|im_start|>user\n<Instruct>: {{SYSTEM}}\n<Query>: {{QUERY}}\n",
        stop_words=("<|endoftext|>",), agent_template="hermes",
    ),
    Layout("qwen3_emb", "", None, "{{QUERY}}", "", "", "<|endoftext|>", system_user="{{SYSTEM}} {{QUERY}}"),
    Layout(
        "phi4", "", "<|im_start|>system<|im_sep|>{{SYSTEM}}<|im_end|>",
        "<|im_start|>user<|im_sep|>{{QUERY}}<|im_end|>", "<|im_start|>assistant<|im_sep|>", "<|im_end|>", "<|im_end|>",
        auto_add_bos=True,
    ),
    Layout(
        "mimo_v2", "", "<|im_start|>system\n{{SYSTEM}}<|im_end|>", "<|im_start|>user\n{{QUERY}}<|im_end|>",
        "<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>", stop_words=("<|endoftext|>",),
        default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
    ),
    Layout(
        "ernie_thinking", "<|im_start|>system\n" + _ERNIE_MODE,
        "<|im_start|>system\n<system_setting>\n{{SYSTEM}}\n</system_setting>\n\n" + _ERNIE_MODE,
        "<|im_start|>user\n{{QUERY}}<|im_end|>\n\n", "<|im_start|>assistant\n", "<|im_end|>\n\n", "<|im_end|>",
        is_thinking=True, thinking_prefix="<think>\n", frame=("<response>\n", "\n</response>"),
    ),
)

# ------------------------------------------------------------------------------------------- headers of the Llama kind
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA3 = Layout(
    "llama3", "<|begin_of_text|>", "<|begin_of_text|>" + _HEADER.format("system") + "{{SYSTEM}}<|eot_id|>",
    _HEADER.format("user") + "{{QUERY}}<|eot_id|>", _HEADER.format("assistant"), "<|eot_id|>", "<|eot_id|>",
    agent_template="llama3",
)
_DATED = (
    "<|begin_of_text|>" + _HEADER.format("system") + "Cutting Knowledge Date: December 2023\nToday Date: {{TODAY}}\n\n"
)
_LLAMA3_2 = replace(
    _LLAMA3, name="llama3_2", prefix=_DATED + "<|eot_id|>", system_prefix=_DATED + "{{SYSTEM}}<|eot_id|>"
)
_LLAMA = Layout(
    "llama", "<s>[INST] ", "<s>[INST] <<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n", "{{QUERY}} [/INST]", "", "</s><s>[INST] ",
    "</s>", default_system=systems.LLAMA2,
)
_MISTRAL = Layout(
    "mistral_2501", "<s>", "<s>[SYSTEM_PROMPT]{{SYSTEM}}[/SYSTEM_PROMPT]", "[INST]{{QUERY}}[/INST]", "", "</s>", "</s>",
    default_system=systems.MISTRAL_SMALL_3,
)
_LLAMA_FAMILY = (
    _LLAMA3,
    _LLAMA3_2,
    replace(_LLAMA3, name="reflection", default_system=systems.REFLECTION),
    replace(_LLAMA3_2, name="skywork_o1", default_system=systems.SKYWORK_O1),
    _LLAMA,
    Layout("longwriter_llama", "[INST]", "[INST]<<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n", "{{QUERY}}[/INST]", "", "[INST]",
           "<|end_of_text|>"),
    Layout("mistral_nemo", "<s>[INST] ", None, "{{QUERY}}[/INST]", "", "</s>[INST] ", "</s>",
           system_user="{{SYSTEM}}\n\n{{QUERY}}[/INST]", system_at="last"),
    _MISTRAL,
    replace(_MISTRAL, name="devstral", default_system=""),
)

# ------------------------------------------------------------------------------------------------------------ DeepSeek
_DEEPSEEK = Layout(
    "deepseek_v2_5", "<｜begin▁of▁sentence｜>", "<｜begin▁of▁sentence｜>{{SYSTEM}}", "<｜User｜>{{QUERY}}",
    "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
)
_V3_1 = replace(
    _DEEPSEEK, name="deepseek_v3_1", is_thinking=True, thinking_prefix="<think>", non_thinking_prefix="</think>",
    history_thinking_prefix="</think>", prefixed="after_user", agent_template="deepseek_v3_1",
)
_DEEPSEEK_FAMILY = (
    Layout("deepseek", "{{BOS}}", "{{BOS}}{{SYSTEM}}\n\n", "User: {{QUERY}}\n\n", "Assistant:", "{{EOS}}", "{{EOS}}"),
    Layout("deepseek_coder", "", "{{SYSTEM}}", "### Instruction:\n{{QUERY}}\n", "### Response:\n", "\n<|EOT|>\n",
           "\n<|EOT|>", default_system=systems.DEEPSEEK_CODER, stop_words=("<|EOT|>",)),
    _DEEPSEEK,
    replace(_DEEPSEEK, name="deepseek_r1", is_thinking=True, thinking_prefix="<think>\n"),
    _V3_1,
    replace(_V3_1, name="deepseek_v4", agent_template="deepseek_v4"),
    replace(_V3_1, name="deepseek_v4_flash", agent_template="deepseek_v4"),
)

# ------------------------------------------------------------------------------------------------------------------ GLM
# A reply ends where the next speaker is announced, and the newline after the assistant's mark is the model's to write.
_GLM4 = Layout(
    "glm4", "[gMASK]<sop>", "[gMASK]<sop><|system|>\n{{SYSTEM}}", "<|user|>\n{{QUERY}}", "<|assistant|>", "", "<|user|>",
    lead="\n", stop_words=("<|endoftext|>", "<|user|>", "<|observation|>"), auto_add_bos=True,
    thinking_prefix="<think>", agent_template="glm4",
)
_CHATGLM4 = replace(
    _GLM4, name="chatglm4", prefix="", system_prefix="<|system|>\n{{SYSTEM}}", thinking_prefix="",
    agent_template="chatglm4",
)
_GLM4_7 = replace(
    _GLM4, name="glm4_7", system_prefix="[gMASK]<sop><|system|>{{SYSTEM}}", user="<|user|>{{QUERY}}", lead="",
    is_thinking=True, non_thinking_prefix="</think>", history_thinking_prefix="</think>", agent_template="glm4_7",
)
_GLM_FAMILY = (
    _CHATGLM4,
    replace(_CHATGLM4, name="codegeex4", default_system=systems.CODEGEEX4),
    _GLM4,
    replace(_GLM4, name="glm4_z1_rumination", is_thinking=True, thinking_prefix=""),
    replace(_GLM4, name="glm4_5", is_thinking=True, thinking_prefix="", non_thinking_prefix="<think></think>\n",
            history_thinking_prefix="<think></think>\n", agent_template="glm4_5"),
    _GLM4_7,
    replace(_GLM4_7, name="glm5_1", agent_template="glm5_1"),
    replace(_GLM4_7, name="glm5_2", non_thinking_prefix="<think></think>", history_thinking_prefix="<think></think>",
            agent_template="glm5_1"),
    Layout("chatglm2", "", "{{SYSTEM}}", "[Round {{ROUND1}}]\n\n问：{{QUERY}}\n\n", "答：", "\n\n", "{{EOS}}",
           auto_add_bos=True),
)

# --------------------------------------------------------------------------------------------- other marks around turns
_KIMI = Layout(
    "kimi_k2", "", "<|im_system|>system<|im_middle|>{{SYSTEM}}<|im_end|>",
    "<|im_user|>user<|im_middle|>{{QUERY}}<|im_end|>", "<|im_assistant|>assistant<|im_middle|>", "<|im_end|>",
    "<|im_end|>", default_system="You are Kimi, an AI assistant created by Moonshot AI.",
)
_MINIMAX_SYSTEM = "<beginning_of_sentence>system ai_setting=assistant\n{{SYSTEM}}<end_of_sentence>\n"
_MINIMAX = Layout(
    "minimax", "", _MINIMAX_SYSTEM, "<beginning_of_sentence>user name=user\n{{QUERY}}<end_of_sentence>\n",
    "<beginning_of_sentence>ai name=assistant\n", "<end_of_sentence>\n", "<end_of_sentence>",
)
_MINIMAX_M2 = Layout(
    "minimax_m2", "]~!b[]~b]system\n[e~[\n", "]~!b[]~b]system\n{{SYSTEM}}[e~[\n", "]~b]user\n{{QUERY}}[e~[\n",
    "]~b]ai\n", "[e~[\n", "[e~[", is_thinking=True, thinking_prefix="<think>\n",
    default_system="You are MiniMax-M2, a helpful AI assistant built by MiniMax. Knowledge cutoff: 2025-06.",
)
_MINIMAX_M2_1 = replace(
    _MINIMAX_M2, name="minimax_m2_1", suffix="[e~[\n", agent_template="minimax_m2",
    default_system="You are a helpful assistant. Your name is MiniMax-M2.1 and is built by MiniMax.",
)
_LING = Layout(
    "ling", "", "<role>SYSTEM</role>{{SYSTEM}}", "<role>HUMAN</role>{{QUERY}}", "<role>ASSISTANT</role>", "",
    "<|endoftext|>",
)
_OLMOE = Layout(
    "olmoe", "|||IP_ADDRESS|||", "|||IP_ADDRESS|||<|system|>\n{{SYSTEM}}\n", "<|user|>\n{{QUERY}}\n",
    "<|assistant|>\n", "|||IP_ADDRESS|||\n", "|||IP_ADDRESS|||", stop_words=("<|endoftext|>",),
)
_HARMONY = f"<|start|>system<|message|>{systems.GPT_OSS}<|end|>"
_GEMMA = Layout(
    "gemma", "<bos>", "<bos><start_of_turn>system\n{{SYSTEM}}<end_of_turn>\n",
    "<start_of_turn>user\n{{QUERY}}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n", "<end_of_turn>",
)
_COHERE = Layout(
    "c4ai", "<BOS_TOKEN>",
    "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{SYSTEM}}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{QUERY}}<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", default_system=systems.COMMAND_R,
)
_TELECHAT = Layout(
    "telechat", "", "<_system>{{SYSTEM}}\n", "<_user>{{QUERY}}", "<_bot>", "{{EOS}}", "{{EOS}}", auto_add_bos=True,
)
_HY = "<｜hy_{}｜>"
_VARIED = (
    _KIMI,
    replace(_KIMI, name="moonlight", default_system="You are a helpful assistant"),
    _MINIMAX,
    replace(_MINIMAX, name="minimax_m1", prefix="<begin_of_document>",
            system_prefix="<begin_of_document>" + _MINIMAX_SYSTEM),
    _MINIMAX_M2,
    _MINIMAX_M2_1,
    _LING,
    replace(_LING, name="ring2", is_thinking=True, thinking_prefix="<think>\n"),
    Layout("ling2", "<role>SYSTEM</role>detailed thinking off<|role_end|>",
           "<role>SYSTEM</role>{{SYSTEM}}\ndetailed thinking off<|role_end|>",
           "<role>HUMAN</role>{{QUERY}}<|role_end|>", "<role>ASSISTANT</role>", "<|role_end|>", "<|role_end|>"),
    Layout("ring2_5", "", "<role>SYSTEM</role>\n{{SYSTEM}}\n\n", "<role>HUMAN</role>\n{{QUERY}}<|role_end|>\n\n",
           "<role>ASSISTANT</role>\n", "<|role_end|>\n\n", "<|role_end|>\n\n", is_thinking=True),
    _OLMOE,
    replace(_OLMOE, name="olmoe_0924", prefix="<|endoftext|>", system_prefix="<|endoftext|><|system|>\n{{SYSTEM}}\n",
            separator="<|endoftext|>\n", suffix="<|endoftext|>"),
    # A reply is a row of messages on channels; one that names no channel is on the final one.
    Layout("gpt_oss", _HARMONY, _HARMONY + "<|start|>developer<|message|># Instructions\n\n{{SYSTEM}}<|end|>",
           "<|start|>user<|message|>{{QUERY}}<|end|>", "<|start|>assistant", "<|end|>", "<|return|>",
           opening=("<|channel|>", "<|channel|>final<|message|>")),
    Layout("seed_oss", "", "<seed:bos>system\n{{SYSTEM}}<seed:eos>", "<seed:bos>user\n{{QUERY}}<seed:eos>",
           "<seed:bos>assistant\n", "<seed:eos>", "<seed:eos>", stop_words=("<seed:eos>",),
           renamed=(("<think>", "<seed:think>"), ("</think>", "</seed:think>"))),
    _GEMMA,
    replace(_GEMMA, name="gemma3_text", system_prefix=None, stripped="\n",
            system_user="<start_of_turn>user\n{{SYSTEM}}\n\n{{QUERY}}<end_of_turn>\n"),
    _COHERE,
    replace(_COHERE, name="aya", default_system=systems.AYA),
    Layout("phi3", "", "<|system|>\n{{SYSTEM}}<|end|>\n", "<|user|>\n{{QUERY}}<|end|>\n", "<|assistant|>\n",
           "<|end|>\n", "<|end|>", auto_add_bos=True),
    Layout("hunyuan_moe", "<|startoftext|>", "<|startoftext|>{{SYSTEM}}<|extra_4|>", "{{QUERY}}", "<|extra_0|>",
           "<|eos|><|startoftext|>", "<|eos|>"),
    Layout("hunyuan", _HY.format("begin▁of▁sentence"),
           _HY.format("begin▁of▁sentence") + "{{SYSTEM}}" + _HY.format("place▁holder▁no▁3"),
           _HY.format("User") + "{{QUERY}}", _HY.format("Assistant"), _HY.format("place▁holder▁no▁2"),
           _HY.format("place▁holder▁no▁2"), is_thinking=True, non_thinking_prefix="<think>\n\n</think>\n",
           past_answer=("<answer>", "</answer>"), agent_template="hunyuan_hermes"),
    Layout("hy_v3_preview", _HY.format("begin▁of▁sentence"), _HY.format("begin▁of▁sentence") + "{{SYSTEM}}",
           _HY.format("User") + "{{QUERY}}", _HY.format("Assistant"), _HY.format("eos"), _HY.format("eos"),
           is_thinking=True, thinking_prefix="<think>", non_thinking_prefix="<think></think>",
           history_thinking_prefix="<think></think>", agent_template="hy_v3_preview"),
    Layout("youtu_llm", "{{BOS}}", "{{BOS}}{{SYSTEM}}", "<|User|>{{QUERY}}", "<|Assistant|>", "<|end_of_text|>",
           "<|end_of_text|>", is_thinking=True, non_thinking_prefix=EMPTY_THINKING, prefixed="last",
           agent_template="youtu"),
    Layout("dots1", "<|system|><|endofsystem|>", "<|system|>{{SYSTEM}}<|endofsystem|>",
           "<|userprompt|>{{QUERY}}<|endofuserprompt|>", "<|response|>", "<|endofresponse|>", "<|endofresponse|>",
           default_system=_HELPFUL),
    Layout("megrez", "<|role_start|>system<|role_end|><|turn_end|>",
           "<|role_start|>system<|role_end|>{{SYSTEM}}<|turn_end|>",
           "<|role_start|>user<|role_end|>{{QUERY}}<|turn_end|>", "<|role_start|>assistant<|role_end|>",
           "<|turn_end|>", "<|turn_end|>", default_system="你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。"),
    _TELECHAT,
    replace(_TELECHAT, name="telechat2", default_system=systems.TELECHAT2),
    Layout("zephyr", "", "<|system|>\n{{SYSTEM}}</s>\n", "<|user|>\n{{QUERY}}</s>\n", "<|assistant|>\n", "</s>\n",
           "</s>"),
    Layout("codefuse_codellama", "", "{{SYSTEM}}", "<|role_start|>human<|role_end|>{{QUERY}}",
           "<|role_start|>bot<|role_end|>", "", "{{EOS}}"),
    Layout("codefuse", "", "<s>system\n{{SYSTEM}}\n", "<s>human\n{{QUERY}}\n", "<s>bot\n", "{{EOS}}\n", "{{EOS}}"),
    Layout("openbuddy2", "", "<|role|>system<|says|>{{SYSTEM}}<|end|>\n", "<|role|>user<|says|>{{QUERY}}<|end|>\n",
           "<|role|>assistant<|says|>", "<|end|>\n", "<|end|>"),
    Layout("skywork", "<s>", "<s>{{SYSTEM}}", "</s><s>[USER]{{QUERY}}[SEP]", "[BOT]", None, "[SEP]</s>"),
    Layout("baichuan_m1", "", "<B_SYS>{{SYSTEM}}", "<C_Q>{{QUERY}}", "<C_A>", "", "<C_A>", default_system=_HELPFUL),
    Layout("baichuan", "", "{{SYSTEM}}", "{{ID:195}}{{QUERY}}", "{{ID:196}}", "", "{{EOS}}"),
    Layout("minicpm", "<s>", "<s>{{SYSTEM}}", "<用户>{{QUERY}}", "<AI>", "", "</s>"),
    Layout("modelscope_agent", "", " \n\n<|system|>:{{SYSTEM}}", " \n\n<|user|>:{{QUERY}}", " \n\n<|assistant|>:", "",
           " \n\n</s>", default_system=_HELPFUL),
    Layout("internlm", "<s>", "<s><|System|>:{{SYSTEM}}\n", "<|User|>:{{QUERY}}\n", "<|Bot|>:", "<eoa>\n", "<eoa>",
           default_system=systems.INTERNLM),
)

# -------------------------------------------------------------------------------------------------- words around turns
_PLAIN = (
    Layout("default", "", "{{SYSTEM}}\n\n", "### Human:\n{{QUERY}}\n\n", "### Assistant:\n", "\n\n", "{{EOS}}",
           default_system=_HELPFUL, auto_add_bos=True),
    Layout("ernie", "<|begin_of_sentence|>", "<|begin_of_sentence|>{{SYSTEM}}\n", "User: {{QUERY}}\n", "Assistant: ",
           "<|end_of_sentence|>", "</s>"),
    Layout("xverse", "", "{{SYSTEM}}", "Human: {{QUERY}}\n\n", "Assistant: ", "{{EOS}}", "{{EOS}}"),
    Layout("orion", "<s>", "<s>{{SYSTEM}}", "Human: {{QUERY}}\n\n", "Assistant: </s>", "</s>", "</s>"),
    Layout("ziya", "", "{{BOS}}{{SYSTEM}}", "<human>:{{QUERY}}\n", "<bot>:", "\n", "{{EOS}}"),
    Layout("bluelm", "", "{{BOS}}{{SYSTEM}}", "[|Human|]:{{QUERY}}", "[|AI|]:", "", "{{EOS}}"),
    Layout("sus", "", "{{SYSTEM}}", "### Human: {{QUERY}}\n\n", "### Assistant: ", "<|endoftext|>", "<|endoftext|>"),
    Layout("numina", "{{BOS}}", "{{BOS}}{{SYSTEM}}", "### Problem: {{QUERY}}\n", "### Solution: ", "\n", "{{EOS}}"),
    Layout("wizardlm2", "", "{{SYSTEM}}", "User:\n{{QUERY}}\n\n", "Assistant:\n", "\n\n", "</s>"),
    Layout("wizardlm2_moe", "", "{{SYSTEM}}", "USER: {{QUERY}} ", "ASSISTANT:", "</s>", "</s>",
           default_system=systems.WIZARD),
    Layout("openbuddy", "", "{{SYSTEM}}\n\n", "User: {{QUERY}}\n", "Assistant:", "\n", "{{EOS}}", auto_add_bos=True),
    Layout("atom", "", "{{SYSTEM}}", "<s>Human: {{QUERY}}\n</s>", "<s>Assistant: ", "</s>", "</s>"),
    Layout("mengzi", "", "指令：{{SYSTEM}}", "输入：{{QUERY}}", "输出：\n", "", "{{EOS}}"),
    Layout("longchat", "", "SYSTEM:{{SYSTEM}}", " [Round {{ROUND0}}] USER:{{QUERY}}", " ASSISTANT:", "</longcat_s>",
           "</longcat_s>"),
    Layout("dummy", "", None, "{{QUERY}}", "", None, "{{EOS}}", auto_add_bos=True),
    Layout("yuan", "", None, "{{QUERY}}", "<sep>", None, "{{EOS}}"),
    Layout("bert", "", None, "{{QUERY}}[SEP]", "", "[SEP]", "{{EOS}}", auto_add_bos=True),
    Layout("bge_reranker", "<s> ", None, "{{QUERY}}</s></s> ", "", "", "</s>"),
)
# fmt: on

ROWS = (*_QWEN_FAMILY, *_LLAMA_FAMILY, *_DEEPSEEK_FAMILY, *_GLM_FAMILY, *_VARIED, *_PLAIN)
"""Every layout of a text model."""
