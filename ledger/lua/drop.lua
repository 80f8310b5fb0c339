#!lua flags=allow-oom
-- ARGV: batch
-- The batch cannot go on (its text is lost, its job is cancelled): frees its credit and counts it as lost.
local batch = ARGV[1]
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return { 'closed', {} } end
-- Whoever deletes the blobs must know them: they are forgotten with the batch.
local fields = redis.call('HGETALL', key)
local job, chunks = redis.call('HGET', key, 'job'), redis.call('HGET', key, 'chunks')
forget(batch, job)
redis.call('HINCRBY', job_key(job), 'lost', chunks)
finish_if_done(job, now_ms())
return { 'dropped', fields }
