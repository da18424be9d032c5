"""Weights divided over two processes, on a CPU through gloo, against one process on the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_runs import Finished, Runs
from safetensors.torch import load_file

import tiny
from swift.parallel.sharding import DEEPSPEED

SETTINGS = {
    "learning_rate": "1e-3", "max_steps": "4", "logging_steps": "1", "save_steps": "2", "split_dataset_ratio": "0.1",
    "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2", "add_version": "false",
    "dataloader_num_workers": "0", "report_to": "none", "average_tokens_across_devices": "true", "optim": "adamw_torch",
    "torch_dtype": "float32",
}  # fmt: skip
FULL = {"tuner_type": "full"}
ADAPTER = {"tuner_type": "lora", "lora_dropout": "0"}
KINDS = {"full": FULL, "adapter": ADAPTER}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(64))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """What runs `swift`, with everything imported."""
    opened = Runs(tmp_path_factory.mktemp("output"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def swift(place: Path, runs: Runs) -> Swift:
    return Swift(place, runs)


class Swift:
    """`swift sft` on the rows of a folder; a run that is asked for again is not run again."""

    def __init__(self, place: Path, runs: Runs) -> None:
        self.place = place
        self.runs = runs
        self._done: dict[str, Path] = {}

    def started(self, name: str, processes: int, *, allow_fsdp: bool = True, **settings: object) -> Finished:
        values = {"model": self.place / "model", "dataset": self.place / "rows.jsonl", **SETTINGS, **settings}
        values["output_dir"] = self.place / name
        words = [str(word) for flag, value in values.items() for word in (f"--{flag}", value)]
        return self.runs.run(["sft", *words], processes, allow_fsdp=allow_fsdp)

    def trained(self, name: str, processes: int = 2, **settings: object) -> Path:
        """Train, and give the folder of the run."""
        done = self.started(name, processes, **settings)
        assert done.is_good, done.output[-4000:]
        return self.place / name

    def alone(self, kind: str) -> Path:
        """What one process makes of as many rows in a step."""
        if kind not in self._done:
            self._done[kind] = self.trained(kind, 1, gradient_accumulation_steps=4, **KINDS[kind])
        return self._done[kind]

    def resumed(self, run: Path, processes: int, name: str | None = None, **settings: object) -> Path:
        """Go on from the checkpoint in the middle of a run."""
        name = name or f"{run.name}-again-in-{processes}"
        return self.trained(name, processes, resume_from_checkpoint=run / "checkpoint-2", **settings)


def logged(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoint-{step}"
    file = folder / "model.safetensors"
    return load_file(file if file.is_file() else folder / "adapter_model.safetensors")


def require_same(run: Path, alone: Path, step: int = 4, tolerance: float = 2e-4) -> None:
    """The same losses, the same gradients, the same weights, up to the order of sums.

    DeepSpeed tells the norm of the gradient where it divides something, which is not in stage 0.
    """
    names = [
        "loss",
        "token_acc",
        "eval_loss",
        "learning_rate",
        *([] if run.name.startswith("zero0") else ["grad_norm"]),
    ]
    for name in names:
        assert logged(run, name) == pytest.approx(logged(alone, name), rel=1e-4), name
    ours, theirs = weights(run, step), weights(alone, step)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < tolerance


def require_loadable(run: Path) -> None:
    """transformers and peft read the checkpoint, and need nothing else for it."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    folder = run / "checkpoint-4"
    if (folder / "adapter_config.json").is_file():
        loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
    assert torch.isfinite(loaded(input_ids=torch.arange(5, 20)[None]).logits).all()


def require_refused(done: Finished, words: str) -> None:
    """Nobody trained, and this was said."""
    assert all(done.codes)
    assert words in " ".join(done.output.split())


def require_resumed(again: Path, run: Path) -> None:
    """From the checkpoint in the middle, the rest of the run comes out as it did."""
    assert logged(again, "loss") == pytest.approx(logged(run, "loss")[2:], rel=1e-5)
    ours, theirs = weights(again), weights(run)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


# ---------------------------------------------------------------------------------------------------------------- FSDP2


@pytest.mark.parameter("fsdp")
@pytest.mark.parametrize("kind", KINDS)
def test_fsdp_trains_what_one_process_trains_and_goes_on_in_any_number_of_processes(swift: Swift, kind: str) -> None:
    settings = {"fsdp": "fsdp2", **KINDS[kind]}
    run = swift.trained(f"fsdp-{kind}", **settings)
    require_same(run, swift.alone(kind))
    require_loadable(run)
    require_resumed(swift.resumed(run, 2, **settings), run)
    require_resumed(swift.resumed(run, 1, **settings, gradient_accumulation_steps=4), run)


@pytest.mark.parameter("fsdp")
def test_fsdp_goes_on_in_more_processes(swift: Swift) -> None:
    settings = {"fsdp": "fsdp2", **FULL}
    run = swift.trained("fsdp-of-one", 1, **settings, gradient_accumulation_steps=4)
    require_same(run, swift.alone("full"))
    require_resumed(swift.resumed(run, 2, **settings), run)


@pytest.mark.parameter("fsdp")
@pytest.mark.parameter("new_special_tokens")
def test_fsdp_trains_new_tokens_unless_the_embedding_is_the_output_layer(swift: Swift) -> None:
    tiny.checkpoint(swift.place / "untied", tie_word_embeddings=False)
    settings = {"max_steps": 2, "new_special_tokens": "<x>", **ADAPTER}
    untied = {**settings, "model": swift.place / "untied"}
    require_same(
        swift.trained("fsdp-tokens", fsdp="fsdp2", **untied),
        swift.trained("tokens", 1, gradient_accumulation_steps=4, **untied), step=2,
    )  # fmt: skip
    require_refused(swift.started("tied", 2, fsdp="fsdp2", **settings), "is its output layer as well")


@pytest.mark.parameter("fsdp")
@pytest.mark.parameter("gradient_checkpointing")
@pytest.mark.parametrize("config", [{}, {"activation_checkpointing": True, "state_dict_type": "FULL_STATE_DICT"}])
def test_fsdp_is_configured_by_json_text(swift: Swift, config: dict) -> None:
    run = swift.trained(f"fsdp-json-{len(config)}", fsdp=json.dumps(config), gradient_checkpointing="false", **ADAPTER)
    require_same(run, swift.alone("adapter"))
    assert (run / "checkpoint-4" / "pytorch_model_fsdp.bin").is_file(), "by default of transformers"


@pytest.mark.parameter("fsdp")
def test_fsdp_loads_the_best_model_at_the_end(swift: Swift) -> None:
    best = {"load_best_model_at_end": "true", "metric_for_best_model": "loss"}
    require_same(swift.trained("fsdp-best", fsdp="fsdp2", **FULL, **best), swift.alone("full"))


@pytest.mark.parameter("fsdp")
def test_fsdp_without_an_accelerator_is_refused_instead_of_being_left_out(swift: Swift) -> None:
    done = swift.started("none", 1, allow_fsdp=False, fsdp="fsdp2", **FULL)
    require_refused(done, "--fsdp needs an accelerator")


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parametrize("way", [
    {"fsdp": "fsdp2"}, pytest.param({"deepspeed": "zero3"}, marks=pytest.mark.extra),
], ids=str)  # fmt: skip
def test_processes_that_divide_weights_share_rows_too(swift: Swift, way: dict[str, str]) -> None:
    settings = {**FULL, "max_steps": 2}
    shared = swift.trained(f"shared-{'-'.join(way)}", sequence_parallel_size=2, **settings, **way)
    require_same(shared, swift.trained(f"alone-{'-'.join(way)}", 1, **settings), step=2)


@pytest.mark.parameter("resume_only_model")
@pytest.mark.parametrize(("way", "kind"), [
    ({"fsdp": "fsdp2"}, "adapter"), ({"fsdp": "fsdp2"}, "full"),
    pytest.param({"deepspeed": "zero2"}, "adapter", marks=pytest.mark.extra),
    pytest.param({"deepspeed": "zero3"}, "full", marks=pytest.mark.extra),
], ids=str)  # fmt: skip
def test_weights_go_on_in_every_other_way(swift: Swift, way: dict[str, str], kind: str) -> None:
    """From one process into two that divide, from these into one that does not, and into one that does."""
    anew = {"resume_only_model": "true", **KINDS[kind]}
    name = "-".join([*way.values(), kind])
    run = swift.trained(f"{name}-before", **way, **KINDS[kind])
    expected = swift.resumed(swift.alone(kind), 1, f"{name}-expected", gradient_accumulation_steps=4, **anew)
    require_same(swift.resumed(swift.alone(kind), 2, f"{name}-in", **way, **anew), expected)
    require_same(swift.resumed(run, 1, f"{name}-out", gradient_accumulation_steps=4, **anew), expected)
    require_same(swift.resumed(run, 1, f"{name}-fewer", gradient_accumulation_steps=4, **way, **anew), expected)


# ------------------------------------------------------------------------------------------------------------ DeepSpeed


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", DEEPSPEED)
def test_zero_trains_what_one_process_trains_and_resumes(swift: Swift, preset: str, kind: str) -> None:
    settings = {"deepspeed": preset, **KINDS[kind]}
    run = swift.trained(f"{preset}-{kind}", **settings)
    require_same(run, swift.alone(kind))
    require_loadable(run)
    require_resumed(swift.resumed(run, 2, **settings), run)


def of_rows(processes: int) -> dict[str, int]:
    """Six rows in a step, by one, two or three processes."""
    return {"per_device_train_batch_size": 6 // processes, "gradient_accumulation_steps": 1}


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize(("before", "after", "kind"), [
    (("zero1", 2), ("zero1", 1), "adapter"), (("zero2", 1), ("zero2", 2), "full"), (("zero3", 2), ("zero3", 1), "adapter"),
    (("zero3", 1), ("zero3", 2), "full"), (("zero3", 3), ("zero2", 2), "full"), (("zero1", 2), ("zero3", 3), "full"),
    (("zero2_offload", 2), ("zero3_offload", 1), "full"),
], ids=str)  # fmt: skip
def test_zero_goes_on_in_other_processes_and_stages_with_its_moments(
    swift: Swift, before: tuple[str, int], after: tuple[str, int], kind: str
) -> None:
    """Within 1e-6 of the run that was not stopped; without moments whole models are 1e-3 away."""
    (stage, processes), (later, others) = before, after
    name = f"{stage}-in-{processes}"
    run = swift.place / f"{name}-{kind}"
    if not run.is_dir():
        swift.trained(run.name, processes, deepspeed=stage, **of_rows(processes), **KINDS[kind])
    again = swift.resumed(
        run, others, f"{run.name}-{later}-{others}", deepspeed=later, **of_rows(others), **KINDS[kind]
    )
    require_resumed(again, run)
    require_loadable(again)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parameter("resume_from_checkpoint")
def test_the_best_weights_of_more_processes_are_loaded_by_fewer(swift: Swift) -> None:
    best = {"load_best_model_at_end": "true", "metric_for_best_model": "loss", "greater_is_better": "true", **FULL}
    run = swift.trained("best-in-2", deepspeed="zero3", **best)
    assert logged(run, "eval_loss")[1] < logged(run, "eval_loss")[0], "the first checkpoint is taken for the best"
    again = swift.resumed(run, 1, deepspeed="zero3", gradient_accumulation_steps=4, **best)
    assert "checkpoint-2" in json.loads((again / "logging.jsonl").read_text().splitlines()[-1])["best_model_checkpoint"]


# ----------------------------------------------------------------------------------------------- parts of matrices

CUT = {"deepspeed_autotp_size": 2, **FULL}


@pytest.mark.extra
@pytest.mark.parameter("deepspeed_autotp_size")
@pytest.mark.parametrize(("preset", "processes"), [("zero0", 2), ("zero1", 4), ("zero2", 2)])
def test_processes_with_parts_of_matrices_train_what_one_process_trains_and_resume(
    swift: Swift, preset: str, processes: int
) -> None:
    """With four processes two read rows of their own, and each of these has a twin that reads the same."""
    settings = {"deepspeed": preset, "gradient_accumulation_steps": 8 // processes, **CUT}
    run = swift.trained(f"{preset}-cut-{processes}", processes, **settings)
    require_same(run, swift.alone("full"), tolerance=2e-5)
    require_loadable(run)
    require_resumed(swift.resumed(run, processes, **settings), run)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed_autotp_size")
@pytest.mark.parametrize("way", [
    {"packing": "true", "packing_length": 128, "per_device_train_batch_size": 1}, {"neftune_noise_alpha": 5},
    {"streaming": "true", "dataset_shuffle": "false", "split_dataset_ratio": 0}, {"group_by_length": "true"},
], ids=lambda way: next(iter(way)))  # fmt: skip
def test_processes_with_parts_of_matrices_see_the_same_rows_and_the_same_noise(swift: Swift, way: dict) -> None:
    settings = {"max_steps": 2, "gradient_accumulation_steps": 4, **way}
    alone = swift.trained(f"{next(iter(way))}-alone", 1, **settings, **FULL)
    run = swift.trained(f"{next(iter(way))}-cut", 2, deepspeed="zero1", **settings, **CUT)
    require_same(run, alone, step=2, tolerance=2e-5)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed_autotp_size")
@pytest.mark.parameter("resume_only_model")
def test_weights_go_into_parts_of_matrices_and_out_of_them(swift: Swift) -> None:
    anew = {"resume_only_model": "true", "gradient_accumulation_steps": 4}
    run = swift.trained("cut", 2, deepspeed="zero1", gradient_accumulation_steps=4, **CUT)
    expected = swift.resumed(swift.alone("full"), 1, "whole-anew", **anew, **FULL)
    require_same(swift.resumed(swift.alone("full"), 2, "cut-in", deepspeed="zero1", **anew, **CUT), expected)
    require_same(swift.resumed(run, 1, "cut-out", **anew, **FULL), expected)
    for processes, way in ((2, {"deepspeed": "zero1", **FULL}), (4, {"deepspeed": "zero1", **CUT})):
        done = swift.started("refused", processes, resume_from_checkpoint=run / "checkpoint-2", **way)
        require_refused(done, "was saved with --deepspeed_autotp_size 2 by 2 processes")


@pytest.mark.extra
@pytest.mark.parameter("deepspeed_autotp_size")
def test_matrices_that_cannot_be_cut_evenly_are_refused_before_they_are_read(swift: Swift) -> None:
    done = swift.started("uneven", 4, deepspeed="zero1", **{**CUT, "deepspeed_autotp_size": 4})
    require_refused(
        done, "--deepspeed_autotp_size 4 must divide the sizes of the model, and does not divide num_key_value"
    )
    assert "Loading weights" not in done.output
    require_refused(swift.started("odd", 3, deepspeed="zero1", **CUT), "needs a multiple of 2 processes")


# ---------------------------------------------------------------------------------------------------------- DeepSpeed


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_who_cannot_go_on_is_told_who_can(swift: Swift) -> None:
    third = swift.trained("divided", deepspeed="zero3", **FULL)
    first = swift.trained("divided-once", deepspeed="zero1", **FULL)
    shuffled = {**DEEPSPEED["zero2"], "zero_optimization": {"stage": 2, "round_robin_gradients": True}}
    for run, processes, way, words in (
        (third, 2, {"deepspeed": "zero0"}, "saved with ZeRO stage 3, and --deepspeed is stage 0"),
        (third, 1, {"deepspeed": json.dumps(shuffled)}, "round_robin_gradients of --deepspeed"),
        (third, 2, {"deepspeed": "zero1", "optim": "sgd"}, "was saved by another optimizer, AdamW"),
        (third, 2, {"fsdp": "fsdp2"}, "was saved with --deepspeed"),
        (third, 2, {}, "was saved with --deepspeed"),
        (first, 2, {"deepspeed": "zero2_offload"}, "was saved without offloading"),
        (swift.alone("full"), 2, {"deepspeed": "zero2"}, "was saved without --deepspeed and --fsdp"),
    ):
        done = swift.started("refused", processes, resume_from_checkpoint=run / "checkpoint-2", **FULL, **way)
        require_refused(done, words)
        assert "add --resume_only_model true" in done.output or "optim" in way
    second = swift.resumed(first, 2, deepspeed="zero2", **FULL)
    require_resumed(second, first)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_a_configuration_of_ones_own_is_filled_in_and_must_agree(swift: Swift) -> None:
    mine = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    file = swift.place / "mine.json"
    file.write_text(json.dumps({**mine, "gradient_accumulation_steps": 2}))
    run = swift.trained("mine", deepspeed=file, **ADAPTER)
    require_same(run, swift.alone("adapter"))
    text = json.dumps({**mine, "gradient_accumulation_steps": 3})
    done = swift.started("contradicted", 2, deepspeed=text, **ADAPTER)
    require_refused(done, "gradient_accumulation_steps=3 and --gradient_accumulation_steps=2")


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_stage_0_begins_in_bfloat16_as_stage_1_does(swift: Swift) -> None:
    half = {**ADAPTER, "torch_dtype": "bfloat16"}
    losses = [
        logged(swift.trained(f"half-{preset}", deepspeed=preset, **half), "loss") for preset in ("zero0", "zero1")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(logged(swift.alone("adapter"), "loss"), rel=2e-3)


@pytest.mark.extra
@pytest.mark.parameter("zero_hpz_partition_size")
def test_a_second_copy_inside_a_node_and_the_best_model_change_no_number(swift: Swift) -> None:
    settings = {"zero_hpz_partition_size": 2, "load_best_model_at_end": "true", "metric_for_best_model": "loss"}
    require_same(swift.trained("hpz", deepspeed="zero3", **FULL, **settings), swift.alone("full"))


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_packs_are_kept_apart_when_weights_are_divided(swift: Swift) -> None:
    settings = {**ADAPTER, "packing": "true", "packing_length": 128, "per_device_train_batch_size": 1, "max_steps": 2}
    alone = swift.trained("packs", 1, **{**settings, "gradient_accumulation_steps": 4})
    require_same(swift.trained("packs-zero3", deepspeed="zero3", **settings), alone, step=2)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parameter("router_aux_loss_coef")
def test_experts_are_gathered_together_and_balanced(swift: Swift) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    dense = tiny.model().config.to_dict()
    kept = {name: dense[name] for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")}
    config = Qwen3MoeConfig(
        **kept, head_dim=16, num_hidden_layers=2, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
        decoder_sparse_step=1, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = swift.place / "moe"
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    settings = {"model": folder, "max_steps": 2, "router_aux_loss_coef": 0.1, **FULL}
    done = swift.started("moe-zero3", 2, deepspeed="zero3", **settings)
    assert done.is_good, done.output[-3000:]
    assert "ZeRO-3 gathers each Qwen3MoeSparseMoeBlock as one" in done.output
    alone = swift.trained("moe-alone", 1, gradient_accumulation_steps=4, **settings)
    assert logged(swift.place / "moe-zero3", "loss") == pytest.approx(logged(alone, "loss"), rel=1e-3)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parameter("task_type")
def test_rerankers_by_judgement_train_in_parts(swift: Swift) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"number {i}"}],
            "positive_messages": [[{"role": "assistant", "content": f"the number {i}"}]],
            "negative_messages": [[{"role": "assistant", "content": f"the number {i + 1}"}]],
        }
        for i in range(40)
    ]
    settings = {
        "dataset": tiny.jsonl(swift.place / "ranked.jsonl", rows), "task_type": "generative_reranker",
        "loss_type": "pointwise_reranker", "max_steps": 2, **FULL,
    }  # fmt: skip
    alone = swift.trained("ranked", 1, gradient_accumulation_steps=4, **settings)
    run = swift.trained("ranked-zero3", deepspeed="zero3", **settings)
    assert logged(run, "loss") == pytest.approx(logged(alone, "loss"), rel=1e-4)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parameter("init_weights")
@pytest.mark.parametrize("settings", [
    {**ADAPTER, "init_weights": "pissa"}, {"tuner_type": "adapter"},
    {"tuner_type": "llamapro", "llamapro_num_new_blocks": 2},
], ids=lambda settings: settings.get("init_weights", settings["tuner_type"]))  # fmt: skip
def test_stage_2_trains_and_continues_what_looks_at_whole_weights(swift: Swift, settings: dict) -> None:
    name = f"whole-{settings.get('init_weights', settings['tuner_type'])}"
    run = swift.trained(name, deepspeed="zero2", **settings)
    require_same(run, swift.trained(f"{name}-alone", 1, gradient_accumulation_steps=4, **settings))
    require_resumed(swift.resumed(run, 2, deepspeed="zero2", **settings), run)


@pytest.mark.extra
@pytest.mark.parameter("predict_with_generate")
def test_stage_2_answers_while_it_trains(swift: Swift) -> None:
    settings = {"predict_with_generate": "true", "max_new_tokens": 8, "max_steps": 2, **FULL}
    run = swift.trained("answers", deepspeed="zero2", **settings)
    alone = swift.trained("answers-alone", 1, gradient_accumulation_steps=4, **settings)
    said = [(each / "checkpoint-2" / "predict.jsonl").read_text() for each in (run, alone)]
    assert said[0] == said[1]


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_proofs_are_made_where_weights_are_whole(swift: Swift) -> None:
    line = ["--model", str(swift.place / "model"), "--dataset", str(swift.place / "rows.jsonl"), "--tuner_type", "full"]
    done = swift.runs.run(["prove", "resume", *line, "--deepspeed", "zero2"], 1)
    assert done.is_good, done.output[-3000:]
    require_refused(swift.runs.run(["prove", "resume", *line, "--deepspeed", "zero3"], 1), "compares whole weights")
