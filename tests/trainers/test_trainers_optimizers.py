"""The optimizers that are chosen by name: which parameter is optimized how, what a step does, and how a run resumes."""

from __future__ import annotations

import pytest
import runs
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names

import architectures
import tiny
from swift.core.errors import ModelError, RunError, UsageError
from swift.trainers.muon import Muon, MuonSettings, orthogonal
from swift.trainers.parameter_groups import hidden_matrices, lora_plus_groups
from swift.trainers.qk_clip import Projections, QkClip, largest_logits, scale_heads

SAVING = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2}
GALORE = {"use_galore": True, "galore_rank": 4, "galore_update_proj_gap": 2}
QUANTIZED = {
    **GALORE, "galore_quantization": True, "galore_proj_quant": True, "galore_proj_group_size": 32,
    "galore_cos_threshold": 0.1, "galore_queue_size": 1,
}  # fmt: skip


def settings_of(groups) -> dict[int, tuple[float, float]]:
    """Parameter -> learning rate and weight decay; no parameter may be in two groups."""
    pairs = [(id(p), (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def every_trained(model) -> set[int]:
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def resumed_twice(tmp_path, model, **settings) -> tuple[runs.Run, runs.Run]:
    """A whole run, and one that goes on from its middle."""
    whole = runs.train(tmp_path / "whole", model=model(), **{**SAVING, **settings})
    again = runs.train(tmp_path / "again", model=model(), resume=tmp_path / "whole" / "checkpoint-3", **{**SAVING, **settings})  # fmt: skip
    return whole, again


# --------------------------------------------------------------------------------------------------------------- groups


def adapted():
    """A tiny model with LoRA on linear layers and on its embedding, and a layer that is trained in full."""
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"], bias="lora_only")
    return get_peft_model(architectures.model("qwen2"), config)


def test_the_groups_of_lora_plus_are_those_of_peft():
    model = adapted()
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    decaying = [name for name in get_parameter_names(model, ALL_LAYERNORM_LAYERS) if "bias" not in name]
    ours = settings_of(lora_plus_groups(model.named_parameters(), decaying, 1e-3, 16, 0.1))
    assert ours == settings_of(theirs.param_groups)
    assert set(ours) == every_trained(model)
    assert {rate for rate, _ in ours.values()} == {1e-3, 16e-3, 1e-6}


@pytest.mark.parameter("lorap_lr_ratio")
def test_b_learns_as_much_faster_as_lora_plus_says(tmp_path):
    step = {"max_steps": 1, "optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "learning_rate": 0.1}
    start = dict(runs.lora().named_parameters())
    plain = runs.train(tmp_path / "a", model=runs.lora(), **step).weights()
    plus = runs.train(tmp_path / "b", model=runs.lora(), optimizer="lorap", lorap_lr_ratio=16.0, **step)
    for name, value in plus.weights().items():
        factor = 16 if "lora_B" in name else 1
        torch.testing.assert_close(value - start[name], factor * (plain[name] - start[name]), atol=1e-5, rtol=1e-3)
    assert plus.logged("learning_rate") == [0.1]


def test_matrices_between_embeddings_and_heads_are_found():
    model = tiny.model(tie_word_embeddings=False)
    left = {name for name, _ in model.named_parameters()} - hidden_matrices(model)
    assert {name for name in left if "norm" not in name} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert hidden_matrices(runs.lora()) >= {name for name, p in runs.lora().named_parameters() if p.requires_grad}


# ----------------------------------------------------------------------------------------------------------------- Muon


def test_a_step_of_muon_is_that_of_torch():
    torch.manual_seed(0)
    start, gradients = torch.randn(12, 20), [torch.randn(12, 20) for _ in range(3)]
    for ours, theirs in (("original", "original"), ("match_rms_adamw", "match_rms_adamw")):
        first, second = (torch.nn.Parameter(start.clone()) for _ in range(2))
        group = {"params": [first], "lr": 0.1, "weight_decay": 0.1, "is_matrix": True}
        mine = Muon([group], 0.1, MuonSettings(adjust_lr_fn=ours), betas=(0.9, 0.95), eps=1e-8)
        other = torch.optim.Muon([second], lr=0.1, weight_decay=0.1, adjust_lr_fn=theirs)
        for gradient in gradients:
            first.grad, second.grad = gradient.clone(), gradient.clone()
            mine.step()
            other.step()
        torch.testing.assert_close(first, second, atol=2e-2, rtol=0)  # bfloat16 inside, in another order
        assert (first - start).abs().mean() > 0.01


def test_what_is_no_matrix_is_stepped_as_by_adamw():
    start = torch.linspace(-1, 1, 7)
    first, second = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([{"params": [first], "lr": 0.1, "weight_decay": 0.3, "is_matrix": False}], 0.1, MuonSettings(),
                betas=(0.8, 0.9), eps=1e-6)  # fmt: skip
    other = torch.optim.AdamW([second], lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    for i in range(3):
        first.grad, second.grad = start * i - 1, start * i - 1
        mine.step()
        other.step()
    assert torch.equal(first, second)


def test_experts_of_one_tensor_are_made_orthogonal_one_by_one():
    torch.manual_seed(0)
    experts = torch.randn(3, 8, 24)
    together = orthogonal(experts, 5)
    for expert, made in zip(experts, together, strict=True):
        torch.testing.assert_close(made, orthogonal(expert, 5), atol=2e-2, rtol=0)
    singular = torch.linalg.svdvals(together)
    assert 0.6 < singular.min() <= singular.max() < 1.3


@pytest.mark.parameter("optimizer")
@pytest.mark.parameter("optim_args")
def test_muon_trains_matrices_and_takes_its_settings(tmp_path):
    run = runs.train(tmp_path, optimizer="muon", optim_args="momentum=0.5,nesterov=false,ns_steps=3", max_steps=2)
    inner = run.trainer.optimizer.optimizer
    assert isinstance(inner, Muon)
    found = settings_of(inner.param_groups)
    assert set(found) == every_trained(run.trainer.model)
    assert {(group["momentum"], group["nesterov"], group["ns_steps"]) for group in inner.param_groups} == {
        (0.5, False, 3)
    }
    names = {id(parameter): name for name, parameter in run.trainer.model.named_parameters()}
    matrices = {names[id(p)] for group in inner.param_groups if group["is_matrix"] for p in group["params"]}
    assert matrices == hidden_matrices(run.trainer.model)
    assert all(found[key][1] == (0.0 if "norm" in name else 0.1) for key, name in names.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("momentun=0.5", "no such setting. Did you mean momentum.*adjust_lr_fn, momentum, nesterov, ns_steps"),
        ("ns_steps=2.5", "must be a whole number"),
        ("nesterov=maybe", "must be true or false"),
        ("momentum", "name=value"),
        ("momentum=1,momentum=2", "given twice"),
        ("adjust_lr_fn=mine", "match_rms_adamw, original"),
    ],
)
def test_settings_that_muon_does_not_take_are_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        runs.train(tmp_path, optimizer="muon", optim_args=text)


# -------------------------------------------------------------------------------------------------------------- QK-clip


def hot(seed: int = 0):
    """A tiny llama whose attention logits are large: 4 query heads, 2 key heads."""
    model = architectures.model("llama")
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(4)
            layer.self_attn.k_proj.weight.mul_(4)
    return model


def logits_of_heads(model, ids) -> torch.Tensor:
    """The largest attention logit of each layer and head, from states computed by hand."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    seen = []

    def look(module, _args, kwargs):
        states = kwargs["hidden_states"]
        shape = (*states.shape[:2], -1, module.head_dim)
        queries, keys = (part(states).view(shape).transpose(1, 2) for part in (module.q_proj, module.k_proj))
        queries, keys = apply_rotary_pos_emb(queries, keys, *kwargs["position_embeddings"])
        scores = queries @ keys.repeat_interleave(2, 1).mT * module.head_dim**-0.5
        hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
        seen.append(scores.masked_fill(hidden, -torch.inf).amax((0, 2, 3)))

    hooks = [layer.self_attn.register_forward_pre_hook(look, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def test_heads_above_tau_come_down_to_it_and_the_others_stay():
    model, ids = hot(), torch.randint(5, 100, (2, 12))
    before = logits_of_heads(model, ids)
    first = before[:1]  # later layers see what earlier ones make of it
    tau = float(first.median())
    clip = QkClip(model, tau)
    model.train()
    model(ids, use_cache=False)
    assert clip.clip() == pytest.approx(float(before.max()), rel=1e-4)
    model.eval()
    after = logits_of_heads(model, ids)[:1]
    torch.testing.assert_close(after, first.clamp(max=tau), atol=1e-4, rtol=1e-4)
    assert (first > tau).any()
    assert (first < tau).any()
    assert clip.clip() is None  # nothing was computed since


def test_a_head_with_keys_of_its_own_shares_its_factor_between_queries_and_keys():
    queries, keys = torch.nn.Linear(6, 8), torch.nn.Linear(6, 8)
    old = [part.weight.detach().clone() for part in (queries, keys)]
    scale_heads(Projections(queries, keys, 4), torch.tensor([0.25, 1.0]))
    for part, before in zip((queries, keys), old, strict=True):
        torch.testing.assert_close(part.weight, before * torch.tensor([0.5] * 4 + [1.0] * 4)[:, None])


def test_logits_are_looked_at_where_tokens_see_each_other():
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, 1, 6, 4)
    scores = query @ key.mT / 2
    causal = torch.ones(6, 6).tril().bool()
    assert torch.allclose(largest_logits(query, key, None, None), scores.masked_fill(~causal, -99).amax((0, 2, 3)))
    borders = torch.tensor([0, 2, 6])
    packed = causal & (torch.arange(6)[:, None] >= 2).eq(torch.arange(6) >= 2)
    expected = scores.masked_fill(~packed, -99).amax((0, 2, 3))
    assert torch.allclose(largest_logits(query, key, None, None, borders), expected)
    assert torch.allclose(largest_logits(query, key, packed[None, None], None), expected)
    additive = torch.zeros(6, 6).masked_fill(~packed, torch.finfo(torch.float32).min)[None, None]
    assert torch.allclose(largest_logits(query, key, additive, None), expected)


@pytest.mark.parametrize("collate", [None, runs.flattened()], ids=["padded", "padding free"])
def test_muonclip_keeps_logits_at_tau_and_logs_them(tmp_path, collate):
    rows = [sample for sample in runs.samples(16) if max(sample.input_ids) < 400]
    model = hot()
    for sample in rows:
        sample.input_ids[:] = [5 + i % 90 for i in sample.input_ids]
        sample.labels[:] = [label if label == -100 else 5 + label % 90 for label in sample.labels]
    run = runs.train(tmp_path, model=model, train=rows, collate=collate, optimizer="muonclip", max_steps=6,
                     optim_args="qk_clip_tau=2.0", learning_rate=1e-6, weight_decay=0.0)  # fmt: skip
    logits = run.logged("max_attention_logit")
    assert logits[0] > 4
    assert max(logits[-2:]) < 2.6  # other rows than those that were clipped


def test_models_that_cannot_be_clipped_say_why(tmp_path):
    with pytest.raises(ModelError, match="normalizes queries and keys"):
        runs.train(tmp_path / "a", optimizer="muonclip")
    with pytest.raises(UsageError, match="--tuner_type full"):
        runs.train(tmp_path / "b", model=runs.lora(), optimizer="muonclip")
    with pytest.raises(UsageError, match="eager attention"):
        runs.train(tmp_path / "c", model=architectures.model("llama", "eager"), optimizer="muonclip")
    with pytest.raises(ModelError, match="no attention with q_proj"):
        runs.train(tmp_path / "d", model=architectures.model("gpt2"), optimizer="muonclip")


# ------------------------------------------------------------------------------------------------------------- resuming


def vocabulary_of_tiny(model):
    """A model of another architecture that knows the ids of the tiny rows."""
    model.resize_token_embeddings(400)
    return model


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({"optim": "adamw_torch_fused"}, tiny.model),
        ({"optim": "adafactor"}, tiny.model),
        ({"optim": "sgd", "optim_args": "momentum=0.9"}, tiny.model),
        ({"optim": "rmsprop"}, tiny.model),
        ({"optim": "adagrad"}, tiny.model),
        ({"optimizer": "muon"}, tiny.model),
        ({"optimizer": "muonclip", "optim_args": "qk_clip_tau=0.5"}, lambda: vocabulary_of_tiny(hot())),
        ({"optimizer": "lorap", "lorap_lr_ratio": 16.0}, runs.lora),
        ({"optimizer": "galore", "galore": GALORE}, tiny.model),
        ({"optimizer": "galore", "galore": {**QUANTIZED, "galore_optim_per_parameter": True}}, tiny.model),
        ({"optimizer": "galore", "optim": "adafactor", "galore": {**GALORE, "galore_proj_type": "full"}}, tiny.model),
        ({"optimizer": "galore", "galore": QUANTIZED}, lambda: tiny.model().bfloat16()),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values() if isinstance(v, str)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_resumed_run_is_the_uninterrupted_one_with_every_optimizer(tmp_path, options, model):
    whole, again = resumed_twice(tmp_path, model, **options)
    assert runs.equal(whole.weights(), again.weights())
    assert again.logged("loss") == whole.logged("loss")[-len(again.logged("loss")) :]
    assert runs.distance(whole.weights(), dict(model().named_parameters())) > 1e-5


ACROSS = {
    "muon": (tiny.model, {"optimizer": "muon"}),
    "muonclip": (lambda: vocabulary_of_tiny(hot()), {"optimizer": "muonclip", "optim_args": "qk_clip_tau=2"}),
    "galore": (tiny.model, {"optimizer": "galore", "galore": {**QUANTIZED, "galore_optim_per_parameter": True}, "optim": "sgd", "learning_rate": 0.3}),
    "lorap": (runs.lora, {"optimizer": "lorap", "lorap_lr_ratio": 16.0}),
}  # fmt: skip
"""What is trained on two processes and on one."""


def test_states_of_another_optimizer_are_refused(tmp_path):
    saved = tmp_path / "a" / "checkpoint-3"
    runs.train(tmp_path / "a", **SAVING)
    with pytest.raises(RunError, match="saved by another optimizer, AdamW, and this run has SGD"):
        runs.train(tmp_path / "b", resume=saved, **{**SAVING, "optim": "sgd"})
    with pytest.raises(RunError, match="AdamW, and this run has Muon"):
        runs.train(tmp_path / "c", resume=saved, optimizer="muon", **SAVING)
    fewer = tiny.model()
    fewer.model.embed_tokens.weight.requires_grad_(False)
    with pytest.raises(RunError, match="other groups of parameters"):
        runs.train(tmp_path / "d", model=fewer, resume=saved, **SAVING)


def test_projections_of_another_rank_are_refused(tmp_path):
    runs.train(tmp_path / "a", optimizer="galore", galore=GALORE, **SAVING)
    with pytest.raises(RunError, match="--galore_rank 4"):
        runs.train(tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", optimizer="galore",
                   galore={**GALORE, "galore_rank": 8}, **SAVING)  # fmt: skip


def test_settings_that_the_checkpoint_overrides_are_told(tmp_path, caplog):
    runs.train(tmp_path / "a", **SAVING)
    with caplog.at_level("WARNING", logger="swift"):
        runs.train(tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3",
                   **{**SAVING, "weight_decay": 0.3, "learning_rate": 5e-3})  # fmt: skip
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "weight_decay is 0.1 in the checkpoint and 0.3" in said
    assert "learning_rate is 0.001 in the checkpoint and 0.005" in said
