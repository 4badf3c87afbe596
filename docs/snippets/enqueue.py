"""Enqueueing from Python with psycopg 3:  pip install "psycopg[binary]" && python enqueue.py"""
import os
from datetime import timedelta

import psycopg
from psycopg.types.json import Jsonb

url = os.environ["DATABASE_URL"]

with psycopg.connect(url) as conn:  # one transaction, committed at the end
    conn.execute("SELECT * FROM broadcast_enqueue('send_broadcast', %s)", [Jsonb({"broadcast_id": 42})])

with psycopg.connect(url) as conn:
    conn.execute(
        "SELECT * FROM broadcast_enqueue('send_segment_broadcast', %s, delay => %s, max_attempts => 5)",
        [Jsonb({"broadcast_id": 42, "segment_id": "premium"}), timedelta(minutes=10)],
    )
    batch = [{"job_type": "send_broadcast", "job_data": {"broadcast_id": id}} for id in (43, 44)]
    conn.execute("SELECT * FROM broadcast_enqueue_many(%s)", [Jsonb(batch)])
