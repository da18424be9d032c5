"""This file knows the named chat layouts: what stands around what is said, one row of data per name.

Placeholders: {{SYSTEM}}, {{QUERY}}, {{ROUND0}} and {{ROUND1}} (turns counted from 0 and from 1), {{BOS}} and {{EOS}}
(the tokenizer's), {{TODAY}} (the date of rendering, as "24 Nov 2026"). Everything else is taken as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from swift.core.registry import Registry


@dataclass(frozen=True)
class Layout:
    """How a conversation is laid out as text.

    prefix: in front of everything when there is no system text.
    system_prefix: in front of everything when there is one, around {{SYSTEM}}; None refuses a system text.
    user: one turn of the user, around {{QUERY}}.
    assistant: what opens a reply; the model is asked to go on from there.
    lead: what a reply itself begins with, said by the model, not by the prompt.
    separator: after a reply that is not the last; None allows a single round only.
    suffix: after the last reply; stripped, it is the word that ends generation.
    default_system: the system text of conversations that bring none; "" is none.
    stop_words: further words that end generation.
    auto_add_bos: whether the tokens the tokenizer adds to a text are added around the conversation.
    is_thinking: whether the model thinks before it answers unless told not to.
    thinking_prefix: opens a reply, in the prompt, when thinking is on.
    non_thinking_prefix: opens a reply when thinking is off, in the prompt and in replies that are learnt.
    history_thinking_prefix: stands in front of past replies, in place of their thinking.
    agent_template: how tools are told to the model.
    """

    name: str
    prefix: str
    system_prefix: str | None
    user: str
    assistant: str
    separator: str | None
    suffix: str
    lead: str = ""
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    auto_add_bos: bool = False
    is_thinking: bool = False
    thinking_prefix: str = ""
    non_thinking_prefix: str = ""
    history_thinking_prefix: str = ""
    agent_template: str = "react_en"


EMPTY_THINKING = "<think>\n\n</think>\n\n"

_CHATML = Layout(
    "chatml",
    prefix="",
    system_prefix="<|im_start|>system\n{{SYSTEM}}<|im_end|>\n",
    user="<|im_start|>user\n{{QUERY}}<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    separator="<|im_end|>\n",
    suffix="<|im_end|>\n",
    auto_add_bos=True,
)
_QWEN = replace(
    _CHATML,
    name="qwen",
    default_system="You are a helpful assistant.",
    stop_words=("<|endoftext|>",),
    auto_add_bos=False,
    agent_template="hermes",
)
_QWEN_FAMILY = (
    _CHATML,
    replace(_CHATML, name="yi_coder", default_system="You are a helpful assistant."),
    _QWEN,
    replace(
        _QWEN,
        name="qwen2_5",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    replace(
        _QWEN,
        name="qwen2_5_math",
        default_system="Please reason step by step, and put your final answer within \\boxed{}.",
    ),
    replace(_QWEN, name="qwq", default_system="", is_thinking=True, thinking_prefix="<think>\n"),
    replace(_QWEN, name="qwen3", default_system="", is_thinking=True, non_thinking_prefix=EMPTY_THINKING),
    replace(_QWEN, name="qwen3_thinking", default_system="", is_thinking=True, thinking_prefix="<think>\n"),
    replace(_QWEN, name="qwen3_nothinking", default_system=""),
    replace(_QWEN, name="qwen3_coder", default_system="", agent_template="qwen3_coder"),
    replace(_QWEN, name="mimo_rl", default_system="You are MiMo, an AI assistant developed by Xiaomi."),
    replace(_QWEN, name="iquestcoder", default_system="You are LoopCoder, a helpful assistant developed by IQuest."),
    replace(_QWEN, name="minimind", default_system="You are a helpful assistant", agent_template="react_en"),
)

_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA3 = Layout(
    "llama3",
    prefix="<|begin_of_text|>",
    system_prefix="<|begin_of_text|>" + _HEADER.format("system") + "{{SYSTEM}}<|eot_id|>",
    user=_HEADER.format("user") + "{{QUERY}}<|eot_id|>",
    assistant=_HEADER.format("assistant"),
    separator="<|eot_id|>",
    suffix="<|eot_id|>",
    agent_template="llama3",
)
_DATED = (
    "<|begin_of_text|>" + _HEADER.format("system") + "Cutting Knowledge Date: December 2023\nToday Date: {{TODAY}}\n\n"
)
_LLAMA_FAMILY = (
    _LLAMA3,
    replace(_LLAMA3, name="llama3_2", prefix=_DATED + "<|eot_id|>", system_prefix=_DATED + "{{SYSTEM}}<|eot_id|>"),
)

_DEEPSEEK = Layout(
    "deepseek_v2_5",
    prefix="<｜begin▁of▁sentence｜>",
    system_prefix="<｜begin▁of▁sentence｜>{{SYSTEM}}",
    user="<｜User｜>{{QUERY}}",
    assistant="<｜Assistant｜>",
    separator="<｜end▁of▁sentence｜>",
    suffix="<｜end▁of▁sentence｜>",
)
_DEEPSEEK_FAMILY = (
    Layout(
        "deepseek",
        prefix="{{BOS}}",
        system_prefix="{{BOS}}{{SYSTEM}}\n\n",
        user="User: {{QUERY}}\n\n",
        assistant="Assistant:",
        separator="{{EOS}}",
        suffix="{{EOS}}",
    ),
    _DEEPSEEK,
    replace(_DEEPSEEK, name="deepseek_r1", is_thinking=True, thinking_prefix="<think>\n"),
    replace(
        _DEEPSEEK,
        name="deepseek_v3_1",
        is_thinking=True,
        thinking_prefix="<think>",
        non_thinking_prefix="</think>",
        history_thinking_prefix="</think>",
        agent_template="deepseek_v3_1",
    ),
)

# A reply ends where the next speaker is announced, and the newline after the assistant's mark is the model's to write.
_GLM4 = Layout(
    "glm4",
    prefix="[gMASK]<sop>",
    system_prefix="[gMASK]<sop><|system|>\n{{SYSTEM}}",
    user="<|user|>\n{{QUERY}}",
    assistant="<|assistant|>",
    lead="\n",
    separator="",
    suffix="<|user|>",
    stop_words=("<|endoftext|>", "<|user|>", "<|observation|>"),
    auto_add_bos=True,
    thinking_prefix="<think>",
    agent_template="glm4",
)
_GLM_FAMILY = (
    replace(
        _GLM4,
        name="chatglm4",
        prefix="",
        system_prefix="<|system|>\n{{SYSTEM}}",
        thinking_prefix="",
        agent_template="chatglm4",
    ),
    _GLM4,
    replace(
        _GLM4,
        name="glm4_5",
        is_thinking=True,
        thinking_prefix="",
        non_thinking_prefix="<think></think>\n",
        history_thinking_prefix="<think></think>\n",
        agent_template="glm4_5",
    ),
    replace(
        _GLM4,
        name="glm4_7",
        system_prefix="[gMASK]<sop><|system|>{{SYSTEM}}",
        user="<|user|>{{QUERY}}",
        lead="",
        is_thinking=True,
        non_thinking_prefix="</think>",
        history_thinking_prefix="</think>",
        agent_template="glm4_7",
    ),
    Layout(
        "chatglm2",
        prefix="",
        system_prefix="{{SYSTEM}}",
        user="[Round {{ROUND1}}]\n\n问：{{QUERY}}\n\n",
        assistant="答：",
        separator="\n\n",
        suffix="{{EOS}}",
        auto_add_bos=True,
    ),
)

_KIMI = Layout(
    "kimi_k2",
    prefix="",
    system_prefix="<|im_system|>system<|im_middle|>{{SYSTEM}}<|im_end|>",
    user="<|im_user|>user<|im_middle|>{{QUERY}}<|im_end|>",
    assistant="<|im_assistant|>assistant<|im_middle|>",
    separator="<|im_end|>",
    suffix="<|im_end|>",
    default_system="You are Kimi, an AI assistant created by Moonshot AI.",
)
_MINIMAX = Layout(
    "minimax",
    prefix="",
    system_prefix="<beginning_of_sentence>system ai_setting=assistant\n{{SYSTEM}}<end_of_sentence>\n",
    user="<beginning_of_sentence>user name=user\n{{QUERY}}<end_of_sentence>\n",
    assistant="<beginning_of_sentence>ai name=assistant\n",
    separator="<end_of_sentence>\n",
    suffix="<end_of_sentence>",
)
_LING = Layout(
    "ling",
    prefix="",
    system_prefix="<role>SYSTEM</role>{{SYSTEM}}",
    user="<role>HUMAN</role>{{QUERY}}",
    assistant="<role>ASSISTANT</role>",
    separator="",
    suffix="<|endoftext|>",
)
_OLMOE = Layout(
    "olmoe",
    prefix="|||IP_ADDRESS|||",
    system_prefix="|||IP_ADDRESS|||<|system|>\n{{SYSTEM}}\n",
    user="<|user|>\n{{QUERY}}\n",
    assistant="<|assistant|>\n",
    separator="|||IP_ADDRESS|||\n",
    suffix="|||IP_ADDRESS|||",
    stop_words=("<|endoftext|>",),
)
_VARIED = (
    _KIMI,
    replace(_KIMI, name="moonlight", default_system="You are a helpful assistant"),
    _MINIMAX,
    replace(
        _MINIMAX,
        name="minimax_m1",
        prefix="<begin_of_document>",
        system_prefix="<begin_of_document><beginning_of_sentence>system ai_setting=assistant\n"
        "{{SYSTEM}}<end_of_sentence>\n",
    ),
    _LING,
    replace(_LING, name="ring2", is_thinking=True, thinking_prefix="<think>\n"),
    _OLMOE,
    replace(
        _OLMOE,
        name="olmoe_0924",
        prefix="<|endoftext|>",
        system_prefix="<|endoftext|><|system|>\n{{SYSTEM}}\n",
        separator="<|endoftext|>\n",
        suffix="<|endoftext|>",
    ),
)

_OTHERS = (
    Layout(
        "default",
        prefix="",
        system_prefix="{{SYSTEM}}\n\n",
        user="### Human:\n{{QUERY}}\n\n",
        assistant="### Assistant:\n",
        separator="\n\n",
        suffix="{{EOS}}",
        default_system="You are a helpful assistant.",
        auto_add_bos=True,
    ),
    Layout(
        "dummy",
        prefix="",
        system_prefix=None,
        user="{{QUERY}}",
        assistant="",
        separator=None,
        suffix="{{EOS}}",
        auto_add_bos=True,
    ),
    Layout(
        "gemma",
        prefix="<bos>",
        system_prefix="<bos><start_of_turn>system\n{{SYSTEM}}<end_of_turn>\n",
        user="<start_of_turn>user\n{{QUERY}}<end_of_turn>\n",
        assistant="<start_of_turn>model\n",
        separator="<end_of_turn>\n",
        suffix="<end_of_turn>",
    ),
    Layout(
        "phi3",
        prefix="",
        system_prefix="<|system|>\n{{SYSTEM}}<|end|>\n",
        user="<|user|>\n{{QUERY}}<|end|>\n",
        assistant="<|assistant|>\n",
        separator="<|end|>\n",
        suffix="<|end|>",
        auto_add_bos=True,
    ),
    Layout(
        "phi4",
        prefix="",
        system_prefix="<|im_start|>system<|im_sep|>{{SYSTEM}}<|im_end|>",
        user="<|im_start|>user<|im_sep|>{{QUERY}}<|im_end|>",
        assistant="<|im_start|>assistant<|im_sep|>",
        separator="<|im_end|>",
        suffix="<|im_end|>",
        auto_add_bos=True,
    ),
    Layout(
        "ernie",
        prefix="<|begin_of_sentence|>",
        system_prefix="<|begin_of_sentence|>{{SYSTEM}}\n",
        user="User: {{QUERY}}\n",
        assistant="Assistant: ",
        separator="<|end_of_sentence|>",
        suffix="</s>",
    ),
    Layout(
        "zephyr",
        prefix="",
        system_prefix="<|system|>\n{{SYSTEM}}</s>\n",
        user="<|user|>\n{{QUERY}}</s>\n",
        assistant="<|assistant|>\n",
        separator="</s>\n",
        suffix="</s>",
    ),
    Layout(
        "codefuse",
        prefix="",
        system_prefix="<s>system\n{{SYSTEM}}\n",
        user="<s>human\n{{QUERY}}\n",
        assistant="<s>bot\n",
        separator="{{EOS}}\n",
        suffix="{{EOS}}",
    ),
    Layout(
        "codefuse_codellama",
        prefix="",
        system_prefix="{{SYSTEM}}",
        user="<|role_start|>human<|role_end|>{{QUERY}}",
        assistant="<|role_start|>bot<|role_end|>",
        separator="",
        suffix="{{EOS}}",
    ),
    Layout(
        "xverse",
        prefix="",
        system_prefix="{{SYSTEM}}",
        user="Human: {{QUERY}}\n\n",
        assistant="Assistant: ",
        separator="{{EOS}}",
        suffix="{{EOS}}",
    ),
    Layout(
        "ziya",
        prefix="",
        system_prefix="{{BOS}}{{SYSTEM}}",
        user="<human>:{{QUERY}}\n",
        assistant="<bot>:",
        separator="\n",
        suffix="{{EOS}}",
    ),
    Layout(
        "bluelm",
        prefix="",
        system_prefix="{{BOS}}{{SYSTEM}}",
        user="[|Human|]:{{QUERY}}",
        assistant="[|AI|]:",
        separator="",
        suffix="{{EOS}}",
    ),
    Layout(
        "sus",
        prefix="",
        system_prefix="{{SYSTEM}}",
        user="### Human: {{QUERY}}\n\n",
        assistant="### Assistant: ",
        separator="<|endoftext|>",
        suffix="<|endoftext|>",
    ),
    Layout(
        "numina",
        prefix="{{BOS}}",
        system_prefix="{{BOS}}{{SYSTEM}}",
        user="### Problem: {{QUERY}}\n",
        assistant="### Solution: ",
        separator="\n",
        suffix="{{EOS}}",
    ),
    Layout(
        "wizardlm2",
        prefix="",
        system_prefix="{{SYSTEM}}",
        user="User:\n{{QUERY}}\n\n",
        assistant="Assistant:\n",
        separator="\n\n",
        suffix="</s>",
    ),
    Layout(
        "atom",
        prefix="",
        system_prefix="{{SYSTEM}}",
        user="<s>Human: {{QUERY}}\n</s>",
        assistant="<s>Assistant: ",
        separator="</s>",
        suffix="</s>",
    ),
    Layout(
        "mengzi",
        prefix="",
        system_prefix="指令：{{SYSTEM}}",
        user="输入：{{QUERY}}",
        assistant="输出：\n",
        separator="",
        suffix="{{EOS}}",
    ),
    Layout(
        "megrez",
        prefix="<|role_start|>system<|role_end|><|turn_end|>",
        system_prefix="<|role_start|>system<|role_end|>{{SYSTEM}}<|turn_end|>",
        user="<|role_start|>user<|role_end|>{{QUERY}}<|turn_end|>",
        assistant="<|role_start|>assistant<|role_end|>",
        separator="<|turn_end|>",
        suffix="<|turn_end|>",
        default_system="你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。",
    ),
    Layout(
        "minicpm",
        prefix="<s>",
        system_prefix="<s>{{SYSTEM}}",
        user="<用户>{{QUERY}}",
        assistant="<AI>",
        separator="",
        suffix="</s>",
    ),
    Layout(
        "ling2",
        prefix="<role>SYSTEM</role>detailed thinking off<|role_end|>",
        system_prefix="<role>SYSTEM</role>{{SYSTEM}}\ndetailed thinking off<|role_end|>",
        user="<role>HUMAN</role>{{QUERY}}<|role_end|>",
        assistant="<role>ASSISTANT</role>",
        separator="<|role_end|>",
        suffix="<|role_end|>",
    ),
    Layout(
        "dots1",
        prefix="<|system|><|endofsystem|>",
        system_prefix="<|system|>{{SYSTEM}}<|endofsystem|>",
        user="<|userprompt|>{{QUERY}}<|endofuserprompt|>",
        assistant="<|response|>",
        separator="<|endofresponse|>",
        suffix="<|endofresponse|>",
        default_system="You are a helpful assistant.",
    ),
    Layout(
        "hunyuan_moe",
        prefix="<|startoftext|>",
        system_prefix="<|startoftext|>{{SYSTEM}}<|extra_4|>",
        user="{{QUERY}}",
        assistant="<|extra_0|>",
        separator="<|eos|><|startoftext|>",
        suffix="<|eos|>",
    ),
    Layout(
        "longchat",
        prefix="",
        system_prefix="SYSTEM:{{SYSTEM}}",
        user=" [Round {{ROUND0}}] USER:{{QUERY}}",
        assistant=" ASSISTANT:",
        separator="</longcat_s>",
        suffix="</longcat_s>",
    ),
    Layout(
        "modelscope_agent",
        prefix="",
        system_prefix=" \n\n<|system|>:{{SYSTEM}}",
        user=" \n\n<|user|>:{{QUERY}}",
        assistant=" \n\n<|assistant|>:",
        separator="",
        suffix=" \n\n</s>",
        default_system="You are a helpful assistant.",
    ),
    Layout(
        "baichuan_m1",
        prefix="",
        system_prefix="<B_SYS>{{SYSTEM}}",
        user="<C_Q>{{QUERY}}",
        assistant="<C_A>",
        separator="",
        suffix="<C_A>",
        default_system="You are a helpful assistant.",
    ),
    Layout(
        "yuan",
        prefix="",
        system_prefix=None,
        user="{{QUERY}}",
        assistant="<sep>",
        separator=None,
        suffix="{{EOS}}",
    ),
)

LAYOUTS: Registry[Layout] = Registry(
    "template",
    {
        row.name: row
        for family in (_QWEN_FAMILY, _LLAMA_FAMILY, _DEEPSEEK_FAMILY, _GLM_FAMILY, _VARIED, _OTHERS)
        for row in family
    },
)
"""The values of --template."""
