# syntax=docker/dockerfile:1
# The server on an NVIDIA GPU; the driver comes from the host, CUDA with the wheel of torch. Layers from slow and rare to fast and frequent: base, torch, dependencies, the project.
# The context is what coldstream.deploy.image puts together: requirements.txt, entry.py, site/ (the package with its metadata).
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt /build/
# torch by itself: it is most of the image, and changes least.
RUN grep '^torch==' /build/requirements.txt > /build/torch.txt \
 && python -m venv /opt/coldstream \
 && /opt/coldstream/bin/pip install -r /build/torch.txt
RUN /opt/coldstream/bin/pip install -r /build/requirements.txt \
 && /opt/coldstream/bin/python -m compileall -q -j 0 /opt/coldstream/lib \
 && rm -rf /opt/coldstream/lib/python3.12/site-packages/pip /opt/coldstream/lib/python3.12/site-packages/torch/include

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin coldstream
COPY --from=build /opt/coldstream /opt/coldstream
# A new version of the project changes only what comes from here on: seconds.
COPY site /opt/coldstream/lib/python3.12/site-packages
COPY entry.py /opt/coldstream/entry.py
RUN /opt/coldstream/bin/python -m compileall -q /opt/coldstream/lib/python3.12/site-packages/coldstream
ENV PATH=/opt/coldstream/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8080
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/coldstream/bin/python", "/opt/coldstream/entry.py"]
