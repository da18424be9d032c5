"""LoRA on parameters that sit in no linear layer: the experts of a mixture, which are stacks of matrices."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from swift.core.errors import ModelError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge, relative_errors
from trainers import runs

IDS_BT = torch.arange(5, 17)[None]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixture():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).eval()


def adapted(seed=0, adapters=(), **options):
    torch.manual_seed(seed)
    wanted = {
        "target_parameters": EXPERTS,
        "target_modules": ["q_proj"],
        "lora_dropout": 0.0,
        "lora_rank": 2,
        **options,
    }
    return attach(mixture(), TunerChoice(), TunerOptions(**wanted), adapters=adapters)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS_BT).logits[0]


@pytest.mark.parameter("target_parameters")
def test_experts_learn_and_their_checkpoint_resumes_answers_and_merges(tmp_path):
    settings = {"train": runs.samples(8), "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
    whole = runs.train(tmp_path / "whole", model=adapted(), **settings)
    learnt = {name for name, p in whole.trainer.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[5] for name in learnt} == {"self_attn", "mlp"}
    assert whole.logged("loss")[-1] < whole.logged("loss")[0]
    halfway, last = (tmp_path / "whole" / f"checkpoint-{step}" for step in (2, 4))
    resumed = runs.train(tmp_path / "again", model=adapted(adapters=[str(halfway)]), resume=halfway, **settings)
    assert runs.equal(resumed.weights(), whole.weights())
    expected = logits(whole.trainer.model)
    answers = logits(load_adapters(mixture(), [last]))
    torch.testing.assert_close(answers, expected, rtol=0, atol=0)
    assert relative_errors(logits(mixture()), answers).max() > 1e-3
    assert relative_errors(answers, logits(merge(mixture(), [last]))).max() < 1e-5


@pytest.mark.parameter("target_parameters")
def test_parameters_alone_can_be_adapted():
    names = [name for name, p in adapted(target_modules=[]).named_parameters() if p.requires_grad]
    assert names
    assert all(".experts." in name for name in names)


@pytest.mark.parameter("target_parameters")
def test_names_that_are_no_matrices_of_the_model_are_refused():
    with pytest.raises(ModelError, match=r"--target_parameters experts.up names no parameter .*experts.gate_up_proj"):
        adapted(target_parameters=["experts.up"])
    with pytest.raises(ModelError, match=r"of shape \(64,\), and LoRA is for matrices"):
        adapted(target_parameters=["input_layernorm.weight"])
