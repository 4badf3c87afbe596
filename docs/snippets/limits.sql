-- Limits and send windows from psql:  psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f limits.sql
-- They hold for all daemons together, and may be changed while they run.

-- 30 messages a second for a queue; 25 for the bot that job_data.bot_id names, and two of its jobs at once.
SELECT broadcast_set_limit('queue:broadcasts', 30);
SELECT broadcast_set_limit('bot:shop', 25, max_concurrent => 2);
SELECT key, per_second, max_concurrent FROM broadcast_queue_limits ORDER BY key;

SELECT broadcast_drop_limit('queue:broadcasts');

-- The hours of a queue, for every job that has none of its own.
SELECT broadcast_set_window('broadcasts',
  '{"from": "09:00", "to": "21:00", "time_zone": "Europe/Berlin", "days": [1, 2, 3, 4, 5]}');

-- A job's own: if it could not begin in its first window, it does not go out any more.
SELECT job_id FROM broadcast_enqueue('send_broadcast', '{"broadcast_id": 42, "bot_id": "shop"}',
  send_window => '{"from": "18:00", "to": "20:00", "time_zone": "Europe/Berlin", "missed": "fail"}');

-- No hours for the queue any more.
SELECT broadcast_set_window('broadcasts', NULL);
