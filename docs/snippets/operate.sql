-- Watching and operating a job from psql:  psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f operate.sql
-- Each function answers the job's status after it. \gset keeps the row's columns as variables: here :job_id.

SELECT job_id FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 42}', delay => '1 day') \gset

-- How far it is; the counters are null until the service reports them.
SELECT status, processed, total, percent, per_second, eta_seconds FROM broadcast_progress(:'job_id');

SELECT broadcast_pause(:'job_id', 'legal is looking');
SELECT broadcast_resume(:'job_id');
SELECT broadcast_cancel(:'job_id', 'wrong text');

-- Back into the queue, due now, from where it stood: a failed or cancelled one, or one that waits for its next attempt.
SELECT broadcast_retry(:'job_id');

-- Once more, for those alone who are failed in the service's books ('pending', 'unknown', or 'all' for everybody).
-- It begins anew, also where the job is completed, and takes a service that works in slices.
SELECT broadcast_resend(:'job_id', 'failed');

-- A whole queue, or without a name all of them: no daemon claims from it until it is resumed.
SELECT broadcast_pause_queue('broadcasts', 'the messenger has an outage');
SELECT broadcast_resume_queue('broadcasts');
