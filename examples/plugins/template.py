"""A chat template of one's own, used by `swift sft --external_plugins examples/plugins/template.py --template tale`."""

from dataclasses import replace

from swift.template import Conversation, Template, TemplateMeta, register_template


class Polite(Template):
    """Asks nicely: the first question begins with "Please"."""

    def prepare(self, conversation: Conversation) -> Conversation:
        """The conversation with its first question put politely."""
        first = next(i for i, message in enumerate(conversation.messages) if message.role == "user")
        asked = conversation.messages[first]
        polite = replace(asked, content=f"Please: {asked.content}")
        return replace(
            conversation, messages=(*conversation.messages[:first], polite, *conversation.messages[first + 1 :])
        )


register_template(
    TemplateMeta(
        "tale",
        prefix=["Once upon a time. "],
        system_prefix=["{{SYSTEM}} Once upon a time. "],
        prompt=["Child: {{QUERY}}", "\nNarrator: "],
        chat_sep=["\n"],
        suffix=[["eos_token_id"]],
        default_system="A tale in turns.",
        stop_words=["The end."],
        template_cls=Polite,
    )
)
