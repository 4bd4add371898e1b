"""An upload to the Hugging Face Hub, in one commit: all of it is there, or nothing."""

import os
import re
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.exporting import card
from grlo_lite.exporting.job import Job
from grlo_lite.models import names
from grlo_lite.wording import shortened


def require_uploadable(job: Job) -> str:
    """The repository's id. Raises BadInput where none is named, or the run is not evaluated and that is not said."""
    if job.repo is None or not names.looks_like_a_hub_id(job.repo) or not re.fullmatch(r"[\w.-]+/[\w.-]+", job.repo):
        raise BadInput(f"--format hub uploads to --repo OWNER/NAME; {shortened(job.repo)} is none")
    if card.evaluated(job.subject) is None and not job.without_evaluation:
        raise BadInput(
            f"the run {job.subject.run.path} is not evaluated: python -m grlo_lite.evaluate {job.subject.run.path}; "
            "or upload it --without-evaluation, which its card then says"
        )
    return job.repo


def upload(job: Job, folder: Path) -> str:
    """The address of what was uploaded. Raises BadInput, with what is and is not there, where that failed."""
    import httpx
    from huggingface_hub import HfApi

    failures = (OSError, httpx.HTTPError, RuntimeError)  # the first is what the Hub's own errors are too
    repo = require_uploadable(job)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    api, before = HfApi(), None
    try:
        api.create_repo(repo, private=job.private, exist_ok=True)
        before = api.repo_info(repo).sha or ""
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{job.content}, by grlo_lite")
    except failures as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        there = f"none of its files are in {repo}" if before is None else _there(api, repo, before, failures)
        raise BadInput(
            f"the upload to {repo} failed ({said}); {there}; {folder} is kept: check the token (hf auth login) and the "
            "connection, and give the same command again"
        ) from error
    return str(done.commit_url)


def _there(api: Any, repo: str, before: str, failures: tuple[type[Exception], ...]) -> str:
    """What a failed upload left, told from the repository's last commit before it and now. A connection can break
    after the Hub has made the commit and before it says so.
    """
    try:
        now = api.repo_info(repo).sha or ""
    except failures:
        return f"whether the Hub has it all the same is not known: look at {api.endpoint}/{repo}"
    if now == before:
        return f"the repository {repo} is there and has nothing of this upload"
    return f"the Hub has a commit since, which may be this upload, whole: look at {api.endpoint}/{repo}"
