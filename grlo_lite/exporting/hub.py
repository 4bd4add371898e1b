"""An upload to the Hugging Face Hub, in one commit: all of it is there, or nothing."""

import os
import re
from pathlib import Path

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
    from huggingface_hub.errors import HfHubHTTPError

    repo = require_uploadable(job)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    api, made = HfApi(), False
    try:
        api.create_repo(repo, private=job.private, exist_ok=True)
        made = True
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{job.content}, by grlo_lite")
    except (HfHubHTTPError, OSError, httpx.HTTPError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        there = f"the repository {repo} is there and has nothing of this upload" if made else "nothing was made there"
        raise BadInput(
            f"the upload to {repo} failed ({said}); {there}; {folder} is kept: check the token (hf auth login) and the "
            "connection, and give the same command again"
        ) from error
    return str(done.commit_url)
