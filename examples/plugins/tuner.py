"""Tuners of one's own, used by `swift sft --external_plugins examples/plugins/tuner.py --tuner_type ia3`.

`ia3` is a kind of adapter that peft keeps and Swiftlet has no name for: only how it is made must be said. `vectors`
trains the vectors of the model itself, and so says how they are saved and read too.
"""

from pathlib import Path

from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file

from swift.tuner_plugin import PeftTuner, Tuner, tuners_map


class Ia3(PeftTuner):
    """IA3 (arXiv:2205.05638): keys, values and the inside of the MLP are rescaled."""

    @staticmethod
    def prepare_model(args, model):
        """Where, follows from the type of the model; what is trained whole, from the command line."""
        saved = list(args.modules_to_save) or None
        return get_peft_model(model, IA3Config(task_type="CAUSAL_LM", modules_to_save=saved))


class Vectors(Tuner):
    """All biases and norms, and nothing else (in the manner of BitFit, arXiv:2106.10199)."""

    @staticmethod
    def prepare_model(args, model):
        """Train what is a vector."""
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        return model

    @staticmethod
    def save_pretrained(model, save_directory, state_dict=None, safe_serialization=True, **kwargs):
        """Save what is trained."""
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        values = state_dict or model.state_dict()
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_file({name: values[name] for name in names}, Path(save_directory) / "adapter_model.safetensors")

    @staticmethod
    def from_pretrained(model, model_id, **kwargs):
        """Read it into the model."""
        model.load_state_dict(load_file(Path(model_id) / "adapter_model.safetensors"), strict=False)
        return Vectors.prepare_model(None, model)


tuners_map["ia3"] = Ia3
tuners_map["vectors"] = Vectors
