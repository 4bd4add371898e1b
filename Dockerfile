# docker build -t grlo-lite .                                   for a GPU, with Unsloth
# docker build -t grlo-lite --build-arg DEVICE=cpu .            without one, some gigabytes smaller
# mkdir -p runs                                                 or Docker makes it, as root's
# docker run --rm --gpus all --user "$(id -u)" -v "$PWD/runs:/grlo/runs" -v grlo-models:/models grlo-lite
# docker run --rm --gpus all --user "$(id -u)" -v "$PWD/runs:/grlo/runs" grlo-lite python -m grlo_lite.evaluate runs/NAME
# docker run --rm --gpus all --user "$(id -u)" -v "$PWD/runs:/grlo/runs" -p 127.0.0.1:7860:7860 -e GRLO_LITE_AUTH=me:PASSWORD \
#     grlo-lite grlo-lite app runs/NAME --host 0.0.0.0 --port 7860
ARG DEVICE=gpu

FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS gpu
FROM ubuntu:24.04 AS cpu
FROM ${DEVICE}
ARG DEVICE

# A C compiler and Python's headers: Triton compiles its kernels' launchers where it runs
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12-venv python3.12-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN python3.12 -m venv /opt/venv

# What the project needs, in a layer that changes with its versions alone: an empty package stands for its code
WORKDIR /opt/grlo_lite
RUN if [ "$DEVICE" = cpu ]; then pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu; fi
COPY pyproject.toml requirements.lock requirements-gpu.lock ./
RUN mkdir grlo_lite && touch grlo_lite/__init__.py README.md LICENSE \
    && if [ "$DEVICE" = cpu ]; then pip install -c requirements.lock '.[app]'; else pip install -c requirements-gpu.lock '.[app,gpu]'; fi

COPY README.md LICENSE *.py ./
COPY recipes recipes
COPY grlo_lite grlo_lite
RUN pip install --no-deps .

# Runs go to /grlo/runs, downloaded models to /models: mount both to keep them. A folder of the host is its owner's, so
# `--user` is whoever that is: every user may write where the image does, and has a home and a name, which torch asks for
RUN useradd --create-home --uid 10001 grlo && mkdir -p /grlo/runs /models && chown -R grlo /grlo /models && chmod -R a+rwX /grlo /models
ENV HF_HOME=/models HOME=/grlo USER=grlo
USER grlo
WORKDIR /grlo
CMD ["python", "-m", "grlo_lite.train"]
