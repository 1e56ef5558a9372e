# The demo on a CPU: docker build -t unival-merge . && docker run --rm -v "$PWD/out:/out" unival-merge
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /unival-merge
COPY . .
# PyTorch's own index has wheels without CUDA.
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        --constraint constraints.txt --editable '.[test]' \
    && touch .venv/installed

CMD ["sh", "-c", "make demo && cp -r demo-quick /out/"]
