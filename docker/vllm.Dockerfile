# syntax=docker/dockerfile:1
# The server with vLLM on an NVIDIA GPU: vLLM's own image, with torch and a CUDA that fits the card's driver in it, and
# this project beside it. BASE says which release and which CUDA: coldstream.deploy.cards.
# The context is what coldstream.deploy.image puts together: ranges.txt, entry.py, site/ (the package with its metadata,
# whose entry point is how vLLM finds our loader). There are no weights in it: models come from the bucket.
ARG BASE
FROM ${BASE}
USER root
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin coldstream
ENV PYTHONPATH=/opt/coldstream/site PYTHONUNBUFFERED=1 PORT=8080 HOME=/tmp VLLM_NO_USAGE_STATS=1
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "/opt/coldstream/site/entry.py"]
# Only what the base lacks: what vLLM was built and tested with stays as it is.
COPY ranges.txt /build/
RUN python3 -m pip freeze --exclude-editable | grep -v "@" > /build/base.txt \
 && python3 -m pip install --no-cache-dir --break-system-packages --constraint /build/base.txt -r /build/ranges.txt
# A new version of the project changes only what comes from here on: seconds.
COPY entry.py site /opt/coldstream/site/
RUN python3 -m compileall -q /opt/coldstream/site
USER 10001
