"""This file knows the public names for agent templates of one's own: register a class, name it in --agent_template.

from swift.agent_template import BaseAgentTemplate, agent_template_map

agent_template_map["mine"] = MyAgentTemplate
"""

from __future__ import annotations

from swift.catalog.agents import AGENT_TEMPLATES as agent_template_map  # noqa: N811 (the public name)
from swift.chat.calls import ToolCall
from swift.chat.tools import ToolFormat
from swift.chat.tools_plugin import BaseAgentTemplate, Function

__all__ = ["BaseAgentTemplate", "Function", "ToolCall", "ToolFormat", "agent_template_map"]
