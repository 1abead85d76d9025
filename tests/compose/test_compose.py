"""Runs the compose file from its images, scaled. One worker is killed and one drained; no task is lost."""
import json
import os
import socket
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from celery import Celery

ROOT = Path(__file__).resolve().parents[2]
TASKS, WORKERS = 1500, 4
TIMEOUT = 180
TERMINAL = {"SUCCESS", "FAILURE", "REVOKED"}

pytestmark = pytest.mark.timeout(1800)  # the first build compiles everything


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stack:
    """Runs the file's services under its own project name, on free ports."""

    def __init__(self, secrets):
        subprocess.run([ROOT / "ops" / "secrets-init", secrets], check=True)
        ports = {name: str(free_port()) for name in ("BROKER", "STORE", "MANAGEMENT")}
        self.project = f"countersign-test-{uuid.uuid4().hex[:8]}"
        self.environment = {
            **os.environ, "COUNTERSIGN_SECRETS": str(secrets),
            # Link-time optimisation would take minutes.
            "COUNTERSIGN_BUILD_PROFILE": "release",
            **{f"COUNTERSIGN_{name}_PORT": port for name, port in ports.items()},
        }

        def outside(file, host, port):
            url = (secrets / file).read_text().strip()
            return url.replace(f"@{host}/", f"@127.0.0.1:{port}/")

        self.broker_url = outside("broker_url", "rabbitmq:5672", ports["BROKER"])
        self.store_url = outside("store_url", "redis:6379", ports["STORE"])

    def compose(self, *arguments):
        command = ["docker", "compose", "--project-name", self.project, *arguments]
        ran = subprocess.run(command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ran.returncode == 0, f"{' '.join(arguments)}:\n{ran.stdout[-6000:]}"
        return ran.stdout

    def workers(self):
        return self.compose("ps", "--quiet", "worker").split()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    if subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        assert "CI" not in os.environ, "no test may be skipped in CI: no container engine answers"
        pytest.skip("no container engine answers")
    stack = Stack(tmp_path_factory.mktemp("compose") / "secrets")
    try:
        stack.compose("build")
        stack.compose("up", "--detach", "--wait", "--wait-timeout", str(TIMEOUT))
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="module")
def app(stack):
    app = Celery(broker=stack.broker_url, backend=stack.store_url, set_as_current=False)
    app.conf.task_default_queue = "demo"
    yield app
    app.close()


def test_a_worker_in_a_container_answers_and_is_confined(stack, app):
    assert app.send_task("demo.add", (2, 3)).get(timeout=TIMEOUT) == 5
    [worker] = stack.workers()
    inspected = json.loads(subprocess.check_output(["docker", "inspect", worker]))[0]
    assert inspected["State"]["Health"]["Status"] == "healthy"
    assert inspected["HostConfig"]["ReadonlyRootfs"]
    assert inspected["HostConfig"]["CapDrop"] == ["ALL"]
    assert inspected["Config"]["User"] == "65532:65532"
    password = stack.store_url.split("@")[0].rsplit(":", 1)[1]
    assert password not in json.dumps(inspected)
    assert password not in stack.compose("logs", "worker")


def test_every_accepted_task_has_one_result_though_one_worker_is_killed_and_one_drained(stack, app):
    stack.compose("up", "--detach", "--wait", "--wait-timeout", str(TIMEOUT),
                  "--no-recreate", "--scale", f"worker={WORKERS}")
    workers = stack.workers()
    assert len(workers) == WORKERS

    results = app.backend.client.pubsub()
    results.psubscribe("celery-task-meta-*")
    accepted = {app.send_task("demo.sleep", (0.3,)).id for _ in range(TASKS)}
    published = Counter()

    def listen_until(enough):
        deadline = time.monotonic() + TIMEOUT
        while not enough() and time.monotonic() < deadline:
            message = results.get_message(ignore_subscribe_messages=True, timeout=1)
            if message:
                document = json.loads(message["data"])
                if document["status"] in TERMINAL:
                    published[document["task_id"]] += 1

    listen_until(lambda: len(published) >= 50)
    killed, drained, *_ = workers
    drain = subprocess.Popen(["docker", "wait", drained], stdout=subprocess.PIPE, text=True)
    subprocess.run(["docker", "kill", "--signal", "KILL", killed], check=True, capture_output=True)
    subprocess.run(["docker", "kill", "--signal", "TERM", drained], check=True, capture_output=True)
    listen_until(lambda: accepted <= published.keys())
    results.close()

    lost = accepted - published.keys()
    assert not lost, f"{len(lost)} of {TASKS} have no result"
    twice = {task for task in accepted if published[task] > 1}
    assert not twice, f"{len(twice)} of {TASKS} have more than one result"
    stored = app.backend.client.mget(f"celery-task-meta-{task}" for task in accepted)
    assert {json.loads(document)["status"] for document in stored} == {"SUCCESS"}
    assert drain.communicate(timeout=TIMEOUT)[0].strip() == "0"
    logs = subprocess.run(["docker", "logs", drained], capture_output=True, text=True)
    assert "drained" in logs.stdout + logs.stderr
