"""The formats that Transformers and PEFT read: the adapter by itself, and merged weights."""

import shutil
from pathlib import Path

from grlo_lite.exporting import card, merged
from grlo_lite.exporting.job import Job, growing, torch_dtype
from grlo_lite.rundir import files

ADAPTER_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def adapter(job: Job) -> Path:
    """The folder with the run's own adapter, its tokenizer and stop tokens; its base by an id where one is known."""
    source = job.subject.adapter
    chosen = [file for pattern in ADAPTER_FILES for file in sorted(source.glob(pattern))]
    with growing(job.folder, sum(file.stat().st_size for file in chosen)) as folder:
        for file in chosen:
            shutil.copyfile(file, folder / file.name)
        config = files.read_json(folder / "adapter_config.json")
        base = card.base_id(job.subject, job.base_id)
        if base is not None:
            config |= {"base_model_name_or_path": base, "revision": merged.commit(job.subject)}
            files.write_json(folder / "adapter_config.json", config)
        card.write(folder, job, "adapter")
    return job.folder


def merged_weights(job: Job) -> Path:
    """The folder with the merged model."""
    with growing(job.folder, merged.bytes_of_merge(job.subject)) as folder:
        write_merged(job, folder)
        card.write(folder, job, "merged")
    return job.folder


def write_merged(job: Job, folder: Path) -> None:
    """Writes the merged model into a folder that is there."""
    from grlo_lite.machine.device import float_dtype, this_device

    device = this_device()
    trained_in = float_dtype(device, job.subject.cpu_dtype)
    merged.merged(job.subject, folder, merged.Merge(torch_dtype(job.dtype), job.into, trained_in, device))
