"""Train a policy with REA-RL, or with plain GRPO if the recipe says `revision: false`.

    python -m rea_rl.grpo --config recipes/miniature/config_ReflectRL.yaml
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml \\
        --num_processes 2 -m rea_rl.grpo \\
        --config recipes/DeepSeek-R1-Distill-Qwen-7B/config_ReflectRL.yaml --learning_rate 1e-5

Both servers of the recipe must be running; `--dry_run` only checks what can be checked without
them. A run that was interrupted continues from its last checkpoint.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rea_core.interruption import interruptible
from rea_rl.run import training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import ModelConfig

    from generation.markers import Markers
    from generation.rendering import PromptFormat
    from rea_core.row_files import Row
    from rea_rl.configs import DataArguments, REARLConfig
    from rea_rl.rea_rl_trainer import REARLTrainer
    from rea_rl.rewards import RewardFunc
    from rea_rl.rollout.engine import RolloutEngine
    from rea_rl.run.resume import Plan

logger = logging.getLogger(__name__)

# check what can be checked without servers, and print `complete` if nothing is to be done
DRY_RUN = "--dry_run"


# recipe (`--config FILE`) and overriding flags, or None for those of the command line
parse_recipe = partial(training.parse, "grpo")


@dataclass(frozen=True)
class Inputs:
    """Models, rows and settings of a recipe, checked, and the start of the run; no model yet."""

    tokenizer: PreTrainedTokenizerBase
    reward_funcs: list[RewardFunc]
    train_rows: list[Row]
    eval_rows: list[Row]
    plan: Plan


def load_inputs(data: DataArguments, args: REARLConfig, model_args: ModelConfig) -> Inputs:
    """Tokenizer, rewards and problems of a recipe.

    Raises ValueError for what is missing or does not fit together, or to the run in output_dir;
    RunComplete if that run needs nothing more.
    """
    from generation.markers import Markers
    from generation.rendering import PromptFormat
    from generation.verifiers import is_function
    from generation.verifiers.opening import check_verifier, verifier_record
    from rea_core.models import check_model, load_tokenizer
    from rea_rl.reward_trial import try_rewards
    from rea_rl.rewards import get_reward_funcs
    from rea_rl.run.resume import plan_run

    check_policy_keys(args, model_args)
    training.check_evaluation(args, data.eval_dataset_name)
    prompts = PromptFormat.of(vars(data) | vars(args))
    if args.cut_file is not None and args.needs_labels:
        take_cut_file(args)
    check_model(model_args.model_name_or_path)
    tokenizer = load_tokenizer(
        model_args.model_name_or_path, trust_remote_code=args.trust_remote_code, trained=True
    )
    training.check_buildable(model_args, args.trust_remote_code)
    training.check_master_weights(args, model_args)
    prompts = prompts.of_model(tokenizer)
    threshold = read_threshold(args, prompts, model_args.model_name_or_path)
    reward_funcs = get_reward_funcs(args.reward_funcs, threshold, **args.reward_settings)
    try_rewards(reward_funcs)
    if args.revision:
        check_marker(tokenizer, model_args.model_name_or_path, Markers.of(vars(prompts)))
    rows_of = partial(load_rows, data, tokenizer=tokenizer, prompts=prompts, verifier=args.verifier)
    train_rows = rows_of(data.dataset_name, data.dataset_train_split)
    if args.revision:
        check_thinking(train_rows, model_args.model_name_or_path)
    eval_rows = []
    if data.eval_dataset_name is not None:
        eval_rows = rows_of(data.eval_dataset_name, data.dataset_eval_split)
    check_number(len(train_rows), data.dataset_name, args)
    measured = {"tokens_per_reflection": threshold, "verifier": args.verifier}
    if is_function(args.verifier):
        check_verifier(args.verifier, train_rows[0]["facts"], args.verifier_timeout)
        measured |= verifier_record(args.verifier)
    plan = plan_run("grpo", (data, args, model_args), train_rows, **measured)
    return Inputs(tokenizer, reward_funcs, train_rows, eval_rows[: data.max_eval_problems], plan)


def check_number(num_problems: int, name: str, args: REARLConfig) -> None:
    """Raise ValueError for fewer problems than a step takes."""
    prompts_per_step = args.generation_batch_size // args.num_generations
    if num_problems < prompts_per_step:
        raise ValueError(
            f"dataset_name: {name} has {num_problems} problem{'s' * (num_problems != 1)}, but a "
            f"step takes {prompts_per_step}; give more problems, or a smaller prompts_per_step"
        )


def read_threshold(args: REARLConfig, prompts: PromptFormat, model: str) -> float | None:
    """Threshold of the reflect reward. Raises ValueError for a file that was measured on other
    prompts, or on another model."""
    from generation.measured import read_tokens_per_reflection

    if (file := args.tokens_per_reflection_file) is None:
        return args.tokens_per_reflection
    return read_tokens_per_reflection(file, args.word_bounded_reflections, prompts.record, model)


def take_cut_file(args: REARLConfig) -> None:
    """Set the keys of the cut to those of `cut_file`; a strong cut stays at least as early as a
    normal one.

    Raises ValueError for a file that is missing or holds something else.
    """
    from generation.measured import read_cut_file

    for key, value in read_cut_file(args.cut_file, args.reflection_model).items():
        setattr(args, key, value)
    args.cut_strong_threshold = min(args.cut_strong_threshold, args.cut_threshold)


def check_policy_keys(args: REARLConfig, model_args: ModelConfig) -> None:
    """Raise ValueError for weights that no server takes, or that cannot be trained so."""
    from rea_core.models import LORA_RANKS
    from rea_rl.run.lora import check_lora_keys

    check_lora_keys(model_args, served=True)
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise ValueError(
            "FSDP has the weights in pieces, which cannot be brought to the policy server; leave "
            "fsdp out, and launch with ddp.yaml, or with zero3.yaml if the model does not fit "
            "on one GPU"
        )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError(
            "load_in_4bit and load_in_8bit must be false: servers and trainer must have the same "
            "weights"
        )
    if not model_args.use_peft:
        check_full_weights(args)
        return
    if args.sync_ref_model:
        raise ValueError(
            "sync_ref_model is true, but with use_peft the reference is the base model, which "
            "stays: leave it out"
        )
    if model_args.lora_r > LORA_RANKS[-1]:
        raise ValueError(
            f"lora_r is {model_args.lora_r}, but vLLM serves ranks up to {LORA_RANKS[-1]}; lower it"
        )
    if args.packing == "shared_prefix" and model_args.lora_dropout:
        raise ValueError(
            f"lora_dropout is {model_args.lora_dropout}, but responses that share a prefix must "
            "see one model: set lora_dropout: 0, or packing: none"
        )


def check_full_weights(args: REARLConfig) -> None:
    """Raise ValueError for what full fine-tuning cannot do."""
    if len(args.policy_servers) > 1:
        raise ValueError(
            f"use_peft is false, but policy_server names {len(args.policy_servers)} servers: all "
            "weights move over NCCL to one; name one, with more GPUs if need be (--gpu 2,3), or "
            "set use_peft: true"
        )
    needed = {"max_rollout_lag": 0, "use_cpu": False}
    wrong = {
        key: getattr(args, key) for key, value in needed.items() if getattr(args, key) != value
    }
    if wrong:
        raise ValueError(
            "use_peft is false, so that all weights are trained, but "
            f"{' and '.join(f'{k} is {v}' for k, v in wrong.items())}: overlap needs two "
            "versions on one server, as adapters are, and all weights move over NCCL, between "
            "GPUs; set use_peft: true, or "
            + ", ".join(f"{key}: {str(needed[key]).lower()}" for key in wrong)
        )


def check_marker(
    tokenizer: PreTrainedTokenizerBase, model_name: str, markers: Markers | None = None
) -> None:
    """Raise ValueError if the end of a thinking, where responses are cut, does not survive the way
    to ids and back to text, or ends a response."""
    from generation.cuts import think_end_ids
    from generation.markers import R1, decode_completion

    markers = markers or R1
    ids = think_end_ids(tokenizer, markers)
    if (read := decode_completion(tokenizer, ids, markers)) != markers.think_end:
        raise ValueError(
            f"model_name_or_path: the tokenizer of {model_name!r} reads {markers.think_end} back "
            f"as {read!r}, so that no end of a thinking can be found; add it as a token, give the "
            "model's own think_start and think_end, or set revision: false"
        )
    if tokenizer.eos_token_id in ids:
        raise ValueError(
            f"think_end is {markers.think_end!r}, but {tokenizer.eos_token!r} in it ends a "
            f"response of {model_name!r}: no answer could follow; give another, or set revision: "
            "false"
        )


def check_thinking(rows: list[Row], model_name: str) -> None:
    """Raise ValueError if a prompt has closed its thinking: a revision could cut nothing."""
    if closed := [row["problem_id"] for row in rows if row["prompt_thinking"] == "closed"]:
        raise ValueError(
            f"revision is true, but the prompts of {model_name} close the thinking before the "
            f"response begins ({len(closed)} of {len(rows)}, the first is problem {closed[0]!r}), "
            "so that there is nothing to cut; change chat_template_kwargs or prefill so that the "
            "model thinks, or set revision: false"
        )


def load_rows(
    data: DataArguments,
    name: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    verifier: str,
) -> list[Row]:
    """Rows with `prompt` (rendered text), `prompt_thinking`, `problem`, `problem_id` and
    `answer`; without problems that the model's template refuses, which the log names. With `facts`,
    all columns as JSON, if the verifier is a function."""
    from generation.verifiers import is_function, needs_gold
    from generation.verifiers.names import check_golds
    from generation.verifiers.pool import facts_of
    from rea_core.golds import as_list
    from rea_core.problems import load_problems
    from rea_rl.run.left_out import made_of_rows

    problems = load_problems(
        name,
        split,
        config=data.dataset_config,
        problem_column=data.problem_column,
        answer_column=data.answer_column,
        gold_needed=needs_gold(verifier),
    )
    check_golds(verifier, problems, name)
    rows = []
    has_several = any(isinstance(row["answer"], list) for row in problems)  # a column has one type
    asked = made_of_rows(name, problems, lambda row: prompts.ask(row["problem"], tokenizer))
    for _, row, prompt in asked:
        answer = as_list(row["answer"]) if has_several else row["answer"]
        facts = {"problem": row["problem"], "problem_id": row["id"], "answer": answer}
        facts |= {"facts": facts_of(row)} if is_function(verifier) else {}
        rows.append({"prompt": prompt.text, "prompt_thinking": prompt.thinking, **facts})
    return rows


def prompt_lengths(inputs: Inputs) -> list[tuple[int, str]]:
    """Tokens of each prompt, and the id of its problem."""
    rows = inputs.train_rows + inputs.eval_rows
    ids = inputs.tokenizer([row["prompt"] for row in rows], add_special_tokens=False)["input_ids"]
    problems = [row["problem_id"] for row in rows]
    return [*zip(map(len, ids), problems, strict=True)]


def check_reflection_model(args: REARLConfig) -> PreTrainedTokenizerBase | None:
    """Tokenizer of the reflection model; None if none is asked. ValueError if it cannot serve."""
    from rea_core.models import check_model, load_tokenizer
    from rea_rl.rollout.reflection_check import check_labels

    if not args.needs_labels:
        return None
    check_model(args.reflection_model)
    tokenizer = load_tokenizer(args.reflection_model, key="reflection_model")
    check_labels(tokenizer, args.reflection_model, args.reply_form)
    return tokenizer


def join_servers(args: REARLConfig) -> None:
    """Let all ranks use the servers of all hosts: the launcher of each host names its own."""
    from accelerate.utils import gather_object

    if args.world_size == 1:
        return
    for key in ("policy_server", "reflection_server"):
        named = gather_object([getattr(args, f"{key}s")])
        urls = [*dict.fromkeys(itertools.chain.from_iterable(named))]
        setattr(args, key, urls if len(urls) > 1 else urls[0])


def build_engine(
    args: REARLConfig, model_name: str, inputs: Inputs, lora_rank: int | None = None
) -> RolloutEngine:
    """Connect to the servers; with `lora_rank` the policy server is offered adapters.

    Raises ConnectionError or ValueError unless all serve what the recipe needs.
    """
    from generation.verifiers.opening import open_verifier
    from rea_rl.rollout.engine import RolloutEngine

    check_policy_servers(args, model_name, inputs, lora_rank)
    reflection_tokenizer = check_reflection_model(args)
    if reflection_tokenizer is not None:
        check_reflection_servers(args, reflection_tokenizer, inputs)
    verifier = open_verifier(
        args.verifier, args.verifier_workers, args.verifier_timeout, markers=args.answer_markers
    )
    return RolloutEngine(args, inputs.tokenizer, reflection_tokenizer, verifier)


def check_policy_servers(
    args: REARLConfig, model_name: str, inputs: Inputs, lora_rank: int | None
) -> None:
    """Raise ConnectionError or ValueError for a policy server that cannot do what it must."""
    from generation.markers import Markers
    from rea_rl.rollout import server_check
    from rea_rl.rollout.endpoint import adapter_folder
    from rea_rl.rollout.server_answers import check_server, check_vocabulary, served_contexts

    tokenizer = inputs.tokenizer
    markers = Markers.of(vars(args), tokenizer)
    forced = len(tokenizer.encode(markers.forced_answer, add_special_tokens=False))
    finish = forced + args.finish_max_tokens if args.revision else 0
    prompts = prompt_lengths(inputs)
    for url in args.policy_servers:
        check_server(url, model_name)
        context = served_contexts(url)[model_name]
        needed, why = server_check.needed_context(
            prompts, args.max_completion_length + finish, context, url
        )
        check_server(url, model_name, needed, why=why)
        check_vocabulary(url, model_name, tokenizer)
        if lora_rank is not None and args.process_index == 0:
            server_check.check_adapters(url, adapter_folder(args.output_dir), lora_rank)
        server_check.check_sampled_logprobs(url, model_name, tokenizer, args)


def check_reflection_servers(
    args: REARLConfig, tokenizer: PreTrainedTokenizerBase, inputs: Inputs
) -> None:
    """The same for reflection servers."""
    from rea_rl.rollout.reflection_check import check_context
    from rea_rl.rollout.server_answers import check_server, check_vocabulary, served_contexts
    from rea_rl.rollout.server_check import check_alternatives_of

    model = args.reflection_model
    for url in args.reflection_servers:
        check_server(url, model, max_model_len=1)
        check_vocabulary(url, model, tokenizer)
        longest = max((row["problem"] for row in inputs.train_rows), key=len)
        check_context(args, tokenizer, longest, served_contexts(url)[model])
        check_alternatives_of(url, model, tokenizer)


def probe_ids(inputs: Inputs, limit: int) -> list[int]:
    """Ids that show an adapter's effect: of prompts in turn, MAX_TOKENS or the limit."""
    from rea_rl.rollout.probe import MAX_TOKENS

    rows = inputs.train_rows[:MAX_TOKENS]
    ids = inputs.tokenizer([row["prompt"] for row in rows], add_special_tokens=False)["input_ids"]
    return list(itertools.chain.from_iterable(ids))[: min(MAX_TOKENS, limit)]


def build_trainer(
    args: REARLConfig, model_args: ModelConfig, inputs: Inputs, engine: RolloutEngine
) -> REARLTrainer:
    """Load the policy, and with `use_peft` wrap it with a fresh adapter.

    Raises ValueError if a policy server has other weights.
    """
    from datasets import Dataset

    from rea_rl.rea_rl_trainer import REARLTrainer
    from rea_rl.rollout.endpoint import LOAD_TIMEOUT, adapter_folder
    from rea_rl.rollout.probe import Probe
    from rea_rl.rollout.weight_sync import AdapterSync, FullSync
    from rea_rl.run.lora import lora_config

    if model_args.use_peft:
        settings = {"deadline": args.server_deadline, "retries": args.request_retries}
        settings["timeout"] = min(args.request_timeout, LOAD_TIMEOUT)
        settings["probe"] = Probe(
            model_args.model_name_or_path, probe_ids(inputs, args.max_completion_length)
        )
        sync = AdapterSync(args.policy_servers, adapter_folder(args.output_dir), **settings)
    else:
        sync = FullSync(args.policy_server, model_args.model_name_or_path)
    model = training.load_model(model_args, args.trust_remote_code, args.torch_threads)
    trainer = REARLTrainer(
        engine=engine,
        weight_sync=sync,
        args=args,
        model=model,
        reward_funcs=inputs.reward_funcs,
        train_dataset=Dataset.from_list(inputs.train_rows),
        eval_dataset=Dataset.from_list(inputs.eval_rows) if inputs.eval_rows else None,
        processing_class=inputs.tokenizer,
        peft_config=lora_config(model, model_args, served=True),
    )
    trainer.plan = inputs.plan
    if model_args.use_peft:
        sync.check_weights(trainer.accelerator.unwrap_model(trainer.model))
    return trainer


def train(trainer: REARLTrainer) -> None:
    """Train as planned, evaluate, save adapter, state, metrics and model card.

    Raises ConnectionError if a server stays away or refuses what is needed, or another rank failed;
    then there is a checkpoint of the last finished step.
    """

    def give_up() -> None:
        trainer.engine.cancel()
        trainer.weight_sync.cancel()

    try:
        training.train(trainer, give_up)
    except ConnectionError as error:
        if not training.is_disk_full(error):
            training.save_last_step(trainer)
        raise


@interruptible
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the recipe or its surroundings."""
    from rea_core.command import setup_logging
    from rea_rl.run.resume import RunComplete

    setup_logging()
    flags = sys.argv[1:] if argv is None else argv
    is_check = DRY_RUN in flags
    try:
        data, args, model_args = parse_recipe([flag for flag in flags if flag != DRY_RUN])
        training.own_output_dir(args, is_check)
        inputs = load_inputs(data, args, model_args)
        if is_check:
            check_reflection_model(args)
            return
        join_servers(args)
        if not model_args.use_peft:
            check_full_weights(args)
        rank = model_args.lora_r if model_args.use_peft else None
        engine = build_engine(args, model_args.model_name_or_path, inputs, rank)
    except (ValueError, OSError) as error:
        training.leave(error)
    except RunComplete as complete:
        logger.info("%s", complete)
        if is_check:
            print("complete")
        return
    with engine:
        try:
            trainer = build_trainer(args, model_args, inputs, engine)
        # faults that only the model shows, such as names in lora_target_modules
        except (ValueError, NotImplementedError) as error:
            training.leave(error)
        try:
            train(trainer)
        except Exception as error:
            training.end(trainer, error)


if __name__ == "__main__":
    main()
