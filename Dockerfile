# syntax=docker/dockerfile:1.7
# The worker as a container of RunPod's. Both stages stand on the same Ubuntu, so that what is built runs; tag and digest say
# which (the digests are those of linux/amd64). The kernels are compiled by this CUDA, so that drivers from its version on load
# them; of the libraries the program looks for cuBLASLt when it runs.

FROM nvidia/cuda:12.8.1-devel-ubuntu24.04@sha256:4b9ed5fa8361736996499f64ecebf25d4ec37ff56e4d11323ccde10aa36e0c43 AS build

# Ubuntu keeps only the newest version of a package, so a pinned one cannot be had some weeks later.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# The installer by its hash, which the official Rust images use too; the compiler by its version, whose parts it checks.
ENV RUSTUP_HOME=/opt/rustup CARGO_HOME=/opt/cargo PATH=/opt/cargo/bin:$PATH
ADD --chmod=755 --checksum=sha256:4acc9acc76d5079515b46346a485974457b5a79893cfb01112423c89aeb5aa10 \
    https://static.rust-lang.org/rustup/archive/1.29.0/x86_64-unknown-linux-gnu/rustup-init /tmp/rustup-init
RUN /tmp/rustup-init -y --no-modify-path --profile minimal --default-toolchain 1.95.0

WORKDIR /source
COPY . .
# Crates and what was compiled stay with the builder: after a change only what depends on it is built again.
RUN --mount=type=cache,target=/opt/cargo/registry,sharing=locked \
    --mount=type=cache,target=/source/target,sharing=locked \
    CUDA_HOME=/usr/local/cuda cargo build --locked --release --package brightrun-worker --features cuda --bin brightrun \
    && strip --strip-all -o /brightrun target/release/brightrun

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04@sha256:828c4d878adcaa4265d80c95d8ec877149b49bb2419a4cf3bb6aa889bbb7ca2e

LABEL org.opencontainers.image.title="brightrun" \
      org.opencontainers.image.description="Fine-tunes Qwen mixture-of-experts models with 4-bit QLoRA, as a RunPod serverless worker" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT"

# For what the Hub's tests fetch inside this image; the program brings its own roots of trust. Versions: as above.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*

COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/brightrun/
COPY --from=build /brightrun /usr/local/bin/brightrun

# The base's entry point prints a page first; a worker's output is its log. So the worker is process 1: it answers SIGTERM
# itself and starts no processes that it would have to wait for.
ENTRYPOINT []
# No user of its own: RunPod mounts volumes for root, and the Hub's tests install packages in this image. No port, no volume:
# a folder that is missing at /runpod-volume is noticed, one that the image brings would be trained into and lost.
CMD ["brightrun", "worker"]
