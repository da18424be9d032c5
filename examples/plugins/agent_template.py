"""A format of tools of one's own.

Used by `swift sft --external_plugins examples/plugins/agent_template.py --agent_template calls`.
"""

import json
import re

from swift.agent_template import BaseAgentTemplate, Function, agent_template_map


class Calls(BaseAgentTemplate):
    """Calls as lines `@name {"argument": 1}`, results as lines that begin with an arrow."""

    begins = ("@",)
    stop_words = ("->",)

    def _format_tools(self, tools, system=None, user_message=None) -> str:  # noqa: ARG002 (part of the interface)
        """The system text, and a line for each tool."""
        lines = [f"@{tool['function']['name']}: {tool['function'].get('description', '')}" for tool in tools]
        return "\n".join([system or "", "Tools:", *lines])

    def _format_tool_calls(self, tool_call_messages) -> str:
        """A line for each call, and the arrow behind which the result is expected."""
        calls = [json.loads(message["content"]) for message in tool_call_messages]
        lines = [f"@{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}\n" for call in calls]
        return "".join(lines) + "->"

    def _format_tool_responses(self, assistant_content, tool_messages) -> tuple[str, list[str]]:
        """What was said, and what stands between it and what is said next."""
        return assistant_content, ["\n->".join(message["content"] for message in tool_messages), "\n"]

    def get_toolcall(self, response: str) -> list[Function]:
        """The calls of a reply."""
        return [Function(name, arguments) for name, arguments in re.findall(r"@(\w+) (\{.*\})", response)]


agent_template_map["calls"] = Calls
