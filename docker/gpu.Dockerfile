# syntax=docker/dockerfile:1
# The server on an NVIDIA GPU: the driver comes from the host, CUDA with the wheel of torch.
# Layers from slow and rare to fast and frequent: base, torch, dependencies, kernels, the project; all of them in the
# one image, so that an image is the next one's cache (inline cache).
# The context is what coldstream.deploy.image puts together: torch.txt, requirements.txt, entry.py, site/ (the package
# with its metadata). There are no weights in it: models come from the bucket.
ARG BASE=python:3.12-slim-bookworm

# The kernels for this image's own processor; compiled again only when these files change.
FROM ${BASE} AS kernels
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY site/coldstream/backends/cpu/compile.py /build/
COPY site/coldstream/backends/cpu/kernels /build/kernels/
RUN mkdir /build/made && python3 /build/compile.py /build/made

# Kernels for every card, compiled here without one, so that neither Triton nor a compiler is in the image. 3.9 brings
# CUDA 12's assembler along: a driver of CUDA 12, as an L4 has it, takes no code of CUDA 13's.
FROM ${BASE} AS cubins
RUN python3 -m venv /build/venv && /build/venv/bin/pip --no-cache-dir install triton==3.9.0
COPY site/coldstream/__init__.py site/coldstream/errors.py /build/site/coldstream/
COPY site/coldstream/backends/__init__.py /build/site/coldstream/backends/
COPY site/coldstream/backends/cuda /build/site/coldstream/backends/cuda/
RUN PYTHONPATH=/build/site /build/venv/bin/python -m coldstream.backends.cuda.compile /build/kernels

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin coldstream
ENV PATH=/opt/coldstream/bin:$PATH PYTHONPATH=/opt/coldstream/site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8080 \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/coldstream/bin/python", "/opt/coldstream/site/entry.py"]
# torch by itself: it is most of the image, and changes least. What only building on it and testing it needs goes, 0.2
# GB, and so does Triton, which torch brings along for torch.compile. pip byte-compiles what it installs, from an environment of its own that leaves with the layer.
ARG TORCH_INDEX=https://pypi.org/simple
COPY torch.txt /build/
RUN python3 -m venv --without-pip /opt/coldstream \
 && python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --no-cache-dir --python /opt/coldstream/bin/python install --compile \
    --index-url "${TORCH_INDEX}" -r /build/torch.txt \
 && cd /opt/coldstream/lib/python3*/site-packages \
 && rm -rf /tmp/pip torch/include torch/test triton \
 && find torch/bin -type f ! -name torch_shm_manager -delete
COPY requirements.txt /build/
RUN python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --no-cache-dir --python /opt/coldstream/bin/python install --compile -r /build/requirements.txt \
 && rm -rf /tmp/pip
COPY --from=kernels /build/made /opt/coldstream/site/coldstream/backends/cpu/
COPY --from=cubins /build/kernels /opt/coldstream/site/coldstream/backends/cuda/kernels/
# A new version of the project changes only what comes from here on: seconds.
COPY entry.py site /opt/coldstream/site/
RUN /opt/coldstream/bin/python -m compileall -q /opt/coldstream/site
USER 10001
