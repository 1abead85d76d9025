"""The tasks of a plain Celery worker, which runs what Rust producers enqueue: `celery -A celery_tasks worker`."""
import os

from celery import Celery, chain, chord

app = Celery("celery_tasks", broker=os.environ["COUNTERSIGN_BROKER_URL"],
             backend=os.environ["COUNTERSIGN_STORE_URL"])
app.conf.task_default_queue = os.environ["CELERY_QUEUE"]


@app.task(name="plain.add")
def add(x, y):
    return x + y


@app.task(name="plain.sum")
def total(numbers):
    return sum(numbers)


@app.task(name="plain.request", bind=True)
def request(self):
    seen = self.request
    return {"id": seen.id, "root": seen.root_id, "parent": seen.parent_id, "retries": seen.retries,
            "eta": seen.eta, "timelimit": seen.timelimit, "ignore_result": seen.ignore_result}


@app.task(name="plain.retry", bind=True, max_retries=3)
def retry(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(name="plain.chain")
def chained(x):
    return chain(add.s(x, 1), add.s(2), add.s(3)).apply_async().id


@app.task(name="plain.chord")
def chorded(count):
    return chord([add.s(number, number) for number in range(count)])(total.s()).id
