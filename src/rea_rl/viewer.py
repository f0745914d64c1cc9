"""A page to look at the responses of a run: originals next to their revisions, with labels, cut,
rewards and advantage.

    # writes output/miniature/ReflectRL/viewer.html
    python -m rea_rl.viewer output/miniature/ReflectRL
    python -m rea_rl.viewer RUN_DIR --batches step-0 step-29 eval-30 --out page.html

The page is one file without any reference to the network. It has a script element of JSON for the
list and one for each batch, which the browser only parses when a response of it is opened; the list
draws the rows in view only.
"""

from __future__ import annotations

import json
import logging
import os
import re
from argparse import ArgumentParser, Namespace
from bisect import bisect_right
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any

from generation.evaluation.plots import EVAL, read_log, series
from generation.markers import known_markers
from generation.reflection_words import REFLECTION_WORDS, count_reflections
from generation.rendering import known_thinking, thinking_in
from generation.segments import BLANK_LINES
from rea_core.checks import NUMBER, check_made, user_path
from rea_core.command import command
from rea_core.ownership import own_output
from rea_core.rows import check_columns, read_rows, write_atomically

logger = logging.getLogger(__name__)

Record = dict[str, Any]  # a line of a rollout file, see `rea_rl.rollout.record.Rollout`
CURVES = """
    rollout/accuracy rollout/num_tokens reward reflection/density revision/success
    revision/tokens_saved kl
""".split()
SIDE_KEYS = """
    policy_version correct num_tokens num_think_tokens num_reflections finish_reason rewards
    advantage
""".split()
# Keys that the page reads of a line of a rollout file, with their types.
RECORD = {
    **dict.fromkeys(("kind", "problem_id", "policy_version", "finish_reason", "text"), str),
    **dict.fromkeys(("num_tokens", "num_think_tokens", "num_reflections"), int),
    **dict.fromkeys(("prompt_ids", "logprobs", "p_result"), list),
    "kept": bool,
    "correct": (bool, NoneType),
    "rewards": dict,
    "advantage": (*NUMBER, NoneType),
}


def batch_files(run_dir: Path, names: list[str] | None) -> list[Path]:
    """Rollout files of a run by step, training first. Raises ValueError if one is missing."""
    found = {path.stem: path for path in (run_dir / "rollouts").glob("*-*.jsonl")}
    if not found:
        raise ValueError(
            f"{run_dir} has no rollouts/*.jsonl; is it the output_dir of a run of rea_rl.grpo?"
        )
    if unknown := [name for name in names or [] if name not in found]:
        raise ValueError(
            f"batches {unknown} are not in {run_dir}/rollouts, which has "
            f"{sorted(found, key=_order)}"
        )
    return [found[name] for name in sorted(names or found, key=_order)]


def _order(name: str) -> tuple[bool, int]:
    kind, _, step = name.partition("-")
    return kind == "eval", int(step)


def pairs(records: list[Record]) -> Iterator[tuple[Record, Record | None]]:
    """Each revision with its original; an original with None if it was sampled without
    revision, or is listed twice."""
    paired, original = any(record["kind"] == "revision" for record in records), None
    for record in records:
        if record["kind"] == "revision":
            yield original, record
            continue
        if not paired or (original and original["logprobs"] == record["logprobs"]):
            yield record, None
        original = record


def original_pieces(original: Record, revision: Record | None) -> list[Record]:
    """Paragraphs of the original with their P(Result), the cut, and the answer."""
    text, p_result = original["text"], (revision or original)["p_result"]
    thinking = thinking_in(original)
    ends = (revision or original).get("paragraph_ends") or [
        match.start() for match in BLANK_LINES.finditer(thinking)
    ]
    cut = shared_prefix(original, revision) if revision else len(text)
    pieces, begin = [], 0
    for end in sorted({*ends, min(cut, len(thinking)), len(thinking)}):
        piece = _piece(text[begin:end], "removed" if begin >= cut else "kept")
        paragraph = bisect_right(ends, begin)
        if paragraph < len(p_result):
            piece["p"] = round(p_result[paragraph], 3)
        pieces += [piece] if piece["text"] else []
        pieces += [{"kind": "cut"}] if end == cut else []
        begin = end
    return [*pieces, _piece(text[begin:], "removed" if revision else "kept", thinking=False)]


def revision_pieces(original: Record, revision: Record) -> list[Record]:
    """Kept text, forced text, and the policy's text after it."""
    text = revision["text"]
    cut, markers = shared_prefix(original, revision), known_markers(revision)
    end_of_thinking, heading = (
        re.escape(part.strip())
        for part in (markers.think_end, markers.forced_answer.partition(markers.think_end)[2])
    )
    answer = re.compile(rf"\s*{end_of_thinking}\s*({heading}\s*)?").match(text, cut)
    end = answer.end() if answer else cut
    kept = [_piece(part, "kept") for part in BLANK_LINES.split(text[:cut])]
    return [
        *kept,
        {"kind": "cut"},
        _piece(text[cut:end], "forced", False),
        _piece(text[end:], "kept", False),
    ]


def shared_prefix(original: Record, revision: Record) -> int:
    """Characters that the revision keeps of the original: up to its forced end of the thinking."""
    shared = os.path.commonprefix([original["text"], revision["text"]])
    return min(len(shared), len(thinking_in(revision).rstrip("\n")))


def _piece(text: str, kind: str, thinking: bool = True) -> Record:
    return {"kind": kind, "text": text.strip("\n"), "thinking": thinking}


def side(record: Record, pieces: list[Record], note: str = "") -> Record:
    """One column of the page."""
    facts = {"prompt_thinking": known_thinking(record)}
    return {key: record[key] for key in SIDE_KEYS} | facts | {"parts": pieces, "note": note}


def list_row(batch: str, at: int, original: Record, revision: Record | None) -> Record:
    """One line of the page's list."""
    return {
        "batch": batch,
        "at": at,
        "problem": original["problem_id"],
        "correct": original["correct"],
        "revised": revision is not None,
        "revision_correct": revision and revision["correct"],
        "kept": revision["kept"] if revision else None,
        "tokens": original["num_tokens"],
        "saved": original["num_tokens"] - revision["num_tokens"] if revision else None,
        "advantage": original["advantage"],
    }


def entry(original: Record, revision: Record | None, prompt: str) -> Record:
    """One response as the page shows it."""
    right = None
    if revision is not None:
        note = (
            "trained"
            if revision["kept"]
            else "not trained: the original took its place, with these rewards"
        )
        right = side(revision, revision_pieces(original, revision), note)
    return {
        "prompt": prompt,
        "original": side(original, original_pieces(original, revision)),
        "revision": right,
    }


def curves(run_dir: Path) -> list[Record]:
    """Panels of the page's head: training and held-out values of logged figures."""
    if not (run_dir / "trainer_state.json").is_file():
        return []  # the run is not finished
    history, panels = read_log(run_dir / "trainer_state.json"), []
    for key in CURVES:
        lines = [("training", *series(history, key)), ("eval", *series(history, EVAL + key))]
        lines = [
            {"name": name, "steps": steps, "values": values}
            for name, steps, values in lines
            if steps
        ]
        if lines:
            panels.append({"key": key, "lines": lines})
    return panels


def word_pattern(records: list[Record]) -> str:
    """Pattern of the reflection words, whole words if the run counted these."""
    thinkings = [thinking_in(record) for record in records]
    counts = [record["num_reflections"] for record in records]
    bounded = [count_reflections(thinking, True) for thinking in thinkings] == counts
    words = f"(?:{'|'.join(REFLECTION_WORDS)})"
    return rf"\b{words}\b" if bounded else words


def page_data(run_dir: Path, names: list[str] | None = None) -> dict[str, Any]:
    """JSON of the page by the id of its script element: `index` and each batch's responses."""
    tokenizer, data = find_tokenizer(run_dir), {}
    index: dict[str, Any] = {
        "run": run_dir.name,
        "batches": [],
        "paired": [],
        "paths": [],
        "curves": curves(run_dir),
    }
    for path in batch_files(run_dir, names):
        records = read_rows(str(path))
        check_columns(records, RECORD, path, "it must come from a run of rea_rl.grpo")
        index["batches"].append(path.stem)
        if any(record["kind"] == "revision" for record in records):
            index["paired"].append(path.stem)
        data[path.stem] = []
        for at, (original, revision) in enumerate(pairs(records)):
            prompt = (
                tokenizer.decode(original["prompt_ids"], skip_special_tokens=False)
                if tokenizer
                else ""
            )
            index["paths"].append(list_row(path.stem, at, original, revision))
            data[path.stem].append(entry(original, revision, prompt))
        if "word_pattern" not in index:
            index["word_pattern"] = word_pattern(records)
    return {"index": index} | data


def find_tokenizer(run_dir: Path) -> Any:
    """Tokenizer that the run saved; None before that: prompts are then left out."""
    from tokenizers import Tokenizer

    files = [run_dir / "tokenizer.json", *run_dir.glob("checkpoint-*/tokenizer.json")]
    found = next((path for path in files if path.is_file()), None)
    return Tokenizer.from_file(str(found)) if found else None


def script_json(value: Any) -> str:
    """JSON for a script element: no text of a model can end the element or open a
    comment.

    >>> script_json("</script><!--")
    '"\\\\u003c/script>\\\\u003c!--"'
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def render(data: dict[str, Any]) -> str:
    """The whole page."""
    template = resources.files("rea_rl").joinpath("viewer.html").read_text(encoding="utf-8")
    head, _, tail = template.partition("<!--DATA-->")
    scripts = (
        f'<script type="application/json" id="{name}">{script_json(v)}</script>\n'
        for name, v in data.items()
    )
    return "".join((head, *scripts, tail))


def parse_arguments(argv: list[str] | None) -> Namespace:
    """Command line."""
    parser = ArgumentParser(description="Write a page that shows the responses of a training run.")
    parser.add_argument("run_dir", type=user_path, help="output_dir of a run of rea_rl.grpo")
    parser.add_argument(
        "--batches", nargs="+", help="rollout files by name, as step-0 eval-10; default: all"
    )
    parser.add_argument("--out", type=user_path, help="default: RUN_DIR/viewer.html")
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr if there are no rollouts."""
    args = parse_arguments(argv)
    out = args.out or args.run_dir / "viewer.html"
    own_output(out, "out", batch_files(args.run_dir, args.batches))
    check_made(out, out, "<title>Rollouts</title>")
    page = render(page_data(args.run_dir, args.batches))
    write_atomically(out, [page])
    logger.info("wrote %s (%.1f MB)", out, out.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
