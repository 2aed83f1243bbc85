# syntax=docker/dockerfile:1
# The server without a GPU. Layers from slow and rare to fast and frequent: base, dependencies, kernels, the project; all
# of them in the one image, so that an image is the next one's cache (inline cache).
# The context is what coldstream.deploy.image puts together: requirements.txt, entry.py, site/ (the package with its
# metadata). There are no weights in it: models come from the bucket.
ARG BASE=python:3.12-slim-bookworm

# The kernels for this image's own processor; compiled again only when these files change.
FROM ${BASE} AS kernels
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY site/coldstream/backends/cpu/compile.py /build/
COPY site/coldstream/backends/cpu/kernels /build/kernels/
RUN mkdir /build/made && python3 /build/compile.py /build/made

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin coldstream
ENV PATH=/opt/coldstream/bin:$PATH PYTHONPATH=/opt/coldstream/site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8080
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/coldstream/bin/python", "/opt/coldstream/site/entry.py"]
# What the kernels' threads need of GCC: its OpenMP.
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
# pip byte-compiles what it installs, from an environment of its own that leaves with the layer.
COPY requirements.txt /build/
RUN python3 -m venv --without-pip /opt/coldstream \
 && python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --no-cache-dir --python /opt/coldstream/bin/python install --compile -r /build/requirements.txt \
 && rm -rf /tmp/pip
COPY --from=kernels /build/made /opt/coldstream/site/coldstream/backends/cpu/
# A new version of the project changes only what comes from here on: seconds.
COPY entry.py site /opt/coldstream/site/
RUN /opt/coldstream/bin/python -m compileall -q /opt/coldstream/site
USER 10001
