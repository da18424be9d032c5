"""This file knows the public names of chat templates, for plugins (`--external_plugins my_template.py`).

from swift.template import TemplateMeta, register_template

register_template(TemplateMeta("mine", prefix=[], prompt=["User: {{QUERY}}\\nBot: "], chat_sep=["\\n"]))
"""

from __future__ import annotations

from swift.catalog.layouts import LAYOUTS as template_map  # noqa: N811 (the public name)
from swift.chat.declared import Prompt, Template, TemplateMeta, register_template
from swift.chat.messages import Conversation, Message

__all__ = ["Conversation", "Message", "Prompt", "Template", "TemplateMeta", "register_template", "template_map"]
