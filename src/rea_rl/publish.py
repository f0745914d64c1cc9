"""Publish weights or responses on the Hub, with a card: recipe, commit, scores and citation.

    python -m rea_rl.publish output/miniature/ReflectRL USER/NAME \\
        --scores output/ReflectRL_merged/test_math_cot.scores.json
    python -m rea_rl.publish output/miniature/reflection_model USER/NAME
    python -m rea_rl.publish output/Miniature-LRM/test_math_cot.json USER/NAME

A folder with an adapter or a model becomes a model repository: weights, tokenizer, settings and
card, but neither checkpoints nor responses. Generation files become a dataset, with their settings,
scores and verdicts. Paths of this machine become names, and addresses of servers are left out.
`--dry_run` shows the card and names the files. A recipe with `push_to_hub: true` does the same when
its run ends.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rea_core.checks import user_path
from rea_core.clients import http_errors
from rea_core.command import add_flags, command
from rea_rl.run.card import data_card, model_card
from rea_rl.run.endings import NotPublished
from rea_rl.run.private import public_file

logger = logging.getLogger(__name__)

CARD = "README.md"
WEIGHTS = ("adapter_config.json", "config.json")
PUBLISHED = (".safetensors", ".json", ".jinja", ".model", ".txt")  # no pickles
LEFT = {"trainer_state.json", "command.json"}
COMPANIONS = (".settings.json", ".scores.json", ".verdicts.jsonl")  # of a generation file
GENERATED = "generated_from_trainer"  # mark of cards that TRL wrote


@dataclass(frozen=True)
class Upload:
    """Files of a repository, by their name there, and its card."""

    kind: str  # "model" or "dataset"
    files: dict[str, Path]
    card: str

    def public_files(self, folder: Path) -> dict[str, Path]:
        """The files, or copies in a folder without places of this machine."""
        return {
            name: public_file(
                path, folder, self.kind == "dataset" and not name.endswith(COMPANIONS)
            )
            for name, path in self.files.items()
        }


def gather(paths: Sequence[Path], name: str, scores: Sequence[Path] = ()) -> Upload:
    """Files to publish. Raises ValueError for files that are neither weights nor responses."""
    from generation.math_verify_all import read_scores
    from generation.provenance import check_all_comparable, distinct_names, known_parts

    if paths[0].is_dir():
        if paths[1:]:
            raise ValueError(f"{paths[0]} is a folder; give it alone, or generation files only")
        files = _weights(paths[0])
    else:
        files = _responses(paths)
        scores = [*scores, *(p for p in files.values() if p.name.endswith(".scores.json"))]
    names = distinct_names(scores) if scores else {}
    read = {names[path]: read_scores(path) for path in scores}
    check_all_comparable(
        ((name, known_parts(each)) for name, each in read.items()), "give scores made alike"
    )
    if not paths[0].is_dir():
        return Upload("dataset", files, data_card(paths, name, read))
    own = paths[0] / CARD
    if own.is_file() and GENERATED not in (text := own.read_text(encoding="utf-8")) and not scores:
        return Upload("model", files, text)
    return Upload("model", files, model_card(paths[0], name, read))


def _weights(folder: Path) -> dict[str, Path]:
    """Files of a model or an adapter. Raises ValueError if weights are missing or broken."""
    from rea_core.model_files import check_files

    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ValueError(
            f"{folder} holds neither an adapter nor a model; give the output_dir of a run, or a "
            "merged model"
        )
    check_files(str(folder))
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in PUBLISHED}
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} has no weights; the run has not ended, or they were deleted")
    return {name: path for name, path in files.items() if name not in LEFT}


def _responses(paths: Sequence[Path]) -> dict[str, Path]:
    """Generation files with what belongs to them."""
    from generation.generation_file import read_generations

    files: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; give a folder of weights, or generation files"
            )
        read_generations(path)
        for each in (path, *(path.with_suffix(end) for end in COMPANIONS)):
            if each.is_file() and files.setdefault(each.name, each) != each:
                raise ValueError(f"{each} and {files[each.name]} have one name; publish one")
    return files


def upload(
    found: Upload,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Make the repository if it is not there, and commit all files at once; its address.

    Raises ConnectionError if the Hub is not reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    try:
        with TemporaryDirectory() as folder:
            contents: dict[str, Any] = {
                **found.public_files(Path(folder)),
                CARD: found.card.encode(),
            }
            operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
            address = api.create_repo(repo, repo_type=found.kind, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo, branch=revision, repo_type=found.kind, exist_ok=True)
            api.create_commit(
                address.repo_id,
                operations,
                commit_message="Published by REA-RL",
                repo_type=found.kind,
                revision=revision,
            )
    except http_errors() as error:
        raise ConnectionError(
            f"the Hub does not take {repo} ({' '.join(str(error).split())[:200]})"
        ) from error
    return str(address)


def publish_run(args: Any, repo: str) -> None:
    """Publish the output_dir of a run that has ended, as its recipe says (`push_to_hub`).

    Raises NotPublished with the command to do it later.
    """
    found = gather([Path(args.output_dir)], repo.rpartition("/")[2])
    try:
        address = upload(
            found,
            repo,
            private=args.hub_private_repo,
            token=args.hub_token,
            revision=args.hub_revision,
        )
    except ConnectionError as error:
        raise NotPublished(
            f"{error}; the run is complete: publish it later with `python -m rea_rl.publish "
            f"{args.output_dir} {repo}`"
        ) from error
    logger.info("published: %s", address)


@command(ConnectionError)
def main(argv: list[str] | None = None) -> None:
    """Exit code 0 with the address on standard output, 1 with one line on stderr for a mistake in
    the arguments or files, or a Hub that is not reached."""
    parser = argparse.ArgumentParser(description="Publish weights or responses on the Hub.")
    parser.add_argument(
        "paths", nargs="+", type=user_path, help="folder of an adapter or model; generation files"
    )
    parser.add_argument("repo", help="USER/NAME, or NAME in your own account")
    parser.add_argument(
        "--scores", nargs="*", type=user_path, default=[], help=".scores.json files for the card"
    )
    add_flags(
        parser,
        private=(False, "a new repository is private"),
        revision=(str, "branch; default: main"),
        dry_run=(False, "print the card and the names of the files; publish nothing"),
    )
    args = parser.parse_args(argv)
    found = gather(args.paths, args.repo.rpartition("/")[2], args.scores)
    if args.dry_run:
        sys.stdout.write(f"{found.card}\nfiles: {', '.join([*found.files, CARD])}\n")
        return
    address = upload(found, args.repo, private=args.private or None, revision=args.revision)
    sys.stdout.write(f"{address}\n")


if __name__ == "__main__":
    main()
