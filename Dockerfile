# One image for every role: Ray head, Ray worker, Ray's autoscaler, submitter, nightly creator.
#
#   docker build -t stint .
#
# Reproducible: pin the base by digest, --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:<digest>.
# At run time the root file system may be read-only; /tmp, /dev/shm and /home/stint are written to.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
# torch first and by itself: PyPI carries the CUDA build, gigabytes that no CPU node uses. The pins are pyproject.toml's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Set it to a mirror of PyPI where builds have no other way out.
ARG PIP_INDEX_URL
RUN pip install --no-cache-dir --only-binary=:all: --index-url "${TORCH_INDEX}" torch==2.13.0 torchvision==0.28.0
# What the project needs, without the project, so that a change of code does not install it all again.
WORKDIR /opt/stint
COPY pyproject.toml ./
# look: conditions in SQL, also those of --again.
ARG EXTRAS="s3 gcs azure k8s look"
RUN python -c "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *(need for extra in sys.argv[1:] for need in project['optional-dependencies'][extra]), sep='\n')" ${EXTRAS} > /tmp/requirements.txt \
    && pip install --no-cache-dir --only-binary=:all: --requirement /tmp/requirements.txt
COPY README.md LICENSE ./
COPY conf ./conf
COPY workers ./workers
COPY jobs ./jobs
# Editable: `stint` is on the path and the code is here, once. Byte code is made now, because later nothing can write it.
RUN pip install --no-cache-dir --no-deps --editable . \
    && python -m compileall -q --invalidation-mode unchecked-hash jobs workers

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="stint" \
      org.opencontainers.image.description="Distributed INT8 batch inference over images, on Ray CPU nodes" \
      org.opencontainers.image.licenses="Apache-2.0"
# wget: KubeRay's submitter in SidecarMode waits with it, and before KubeRay 1.6 the probes did. bash comes with Debian.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 stint \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash stint
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/stint /opt/stint
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/home/stint \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/stint
# By number: Kubernetes cannot tell from a name that it is not root.
USER 1000:1000
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "jobs", "--help"]
