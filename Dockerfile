# One image for every part of Evensong; docker-compose.yml says which command each runs.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
RUN pip install 'uv==0.13.9' && uv venv /opt/venv
WORKDIR /opt/evensong
COPY requirements.lock ./
# PyTorch's CPU build; another choice is a build argument: cu128, rocm6.4, auto …
ARG TORCH_BACKEND=cpu
RUN uv pip install --python /opt/venv/bin/python --torch-backend "${TORCH_BACKEND}" --requirement requirements.lock
COPY pyproject.toml README.md ./
COPY src ./src
RUN uv pip install --python /opt/venv/bin/python --no-deps --editable .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/evensong --create-home evensong \
    && chmod 0750 /var/lib/evensong
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/evensong
COPY --from=build /opt/evensong ./
COPY dags ./dags
COPY plugins ./plugins
COPY feature_repo ./feature_repo
COPY mlflow ./mlflow
# There is no git in the image: docker build --build-arg CODE_COMMIT=$(git rev-parse HEAD)
ARG CODE_COMMIT=unknown
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    EVENSONG_HOME=/var/lib/evensong \
    EVENSONG_CODE_COMMIT=${CODE_COMMIT}
USER evensong
VOLUME /var/lib/evensong
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["evensong", "serve"]
