/** Deleting completed jobs: a thousand rows at a time, so that no statement is long and nobody waits for it. */

/**
 * $1 queue, $2 days, $3 after this id. Walks the primary key, and ends where everything later is too young. One row:
 * `deleted`, and the `last_id` to go on after, or null.
 * @param schema as SQL
 */
export function clearStatement(schema: string): string {
  return `
    with walked as materialized (
      select id, created_at from ${schema}.broadcast_queue_jobs where id > $3::bigint order by id limit 1000
    ), doomed as (
      delete from ${schema}.broadcast_queue_jobs j
      where j.id = any(array(select id from walked)) and j.queue_name = $1::text and j.status = 'completed'
        and j.completed_at < now() - $2::float8 * interval '1 day'
      returning j.id
    ), told as (
      delete from ${schema}.broadcast_queue_attempts a using doomed where a.job = doomed.id
    )
    select (select count(*)::integer from doomed) as deleted,
           case when count(*) = 1000 and min(created_at) < now() - $2::float8 * interval '1 day'
             then max(id)::text end as last_id
    from walked`;
}
