"""Chat templates in the manner of real families, and tokenizers that know their special tokens."""

from __future__ import annotations

import copy

import tiny
from swift.chat.messages import Conversation, Message

QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

_REASONING = (
    "{%- set content = message.content %}{%- set reasoning = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
)
_LAST_USER = (
    "{%- set ns = namespace(last=-1) %}{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
)

QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}" + _LAST_USER + "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}" + _REASONING + "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or reasoning) %}"
    "{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)

THINKS_ALWAYS = QWEN3.partition("{%- if enable_thinking")[0] + "{{- '<think>\n' }}{%- endif %}"
"""As QWEN3, but every generation prompt opens a block of thinking, and nothing turns it off."""

LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

GLM4 = (
    "[gMASK]<sop>{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\n\n' %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in turns %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)

PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

SPECIALS = {
    "qwen2.5": (QWEN25, "<|im_end|>", []),
    "qwen3": (QWEN3, "<|im_end|>", []),
    "thinks always": (THINKS_ALWAYS, "<|im_end|>", []),
    "llama3": (LLAMA3, "<|eot_id|>", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": (GEMMA, "<eos>", ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "glm4": (GLM4, "<|endoftext|>", ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"]),
    "mistral": (MISTRAL, "</s>", ["<s>", "[INST]", "[/INST]"]),
    "phi3": (PHI3, "<|endoftext|>", ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]),
}
"""Family -> its template, the token at which generation ends, and other special tokens; a BOS comes first."""
FAMILIES = sorted(SPECIALS)
BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "mistral": "<s>"}
ENDS = {"gemma": "<end_of_turn>", "glm4": "<|user|>", "phi3": "<|end|>"}
"""What ends a turn where it is not the tokenizer's EOS."""


def tokenizer(family: str):
    """A tokenizer of the family, for reading only."""
    template, eos, specials = SPECIALS[family]
    return with_specials(template, eos=eos, specials=specials, bos=BOS.get(family))


def with_specials(template: str | None, *, eos: str = "<|im_end|>", specials=(), bos: str | None = None):
    """A tokenizer of its own, with more special tokens."""
    made = copy.deepcopy(tiny.tokenizer(template))
    tokens = {"eos_token": eos, "extra_special_tokens": list(specials)}
    made.add_special_tokens(tokens | ({"bos_token": bos} if bos else {}))
    return made


def chat(*said: str, system: str | None = None) -> Conversation:
    """A conversation in which user and assistant speak in turns."""
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(said)]
    front = [] if system is None else [Message("system", system)]
    return Conversation((*front, *turns))


def prompts_of(conversation: Conversation) -> list[Conversation]:
    """What stands before each reply."""
    messages = conversation.messages
    return [Conversation(messages[:i]) for i, message in enumerate(messages) if message.role == "assistant"]


def learnt_text(tokenizer, sample) -> list[str]:
    """What is learnt, one text for each run of learnt tokens."""
    runs: list[list[int]] = []
    before = -100
    for label in sample.labels:
        if label != -100:
            if before == -100:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [tokenizer.decode(run) for run in runs]
