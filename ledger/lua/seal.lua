-- ARGV: job
-- Nothing more will be staged; a sealed job without open batches is done.
local key = job_key(ARGV[1])
local state = redis.call('HGET', key, 'state')
if not state then return 'gone' end
if state == 'open' or state == 'paused' then redis.call('HSET', key, 'state', 'sealed') end
finish_if_done(ARGV[1], now_ms())
return redis.call('HGET', key, 'state')
