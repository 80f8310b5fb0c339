#!lua flags=allow-oom
-- ARGV: job
-- From now on nothing is staged; returns the open batches, which the caller drops.
local job = ARGV[1]
local key = job_key(job)
local state = redis.call('HGET', key, 'state')
if not state then return { 'gone' } end
if state == 'done' then return { 'done' } end
redis.call('DEL', key .. ':producer')
redis.call('HDEL', P .. 'active:' .. redis.call('HGET', key, 'collection'), job)
local adopt = P .. 'adopt:' .. redis.call('HGET', key, 'signature')
if redis.call('GET', adopt) == job then redis.call('DEL', adopt) end
redis.call('HSET', key, 'state', 'cancelled', 'finished', now_ms())
return { 'cancelled', redis.call('SMEMBERS', open_key(job)) }
