"""The client of RunPod's official SDK, unchanged, against `brightrun serve`.

    sdk_client.py URL KEY

Every call of `runpod.Endpoint` and of `runpod.AsyncioEndpoint` is made once at least, and what it gives is compared with
what the platform gives.
"""

import asyncio
import sys
import time
import uuid

import runpod

# Jobs may wait for each other; nothing is measured with it.
PATIENCE = 120


def job(name, **changes):
    """A job that trains for a moment."""
    hyperparameters = {
        "base_model": "brightrun/demo-moe",
        "max_steps": 4,
        "num_epochs": 1000,
        "eval_steps": 100000,
        "batch_size": 1,
        "max_seq_length": 256,
        "lora_rank": 4,
    }
    hyperparameters.update(changes)
    # Another one each time: a job of a name that is done gives its stored result.
    return {
        "job_id": f"{name}-{uuid.uuid4().hex[:8]}",
        "dataset_url": "demo:conversations",
        "hyperparameters": hyperparameters,
    }


def endless(name):
    """A job that trains until it is cancelled."""
    return job(name, max_steps=50000)


def equal(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: {found!r} and not {expected!r}")


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {PATIENCE} s")


def check_output(output, name):
    equal(output["status"], "success", f"{name}: status of the output")
    equal(output["job_id"], name, f"{name}: its own id")
    if "adapter_model.safetensors" not in output["model_files"]:
        raise AssertionError(f"{name}: no adapter in {output['model_files']}")


def run_and_output(endpoint):
    asked = job("run")
    request = endpoint.run({"input": asked})
    if not request.job_id.endswith("-u1"):
        raise AssertionError(f"an id of the platform's form, not {request.job_id}")
    check_output(request.output(timeout=PATIENCE), asked["job_id"])
    equal(request.status(), "COMPLETED", "run: status")
    # The same without the envelope, which the client puts around it.
    asked = job("bare")
    check_output(endpoint.run(asked).output(timeout=PATIENCE), asked["job_id"])


def run_sync(endpoint):
    asked = job("sync")
    check_output(endpoint.run_sync({"input": asked}, timeout=PATIENCE), asked["job_id"])


def errors(endpoint):
    request = endpoint.run({"input": {"dataset_url": 5}})
    output = request.output(timeout=PATIENCE)
    equal(request.status(), "FAILED", "errors: status")
    equal(output["status"], "failed", "errors: status of the output")
    state = endpoint.rp_client.get(f"local/status/{request.job_id}")
    if "dataset_url" not in state["error"]:
        raise AssertionError(f"errors: nothing of the field in {state['error']!r}")


def stream(endpoint):
    request = endpoint.run({"input": job("stream", max_steps=60)})
    pieces = list(request.stream())
    steps = [piece["current_step"] for piece in pieces]
    equal(steps, sorted(steps), "stream: order")
    if not any(piece.get("metrics", {}).get("training_loss") for piece in pieces):
        raise AssertionError(f"stream: no loss in {len(pieces)} pieces")
    equal(request.status(), "COMPLETED", "stream: status")


def status_cancel_and_purge(endpoint):
    before = endpoint.health()["jobs"]["inQueue"]
    running = endpoint.run({"input": endless("cancelled")})
    until("it runs", lambda: running.status() == "IN_PROGRESS")
    waiting = endpoint.run({"input": job("waits")})
    equal(waiting.status(), "IN_QUEUE", "a second job")
    health = endpoint.health()
    equal(health["jobs"]["inProgress"], 1, "health: in progress")
    equal(health["jobs"]["inQueue"], before + 1, "health: in queue")
    equal(health["workers"]["running"], 1, "health: workers")
    equal(endpoint.purge_queue(), {"removed": 1, "status": "completed"}, "purge")
    cancelled = running.cancel()
    equal((cancelled["id"], cancelled["status"]), (running.job_id, "CANCELLED"), "cancel")
    equal(running.status(), "CANCELLED", "status after cancel")
    until("the machine is free", lambda: endpoint.health()["workers"]["running"] == 0)


def wrong_key(url, key):
    if not key:
        return
    for wrong in ("wrong", key + "x"):
        try:
            runpod.Endpoint("local", api_key=wrong).health()
        except RuntimeError:
            continue
        raise AssertionError("a wrong key opens")


async def asynchronous():
    async with runpod.http_client.AsyncClientSession() as session:
        endpoint = runpod.AsyncioEndpoint("local", session)
        asked = job("async")
        request = await endpoint.run(asked)
        check_output(await request.output(timeout=PATIENCE), asked["job_id"])
        equal(await request.status(), "COMPLETED", "asynchronous: status")
        request = await endpoint.run(job("async-stream", max_steps=60))
        pieces = [piece async for piece in request.stream()]
        if not pieces:
            raise AssertionError("asynchronous: nothing streamed")
        request = await endpoint.run(endless("async-cancelled"))
        while await request.status() != "IN_PROGRESS":
            await asyncio.sleep(0.05)
        await endpoint.run(job("async-waits"))
        equal((await endpoint.health())["jobs"]["inQueue"], 1, "asynchronous: health")
        equal((await endpoint.purge_queue())["removed"], 1, "asynchronous: purge")
        equal((await request.cancel())["status"], "CANCELLED", "asynchronous: cancel")


def main():
    _, url, key = sys.argv
    # The SDK's clients insist on one, also where the server wants none.
    runpod.api_key = key or "none"
    for base in (url, f"{url}/v2"):
        runpod.endpoint_url_base = base
        runpod.Endpoint("local").health()
    endpoint = runpod.Endpoint("local")
    for check in (run_and_output, run_sync, errors, stream, status_cancel_and_purge):
        check(endpoint)
        print(f"ok  {check.__name__}", flush=True)
    wrong_key(url, key)
    asyncio.run(asynchronous())
    print("ok  asynchronous", flush=True)


if __name__ == "__main__":
    main()
