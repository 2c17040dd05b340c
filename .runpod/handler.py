"""Not part of the image. RunPod's Hub lists only repositories that have a handler.py; this worker is a Rust program that speaks
RunPod's protocol itself (worker/src/runpod), and the image's command starts it. Whoever runs this file gets the same."""

import os

os.execvp("brightrun", ["brightrun", "worker"])
