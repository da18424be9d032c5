"""A model of one's own: Qwen3 with one more matrix, made from any Qwen3 checkpoint.

swift sft --external_plugins examples/plugins/model.py --model Qwen/Qwen3-0.6B --model_type tinted --init_strategy zero
"""

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from swift.model import ModelLoader, ModelMeta, register_model


class TintedConfig(Qwen3Config):
    """The config of Qwen3 under a name of its own."""

    model_type = "tinted"


class TintedModel(Qwen3Model):
    """h + Th in place of the last hidden states h. With T = 0 it is Qwen3."""

    def __init__(self, config: TintedConfig) -> None:
        super().__init__(config)
        self.tint = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As Qwen3's, with tinted states."""
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + self.tint(output.last_hidden_state)
        return output


class TintedForCausalLM(Qwen3ForCausalLM):
    """The model with its output layer."""

    config_class = TintedConfig

    def __init__(self, config: TintedConfig) -> None:
        super().__init__(config)
        self.model = TintedModel(config)
        self.post_init()


class TintedLoader(ModelLoader):
    """Reads checkpoints of Qwen3 and of this model alike."""

    def get_config(self, model_dir: str) -> TintedConfig:
        """The config, whatever name it was saved under."""
        values = AutoConfig.from_pretrained(model_dir).to_dict()
        return TintedConfig(**{name: value for name, value in values.items() if name != "model_type"})


AutoConfig.register("tinted", TintedConfig, exist_ok=True)
AutoModelForCausalLM.register(TintedConfig, TintedForCausalLM, exist_ok=True)
register_model(
    ModelMeta("tinted", loader=TintedLoader, template="qwen3_nothinking", architectures=["TintedForCausalLM"]),
    exist_ok=True,
)
