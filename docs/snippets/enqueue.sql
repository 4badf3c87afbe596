-- Enqueueing from psql:  psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f enqueue.sql

-- A plain row.
INSERT INTO broadcast_queue_jobs (job_type, job_data)
VALUES ('send_broadcast', '{"broadcast_id": 41}');

-- By function, with options, and many at once.
SELECT job_id, inserted FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 42}',
                                               delay => '10 minutes', priority => 5);
SELECT * FROM broadcast_enqueue_many('[{"job_type": "send_broadcast", "job_data": {"broadcast_id": 43}},
                                       {"job_type": "send_segment_broadcast", "delay": "1 hour",
                                        "job_data": {"broadcast_id": 43, "segment_id": "premium"}}]');

-- Asked for again while it is live, a broadcast is found: inserted is false, and the job is the one of before.
SELECT job_id, inserted FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 42}');

-- A key of your own does the same for whatever you like; null is none, so this adds a second one.
SELECT job_id, inserted FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 44}', unique_key => 'newsletter-2030-01');
SELECT job_id, inserted FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 45}', unique_key => 'newsletter-2030-01');
SELECT job_id, inserted FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 42}', unique_key => NULL);

-- At an instant, and not started when it is too late.
SELECT job_id, scheduled_at, expires_at
FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 46}', scheduled_at => '2030-01-01 09:00+01',
                       expires_at => '2030-01-01 12:00+01', max_attempts => 5);
