"""Celery and Dramatiq in the roles of the bench's child processes.

  peers.py celery|dramatiq ROLE      ROLE is JSON, as in role.rs

A worker runs until SIGTERM; the others print their numbers as one line of JSON.
"""
import json
import os
import sys
import threading
import time

BROKER = os.environ["COUNTERSIGN_BROKER_URL"]
STORE = os.environ["COUNTERSIGN_STORE_URL"]
PAYLOAD = "x" * 220
PROCESSES = 2
WARM_UP = 50


def celery_app(queue):
    from celery import Celery

    app = Celery(broker=BROKER, backend=STORE)
    app.conf.update(
        task_default_queue=queue, task_acks_late=True, worker_prefetch_multiplier=128,
        broker_transport_options={"confirm_publish": True}, broker_connection_retry_on_startup=True,
        result_expires=24 * 60 * 60, redis_max_connections=1000)

    @app.task(name="bench.work")
    def work(payload, pause_ms):
        if pause_ms:
            time.sleep(pause_ms / 1000)
        return len(payload)

    return app, work


def celery_worker(queue):
    app, _ = celery_app(queue)
    app.worker_main([
        "worker", "--pool", "prefork", "-c", str(PROCESSES), "-Q", queue, "-l", "ERROR",
        "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", f"{queue}@bench"])


def celery_client(queue):
    _, work = celery_app(queue)
    send = lambda: work.delay(PAYLOAD, 0)
    return send, lambda sent: sent.get(timeout=60)


def dramatiq_actor(queue):
    import dramatiq
    from dramatiq.brokers.rabbitmq import RabbitmqBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    import redis

    broker = RabbitmqBroker(url=BROKER, confirm_delivery=True)
    pool = redis.BlockingConnectionPool.from_url(STORE, max_connections=1000)
    broker.add_middleware(Results(backend=RedisBackend(client=redis.Redis(connection_pool=pool))))
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="bench.work", queue_name=queue, store_results=True, max_retries=0,
                    result_ttl=24 * 60 * 60 * 1000)
    def work(payload, pause_ms):
        if pause_ms:
            time.sleep(pause_ms / 1000)
        return len(payload)

    return work


def dramatiq_worker(queue):
    """Dramatiq's command line imports this file as `peers`; the environment names the queue."""
    folder = os.path.dirname(os.path.abspath(__file__))
    os.environ.update(BENCH_QUEUE=queue, PYTHONPATH=folder)
    os.execv(sys.executable, [
        sys.executable, "-m", "dramatiq", "peers:loaded", "--processes", str(PROCESSES),
        "--threads", "8", "--queues", queue, "--skip-logging"])


def loaded():
    dramatiq_actor(os.environ["BENCH_QUEUE"])


def dramatiq_client(queue):
    work = dramatiq_actor(queue)
    send = lambda: work.send(PAYLOAD, 0)
    return send, lambda sent: sent.get_result(block=True, timeout=60_000)


def enqueue(send, count, in_flight):
    """Neither client has a window of confirms, so each of `in_flight` threads has one publish in flight."""
    return {"rate": calls(send, lambda sent: None, count, in_flight, warm_up=0)["rate"]}


def calls(send, wait, count, callers, warm_up=WARM_UP):
    latencies, lock = [], threading.Lock()

    def caller(calls):
        mine = []
        for _ in range(calls):
            begun = time.perf_counter()
            wait(send())
            mine.append(time.perf_counter() - begun)
        with lock:
            latencies.extend(mine)

    def all_callers(count):
        threads = [threading.Thread(target=caller, args=[count // callers]) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    if warm_up:
        all_callers(max(warm_up, callers))
        latencies.clear()
    begun = time.perf_counter()
    all_callers(count)
    rate = len(latencies) / (time.perf_counter() - begun)
    latencies.sort()
    share = lambda share: latencies[int(len(latencies) * share)] * 1000
    return {"rate": rate, "p50_ms": share(0.5), "p99_ms": share(0.99)}


def main():
    peer, role = sys.argv[1], json.loads(sys.argv[2])
    queue = role["queue"]
    if role["role"] == "worker":
        {"celery": celery_worker, "dramatiq": dramatiq_worker}[peer](queue)
        return
    send, wait = {"celery": celery_client, "dramatiq": dramatiq_client}[peer](queue)
    if role["role"] == "enqueue":
        numbers = enqueue(send, role["count"], role["in_flight"])
    else:
        numbers = calls(send, wait, role["count"], role["callers"])
    print(json.dumps(numbers), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
